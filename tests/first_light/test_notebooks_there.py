"""The notebooks against the house as a user starts it: the real router, real models, real headers."""

import json
import re

import pytest

from evals.notebook import FOLDER, execute
from evals.verdict import read_verdict


@pytest.mark.slow
@pytest.mark.parametrize("name", ["00_start_here", "20_ask"])
def test_notebooks_ask_the_house(house, tmp_path, name):
    """Their own asserts hold on a running house, and the order that they ask about comes back as its JSON from the specialist."""
    given = {"home": str(house.home), "base_url": f"{house.url}/v1"}
    made = execute(FOLDER / f"{name}.py", tmp_path, given, house.environment | {"PYTHONPATH": str(FOLDER.parent)})
    outputs = [output for cell in made.cells if cell.cell_type == "code" for output in cell.outputs]
    said = "".join(output.text for output in outputs if output.output_type == "stream")
    order = next(json.loads(line) for line in said.splitlines() if line.startswith("{"))
    assert order["order"] == "AB-4711"
    assert "demo-extractor" in said


@pytest.mark.slow
def test_30_and_40_decide_about_the_real_demo_models(house, tmp_path):
    """The specialist gets extraction from the generalist by the evidence of real answers, and reasoning stays where it is; the stand-in
    is named as one, the interval is drawn for JupyterLab's own viewer, and the evidence is kept in the house alone."""
    given = {"home": str(house.home), "base_url": f"{house.url}/v1", "limit": 60}
    outputs, said = {}, {}
    for name in ("30_compare_with_hosted", "40_decide_routes"):
        made = execute(FOLDER / f"{name}.py", tmp_path, given, house.environment | {"PYTHONPATH": str(FOLDER.parent)})
        outputs[name] = [output for cell in made.cells if cell.cell_type == "code" for output in cell.outputs]
        said[name] = "".join(output.text for output in outputs[name] if output.output_type == "stream")
    assert "demo-extractor is better (than demo-generalist, a stand-in for openai/gpt-5-nano)" in said["30_compare_with_hosted"]
    assert any("application/vnd.vegalite.v5+json" in output.get("data", {}) for output in outputs["30_compare_with_hosted"])
    found = map(read_verdict, (house.home / "evals").glob("*/verdict.json"))
    (verdict,) = [one for one in found if one.incumbent == "demo-generalist, a stand-in for openai/gpt-5-nano"]
    assert (verdict.verdict, verdict.n) == ("better", 60) and verdict.mlflow_run
    command = re.search("inhouse routes promote --task extraction --to demo-extractor --evidence (\\S+)\n", said["40_decide_routes"])
    assert (house.home / "evals" / command[1] / "verdict.json").exists()
    assert "--task reasoning" not in said["40_decide_routes"]
    assert "# reasoning stays with demo-generalist: worse" in said["40_decide_routes"]
    assert not (tmp_path / "mlruns").exists(), "the traces are in the home's store, not where the notebook runs"
