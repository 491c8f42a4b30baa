"""`make lab` as a real process, and the notebooks that it opens."""

import json
import re
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from evals.notebook import FOLDER, anonymous, read, runs_of
from serving.sockets import held_by, listeners

SCRIPTS = sorted(FOLDER.glob("[0-9]*.py"))


def answer(lab, path, token=None):
    """(status, JSON) of a GET."""
    headers = {"Authorization": f"token {token}"} if token else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(lab[1] + path, headers=headers), timeout=120) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, None


def test_lab_listens_on_loopback_and_wants_its_token(lab):
    """Every socket of the process is on loopback; without the token nothing is listed, with it the notebooks are."""
    mine = held_by(lab[0])
    sockets = [one for one in listeners() if one.inode in mine]
    assert sockets and all(one.is_loopback for one in sockets)
    assert answer(lab, "api/contents")[0] == 403
    status, listed = answer(lab, "api/contents", lab[2])
    assert status == 200 and {script.name for script in SCRIPTS} <= {one["name"] for one in listed["content"]}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_scripts_open_as_notebooks(lab, script):
    """The script and its executed twin both open, with the same cells; nothing is written by that."""
    for name in (script.name, f"{script.stem}.ipynb"):
        status, found = answer(lab, f"api/contents/{name}?type=notebook", lab[2])
        assert status == 200
        assert [cell["source"] for cell in found["content"]["cells"]] == [cell.source for cell in read(script).cells]


def test_lab_fetches_no_news(lab):
    """JupyterLab's own calls home are off."""
    _, found = answer(lab, "lab/api/settings/@jupyterlab/apputils-extension:notification", lab[2])
    assert found["schema"]["properties"]["checkForUpdates"]["default"] is False
    assert found["schema"]["properties"]["fetchNews"]["default"] == "false"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_kept_outputs_are_of_the_script(script):
    """The executed notebook has the script's cells, all run in order without an error; it is small and names no machine."""
    file = script.with_suffix(".ipynb")
    kept = json.loads(file.read_text(encoding="utf-8"))
    assert ["".join(cell["source"]) for cell in kept["cells"]] == [cell.source for cell in read(script).cells], "run: make notebooks"
    code = [cell for cell in kept["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert outputs and not [one for one in outputs if one["output_type"] == "error" or one.get("name") == "stderr"]
    assert file.stat().st_size < 200_000
    assert not re.search(r"/(home|root|tmp|usr|Users)/", json.dumps(outputs))


@pytest.mark.parametrize(("name", "n"), [("20_ask", 0), ("30_compare_with_hosted", 1), ("40_decide_routes", 2)])
def test_a_notebook_says_which_mlflow_runs_it_made(name, n):
    """They are found in the last cell of the executed notebook, which is kept with each of them."""
    import nbformat

    assert len(set(runs_of(nbformat.read(FOLDER / f"{name}.ipynb", 4)))) == n


def test_an_output_that_names_this_machine_is_refused(tmp_path):
    """Paths below the repository and the home become relative; any other name of this machine is an error."""
    import nbformat

    def said(text):
        cell = nbformat.v4.new_code_cell("1", outputs=[nbformat.v4.new_output("stream", text=text)])
        return nbformat.v4.new_notebook(cells=[cell])

    made = anonymous(said(f"kept in {tmp_path}/evals and {FOLDER.resolve()}/x"), tmp_path)
    assert made.cells[0].outputs[0].text == "kept in .inhouse/evals and notebooks/x"
    with pytest.raises(ValueError, match="an output names this machine"):
        anonymous(said(f"at {Path.home()}/secret"), tmp_path)
