"""One real node for the whole test session: Ray, Serve, HAProxy and two vLLM engines, started once because that takes half a minute."""

import importlib.util
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import settings

from serving.catalog import Adapter, Catalog, Model, Price
from serving.deploy import deploy
from serving.node import Node, NodeSettings, read_node, start_node, stop_node
from serving.progress import Progress
from serving.sockets import free_ports
from serving.status import ModelStatus, status

ENGINE = {"max_model_len": 1024, "max_num_seqs": 32, "kv_cache_memory_bytes": 2**26, "enforce_eager": True}

settings.register_profile("house", deadline=None, max_examples=60)  # a busy machine is no failure
settings.load_profile("house")


def tiny() -> ModuleType:
    """`tests/serving/tiny.py`; pytest's importlib mode leaves test folders off the path."""
    spec = importlib.util.spec_from_file_location("tiny", Path(__file__).parent / "serving" / "tiny.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def hosted(name: str, **changes: Any) -> Model:
    """A catalog entry for the tiny model in the folder of that name."""
    return Model(**({"name": name, "path": name, "license": "Apache-2.0", "price": Price(usd_per_gpu_hour=0.05), "cpus": 0.5,
                     "engine": ENGINE} | changes))


@dataclass(frozen=True)
class Cell:
    """A started node, the catalog it came up with and the folder of its models."""

    home: Path
    models: Path
    node: Node
    port: int
    catalog: Catalog

    def deploy(self, *models: Model) -> list[Progress]:
        """Makes these the models that run."""
        return list(deploy(Catalog(models=models), self.node.api, home=self.home, catalog_folder=self.models, http_port=self.port))

    def model(self, name: str) -> ModelStatus:
        """A model's status."""
        return next(model for model in status(self.home, sample_s=0).models if model.name == name)

    def ask(self, model: str, path: str, body: dict[str, Any], timeout_s: float = 60) -> tuple[int, Any]:
        """(status, JSON or text) of a POST to a model's application."""
        request = urllib.request.Request(f"{self.node.http_url}/models/{model}{path}", json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as response:
                return response.status, json.loads(response.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()


@pytest.fixture(scope="session")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cell]:
    """A running node with the tiny models `alpha` (and its adapter `alpha-terse`) and `beta`. Its user leaves these two running."""
    home, models = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("models")
    make = tiny()
    make.write_model(models / "alpha", 1)
    make.write_model(models / "beta", 2)
    make.write_adapter(models / "terse")
    catalog = Catalog(models=(hosted("alpha", adapters=(Adapter(name="alpha-terse", path="terse"),)), hosted("beta")))
    port = free_ports(1)[0]
    try:
        for _ in start_node(NodeSettings(home=home, http_port=port), catalog):
            pass
        node = read_node(home)
        assert node is not None
        started = Cell(home, models, node, port, catalog)
        started.deploy(*catalog.models)
        yield started
    finally:
        stop_node(home)
