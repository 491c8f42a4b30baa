"""The notebooks run top to bottom in a real kernel, against a server that answers as the demo models would."""

import importlib.util
import json
import os
import re
from pathlib import Path

import pytest

import inhouse
from evals.notebook import FOLDER, execute
from evals.suite import read_suite
from evals.verdict import read_verdict

ROOT = Path(inhouse.__file__).parent
RIGHT = {case.messages[-1]["content"]: case.expected for case in read_suite("extraction").cases}
SUMS = {case.messages[-1]["content"]: f"Answer: {case.expected}" for case in read_suite("reasoning").cases}


@pytest.fixture(scope="module")
def server():
    """A model server in which the specialist is always right about orders and the generalist about sums, and neither about the other."""
    spec = importlib.util.spec_from_file_location("upstream", ROOT / "tests" / "evals" / "upstream.py")
    upstream = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(upstream)

    def say(body):
        asked = body["messages"][-1]["content"]
        if asked in SUMS:
            return upstream.Reply(SUMS[asked] if body["model"] == "demo-generalist" else "{}")
        right = RIGHT[asked]
        return upstream.Reply((right if isinstance(right, str) else json.dumps(right)) if body["model"] == "demo-extractor" else "{}")

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
def test_30_ends_in_a_verdict_about_the_stand_in(server, home):
    """Without a hosted key the stand-in is named as one, the interval is drawn for JupyterLab's own viewer, and the evidence is kept."""
    outputs = executed("30_compare_with_hosted", home, base_url=server.base_url)
    verdict = read_verdict(next((home / "evals").glob("*/verdict.json")))
    assert (verdict.verdict, verdict.n) == ("better", len(RIGHT))
    assert verdict.incumbent == "demo-generalist, a stand-in for openai/gpt-5-nano"
    said = printed(outputs)
    assert said.startswith(f"extraction: demo-extractor is better (than {verdict.incumbent})")
    assert any("application/vnd.vegalite.v5+json" in output.get("data", {}) for output in outputs)
    assert verdict.mlflow_run


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


@pytest.mark.slow
def test_40_promotes_only_what_evidence_lets(server, home):
    """The specialist gets the command for extraction, and none for reasoning, where it is worse."""
    said = printed(executed("40_decide_routes", home, base_url=server.base_url))
    evidence = next((home / "evals").glob("*extraction-demo-extractor-against*/verdict.json")).parent.name
    assert f"inhouse routes promote --task extraction --to demo-extractor --evidence {evidence}\n" in said
    assert "--task reasoning" not in said and "# reasoning stays with demo-generalist: worse\n" in said
    assert not (home / "mlruns").exists(), "the second comparison's traces are in the home's store, not where the notebook runs"
