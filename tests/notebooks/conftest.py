"""JupyterLab as `make lab` starts it."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from evals.notebook import FOLDER
from serving.sockets import free_ports


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """JupyterLab by the Makefile's own words, without a browser and with settings of its own: (pid, address, token)."""
    folder = tmp_path_factory.mktemp("lab")
    recipe = re.search(r"^lab:.*\n\t@\$\(BIN\)/(jupyter .+)$", (FOLDER.parent / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    program, *words = shlex.split(recipe.group(1))
    places = {f"JUPYTER_{name}_DIR": str(folder / name) for name in ("CONFIG", "RUNTIME", "DATA")}
    env = {name: value for name, value in os.environ.items() if name != "JUPYTER_TOKEN"} | places | {"IPYTHONDIR": str(folder)}
    words += ["--no-browser", "--port", str(free_ports(1)[0]), "--allow-root"]
    log = folder / "log"
    with log.open("w") as said:
        process = subprocess.Popen([Path(sys.executable).parent / program, *words], cwd=FOLDER.parent, env=env, stdout=said, stderr=said)
    try:
        deadline = time.monotonic() + 240
        while not (found := list((folder / "RUNTIME").glob("jpserver-*.json"))) or not found[0].read_text():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        facts = json.loads(found[0].read_text())
        yield process.pid, facts["url"], facts["token"]
    finally:
        process.terminate()
        process.wait(60)
