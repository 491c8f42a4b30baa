"""Load that does not wait for answers: what is due is sent, what is late shows, what is good is counted."""

import asyncio
import importlib.util
import itertools
import json
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

import inhouse
from evals.ask import questions
from evals.case import Answer, Case, Score, row
from evals.client import Endpoint, open_client
from evals.load import Load, LoadError, arrivals, ask_at_rate, lines, loaded, read_vllm_bench, tpot_s
from evals.suite import Suite

SUITE = Suite(name="s", cases=[Case(f"c{at}", [{"role": "user", "content": str(at)}], "ok") for at in range(30)], data_sha256="", scorer={},
              folder=Path(), sensitive=False)  # fmt: skip


def ask(endpoint, load, told=lambda _: None):
    async def work():
        async with open_client(endpoint, sensitive=False) as client:
            return await ask_at_rate(client, list(questions(client, SUITE, 1, {})), load, told)

    return asyncio.run(work())


def test_requests_are_sent_when_due_whether_or_not_others_are_answered(upstream):
    """At 300 a second and answers after half a second most are under way together; all come back, in order, none asked twice."""
    told = []
    with upstream.serving(lambda body: upstream.Reply(body["messages"][0]["content"], wait_s=0.5)) as server:
        answers, late = ask(Endpoint(server.base_url, "m"), Load(rate_per_s=300), told.append)
        assert server.most_under_way >= 15
        assert len(server.asked) == 30
    assert [answer.text for answer in answers] == [str(at) for at in range(30)]
    assert len(late) == 30 and min(late) >= 0 and told[-1].done == 30


def test_arrivals_are_poisson_and_repeatable():
    """Gaps are exponential of the stated mean: over 20,000 arrivals mean and standard deviation agree with it within 3%."""
    due = list(itertools.islice(arrivals(Load(rate_per_s=50)), 20_000))
    gaps = [two - one for one, two in itertools.pairwise(due)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert mean == pytest.approx(0.02, rel=0.03) and deviation == pytest.approx(0.02, rel=0.03)
    assert list(itertools.islice(arrivals(Load(rate_per_s=50)), 5)) == due[:5]
    assert list(itertools.islice(arrivals(Load(rate_per_s=50, seed=1)), 5)) != due[:5]


def test_times_count_from_when_a_request_was_due(upstream):
    """A request that was due ten seconds ago has waited ten seconds, however fast its answer came."""

    async def work(endpoint):
        async with open_client(endpoint, sensitive=False) as client:
            return await client.ask(client.body([], {}), "c", due_at=time.perf_counter() - 10)

    with upstream.serving(lambda _: upstream.Reply()) as server:
        answer = asyncio.run(work(Endpoint(server.base_url, "m"))).answer
    assert answer.ttft_s > 10 and answer.total_s > 10


def test_a_refusal_under_load_is_a_failure_and_answers_are_never_from_before(upstream):
    """Nothing is retried, nothing is cached: the second run asks everything again."""
    with upstream.serving(lambda body: upstream.Reply(status=429 if body["messages"][0]["content"] == "3" else 200)) as server:
        for _ in range(2):
            answers, _ = ask(Endpoint(server.base_url, "m"), Load(rate_per_s=1000))
            assert [answer.case_id for answer in answers if answer.failed] == ["c3"]
        assert len(server.asked) == 60


def made(at, value=1.0, *, ttft_s=0.1, total_s=1.1, tokens=11, error=""):
    answer = Answer(case_id=f"c{at}", ttft_s=ttft_s, total_s=total_s, completion_tokens=tokens, prompt_tokens=5, error=error)
    return row(Case(f"c{at}", [], "x"), answer, Score(f"c{at}", 0, value))


def test_goodput_is_what_is_complete_and_within_the_limits():
    """Of five in ten seconds: one good and right, one good and wrong, one with a late first token, one with slow tokens, one failed."""
    rows = [made(0), made(1, 0.0), made(2, ttft_s=0.3), made(3, total_s=2.2), made(4, error="cut: x")]
    assert tpot_s(rows[0]) == pytest.approx(0.1)
    found = loaded(Load(rate_per_s=0.5, slo_ttft_s=0.2, slo_tpot_s=0.15), rows, 10.0, [0.001] * 5)
    assert (found.goodput_per_s, found.right_per_s, found.completed, found.requests) == (0.2, 0.1, 4, 5)
    assert found.output_tokens_per_s == 5.5 and found.tpot.n == 4
    assert loaded(Load(rate_per_s=0.5), rows, 10.0, []).goodput_per_s == 0.4
    assert tpot_s(made(0, tokens=1)) is None


def test_the_command_reports_quality_and_goodput_of_the_same_requests(upstream, tmp_path):
    """`inhouse eval run --rate` keeps the load with the run, and `report` shows it again."""
    data = tmp_path / "own.jsonl"
    data.write_text("".join(json.dumps({"prompt": str(at), "expected": str(at)}) + "\n" for at in range(20)))
    home = ["--home", str(tmp_path / "home")]
    with upstream.serving(lambda body: upstream.Reply(body["messages"][0]["content"])) as server:
        words = ["run", str(data), "--model", "m", "--base-url", server.base_url, "--scorer", "exact", "--not-sensitive", "--rate", "200"]
        shown = CliRunner().invoke(inhouse.main, ["eval", *words, "--slo-ttft", "30", *home], catch_exceptions=False)
    assert shown.exit_code == 0 and "goodput" in shown.output and "of these right" in shown.output
    run_id = CliRunner().invoke(inhouse.main, ["eval", "report", *home]).output.strip()
    again = CliRunner().invoke(inhouse.main, ["eval", "report", run_id, *home], catch_exceptions=False).output
    assert again in shown.output
    facts = json.loads(CliRunner().invoke(inhouse.main, ["eval", "report", run_id, "--json", *home]).output)["facts"]
    assert facts["load"]["completed"] == 20 and facts["settings"]["load"]["rate_per_s"] == 200


BENCH = {
    "date": "20261125-120000",
    "model_id": "m",
    "request_rate": 4.0,
    "duration": 10.0,
    "completed": 38,
    "failed": 2,
    "total_input_tokens": 4000,
    "output_throughput": 380.0,
    "request_goodput": 3.1,
    "median_ttft_ms": 50.0,
    "p99_ttft_ms": 90.0,
    "median_tpot_ms": 20.0,
    "p99_tpot_ms": 30.0,
}


def test_results_of_vllm_bench_are_read(tmp_path):
    """Summaries as they are written, percentiles from single times where the file has them, and what is unknown stays unsaid."""
    file = tmp_path / "bench.json"
    file.write_text(json.dumps(BENCH))
    found = read_vllm_bench(file)
    assert (found.rate_per_s, found.requests, found.completed, found.output_tokens_per_s, found.goodput_per_s) == (4.0, 40, 38, 380.0, 3.1)
    assert (found.ttft.p50, found.ttft.p99, found.tpot.p50) == (0.05, 0.09, 0.02)
    text = "\n".join(lines(found))
    assert "p50 50.0 ms  p99 90.0 ms" in text and "nan" not in text
    file.write_text(json.dumps(BENCH | {"request_rate": "inf", "request_goodput": None, "ttfts": [at / 100 for at in range(1, 101)]}))
    found = read_vllm_bench(file)
    assert found.rate_per_s is None and found.ttft[:4] == (0.5, 0.95, 0.99, 1.0)
    shown = CliRunner().invoke(inhouse.main, ["eval", "report", "--vllm-bench", str(file)], catch_exceptions=False)
    assert "as fast as it would go" in shown.output and "380.0 out" in shown.output
    for broken in ("{}", "[]", "x", json.dumps(BENCH | {"duration": 0})):
        file.write_text(broken)
        with pytest.raises(LoadError, match="no result of"):
            read_vllm_bench(file)


def test_the_fields_that_are_read_are_those_that_vllm_writes():
    """The installed vLLM's own source names every field, so that an upgrade that renames one is noticed here."""
    folder = Path(importlib.util.find_spec("vllm").origin).parent
    source = (folder / "benchmarks" / "serve.py").read_text()
    for name in set(BENCH) - {"median_ttft_ms", "p99_ttft_ms", "median_tpot_ms", "p99_tpot_ms"}:
        assert f'"{name}"' in source, name
    assert 'f"median_{metric_attribute_name}_ms"' in source and 'f"p{p_word}_{metric_attribute_name}_ms"' in source
