"""The evals' part of the command: `inhouse eval run` and `report`. Arguments in, text or JSON out."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click
import msgspec

from evals.compare_cli import COMMANDS

if TYPE_CHECKING:
    from evals.ask import Told
    from evals.client import Endpoint
    from evals.run import Plan
    from evals.store import Stored

HOME = click.option("--home", envvar="INHOUSE_HOME", default=".inhouse", show_default=True, type=click.Path(path_type=Path),
                    help="Where runs and answers are kept (INHOUSE_HOME).")  # fmt: skip
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group("eval")
def evals() -> None:
    """Ask models the cases of a task, score the answers, say how good they are and which may take the task."""


for _command in COMMANDS:
    evals.add_command(_command)


@evals.command("run")
@click.argument("suite")
@click.option("--model", required=True, help="The model, task/NAME or auto, as the base URL calls it.")
@click.option("--base-url", help="Where it answers, up to /v1. Without it: the router that `inhouse up` started here, with its key.")
@click.option("--api", type=click.Choice(["openai", "anthropic"]), default="openai", show_default=True, help="What the base URL speaks.")
@click.option("--key-env", metavar="NAME", help="The environment variable that holds the base URL's API key.")
@click.option("--scorer", metavar="YAML", help="exact, or with options: '{use: numeric, relative: 0.01}'. A data file needs one.")
@click.option("--samples", default=1, show_default=True, type=click.IntRange(1), help="Times that each case is asked.")
@click.option("--limit", type=click.IntRange(1), help="Only the first cases.")
@click.option("--at-once", default=32, show_default=True, type=click.IntRange(1, 4096), help="Most requests under way.")
@click.option("--body", default="{}", metavar="JSON", help="Fields of each request, e.g. '{\"temperature\": 0}'; null leaves one out.")
@click.option("--instruct/--no-instruct", default=None, help="Put the task's prompt before each case as a system message, or don't.")
@click.option("--digest", default="", help="The model's revision or digest, kept as evidence and part of the cache's key. "
                                           "Default: what this machine's router says.")  # fmt: skip
@click.option("--onprem", is_flag=True, help="Declare that the model, and all the base URL relays to, is on premises.")
@click.option("--not-sensitive", is_flag=True, help="Declare that the data may leave the premises.")
@click.option(
    "--fresh", is_flag=True, help="Ask anew what was answered before: the name stands for another model now, and there is no --digest."
)
@click.option("--data-class", default="", metavar="NAME", help="The data's class, told to the router (header inhouse-data-class).")
@click.option("--timeout", "timeout_s", default=300.0, show_default=True, type=click.FloatRange(0.1), help="Seconds for one answer.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Under open-loop load: requests a second, never from the cache.")
@click.option("--slo-ttft", type=float, help="With --rate: seconds to the first token within which a request is good.")
@click.option("--slo-tpot", type=float, help="With --rate: seconds a token after the first within which a request is good.")
@click.option("--judge-model", help="The model that judges, where the scorer is `judge`.")
@click.option("--judge-url", help="Where the judge answers, up to /v1. Without it: this machine's router.")
@click.option(
    "--judge-api", type=click.Choice(["openai", "anthropic"]), default="openai", show_default=True, help="What --judge-url speaks."
)
@click.option("--judge-body", default='{"temperature": 0}', show_default=True, metavar="JSON", help="Fields of each request to the judge.")
@click.option("--judge-key-env", metavar="NAME", help="The environment variable that holds the key for --judge-url.")
@click.option("--judge-onprem", is_flag=True, help="Declare that the judge, and all its base URL relays to, is on premises.")
@click.option(
    "--judge-labels",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="People's labels (JSONL of case_id, text, label): how often the judge is wrong.",
)
@HOME
@JSON
def run_suite(*, home: Path, as_json: bool, **asked: Any) -> None:
    """Ask a model the cases of SUITE, score the answers, keep the run.

    SUITE is a shipped suite, a folder like one, or a .jsonl, .csv or .parquet file of yours.

    What was answered before is taken from the cache, so a run that was killed goes on where it was.

    Example: inhouse eval run extraction --model demo-extractor
    """
    from evals.run import run

    with told():
        plan = _plan(home, **asked)
        with _progress(f"{plan.suite.name} on {plan.endpoint.model}") as tell:
            made = run(plan, home, tell)
    show(made, as_json=as_json)


@evals.command("report")
@click.argument("run_id", metavar="RUN", required=False)
@click.option(
    "--vllm-bench", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Show a result of `vllm bench serve` instead."
)
@HOME
@JSON
def report_run(run_id: str | None, vllm_bench: Path | None, home: Path, *, as_json: bool) -> None:
    """Show what a RUN says (its id, or the beginning of it); without RUN the list of all, newest first.

    Example: inhouse eval report 20261125-1
    """
    from evals import load, store

    with told():
        if vllm_bench is not None:
            made = load.read_vllm_bench(vllm_bench)
            click.echo(msgspec.json.encode(made).decode() if as_json else "\n".join(load.lines(made)))
            return
        if run_id is not None:
            show(store.read_run(home, run_id), as_json=as_json)
            return
        ids = store.run_ids(home)
    click.echo(json.dumps(ids, indent=1) if as_json else "\n".join(ids) or "no runs yet. Make one: inhouse eval run SUITE --model NAME")


@evals.command("bench")
@click.option("--rows", default=10_000, show_default=True, type=click.IntRange(100), help="Rows for each of two models.")
@click.option("--peer-rows", default=500, show_default=True, type=click.IntRange(0), help="Rows for the peers; 0: no peers.")
@click.option("--lm-eval", metavar="PROGRAM", help="lm-eval's program, to measure it too (pip install 'lm-eval[api]').")
@JSON
def bench_run(*, rows: int, peer_rows: int, lm_eval: str | None, as_json: bool) -> None:
    """Measure what asking, scoring and keeping cost, over a model server that costs nothing, beside the peers.

    Example: inhouse eval bench --lm-eval peers/bin/lm_eval
    """
    from rich.console import Console

    from evals import bench

    try:
        with Console(stderr=True).status("starting") as status:
            found = bench.run(rows, peer_rows, lm_eval=lm_eval, say=status.update)
    except bench.BenchError as error:
        raise click.ClickException(str(error)) from None
    click.echo(json.dumps([one._asdict() for one in found], indent=1) if as_json else "\n".join(bench.lines(found)))


def _plan(home: Path, **asked: Any) -> "Plan":
    from evals.client import Endpoint
    from evals.load import Load
    from evals.run import Plan, limited
    from evals.suite import read_suite

    suite = read_suite(
        asked["suite"], scorer=asked["scorer"], instruct=asked["instruct"], sensitive=False if asked["not_sensitive"] else None
    )
    url, key = where(home, asked["base_url"], asked["key_env"])
    both: dict[str, Any] = {"data_class": asked["data_class"], "timeout_s": asked["timeout_s"]}
    endpoint = Endpoint(url, asked["model"], api=asked["api"], key=key, onprem=asked["onprem"], **both)
    endpoint = _identified(endpoint, asked["base_url"], asked["digest"])
    judge = None
    if asked["judge_model"]:
        url, key = where(home, asked["judge_url"], asked["judge_key_env"])
        judge = Endpoint(url, asked["judge_model"], api=asked["judge_api"], key=key, onprem=asked["judge_onprem"], **both)
        judge = _identified(judge, asked["judge_url"], "")
    load = Load(rate_per_s=asked["rate"], slo_ttft_s=asked["slo_ttft"], slo_tpot_s=asked["slo_tpot"]) if asked["rate"] else None
    return Plan(
        limited(suite, asked["limit"]),
        endpoint,
        samples=asked["samples"],
        at_once=asked["at_once"],
        request=_fields(asked["body"], "--body"),
        fresh=asked["fresh"],
        load=load,
        judge=judge,
        judge_request=_fields(asked["judge_body"], "--judge-body"),
        labels=asked["judge_labels"],
    )


def _identified(endpoint: "Endpoint", base_url: str | None, digest: str) -> "Endpoint":
    """With what this machine's router says that the model is; another base URL is asked nothing but cases. A given digest counts."""
    import asyncio

    from evals.client import identity_at

    if base_url is not None:
        return replace(endpoint, digest=digest)
    identity = asyncio.run(identity_at(endpoint.base_url, endpoint.model, endpoint.key))
    return replace(endpoint, digest=digest or identity.digest, identity=identity)


def where(home: Path, base_url: str | None, key_env: str | None) -> tuple[str, str]:
    """The base URL and its key. INHOUSE_KEY and this home's key are for this machine's router: no other URL gets them unasked."""
    if key_env is not None and key_env not in os.environ:
        raise click.UsageError(f"--key-env {key_env}: there is no such environment variable; export it first")
    key = os.environ.get(key_env, "") if key_env else ""
    if base_url is not None:
        if not (base_url.startswith(("http://", "https://")) and urlsplit(base_url).hostname):
            raise click.UsageError(f"--base-url {base_url}: begins with http:// or https://, for example http://127.0.0.1:8000/v1")
        return base_url, key
    file = home / "key"
    key = key or os.environ.get("INHOUSE_KEY", "") or (file.read_text().strip() if file.exists() else "")
    return f"http://127.0.0.1:{os.environ.get('INHOUSE_PORT', '8000')}/v1", key


def _fields(text: str, option: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise click.UsageError(f"{option} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise click.UsageError(f"{option} is a JSON object, for example '{{\"temperature\": 0}}'")
    return found


def show(made: "Stored", *, as_json: bool) -> None:
    """Prints a run's report and where it is kept."""
    from evals import load
    from evals.report import judge_lines, lines, report

    found = report(made.rows)
    if as_json:
        click.echo(json.dumps({"run": made.id, "facts": made.facts, "report": msgspec.to_builtins(found)}, indent=1))
        return
    out = lines(made.facts, found)
    if "load" in made.facts:
        out += load.lines(msgspec.convert(made.facts["load"], load.Loaded))
    if "judge" in made.facts:
        out += judge_lines(made.facts["judge"])
    click.echo("\n".join([*out, f"run {made.id}", f"kept in {made.folder}"]))


@contextmanager
def _progress(title: str) -> "Iterator[Callable[[Told], None]]":
    """A bar on standard error with rate and time left; its numbers are of this run, not of what came from the cache."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[more]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=None, more="")

        def tell(told: "Told") -> None:
            speed = progress.tasks[0].speed
            rate = f"{speed:.0f}/s" if speed else ""
            words = [rate, f"{told.cached} cached" * bool(told.cached), f"{told.failed} failed" * bool(told.failed),
                     f"asked to slow down {told.refusals} times, {told.at_once} at once" * bool(told.refusals)]  # fmt: skip
            progress.update(task, total=told.of, completed=told.done, more=", ".join(filter(None, words)))

        yield tell


@contextmanager
def told() -> Iterator[None]:
    """What a user can cause is told in one line; Ctrl-C says that nothing is lost."""
    from evals.client import AskError
    from evals.judge import JudgeError
    from evals.load import LoadError
    from evals.scorers import ScorerError
    from evals.store import StoreError
    from evals.suite import SuiteError

    try:
        yield
    except (AskError, JudgeError, LoadError, ScorerError, StoreError, SuiteError, OSError) as error:
        raise click.ClickException(str(error)) from None
    except KeyboardInterrupt:
        click.echo("interrupted; what was answered is kept: the same command goes on from here", err=True)
        sys.exit(130)
