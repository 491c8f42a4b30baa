"""What asking costs: our runner over a model server that costs nothing, beside mlflow.genai.evaluate and lm-eval on the same rows.

Every figure is of a whole program, measured from outside: wall time, and the CPU time of its processes. A row's cost is the difference
between many rows and few, so that no one's start-up counts. lm-eval asks as much at once as we do; MLflow has no
rate limit and its own number of workers, as with 32 its threads wait half a minute each for a connection to its database (2026-11-25).
"""

import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from evals.bench_upstream import ANSWER

FEW = 20
AT_ONCE = 32
_MLFLOW = """
import json, sys
import mlflow, openai
from mlflow.genai.scorers import scorer
file, url, folder = sys.argv[1:]
client = openai.OpenAI(base_url=url, api_key="none")
rows = [json.loads(line) for line in open(file)]
@scorer
def exact(outputs, expectations):
    return outputs == expectations["expected"]
def predict(prompt):
    return client.chat.completions.create(model="m", messages=[{"role": "user", "content": prompt}]).choices[0].message.content
mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
mlflow.set_experiment(experiment_id=mlflow.create_experiment("bench", artifact_location=folder))
data = [{"inputs": {"prompt": row["prompt"]}, "expectations": {"expected": row["expected"]}} for row in rows]
print(mlflow.genai.evaluate(data=data, predict_fn=predict, scorers=[exact]).metrics)
"""
_LM_EVAL = """task: inhouse_bench
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{expected}}}}"
generation_kwargs: {{until: ["###"], max_gen_toks: 64}}
metric_list: [{{metric: exact_match}}]
"""
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "GIT_PYTHON_REFRESH": "quiet",
    "TOKENIZERS_PARALLELISM": "false",
    "MLFLOW_GENAI_EVAL_PREDICT_RATE_LIMIT": "0",
}


class BenchError(Exception):
    """A program that was measured failed."""


class Program(NamedTuple):
    """How a program is called for a data file and a folder of its own, and what it prints if it found every answer right."""

    name: str
    words: Callable[[Path, Path], list[str]]
    proof: str


class Figure(NamedTuple):
    """A program over some rows: seconds of wall and of CPU time in all, and milliseconds a row without the start."""

    name: str
    rows: int
    wall_s: float
    cpu_s: float
    wall_ms_a_row: float
    cpu_ms_a_row: float


def run(rows: int, peer_rows: int, *, lm_eval: str | None, say: Callable[[str], None]) -> list[Figure]:
    """Ours over `rows` for each of two models, then again from the cache; ours and the peers over `peer_rows` (0: no peers).

    Raises `BenchError` where a program fails or an answer is not right.
    """
    with tempfile.TemporaryDirectory() as name, _upstream(Path(name)) as url:
        home = Path(name) / "home"
        asked = [(_ours("ours, model a", url, "a", home), rows), (_ours("ours, model b", url, "b", home), rows)]
        asked.append((_ours("ours, from the cache", url, "b", home), rows))
        if peer_rows:
            asked += [(_ours("ours", url, "m"), peer_rows), (_mlflow(url), peer_rows)]
        if peer_rows and lm_eval:
            asked.append((_lm_eval(url, lm_eval), peer_rows))
        found = []
        for program, n in asked:
            say(f"{program.name}, {n} rows")
            found.append(_figure(program, n, Path(name)))
        return found


def _figure(program: Program, rows: int, folder: Path) -> Figure:
    """Runs a program over few rows twice, as the first time it comes from the disk, and over all of them."""
    took = []
    for n in (FEW, FEW, rows):
        own = Path(tempfile.mkdtemp(dir=folder))
        file = own / "rows.jsonl"
        asked = ({"id": f"c{at}", "prompt": f"What is the answer to question {at}?", "expected": ANSWER} for at in range(n))
        file.write_text("".join(json.dumps(row) + "\n" for row in asked), encoding="utf-8")
        took.append(_timed(program, program.words(file, own)))
    few_wall, few_cpu = map(min, took[0], took[1])
    wall, cpu = took[2]
    more = max(1, rows - FEW)
    return Figure(program.name, rows, wall, cpu, (wall - few_wall) / more * 1000, (cpu - few_cpu) / more * 1000)


def _timed(program: Program, words: list[str]) -> tuple[float, float]:
    """Seconds of wall and CPU time. Raises `BenchError` where it fails or not every answer was right."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | _QUIET, check=False)
    wall_s, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        raise BenchError(f"{program.name} ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-600:]}")
    if re.search(program.proof, done.stdout) is None:
        raise BenchError(f"{program.name} did not find every answer right: {done.stdout.strip()[-600:]}")
    return wall_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _ours(name: str, url: str, model: str, home: Path | None = None) -> Program:
    how = ["--model", model, "--base-url", url, "--scorer", "exact", "--not-sensitive", "--at-once", str(AT_ONCE), "--json"]

    def words(file: Path, own: Path) -> list[str]:
        return [sys.executable, "-m", "inhouse", "eval", "run", str(file), *how, "--home", str(home or own)]

    return Program(name, words, r'"effective": \[\s*1\.0,')


def _mlflow(url: str) -> Program:
    proof = r"exact/mean': (np\.float64\()?1\.0\b"
    return Program("mlflow.genai.evaluate", lambda file, own: [sys.executable, "-c", _MLFLOW, str(file), url, str(own)], proof)


def _lm_eval(url: str, program: str) -> Program:
    arguments = f"model=m,base_url={url}/chat/completions,num_concurrent={AT_ONCE},max_retries=1,tokenized_requests=False"

    def words(file: Path, own: Path) -> list[str]:
        (own / "task.yaml").write_text(_LM_EVAL.format(file=file), encoding="utf-8")
        how = ["--model", "local-chat-completions", "--model_args", arguments, "--apply_chat_template"]
        return [program, "run", *how, "--tasks", "inhouse_bench", "--include_path", str(own)]

    return Program("lm-eval", words, r"exact_match\|[^|]*\|\s*1\|")


@contextmanager
def _upstream(folder: Path) -> Iterator[str]:
    file = folder / "port"
    process = subprocess.Popen([sys.executable, "-m", "evals.bench_upstream", str(file)])
    try:
        until = time.monotonic() + 30
        while not file.exists():
            if process.poll() is not None or time.monotonic() > until:
                raise BenchError("the stand-in for a model server did not start")
            time.sleep(0.02)
        yield f"http://127.0.0.1:{file.read_text()}/v1"
    finally:
        process.terminate()
        process.wait()


def lines(found: list[Figure]) -> list[str]:
    """The figures as a table, and the ratios to ours."""
    out = [f"{'':<24}{'rows':>7}{'wall s':>9}{'CPU s':>8}{'ms a row':>10}{'CPU ms a row':>14}"]
    out += [
        f"{one.name:<24}{one.rows:>7}{one.wall_s:>9.1f}{one.cpu_s:>8.1f}{one.wall_ms_a_row:>10.2f}{one.cpu_ms_a_row:>14.2f}"
        for one in found
    ]
    ours = next((one for one in found if one.name == "ours"), None)
    for one in found[found.index(ours) + 1 :] if ours else ():
        assert ours is not None
        whole = f"{one.name}: {one.wall_s / ours.wall_s:.1f}x our time, {one.cpu_s / ours.cpu_s:.1f}x our CPU, starts included"
        row, cpu = one.wall_ms_a_row / ours.wall_ms_a_row, one.cpu_ms_a_row / ours.cpu_ms_a_row
        is_seen = min(row, cpu) > 0  # else the rows are lost in the start's own spread: more rows would show them
        out.append(
            f"{whole}; a row: {row:.1f}x our time, {cpu:.1f}x our CPU" if is_seen else f"{whole}; a row: lost in its start, take more rows"
        )
    return out
