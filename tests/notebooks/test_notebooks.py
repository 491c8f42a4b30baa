"""The notebooks run top to bottom in a real kernel, against a server that answers as the demo models would."""

import importlib.util
import json
import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import inhouse
from evals.suite import read_suite
from evals.verdict import read_verdict

ROOT = Path(inhouse.__file__).parent
RIGHT = {case.messages[-1]["content"]: case.expected for case in read_suite("extraction").cases}


@pytest.fixture(scope="module")
def server():
    """A model server in which the specialist is always right and the generalist never."""
    spec = importlib.util.spec_from_file_location("upstream", ROOT / "tests" / "evals" / "upstream.py")
    upstream = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(upstream)

    def say(body):
        right = RIGHT[body["messages"][-1]["content"]]
        return upstream.Reply((right if isinstance(right, str) else json.dumps(right)) if body["model"] == "demo-extractor" else "{}")

    with upstream.serving(say) as made:
        yield made


def notebook(name, **parameters):
    """A notebook's cells, with parameters of ours after its own."""
    text = (ROOT / "notebooks" / f"{name}.py").read_text(encoding="utf-8")
    cells = []
    for kind, source in re.findall(r"^# %%(.*)\n((?:(?!# %%).*\n)*)", text, re.MULTILINE):
        if "[markdown]" in kind:
            cells.append(nbformat.v4.new_markdown_cell(re.sub(r"^# ?", "", source, flags=re.MULTILINE)))
            continue
        given = "".join(f"{key} = {value!r}\n" for key, value in parameters.items()) if "parameters" in kind else ""
        cells.append(nbformat.v4.new_code_cell(source + given))
    return nbformat.v4.new_notebook(cells=cells)


def executed(made, folder):
    """The outputs of a notebook that ran in a kernel of its own, by MIME type."""
    client = NotebookClient(made, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    env = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_") and name != "OPENAI_API_KEY"}
    client.execute(env=env | {"PYTHONPATH": str(ROOT)})
    outputs = [output for cell in made.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "stream" and output.name == "stderr"], outputs
    return outputs


@pytest.fixture
def home(tmp_path):
    """A home with a key, as `inhouse up` leaves one."""
    (tmp_path / "key").write_text("a key\n")
    return tmp_path


@pytest.mark.slow
def test_30_ends_in_a_verdict_about_the_stand_in(server, home):
    """Without a hosted key the stand-in is named as one, the interval is drawn for JupyterLab's own viewer, and the evidence is kept."""
    outputs = executed(notebook("30_compare_with_hosted", base_url=server.base_url, home=str(home)), home)
    verdict = read_verdict(next((home / "evals").glob("*/verdict.json")))
    assert (verdict.verdict, verdict.n) == ("better", len(RIGHT))
    assert verdict.incumbent == "demo-generalist, a stand-in for openai/gpt-5-nano"
    said = "".join(output.text for output in outputs if output.output_type == "stream")
    assert said.startswith(f"extraction: demo-extractor is better (than {verdict.incumbent})")
    assert any("application/vnd.vegalite.v5+json" in output.get("data", {}) for output in outputs)
    assert verdict.mlflow_run


@pytest.mark.slow
def test_50_draws_what_was_measured(server, home):
    """The curve rests on the run's own tokens a second, and the table says from which utilisation on our model is cheaper."""
    outputs = executed(notebook("50_what_it_costs", base_url=server.base_url, home=str(home), rate_per_s=50.0), home)
    said = "".join(output.text for output in outputs if output.output_type == "stream")
    assert re.search(r"openai/gpt-5-mini +(never|above \d+\.\d\d% utilisation)", said)
    chart = next(output["data"]["application/vnd.vegalite.v5+json"] for output in outputs if "application/vnd.vegalite.v5+json" in
                 output.get("data", {}))  # fmt: skip
    assert chart["title"].startswith("A task of ")
