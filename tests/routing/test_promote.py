"""From evidence to route: promotions and rollbacks by the command, on files as people write them, and under a router that runs."""

import asyncio
import hashlib
import json
import subprocess
import sys

import msgspec
import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import inhouse
from evals.client import Endpoint, Identity, identity_at
from evals.study import ask
from evals.verdict import Verdict, write_verdict
from routing.config import read_site
from routing.splice import Page
from serving.catalog import read_catalog

ROUTES = """\
# Ours. Ask the platform team before you change it.
default_task: chat   # takes the rest

tasks:
  - name: extraction
    description: "to JSON"   # a comment that stays
    candidates: [{model: alpha}]   # since spring
    fallbacks:
      - gamma
      # slow, but never down
      - beta
    examples:
      - |-
        Order: 'AB-1' # no comment
        for Ann
      - "Bitte: zwei Käse"

  - name: chat
    candidates:
      # the small one is enough
      - model: beta
        weight: 0.5   # half
      - {model: gamma, weight: 0}
"""
MODELS = {"alpha": "a", "beta": "b", "gamma": "c"}


@pytest.fixture
def house(tmp_path):
    """A home with three models in folders of their own, routes with comments, and what runs commands in it."""
    return House(tmp_path)


class House:
    def __init__(self, home):
        self.home = home
        self.routes = home / "routes.yaml"
        self.models = home / "models.yaml"
        for name, text in MODELS.items():
            self.weights(name, text)
        entries = [{"name": name, "path": name, "license": "x", "price": {"usd_per_gpu_hour": 1}} for name in MODELS]
        self.models.write_text(json.dumps({"models": entries}))
        self.routes.write_bytes(ROUTES.encode())

    def weights(self, name, text):
        (self.home / name).mkdir(exist_ok=True)
        (self.home / name / "model.safetensors").write_text(text)

    def site(self):
        return read_site(self.routes, read_catalog(self.models))

    def digest(self, name):
        return self.site().models[name].digests(self.home, self.home)[name]

    def evidence(self, evidence_id="e1", **changes):
        """Writes the document that evals would write."""
        known = {
            "id": evidence_id, "task": "extraction", "incumbent": "alpha", "candidate": "beta", "n": 400, "clusters": 100, "unscored": 0,
            "unpaired": 0, "data_sha256": "d" * 64, "prompt_sha256": "1e5", "judge_sha256": None, "effect": 1 / 30000,
            "interval": (-0.0099999999, 0.05), "margin": 0.02, "alpha": 0.05, "level": 0.05, "verdict": "not worse", "reasons": (),
            "more_cases": None, "incumbent_success": 0.8, "candidate_success": 0.8, "incumbent_digest": self.digest("alpha"),
            "candidate_digest": self.digest("beta"), "incumbent_run": "r1", "candidate_run": "r2", "mlflow_run": "f00",
            "incumbent_usd_per_success": None, "candidate_usd_per_success": None, "prices_date": "2026-11-25",
            "date": "2026-11-25T12:00:00+00:00",
        } | changes  # fmt: skip
        folder = self.home / "evals" / evidence_id
        folder.mkdir(parents=True)
        write_verdict(folder, Verdict(**known))
        return evidence_id

    def run(self, *words):
        places = {"INHOUSE_ROUTES": str(self.routes), "INHOUSE_MODELS": str(self.models), "INHOUSE_HOME": str(self.home)}
        return CliRunner().invoke(inhouse.main, ["routes", *words], env=places)

    def promote(self, *words, task="extraction", to="beta"):
        return self.run("promote", "--task", task, "--to", to, *words)

    def audit(self):
        return "".join(file.read_text() for file in sorted((self.home / "state" / "audit").glob("*")) if file.is_file())


def test_promote_changes_the_route_and_nothing_else(house):
    """The model takes the task with its evidence beside it; comments, quotes, blank lines and every other line stay as they were."""
    before = house.site()
    shown = house.promote("--evidence", house.evidence())
    assert shown.exit_code == 0, shown.output
    after = house.site().tasks["extraction"]
    assert [one.model for one in after.candidates] == ["beta"] and after.fallbacks == ("alpha", "gamma")
    evidence = after.candidates[0].evidence
    assert (evidence.id, evidence.verdict, evidence.n, evidence.effect) == ("e1", "not worse", 400, 0.000033)
    assert evidence.interval == (-0.01, 0.05) and evidence.prompt_sha256 == "1e5" and evidence.mlflow_run_id == "f00"
    assert evidence.model_digest == house.digest("beta")
    assert house.site().tasks["chat"] == before.tasks["chat"] and after.examples == before.tasks["extraction"].examples
    lines = house.routes.read_text().splitlines()
    gone = {"    candidates: [{model: alpha}]   # since spring", "    fallbacks:", "      - gamma", "      # slow, but never down",
            "      - beta"}  # fmt: skip
    assert [line for line in ROUTES.splitlines() if line not in lines] == [line for line in ROUTES.splitlines() if line in gone]
    assert "    # slow, but never down" in lines and any(line.endswith("]   # since spring") for line in lines)
    assert max(map(len, lines)) <= 140


@pytest.mark.parametrize("shape", ["block", "crlf", "json", "no end of line"])
def test_promote_edits_every_common_layout_and_rollback_restores_its_bytes(house, shape):
    """Block and flow style, comments inside what is replaced, CRLF, JSON, a key that was not there: read back as meant, put back as was."""
    text = {"block": ROUTES, "crlf": ROUTES.replace("\n", "\r\n"), "no end of line": ROUTES.rstrip(),
            "json": json.dumps(msgspec.to_builtins(house.site().routes), default=str)}[shape]  # fmt: skip
    house.routes.write_bytes(text.encode())
    shown = house.promote("--because", "it is the only one that is up", task="chat", to="alpha")
    assert shown.exit_code == 0, shown.output
    after = house.site().tasks["chat"]
    assert [one.model for one in after.candidates] == ["alpha"] and after.fallbacks == ("beta", "gamma")
    changed = house.routes.read_bytes()
    assert changed.count(b"\r\n") == (changed.count(b"\n") if shape == "crlf" else 0)
    assert shape == "json" or all(word in changed for word in (b"# the small one is enough", b"# half"))
    assert shape != "json" or json.loads(changed)
    shown = house.run("rollback")
    assert shown.exit_code == 0, shown.output
    assert house.routes.read_bytes() == text.encode()


def test_refused_promotions_say_what_to_do_and_leave_the_file(house):
    """Other task, candidate, incumbent, a verdict that refuses, weights that changed or were never named, no document: file untouched."""
    refusals = {
        "is of the task `intent`, not `extraction`": {"task": "intent"},
        "is for `gamma`, not `beta`": {"candidate": "gamma"},
        "compares with `gamma`, but `extraction` is answered by alpha": {"incumbent": "gamma"},
        "says `worse`": {"verdict": "worse"},
        "says `not enough evidence`": {"verdict": "not enough evidence"},
        "`beta` has changed since evidence": {"candidate_digest": "0" * 64},
        "`alpha` has changed since evidence": {"incumbent_digest": "0" * 64},
        "has no digest of `beta`": {"candidate_digest": ""},
    }
    for nth, (words, changes) in enumerate(refusals.items()):
        shown = house.promote("--evidence", house.evidence(f"r{nth}", **changes))
        assert shown.exit_code == 1 and words in shown.output and "inhouse eval" in shown.output, shown.output
    for evidence_id, words in (("none", "no evidence none"), ("../evals/r0", "is no evidence id")):
        assert words in house.promote("--evidence", evidence_id).output
    (house.home / "evals" / "r0" / "verdict.json").write_text("{}")
    assert "is no verdict of this version" in house.promote("--evidence", "r0").output
    (house.home / "evals" / "r1").rename(house.home / "evals" / "moved")
    assert "says that it is r1" in house.promote("--evidence", "moved").output
    for words in ([], ["--because", " "], ["--because", "x", "--evidence", "r2"]):
        assert house.promote(*words).exit_code == 2
    assert "no model `betta` in the catalog; did you mean `beta`?" in house.promote("--because", "x", to="betta").output
    assert "nothing would change" in house.promote("--because", "x", to="alpha", task="extraction").output
    assert house.routes.read_bytes() == ROUTES.encode()
    assert not [one for one in (house.home / "state" / "routes").glob("*") if one.is_dir()]


def test_a_layout_that_can_not_be_changed_safely_is_refused(house):
    """Where an anchor makes one text stand for two places, nothing is written."""
    text = ROUTES.replace("candidates: [{model: alpha}]   #", "candidates: &both [{model: alpha}]   #")
    text = text[: text.index("  - name: chat")] + "  - {name: chat, candidates: *both}\n"
    house.routes.write_text(text)
    for task in ("extraction", "chat"):
        shown = house.promote("--because", "x", task=task)
        assert shown.exit_code == 1 and "edit it by hand" in shown.output
    assert house.routes.read_text() == text and not list(house.home.glob(".routes*"))


def test_rollback_leaves_later_changes_by_hand_alone(house):
    """With other lines changed since, only the promoted task goes back; where its own lines were changed, nothing does."""
    house.promote("--evidence", house.evidence())
    house.promote("--because", "x", task="chat", to="gamma")
    house.routes.write_text(house.routes.read_text().replace("platform team", "other team"))
    assert house.run("rollback", "--task", "extraction").exit_code == 0
    assert house.site().tasks["extraction"].models() == ["alpha", "gamma", "beta"]
    assert house.site().tasks["chat"].models() == ["gamma", "beta"]
    house.routes.write_text(house.routes.read_text().replace("{model: gamma}", "{model: gamma, weight: 2}"))
    shown = house.run("rollback")
    assert shown.exit_code == 1 and "by hand" in shown.output
    house.routes.write_text(house.routes.read_text().replace("{model: gamma, weight: 2}", "{model: gamma}"))
    assert house.run("rollback").exit_code == 0
    assert house.routes.read_text() == ROUTES.replace("platform team", "other team")
    assert "no promotion is left" in house.run("rollback").output


def test_promotions_and_rollbacks_are_in_the_audit_log(house):
    """Who asked for what and how it ended is there, with the reason where there was no evidence, and of refused ones that they failed."""
    house.promote("--because", "the other one is down")
    house.promote("--evidence", "none")
    house.run("rollback")
    log = house.audit()
    assert log.count("routes promote because=the other one is down model=beta task=extraction") == 2
    assert log.count("routes promote evidence=none") == 2 and log.count("routes rollback") == 2
    assert log.count('"failed"') == 1 and log.count('"done"') == 2, log


def test_the_shipped_file_of_an_installed_package_is_not_changed(tmp_path):
    """Where routes.yaml is the package's own and no checkout, promote says how to have one's own."""
    source = "import pathlib, routing, sys; print(pathlib.Path(routing.__file__).parent)"
    folder = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True).stdout.strip()
    for room in ("routing", "serving"):
        subprocess.run(["cp", "-r", f"{folder}/../{room}", str(tmp_path)], check=True)
    (tmp_path / "routing" / "probe.py").write_text("from routing.routes_cli import routes\nroutes()\n")
    before = hashlib.sha256((tmp_path / "routing" / "routes.yaml").read_bytes()).hexdigest()
    words = ["promote", "--task", "extraction", "--to", "demo-generalist", "--because", "x", "--home", str(tmp_path / "home")]
    shown = subprocess.run([sys.executable, "-P", "-m", "routing.probe", *words], capture_output=True, text=True, check=False,
                           env={"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"})  # fmt: skip
    assert shown.returncode == 1 and "export INHOUSE_ROUTES=" in shown.stderr, shown.stderr
    assert hashlib.sha256((tmp_path / "routing" / "routes.yaml").read_bytes()).hexdigest() == before


def test_check_names_stale_evidence(house):
    """Changed weights, a newer comparison on other data and age are named by task, model and evidence; a fresh promotion is not."""
    house.promote("--evidence", house.evidence(date="2025-01-01T00:00:00+00:00"))
    assert "stale" not in house.run("check").output
    house.weights("beta", "other weights")
    house.evidence("e2", data_sha256="e" * 64, judge_sha256="f" * 64, verdict="worse")
    house.routes.write_text("evidence_days: 30\n" + house.routes.read_text())
    shown = house.run("check")
    assert shown.exit_code == 0
    lines = [line for line in shown.output.splitlines() if line.startswith("stale: extraction: the evidence for beta (e1) is stale: ")]
    for words in ("the model has changed (digest", "the data has changed (", "the judge has changed", "and evidence_days is 30"):
        assert len([line for line in lines if words in line]) == 1, shown.output
    assert len(lines) == 4
    house.routes.write_text(house.routes.read_text().replace("evidence_days: 30", "evidence_days: 0"))
    assert "`evidence_days` must be a number above 0" in house.run("check").output


async def test_a_running_router_follows_a_promotion_and_names_stale_evidence(start_router, chat):
    """Requests of the task go to the promoted model at once, back to the first after rollback, and `/readyz` sees changed weights."""
    router = start_router()
    house = under(router)
    routes = house.routes.read_text()

    async def until(claim):
        async with asyncio.timeout(60):
            while not await claim():
                await asyncio.sleep(0.05)

    async def answers(model):
        await until(lambda: is_answered_by(model))

    async def is_answered_by(model):
        return (await router.ask(chat(model="task/extraction"))).headers["inhouse-model"] == model

    async def is_named_stale():
        return any("the model has changed" in one for one in (await router.get("/readyz")).json["stale_evidence"])

    async def digest():
        return (await identity_at(f"http://127.0.0.1:{router.port}/v1", "beta", router.key)).digest

    await until(digest)
    await answers("alpha")
    assert await digest() == house.digest("beta")
    assert "digest" not in (await router.get("/v1/models/task/extraction")).json
    assert house.promote("--evidence", house.evidence(candidate_digest=await digest())).exit_code == 0
    await answers("beta")
    assert (await router.get("/readyz")).json["stale_evidence"] == []
    house.weights("beta", "other weights")
    await until(is_named_stale)
    assert house.run("rollback").exit_code == 0
    await answers("alpha")
    assert house.routes.read_text() == routes


async def test_a_run_takes_the_digest_from_this_machines_router(start_router):
    """`inhouse eval run`, and a notebook, keep the digest that the router has of the model, so that the verdict can promote."""
    router = start_router()
    house = under(router)
    async with asyncio.timeout(60):
        while not (await identity_at(f"http://127.0.0.1:{router.port}/v1", "beta", router.key)).digest:
            await asyncio.sleep(0.05)
    places = {"INHOUSE_HOME": str(router.home), "INHOUSE_PORT": str(router.port), "INHOUSE_KEY": router.key}
    words = ["eval", "run", "extraction", "--limit", "2", "--model", "beta", "--onprem"]
    shown = await asyncio.to_thread(CliRunner().invoke, inhouse.main, words, env=places)
    assert shown.exit_code == 0, shown.output
    (file,) = (router.home / "evals").glob("*/run.json")
    assert json.loads(file.read_text())["model_digest"] == house.digest("beta")
    endpoint = Endpoint(f"http://127.0.0.1:{router.port}/v1", "beta", key=router.key, onprem=True)
    made = await asyncio.to_thread(ask, "extraction", endpoint, router.home / "notebook", limit=1)
    assert made.facts["model_digest"] == house.digest("beta")
    assert set(made.facts["served"]) == {"repo", "revision", "engine", "price"}
    assert await identity_at(f"http://127.0.0.1:{router.port}/v1", "nobody", router.key) == Identity()
    assert await identity_at("http://127.0.0.1:9/v1", "beta", "") == Identity()


def under(router):
    """The house of a router that runs: its cells stay, its routes have comments now."""
    cells = json.loads((router.home / "routes.yaml").read_text())["cells"]
    house = House(router.home)
    house.routes.write_text(ROUTES.replace("default_task", f"cells: {json.dumps(cells)}\ndefault_task"))
    return house


NAMES = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"], exclude_characters=","), max_size=30)


@given(NAMES, st.lists(NAMES, max_size=4), st.floats(-1, 1), st.sampled_from(["yaml", "json"]))
def test_whatever_is_put_is_read_back_and_all_else_stays(name, fallbacks, effect, style):
    """Names that look like numbers, words of YAML or comments come back as they went in, in both styles; the other task is as it was."""
    text = ROUTES if style == "yaml" else json.dumps(yaml.safe_load(ROUTES))
    entry = {"model": name, "evidence": {"id": name, "effect": round(effect, 6), "prompt_sha256": "1e5", "judge_sha256": None, "n": 3}}
    after = yaml.safe_load(Page(text).put("extraction", {"candidates": [entry], "fallbacks": fallbacks}))
    expected = yaml.safe_load(text)
    expected["tasks"][0] |= {"candidates": [entry], "fallbacks": fallbacks}
    assert after == expected
