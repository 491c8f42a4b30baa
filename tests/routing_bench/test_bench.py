"""The benchmarks themselves, made short: real router, real classifier, and what the command prints and exits with."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from routing.bench import classify_bench, feature_bench, router_bench, serve_bench
from routing.bench.cli import bench
from routing.bench.driver import Upstream, upstream
from routing.bench.processes import BenchError, Cores
from routing.bench.router_bench import Settings

QUIET = lambda text: None  # noqa: E731


@pytest.fixture(scope="module")
def mock() -> Iterator[Upstream]:
    with upstream(Cores(None, None)) as running:
        running.pace(chunks=16)
        yield running


def test_the_router_is_measured_with_everything_right() -> None:
    """A short run over the real router finds no fault and fills every figure; peers that are not asked for are left out."""
    report = router_bench.run(Settings(rounds=1, seconds=0.2, streams=4, interval_ms=2.0, only=("router",)), QUIET)
    assert report.failures == []
    found = report.data["gateways"]
    assert set(found) == {"direct", "router"}
    figures = {"cpu_us_per_request", "cpu_us_per_chunk", "requests_per_s", "ttft_added_p50_us", "relay_p99_us", "peak_rss_mib"}
    assert figures <= set(found["router"])
    assert found["router"]["cpu_us_per_request"].median > 0


def test_a_peer_that_was_asked_for_must_be_there() -> None:
    """A missing program is an error with a way out where it was named, and a note where it was not."""
    with pytest.raises(BenchError, match="no-such-router"):
        router_bench.run(Settings(rounds=1, only=("vllm-router",), vllm_router="no-such-router"), QUIET)


def test_ratios_are_taken_round_by_round() -> None:
    """The ratio is that of each round, not of the medians."""
    ratios = router_bench._ratios({"router": {"cpu_us_per_chunk": [1.0, 9.0, 4.0]}, "peer": {"cpu_us_per_chunk": [2.0, 3.0, 4.0]}})
    assert ratios["peer"]["cpu_us_per_chunk"] == (1.0, 0.5, 3.0)


def test_memory_is_read_on_the_way() -> None:
    """The memory run sends what it says it sends, to the real router, without a fault."""
    report = router_bench.run_memory(400, QUIET)
    assert report.failures == []
    assert [row["requests"] for row in report.data["resident_mib"]] == [0, 400, 500, 600, 700, 800]
    assert all(row["rss_mib"] > 10 for row in report.data["resident_mib"])


ROUTES = """default_task: chat
tasks:
  - name: chat
    candidates: [{model: demo-generalist}]
    examples: [hello there, good morning, how are you, nice to meet you, thank you so much, see you soon, have a good day, hi friend,
               good evening to you, how was your day, greetings]
  - name: extraction
    candidates: [{model: demo-extractor}]
    examples: [order 12 pumps for Ann, order 3 valves for Tom, please send 5 seals, invoice total EUR 20, ship 9 bolts to Basel,
               order 7 hoses now, deliver 2 motors by May, purchase order AB-1, we need 4 filters, order 11 gaskets for Eva, send 6 fans]
"""


def test_the_classifier_is_timed(tmp_path: Path) -> None:
    """Given tasks with examples, the classifier and the router's Python each get a time, and no socket is opened."""
    routes = tmp_path / "routes.yaml"
    routes.write_text(ROUTES)
    report = classify_bench.run(QUIET, routes=routes)
    assert "auto classifier, a prompt" in report.data["us"]
    assert all(times["p50"] > 0 for times in report.data["us"].values())


def test_every_feature_is_timed_by_itself() -> None:
    """The figures are of the router's own functions on a real home, and none is nothing."""
    report = feature_bench.run(QUIET, body_bytes=2048)
    assert len(report.data["us"]) == 11 and all(us["median"] > 0 for us in report.data["us"].values())


def test_two_servers_are_compared(mock: Upstream) -> None:
    """Two sides that write what is asked are compared; both are the mock here, under two paths."""
    url = f"http://127.0.0.1:{mock.port}"
    sides = [serve_bench.Side("inhouse", url, "m", "a-key"), serve_bench.Side("direct", f"{url}/models/m/v1", "m")]
    report = serve_bench.run(sides, None, serve_bench.Settings(rounds=1, asks=2, connections=2, batch=4, max_tokens=16), QUIET)
    assert report.failures == []
    assert set(report.data["compared"]["direct"]) == {"ttft_added_p50_ms", "tokens_per_s_ratio"}


def test_a_server_that_writes_less_fails(mock: Upstream, tmp_path: Path) -> None:
    """Tokens per second of unequal work are not compared in silence: the command exits with 1 and says which side fell short."""
    out = tmp_path / "serve.json"
    result = CliRunner().invoke(bench, ["serve", "--url", f"http://127.0.0.1:{mock.port}", "--model", "m", "--rounds", "1", "--asks", "1",
                                        "--batch", "2", "--max-tokens", "17", "--out", str(out)])  # fmt: skip
    assert result.exit_code == 1
    assert "16 tokens came, 17 were asked for" in json.loads(out.read_text())["failures"][0]


def test_a_server_that_is_not_there_is_one_line() -> None:
    """No traceback for a wrong address."""
    result = CliRunner().invoke(bench, ["serve", "--url", "http://127.0.0.1:9", "--model", "m"])
    assert result.exit_code == 1
    assert "answers nothing" in result.output


@pytest.mark.parametrize("command", ["router", "classify", "features", "serve", "start"])
def test_every_command_has_an_example(command: str) -> None:
    """--help ends with something to type."""
    result = CliRunner().invoke(bench, [command, "--help"])
    assert result.exit_code == 0
    assert f"inhouse bench {command}" in result.output


def test_the_command_is_cheap_to_import() -> None:
    """Listing the commands loads no server, no terminal library and no database."""
    heavy = "{'rich', 'httptools', 'uvloop', 'msgspec', 'sqlalchemy', 'sklearn', 'uvicorn'}"
    subprocess.run([sys.executable, "-c", f"import sys, routing.bench.cli; assert not {heavy} & set(sys.modules)"], check=True)


@pytest.mark.slow
def test_the_start_is_measured() -> None:
    """A real start from an empty home to an answer, and nothing left behind."""
    result = CliRunner().invoke(bench, ["start", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.output)
    assert report["failures"] == []
    assert report["resident_mib"]["median"] > 100
