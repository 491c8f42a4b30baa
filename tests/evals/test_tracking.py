"""Comparisons in MLflow, by the command as a user runs it: in the home's SQLite, and in a real server on SQLite and on PostgreSQL."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

import inhouse

# MLflow 3.17 uses what SQLAlchemy 2.1 deprecates; its calls in this process only look at results.
pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")
ROOT = Path(inhouse.__file__).parent
_QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_MODEL_CATALOG_URI": ""}
# Runs the command and tells on standard error whom it spoke to.
_WATCHED = """
import atexit, json, sys
seen = set()
def hear(event, arguments):
    if event == "socket.getaddrinfo": seen.add(str(arguments[0]))
    if event == "socket.connect": seen.add(str(arguments[1][0] if isinstance(arguments[1], tuple) else arguments[1]))
sys.addaudithook(hear)
atexit.register(lambda: print("HEARD " + json.dumps(sorted(seen)), file=sys.stderr))
import inhouse
inhouse.main(sys.argv[1:])
"""


def _fixture_of(room, name):
    """A fixture of another folder's conftest; pytest shows it only to the tests there."""
    spec = importlib.util.spec_from_file_location(f"conftest_of_{room}", Path(__file__).parent.parent / room / "conftest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


postgresql = _fixture_of("routing_limits", "postgresql")


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def server(request, tmp_path_factory):
    """The address of a real MLflow server with its artifact proxy."""
    folder = tmp_path_factory.mktemp("mlflow")
    if request.param == "postgresql":
        store = request.getfixturevalue("postgresql").replace("postgresql://", "postgresql+psycopg://")
    else:
        store = f"sqlite:///{folder}/mlflow.db"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--artifacts-destination", str(folder / "artifacts"),
               "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=os.environ | _QUIET, start_new_session=True)
    try:
        _await(f"http://127.0.0.1:{port}/health", process, folder / "log")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(20)


def _await(url, process, log):
    deadline = time.monotonic() + 180
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)


@pytest.fixture
def compared(tmp_path, keep_run):
    """`compared(uri)`: a comparison made by the command, and whom it spoke to on the way."""

    def made(uri="", runs=("old", "new")):
        outside = {name: value for name, value in os.environ.items() if name not in {"CI", "PYTEST_CURRENT_TEST", "DO_NOT_TRACK"}}
        env = {name: value for name, value in outside.items() if not name.startswith("MLFLOW_")} | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", _WATCHED, "eval", "compare", *runs, "--home", str(tmp_path), "--json"]
        env |= {"MLFLOW_TRACKING_URI": uri} if uri else {}
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240, check=False)
        heard = json.loads(next(line for line in done.stderr.splitlines() if line.startswith("HEARD ")).removeprefix("HEARD "))
        return done, heard

    keep_run(tmp_path, "old", [float(at % 15 != 0) for at in range(150)])
    served = {"repo": "ours/new", "revision": "c0ffee", "engine": {"quantization": "fp8"}}
    keep_run(tmp_path, "new", [1.0] * 149 + ["failed"], served=served)
    return made


def _client(uri):
    """For looking at what is there, in this process."""
    os.environ.update(_QUIET)
    import mlflow

    return mlflow.MlflowClient(uri)


@pytest.mark.slow
def test_a_comparison_is_kept_in_a_real_server(compared, server, tmp_path):
    """A parent run with verdict, page and rows behind the artifact proxy, a run per model linked to model and data, and traces."""
    done, heard = compared(server)
    assert done.returncode == 0, done.stderr
    verdict = json.loads(done.stdout)[0]
    assert set(heard) == {"127.0.0.1"}
    client = _client(server)
    experiment = client.get_experiment_by_name("task/extraction")
    found = client.search_runs([experiment.experiment_id], f"tags.`inhouse.comparison` = '{verdict['id']}'")
    assert [run.info.run_id for run in found] == [verdict["mlflow_run"]]
    parent = found[0]
    assert (parent.info.status, parent.data.tags["inhouse.verdict"]) == ("FINISHED", "better")
    assert parent.data.metrics["effect"] == pytest.approx(verdict["effect"])
    assert parent.inputs.dataset_inputs[0].dataset.digest == "d" * 32
    stored = Path(client.download_artifacts(parent.info.run_id, "verdict.json", str(tmp_path)))
    assert stored.read_bytes() == (Path(verdict["folder"]) / "verdict.json").read_bytes()
    assert {file.path for file in client.list_artifacts(parent.info.run_id)} == {"verdict.json", "report.html", "pairs.parquet"}
    _check_children(client, experiment.experiment_id, parent.info.run_id)
    _check_traces(client, experiment.experiment_id, parent.info.run_id)


def _check_children(client, experiment, parent):
    children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    assert {run.data.tags["inhouse.role"]: run.data.metrics["effective_success"] for run in children} == {
        "incumbent": pytest.approx(140 / 150), "candidate": pytest.approx(149 / 150)}  # fmt: skip
    data = [{"dataset_name": "extraction", "dataset_digest": "d" * 32}]  # over HTTP a name alone finds nothing (MLflow 3.17.2)
    models = client.search_logged_models([experiment], "metrics.effective_success > 0.95", datasets=data)
    assert [model.params["digest"] for model in models] == ["sha256:new"]
    assert [models[0].params[name] for name in ("repo", "revision", "engine")] == ["ours/new", "c0ffee", '{"quantization": "fp8"}']
    assert str(models[0].status) == "READY"


def _check_traces(client, experiment, parent):
    traces = client.search_traces(locations=[experiment], run_id=parent, max_results=300)
    assert len(traces) == 100
    requests = [json.loads(trace.info.trace_metadata["mlflow.traceInputs"])["case"] for trace in traces]
    assert {f"c{at}" for at in [*range(0, 150, 15), 149]} <= set(requests)  # all that disagree
    spans = {span.name: span for span in traces[0].data.spans}
    assert set(spans) == {"case", "incumbent", "candidate"}


@pytest.mark.slow
def test_without_a_server_it_is_in_the_homes_database(compared, keep_run, tmp_path):
    """By default the record is a SQLite file under the home, and nothing is asked of the network; the same models are not made anew.

    Of sensitive data no word of the answers is in it, and no trace.
    """
    secret = {"settings": {"sensitive": True}, "changes": {"text": "a secret word"}}
    keep_run(tmp_path, "a", [1.0] * 20 + [0.0])
    keep_run(tmp_path, "b", [1.0] * 21)
    keep_run(tmp_path, "c", [1.0] * 20 + [0.0], **secret)
    keep_run(tmp_path, "d", [1.0] * 21, **secret)
    done, heard = compared(runs=("a", "b", "b", "a", "c", "d"))
    assert done.returncode == 0, done.stderr
    assert heard == []
    client = _client(f"sqlite:///{tmp_path}/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("task/extraction").experiment_id
    assert sorted(model.name for model in client.search_logged_models([experiment])) == ["a", "b", "c", "d"]
    assert len(client.search_runs([experiment], "tags.`inhouse.task` = 'extraction'")) == 3
    traced = [len(client.search_traces(locations=[experiment], run_id=one["mlflow_run"])) for one in json.loads(done.stdout)]
    assert traced == [21, 21, 0]
    kept = [file.read_bytes() for file in (tmp_path / "mlflow").rglob("*") if file.is_file()]
    assert any(b"said 20" in content for content in kept)
    assert not any(b"secret word" in content for content in kept)
    assert not (tmp_path / "mlruns").exists()
    run = json.loads(done.stdout)[0]["mlflow_run"]
    attached = f"from pathlib import Path; from evals.tracking import attach; attach(Path({str(tmp_path)!r}), {run!r}, Path('own.html'))"
    (tmp_path / "own.html").write_text("a notebook")
    env = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")} | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", attached], cwd=tmp_path, env=env, check=True, timeout=240)
    assert "own.html" in [file.path for file in client.list_artifacts(run)]


def test_a_server_that_is_away_is_told(compared, tmp_path):
    """Without its server the command ends with one line that says so and what to do, and writes no verdict that names a run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        done, _ = compared(f"http://127.0.0.1:{free.getsockname()[1]}")
    assert done.returncode == 1
    assert "did not take the comparison" in done.stderr
    assert "Start it, or compare with --no-track" in done.stderr
    assert not list((tmp_path / "evals").glob("*/verdict.json"))
