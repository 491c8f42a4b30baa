"""`inhouse bench ...`: reads options, shows progress, prints the report. Importing this costs nothing but click."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from routing.bench.report import Report


@click.group()
def bench() -> None:
    """Measure the router, the classifier, whole serving stacks and the start, beside what else there is."""


def _common(command: Callable[..., Any]) -> Callable[..., Any]:
    command = click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Also write the JSON to this file.")(command)
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")(command)


def _deliver(measure: "Callable[[Callable[[str], None]], Report]", *, as_json: bool, out: Path | None) -> None:
    """Runs a benchmark with its progress on stderr; exits 1 where an answer was missing or wrong."""
    from rich.console import Console

    from routing.bench.processes import BenchError

    def _stop(_number: int, _frame: Any) -> None:
        raise KeyboardInterrupt  # so that what was started is stopped on SIGTERM as on Ctrl-C

    signal.signal(signal.SIGTERM, _stop)
    progress = Console(stderr=True)
    try:
        with progress.status("starting") as status:
            report = measure(status.update)
    except BenchError as error:
        raise click.ClickException(str(error)) from error
    report.deliver(as_json=as_json, out=out)
    if report.failures:
        sys.exit(1)


@bench.command()
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1), help="Rounds; in each, every gateway has its turn.")
@click.option("--seconds", default=3.0, show_default=True, help="Length of each measurement.")
@click.option("--connections", default=64, show_default=True, type=click.IntRange(1), help="Callers that ask without pause.")
@click.option("--streams", default=32, show_default=True, type=click.IntRange(0), help="Streams at once; 0 leaves streaming out.")
@click.option("--interval-ms", default=10.0, show_default=True, help="Time between two chunks of a stream.")
@click.option("--rate", default=0.0, help="Also an open loop of so many requests a second (latency from when each was due).")
@click.option("--body-bytes", default=1024, show_default=True, type=click.IntRange(256), help="Size of a request's body.")
@click.option("--only", multiple=True, type=click.Choice(["router", "nginx", "vllm-router", "litellm"]), help="Only these (repeatable).")
@click.option("--vllm-router", metavar="PROGRAM", help="vllm-router's program, where it is not on PATH (pip install vllm-router).")
@click.option("--litellm", metavar="PROGRAM", help="LiteLLM's program; it is only measured where this is given.")
@click.option("--memory", default=0, metavar="N", help="Instead: send N requests through our router and say whether its memory is flat.")
@_common
def router(*, as_json: bool, out: Path | None, memory: int, **options: Any) -> None:
    """Our router beside nginx, vllm-router and LiteLLM, over one mock upstream.

    CPU time of each gateway's whole process tree per request and per streamed chunk, requests per second of one core, added TTFT,
    relay delay, memory. Exits with 1 where any answer was missing or wrong.

    \b
    Examples:
      inhouse bench router --rounds 3
      inhouse bench router --streams 512 --interval-ms 40 --only router --only nginx
      inhouse bench router --memory 200000
    """
    from routing.bench import router_bench

    if memory:
        _deliver(lambda say: router_bench.run_memory(memory, say), as_json=as_json, out=out)
    else:
        settings = router_bench.Settings(**options)
        _deliver(lambda say: router_bench.run(settings, say), as_json=as_json, out=out)


@bench.command()
@click.option("--routes", type=click.Path(exists=True, path_type=Path), help="The routes.yaml to read (default: the shipped one).")
@click.option("--models", type=click.Path(exists=True, path_type=Path), help="The models.yaml to read (default: the shipped one).")
@_common
def classify(*, as_json: bool, out: Path | None, **files: Path | None) -> None:
    """The `auto` classifier on the examples of the routes, and the router's own Python per request, without sockets.

    \b
    Example:
      inhouse bench classify --routes routing/routes.yaml
    """
    from routing.bench import classify_bench

    given = {name: file for name, file in files.items() if file}
    _deliver(lambda say: classify_bench.run(say, **given), as_json=as_json, out=out)


@bench.command()
@click.option("--body-bytes", default=1024, show_default=True, type=click.IntRange(256), help="Size of the request's body.")
@_common
def features(*, as_json: bool, out: Path | None, body_bytes: int) -> None:
    """What each thing that the router does for a request costs by itself: key, detectors, policy, budgets, ledger, audit, metrics.

    \b
    Example:
      inhouse bench features --body-bytes 4096
    """
    from routing.bench import feature_bench

    _deliver(lambda say: feature_bench.run(say, body_bytes=body_bytes), as_json=as_json, out=out)


@bench.command()
@click.option("--url", required=True, help="Base URL of what is measured, such as the router's.")
@click.option("--model", required=True, help="The model (or task/NAME) to ask there.")
@click.option("--key", default="", envvar="INHOUSE_KEY", help="The API key to use there (INHOUSE_KEY).")
@click.option("--direct", multiple=True, metavar="URL", help="A server of the same model to compare with (repeatable).")
@click.option("--direct-model", metavar="NAME", help="What the model is called there; default: as in --model, without task/.")
@click.option("--bare", type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="Start a bare vLLM server of the model in this folder, and compare with it too.")  # fmt: skip
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="Rounds; in each, every server has its turn.")
@click.option("--asks", default=20, show_default=True, type=click.IntRange(1), help="Requests one after another, for TTFT.")
@click.option("--connections", default=16, show_default=True, type=click.IntRange(1), help="Requests at once, for tokens per second.")
@click.option("--batch", default=48, show_default=True, type=click.IntRange(1), help="Requests in all at that concurrency.")
@click.option("--max-tokens", default=64, show_default=True, type=click.IntRange(1), help="Tokens of each answer, no fewer and no more.")
@_common
def serve(  # noqa: PLR0913 (options)
    *, url: str, model: str, key: str, direct: tuple[str, ...], direct_model: str | None, bare: Path | None, as_json: bool,
    out: Path | None, **options: int,
) -> None:  # fmt: skip
    """Real servers of one model side by side: TTFT of one caller, tokens per second of sixteen.

    \b
    Examples:
      inhouse bench serve --url http://127.0.0.1:8000 --model demo-extractor --key "$(cat .inhouse/key)" \\
        --direct http://127.0.0.1:8100/models/demo-extractor --bare serving/demo/demo-extractor
    """
    from routing.bench import serve_bench

    name = direct_model or model.removeprefix("task/")
    sides = [serve_bench.Side("inhouse", url, model, key), *(serve_bench.Side(other, other, name) for other in direct)]
    _deliver(lambda say: serve_bench.run(sides, bare, serve_bench.Settings(**options), say), as_json=as_json, out=out)


@bench.command()
@click.option("--rounds", default=1, show_default=True, type=click.IntRange(1), help="How often to start, each time in a fresh home.")
@click.option("--model", default="task/extraction", show_default=True, help="What the first request asks for.")
@click.option("--timeout", "timeout_s", default=300.0, show_default=True, help="Seconds to wait for the first answer.")
@_common
def start(*, rounds: int, model: str, timeout_s: float, as_json: bool, out: Path | None) -> None:
    """From `inhouse up` in an empty home to the first routed answer, and what everything weighs then. Stops it again.

    \b
    Example:
      inhouse bench start --rounds 3 --out start.json
    """
    from routing.bench import start_bench

    _deliver(lambda say: start_bench.run(say, rounds=rounds, model=model, timeout_s=timeout_s), as_json=as_json, out=out)
