"""The notebooks against the house as a user starts it: the real router, real models, real headers."""

import json

import pytest

from evals.notebook import FOLDER, execute


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
    """The specialist gets extraction from the generalist by the evidence of real answers, and reasoning stays where it is."""
    given = {"home": str(house.home), "base_url": f"{house.url}/v1", "limit": 60}
    said = {}
    for name in ("30_compare_with_hosted", "40_decide_routes"):
        made = execute(FOLDER / f"{name}.py", tmp_path, given, house.environment | {"PYTHONPATH": str(FOLDER.parent)})
        outputs = [output for cell in made.cells if cell.cell_type == "code" for output in cell.outputs]
        said[name] = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "demo-extractor is better (than demo-generalist, a stand-in for openai/gpt-5-nano)" in said["30_compare_with_hosted"]
    assert "inhouse routes promote --task extraction --to demo-extractor --evidence " in said["40_decide_routes"]
    assert "# reasoning stays with demo-generalist: worse" in said["40_decide_routes"]
