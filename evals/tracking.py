"""Keeps comparisons in MLflow: the one file that imports it, and only when asked, as that takes seconds.

An experiment per task; a parent run per comparison with verdict, rows and page; a child run per model, its metrics linked to a LoggedModel
and to the data; traces of at most 100 pairs (200 rows), as a trace takes 60 ms. Nothing leaves for anywhere but the tracking URI.
Not here: reading evidence back for routes, which read verdict.json.
"""

import hashlib
import json
import logging
import os
import random
import re
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from evals import comparison
from evals.case import Row
from evals.compare import Comparison, Pairs
from evals.comparison import Kept
from evals.cost import Prices
from evals.report import report
from evals.store import Stored

TRACED = 100  # pairs
_OFF = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}  # fmt: skip
_UNLESS_SET = {  # no catalog fetched, no hosted judge asked, and a server that is away is noticed in seconds, not minutes
    "MLFLOW_MODEL_CATALOG_URI": "",
    "MLFLOW_GENAI_JUDGE_DEFAULT_MODEL": "none:/no-judge-unless-named",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
}


class TrackingError(Exception):
    """MLflow could not be reached or refused."""


class Tracked(NamedTuple):
    """A parent run that has begun."""

    client: Any
    experiment: str
    run: str


def keep(home: Path, made: Comparison, prices: Prices, tell: Callable[[str], None] = lambda _: None) -> Kept:
    """Keeps a comparison in its folder and in MLflow. Raises `TrackingError`."""
    tell("MLflow: opening its store (the first time makes the database)")
    tracked = begin(home, made.pairs)
    kept = comparison.keep(home, made, prices, tracked.run)
    finish(tracked, kept, tell)
    return kept


def begin(home: Path, pairs: Pairs) -> Tracked:
    """Makes the parent run, so that the verdict can name it. Raises `TrackingError`."""
    facts = pairs.candidate.facts
    with _translated():
        client, root = _client(home)
        name = f"task/{facts['suite']}"
        found = client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else client.create_experiment(name, artifact_location=root)
        title = f"{facts['model']} against {pairs.incumbent.facts['model']}"
        return Tracked(client, experiment, client.create_run(experiment, run_name=title).info.run_id)


def finish(tracked: Tracked, kept: Kept, tell: Callable[[str], None]) -> None:
    """Logs everything of a kept comparison and ends its runs. Raises `TrackingError`; the run is marked as failed where MLflow answers."""
    with _translated(tracked):
        tell("MLflow: figures and files")
        _log_parent(tracked, kept)
        runs = (("incumbent", kept.made.pairs.incumbent, kept.verdict.incumbent_usd_per_success),
                ("candidate", kept.made.pairs.candidate, kept.verdict.candidate_usd_per_success))  # fmt: skip
        for role, run, usd in runs:
            _log_model(tracked, role, run, usd)
        if not kept.made.pairs.is_sensitive:
            _log_traces(tracked, kept.made, tell)
        tracked.client.set_terminated(tracked.run)


def attach(home: Path, run: str, file: Path) -> None:
    """Adds a file, such as the executed notebook, to the run of a comparison. Raises `TrackingError`."""
    with _translated():
        _client(home)[0].log_artifact(run, str(file))


def page_app(home: Path, hosts: tuple[str, ...]) -> Any:
    """MLflow's server over the home's own store as an ASGI application, for requests to these `hosts` (as in `127.0.0.1:5000`) alone."""
    _quiet()
    origins = ",".join(f"http://{host}" for host in hosts)
    os.environ |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(hosts),
                   "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": origins}  # fmt: skip
    from mlflow.server import constants

    uri, root = _own_store(home)
    os.environ |= {constants.BACKEND_STORE_URI_ENV_VAR: uri, constants.ARTIFACT_ROOT_ENV_VAR: root}
    from mlflow.server.fastapi_app import app

    return app


def _quiet() -> None:
    """Before mlflow is imported: nothing is told or fetched."""
    os.environ.update(_OFF)
    for name, value in _UNLESS_SET.items():
        os.environ.setdefault(name, value)


def _own_store(home: Path) -> tuple[str, str]:
    """Where a home keeps its records and their artifacts, unless MLFLOW_TRACKING_URI names another place."""
    folder = home.absolute() / "mlflow"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # answers are in it
    return f"sqlite:///{folder / 'mlflow.db'}", (folder / "artifacts").as_uri()


def _client(home: Path) -> tuple[Any, str | None]:
    """A client of MLFLOW_TRACKING_URI, else of a SQLite file in the home; and where its artifacts go (None: the server says)."""
    _quiet()
    logging.getLogger("alembic").setLevel(logging.WARNING)  # tells every step of making a database
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="IProgress not found")  # in a notebook, of a progress bar that is switched off
        import mlflow

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    uri, root = os.environ.get("MLFLOW_TRACKING_URI", ""), None
    if not uri:
        uri, root = _own_store(home)
    mlflow.set_tracking_uri(uri)  # traces are sent by a thread of MLflow's that knows only the global address
    if root:
        os.environ.pop("MLFLOW_TRACKING_URI", None)  # MLflow has just set it; the next comparison would take it for a person's server
    return mlflow.MlflowClient(), root


def _log_parent(tracked: Tracked, kept: Kept) -> None:
    from mlflow.entities import Param, RunTag

    verdict, (low, high) = kept.verdict, kept.verdict.interval
    tags = {"comparison": verdict.id, "task": verdict.task, "verdict": verdict.verdict, "incumbent": verdict.incumbent,
            "candidate": verdict.candidate, "candidate_digest": verdict.candidate_digest, "data_sha256": verdict.data_sha256,
            "prompt_sha256": verdict.prompt_sha256, "prices_date": verdict.prices_date}  # fmt: skip
    params = {"margin": verdict.margin, "alpha": verdict.alpha, "level": verdict.level}
    tracked.client.log_inputs(tracked.run, [_dataset(kept.made.pairs.candidate)])
    tracked.client.log_batch(
        tracked.run,
        metrics=_metrics(tracked.run, {"effect": verdict.effect, "low": low, "high": high, "n": verdict.n}),
        params=[Param(name, str(value)) for name, value in params.items()],
        tags=[RunTag(f"inhouse.{name}", str(value)) for name, value in tags.items()],
    )
    for name in ("verdict.json", "report.html", "pairs.parquet"):
        tracked.client.log_artifact(tracked.run, str(kept.folder / name))


def _log_model(tracked: Tracked, role: str, run: Stored, usd_per_success: float | None) -> None:
    """A child run of one model. The same model under the same settings is one LoggedModel, whatever it is compared with."""
    from mlflow.entities import LoggedModelInput

    tags = {"mlflow.parentRunId": tracked.run, "inhouse.role": role, "inhouse.run": run.id}
    child = tracked.client.create_run(tracked.experiment, run_name=run.facts["model"], tags=tags).info.run_id
    model = _logged_model(tracked, run, child)
    data = _dataset(run)
    tracked.client.log_inputs(child, [data], [LoggedModelInput(model)])
    metrics = figures(run) | ({} if usd_per_success is None else {"usd_per_success": usd_per_success})
    tracked.client.log_batch(child, metrics=_metrics(child, metrics, model, data.dataset))
    tracked.client.set_terminated(child)


def _logged_model(tracked: Tracked, run: Stored, child: str) -> str:
    facts = run.facts
    served = facts.get("served", {})
    params = {"model": facts["model"], "digest": facts.get("model_digest", ""), "host": facts.get("host", ""),
              "repo": served.get("repo", ""), "revision": served.get("revision", ""), "engine": json.dumps(served.get("engine", {})),
              "settings": json.dumps({name: facts.get("settings", {}).get(name) for name in ("api", "request", "onprem")})}  # fmt: skip
    identity = hashlib.sha256(json.dumps(params, sort_keys=True).encode()).hexdigest()
    found = tracked.client.search_logged_models([tracked.experiment], filter_string=f"tags.`inhouse.identity` = '{identity}'")
    if found:
        return str(found[0].model_id)
    made = tracked.client.create_logged_model(
        tracked.experiment, name=re.sub(r"[^\w-]+", "-", facts["model"]), source_run_id=child, params=params,
        tags={"inhouse.identity": identity}, model_type="served")  # fmt: skip
    return str(tracked.client.finalize_logged_model(made.model_id, "READY").model_id)


def figures(run: Stored) -> dict[str, float]:
    """The metrics of one run."""
    made = report(run.rows)
    found: dict[str, float | None] = {"effective_success": made.overall.effective.value, "quality": made.overall.quality.value,
                                      "completion": made.overall.completion.value, "n": made.overall.rows,
                                      "unscored": made.overall.unscored, "cost_usd": made.cost_usd}  # fmt: skip
    for name, times in (("ttft_s", made.ttft), ("total_s", made.total)):
        found |= {f"{name}_p50": times.p50, f"{name}_p95": times.p95} if times else {}
    return {name: float(value) for name, value in found.items() if value is not None}


def _dataset(run: Stored) -> Any:
    from mlflow.entities import Dataset, DatasetInput

    # MLflow keeps 36 letters of a digest; the whole hash is the source's
    source = json.dumps({"sha256": run.facts["data_sha256"]})
    return DatasetInput(Dataset(run.facts["suite"], run.facts["data_sha256"][:32], "local", source))


def _metrics(run: str, values: dict[str, float], model: str | None = None, data: Any = None) -> list[Any]:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    linked = {"dataset_name": data.name, "dataset_digest": data.digest} if data else {}
    return [Metric(name, value, now, 0, model_id=model, run_id=run, **linked) for name, value in values.items()]


def _log_traces(tracked: Tracked, made: Comparison, tell: Callable[[str], None]) -> None:
    """One trace a pair: a span for each model's answer."""
    import mlflow

    chosen = sampled(made.pairs)
    for at, (one, two) in enumerate(chosen):
        tell(f"MLflow: trace {at + 1} of {len(chosen)}")
        root = tracked.client.start_trace("case", inputs={"case": one.case_id, "sample": one.sample}, tags={"slice": one.slice},
                                          experiment_id=tracked.experiment, run_id=tracked.run)  # fmt: skip
        for role, row in (("incumbent", one), ("candidate", two)):
            span = tracked.client.start_span(role, root.trace_id, root.span_id, attributes=_attributes(row))
            tracked.client.end_span(root.trace_id, span.span_id, outputs=row.error or row.text, status="ERROR" if row.failed else "OK")
        tracked.client.end_trace(root.trace_id, outputs={"incumbent": one.value, "candidate": two.value})
    tell("MLflow: waiting until it has the traces")
    mlflow.flush_trace_async_logging()


def sampled(pairs: Pairs) -> list[tuple[Row, Row]]:
    """The pairs that are traced: those that disagree, then others by chance (the same ones each time)."""
    order = random.Random(0).sample(pairs.rows, len(pairs.rows))  # noqa: S311  # a sample, not a secret
    return sorted(order, key=lambda both: both[0].value == both[1].value and both[0].failed == both[1].failed)[:TRACED]


def _attributes(row: Row) -> dict[str, Any]:
    names = ("value", "failed", "ttft_s", "total_s", "prompt_tokens", "completion_tokens", "cost_usd")
    return {name: value for name in names if (value := getattr(row, name)) is not None}


@contextmanager
def _translated(tracked: Tracked | None = None) -> Iterator[None]:
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except Exception as error:
        from mlflow.exceptions import MlflowException

        if tracked is not None:
            _fail(tracked)
        if not isinstance(error, MlflowException | SQLAlchemyError | OSError):
            raise
        where = os.environ.get("MLFLOW_TRACKING_URI", "") or "its database in this home"
        first = str(error).strip().partition("\n")[0][:200]
        raise TrackingError(f"MLflow ({where}) did not take the comparison: {first}. Start it, or compare with --no-track") from error


def _fail(tracked: Tracked) -> None:
    """Marks the run as failed; where MLflow doesn't answer that is logged and it stays as running."""
    try:
        tracked.client.set_terminated(tracked.run, "FAILED")
    except Exception as error:
        logging.getLogger("inhouse.evals").warning("MLflow run %s could not be marked as failed: %s", tracked.run, type(error).__name__)
