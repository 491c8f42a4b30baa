"""Notebooks that need no house run top to bottom in a real kernel; those that ask one are in `first_light`."""

import importlib.util
import json
import os
import re
from pathlib import Path

import pytest

import inhouse
from evals.notebook import FOLDER, execute
from evals.suite import read_suite

ROOT = Path(inhouse.__file__).parent
RIGHT = {case.messages[-1]["content"]: case.expected for case in read_suite("extraction").cases}


@pytest.fixture(scope="module")
def server():
    """A model server that is always right about orders."""
    spec = importlib.util.spec_from_file_location("upstream", ROOT / "tests" / "evals" / "upstream.py")
    upstream = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(upstream)

    def say(body):
        right = RIGHT[body["messages"][-1]["content"]]
        return upstream.Reply(right if isinstance(right, str) else json.dumps(right))

    with upstream.serving(say) as made:
        yield made


def executed(name, folder, **parameters):
    """The outputs of a notebook that ran in a kernel of its own."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_") and name != "OPENAI_API_KEY"}
    env |= {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    made = execute(FOLDER / f"{name}.py", folder, {"home": str(folder), **parameters}, env)
    outputs = [output for cell in made.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "stream" and output.name == "stderr"], outputs
    return outputs


def printed(outputs):
    """What the cells printed, as one text."""
    return "".join(output.text for output in outputs if output.output_type == "stream")


@pytest.fixture
def home(tmp_path):
    """A home with a key, as `inhouse up` leaves one."""
    (tmp_path / "key").write_text("a key\n")
    return tmp_path


@pytest.mark.slow
def test_50_draws_what_was_measured(server, home):
    """The curve rests on the run's own tokens a second, and the table says from which utilisation on our model is cheaper."""
    outputs = executed("50_what_it_costs", home, base_url=server.base_url, rate_per_s=50.0)
    said = printed(outputs)
    assert re.search(r"openai/gpt-5-mini +(never|above \d+\.\d\d% utilisation)", said)
    chart = next(output["data"]["application/vnd.vegalite.v5+json"] for output in outputs if "application/vnd.vegalite.v5+json" in
                 output.get("data", {}))  # fmt: skip
    assert chart["title"].startswith("A task of ")


@pytest.mark.slow
def test_10_says_what_fits_without_a_hub(home):
    """Offline the list is the local catalog's and labelled so; each machine gets its answer, and one too small is told what is so."""
    said = printed(executed("10_choose_a_model", home))
    assert "THE LOCAL CATALOG, not the hub: HF_HUB_OFFLINE is set" in said
    assert "demo-extractor fits on office with" in said
    assert re.search(r"demo-extractor (does not|may not) fit on tiny: per machine weights", said)
