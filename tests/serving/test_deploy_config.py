"""A catalog as Serve's configuration: what restarts a model, what does not, and what is passed on."""

import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from serving.catalog import Catalog, Model, Price
from serving.deploy import deploy, reason, serve_config
from serving.preflight import PreflightError
from serving.serve_api import ServeApi

PRICE = Price(usd_per_gpu_hour=1.0)


def _folder(root: Path, name: str = "weights") -> Path:
    folder = root / name
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    header = json.dumps({"t": {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"1234")
    return folder


def _model(**changes: Any) -> Model:
    return Model(**({"name": "m", "license": "MIT", "price": PRICE, "path": "weights"} | changes))


def _application(root: Path, model: Model) -> Any:
    return serve_config(Catalog(models=(model,)), home=root / "home", catalog_folder=root, http_port=8100)["applications"][0]


def test_each_model_is_an_application_of_its_own(tmp_path: Path) -> None:
    """So that Serve never restarts one because of another."""
    _folder(tmp_path)
    config = serve_config(Catalog(models=(_model(name="a"), _model(name="b"))), home=tmp_path, catalog_folder=tmp_path, http_port=8123)
    assert [(one["name"], one["route_prefix"]) for one in config["applications"]] == [("a", "/models/a"), ("b", "/models/b")]
    assert config["http_options"]["host"] == "127.0.0.1"
    assert config["http_options"]["port"] == 8123
    json.dumps(config)


def test_limits_replicas_and_price_change_without_a_restart(tmp_path: Path) -> None:
    """Serve restarts an application whose `args` changed; what an engine need not know is not among them."""
    _folder(tmp_path)
    before = _application(tmp_path, _model())
    after = _application(tmp_path, _model(replicas=3, max_queued_requests=7, max_ongoing_requests=9, price=Price(usd_per_gpu_hour=2.0)))
    assert after["args"] == before["args"]
    options = after["deployments"][0]
    assert (options["num_replicas"], options["max_queued_requests"], options["max_ongoing_requests"]) == (3, 7, 9)


@pytest.mark.parametrize("change", [{"engine": {"max_model_len": 512}}, {"gpus": 1}, {"name": "other"}])
def test_engine_settings_restart_a_model(tmp_path: Path, change: dict[str, Any]) -> None:
    """A running engine can't take these over."""
    _folder(tmp_path)
    assert _application(tmp_path, _model(**change))["args"] != _application(tmp_path, _model())["args"]


def test_changed_weights_restart_a_model_and_untouched_ones_do_not(tmp_path: Path) -> None:
    """The release in `args` follows the files."""
    folder = _folder(tmp_path)
    before = _application(tmp_path, _model())
    assert _application(tmp_path, _model()) == before
    os.utime(folder / "model.safetensors", (1, 1))
    assert _application(tmp_path, _model())["args"] != before["args"]


def test_upgrades_surge_unless_the_catalog_says_recreate(tmp_path: Path) -> None:
    """A single replica stays until its successor answers; where there is no room for both, the catalog says so."""
    _folder(tmp_path)
    assert _application(tmp_path, _model())["deployments"][0]["max_surge_percent"] == 100
    assert _application(tmp_path, _model(upgrade="recreate"))["deployments"][0]["max_surge_percent"] == 0


def test_long_generations_may_finish(tmp_path: Path) -> None:
    """Serve's default would cut them after 20 s."""
    _folder(tmp_path)
    assert _application(tmp_path, _model())["deployments"][0]["graceful_shutdown_timeout_s"] >= 600


def test_gpus_and_their_type_are_what_ray_places_by(tmp_path: Path) -> None:
    """All GPUs of a replica in one node, of the type that was asked for."""
    _folder(tmp_path)
    options = _application(tmp_path, _model(gpus=2, gpu_type="H100"))["deployments"][0]["ray_actor_options"]
    assert options == {"num_cpus": 1.0, "num_gpus": 2, "resources": {"accelerator_type:H100": 0.001}}


def test_a_broken_folder_is_refused_before_serve_is_asked(tmp_path: Path) -> None:
    """One line that names the model, the file and what to do."""
    folder = _folder(tmp_path)
    with (folder / "model.safetensors").open("ab") as file:
        file.truncate(20)
    work = deploy(Catalog(models=(_model(),)), ServeApi(url="http://127.0.0.1:9"), home=tmp_path, catalog_folder=tmp_path, http_port=1)
    with pytest.raises(PreflightError, match=r"^model m: .*model\.safetensors .*cut short.*; correct `path`") as caught:
        next(work)
    assert "\n" not in str(caught.value)


def test_a_serve_that_is_still_starting_is_asked_again(tmp_path: Path) -> None:
    """A busy machine's Serve answers 500 to the first wishes; saying them once more is harmless, and giving up would end a whole start."""
    _folder(tmp_path)
    wishes = []

    class Serve(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(200, b'{"applications": {}}')

        def do_PUT(self) -> None:
            wishes.append(self.rfile.read(int(self.headers["content-length"])))
            self.reply(200 if len(wishes) == 3 else 500, b"")

        def reply(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Serve) as server:
        threading.Thread(target=server.serve_forever).start()
        api = ServeApi(url=f"http://127.0.0.1:{server.server_port}")
        work = deploy(Catalog(models=(_model(),)), api, home=tmp_path, catalog_folder=tmp_path, http_port=1)
        assert next(iter(work)).phase == "accepted"
        server.shutdown()
    assert len(wishes) == 3 and len(set(wishes)) == 1


def test_the_reason_is_the_last_exception_of_a_traceback() -> None:
    """Serve passes whole tracebacks on; a person wants the engine's own words."""
    message = ("Failed to update the deployments ['Model'].\nray::ServeReplica:m:Model.initialize()\n  File \"x.py\", line 1\n"
               "ValueError: unknown architecture\n\nThe above exception was the direct cause:\n"
               "RuntimeError: Engine core failed: see root cause\n")
    assert reason(message) == "RuntimeError: Engine core failed: see root cause"
    assert reason("Deploying app 'm'.") == "Deploying app 'm'."
