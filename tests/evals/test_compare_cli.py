"""The commands as a user types them: plan, compare (without MLflow, which test_tracking.py has) and calibrate."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import inhouse


def run(*words):
    """What a command prints, and how it ends."""
    return CliRunner().invoke(inhouse.main, ["eval", *map(str, words)])


@pytest.fixture
def home(tmp_path, keep_run):
    """A home with four runs: weak and strong on one task, tired and fresh on another."""
    for name, values in (("weak", [float(at % 10 != 0) for at in range(300)]), ("strong", [1.0] * 300)):
        keep_run(tmp_path, name, values)
        keep_run(tmp_path, f"chat-{name}", values, suite="chat")
    return tmp_path


def test_plan_says_how_many_cases(home):
    """The number is the one of the literature, in words and in JSON; a pilot's own variance can stand for the guess."""
    assert run("plan", "--margin", 0.03, "--discordant", 0.1).output.startswith('873 cases show "not worse by more than 3 points"')
    more = json.loads(run("plan", "--tasks", 4, "--cluster-size", 5, "--cases", 300, "--json").output)
    assert (more["alpha"], more["design_effect"]) == (0.0125, 2.2)
    assert 0 < more["with_cases"]["power"] < 0.5 < more["cases"] / 1000
    pilot = json.loads(run("plan", "--like", "weak", "strong", "--home", home, "--json").output)
    assert pilot["variance"] == pytest.approx(0.09, rel=0.1)


def test_plan_says_what_can_not_be_shown():
    """A model that is worse by the margin is never shown to be within it, and impossible assumptions are refused."""
    assert run("plan", "--effect", -0.02).output.startswith("no number of cases shows")
    refused = run("plan", "--effect", 0.3)
    assert refused.exit_code == 2
    assert "raise --discordant" in refused.output


def test_compare_ends_in_a_verdict_and_its_file(home):
    """The text names verdict and evidence, and the folder holds the document."""
    done = run("compare", "weak", "strong", "--no-track", "--home", home)
    assert done.exit_code == 0, done.output
    assert done.output.startswith("extraction: strong is better (than weak)")
    folder = Path(done.output.strip().splitlines()[-1].removeprefix("kept in "))
    assert json.loads((folder / "verdict.json").read_text())["verdict"] == "better"
    worse = run("compare", "strong", "weak", "--no-track", "--home", home)
    assert worse.output.startswith("extraction: weak is worse (than strong)")


def test_compare_takes_several_tasks(home):
    """Two pairs are two verdicts that share the error rate."""
    done = run("compare", "weak", "strong", "chat-weak", "chat-strong", "--no-track", "--json", "--home", home)
    assert [(one["task"], one["verdict"], one["level"]) for one in json.loads(done.stdout)] == [
        ("extraction", "better", 0.025), ("chat", "better", 0.05)]  # fmt: skip


def test_compare_prices_own_models_from_a_file(home, tmp_path):
    """A price file with the user's own models gives the cost per successful task."""
    prices = tmp_path / "prices.yaml"
    prices.write_text("date: '2026-11-25'\nhosted: {a/strong: {input: 1, output: 1}}\nown: {weak: {usd_per_gpu_hour: 1, "
                      "input_tokens_per_s: 100, output_tokens_per_s: 100, prefill_share: 0.5, utilisation: 0.5}}\n")  # fmt: skip
    verdict = json.loads(run("compare", "weak", "strong", "--no-track", "--json", "--prices", prices, "--home", home).stdout)[0]
    assert verdict["candidate_usd_per_success"] == pytest.approx(120e-6)
    assert verdict["incumbent_usd_per_success"] == pytest.approx(120 / 100 * 0.5 * 2 / 3600 / 0.9)


@pytest.mark.parametrize(("words", "said"), [(["weak"], "runs come in pairs"), (["weak", "nobody"], "Error: no run `nobody`")])
def test_what_a_user_can_cause_is_one_line(home, words, said):
    """An odd number of runs and an unknown run end with a line that says so, and nothing is kept."""
    done = run("compare", *words, "--no-track", "--home", home)
    assert done.exit_code in (1, 2)
    assert said in done.output
    assert not list((home / "evals").glob("*/verdict.json"))


def test_calibrate_ends_with_1_where_a_claim_does_not_hold():
    """Ten repeats are too few for the claims to hold, and the command says which do not."""
    done = run("calibrate", "--repeats", 10, "--json")
    found = json.loads(done.output)
    assert len(found) == 12
    assert done.exit_code == int(not all(one["least"] <= one["found"] <= one["most"] for one in found)) == 1


def test_from_asking_to_a_verdict(upstream, tmp_path):
    """Two models of a real server are asked, scored, stored and compared: the one that is wrong on a tenth may not take the task."""
    data = tmp_path / "own.jsonl"
    data.write_text("".join(json.dumps({"prompt": str(at), "expected": str(at)}) + "\n" for at in range(200)))

    def say(body):
        asked = body["messages"][-1]["content"]
        return upstream.Reply("wrong" if body["model"] == "sloppy" and int(asked) % 10 == 0 else asked)

    with upstream.serving(say) as server:
        made = [run("run", data, "--model", model, "--base-url", server.base_url, "--scorer", "exact", "--not-sensitive", "--digest", model,
                    "--home", tmp_path, "--json") for model in ("right", "sloppy")]  # fmt: skip
    ids = [json.loads(one.stdout)["run"] for one in made]
    verdict = json.loads(run("compare", *ids, "--no-track", "--json", "--home", tmp_path).stdout)[0]
    assert (verdict["verdict"], verdict["n"], verdict["effect"]) == ("worse", 200, -0.1)
    assert (verdict["incumbent"], verdict["candidate"], verdict["candidate_digest"]) == ("right", "sloppy", "sloppy")
    assert "<td><pre>0: wrong</pre></td>" in (Path(verdict["folder"]) / "report.html").read_text()
