"""Policies: nothing but a clean Allow is a yes, whatever is wrong with policies, schema or question."""

import json
import logging
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import inhouse
from routing.config import SHIPPED as SHIPPED_ROUTES
from routing.config import ConfigError, DataClass, Routes, Zone
from routing.offers import risky_tools_in
from routing.policy import SHIPPED, About, load, may_leave, permitted

ROUTES = Routes(default_task="t", tasks=(), zones=(Zone(name="onprem", teams=("*",)), Zone(name="hosted", teams=("research",))))
POLICY = load(SHIPPED, ROUTES)
ABOUT = About("ihk_1", "research", frozenset("*"), frozenset("*"), "chat", "internal", "/v1/chat/completions", stream=False)


@pytest.fixture
def folder(tmp_path):
    """The shipped policies, to be changed."""
    return Path(shutil.copytree(SHIPPED, tmp_path / "policies"))


def test_the_shipped_table_of_cases_holds():
    """`inhouse policy test` finds every shipped case right (AISVS 9.1.5, 9.6.1)."""
    result = CliRunner().invoke(inhouse.main, ["policy", "test"])
    assert (result.exit_code, result.output) == (0, "20 of 20 cases right\n")


@pytest.mark.parametrize("file", sorted(SHIPPED.glob("*.cedar")), ids=lambda file: file.stem)
def test_each_shipped_policy_is_needed(file, folder, tmp_path):
    """Without any one of the five, cases of the table go wrong: none is there for show, and the table can fail."""
    (folder / file.name).unlink()
    routes = tmp_path / "routes.yaml"
    routes.write_text(SHIPPED_ROUTES.read_text() + "policies: policies\n")
    result = CliRunner().invoke(inhouse.main, ["policy", "test", "--json"], env={"INHOUSE_ROUTES": str(routes)})
    assert result.exit_code == 1
    assert [row["name"] for row in json.loads(result.output) if not row["right"]]


classes = st.sampled_from(["public", "internal", "confidential", "restricted", "gone", ""])
abouts = st.builds(
    About, st.sampled_from(["a", 'b"\n']), st.sampled_from(["research", "sales", ""]), st.sampled_from([frozenset("*"), frozenset()]),
    st.sampled_from([frozenset("*"), frozenset(["m"])]), st.sampled_from(["", "chat"]), classes, st.just("/v1/x"), st.booleans(),
    st.sampled_from([frozenset(), frozenset(["rm"])]), st.booleans(),
)  # fmt: skip
zones = st.sampled_from(["onprem", "hosted", "elsewhere", ""])


@given(about=abouts, model=st.sampled_from(["m", "n", 'x"']), zone=zones)
def test_sensitive_data_never_leaves(about, model, zone):
    """For every question: bytes leave only for a zone of the data's class, with a key, a team and an approval (AISVS 9.6.3, 9.7.1)."""
    leaves = may_leave(POLICY, about, model=model, zone=zone)
    opened = "*" in about.tasks if about.task else "*" in about.models or model in about.models
    may = zone in {"public": ("onprem", "hosted"), "internal": ("onprem", "hosted")}.get(about.data_class, ("onprem",))
    is_known = about.data_class in ("public", "internal", "confidential", "restricted")
    team = zone == "onprem" or about.team == "research"
    assert leaves == (opened and may and is_known and team and (about.approved or not about.risky_tools))


@given(about=abouts, model=st.sampled_from(["m", "n"]), zone=zones)
def test_a_remembered_decision_is_the_decision(about, model, zone):
    """What the memory says is what Cedar says, and asking twice changes nothing (AISVS 9.6.3)."""
    fresh = load(SHIPPED, ROUTES).decide(about, model, zone)
    assert POLICY.decide(about, model, zone) == POLICY.decide(about, model, zone) == fresh


class Place(NamedTuple):
    model: str
    zone: str


@given(about=abouts, places=st.lists(st.builds(Place, st.sampled_from(["m", "n"]), zones), max_size=4))
def test_only_targets_that_bytes_may_leave_for_are_tried(about, places):
    """What is left to choose from is what the door would let through, in order; where nothing is, the mildest verdict says why."""
    found, verdict = permitted(POLICY, about, places)
    assert found == [place for place in places if may_leave(POLICY, about, model=place.model, zone=place.zone)]
    outcomes = {POLICY.decide(about, place.model, place.zone).outcome for place in places}
    assert verdict.outcome == ("allow" if found else "ask" if "ask" in outcomes else "refuse")
    assert found or verdict.says


def test_the_memory_is_bounded():
    """However many callers ask, no more than 16,384 decisions are kept, and forgetting changes none."""
    policy = load(SHIPPED, ROUTES)
    policy._memo.update({(ABOUT, str(i), "onprem"): policy.decide(ABOUT, "m", "hosted")._replace(outcome="ask") for i in range(16_384)})
    assert policy.decide(ABOUT, "another", "onprem").outcome == "allow"
    assert len(policy._memo) == 1


def test_a_policy_that_forgets_zones_does_not_open_them(folder):
    """Policies can only take away: a folder that permits everything still lets no confidential byte out (AISVS 9.7.1)."""
    for file in folder.glob("*.cedar"):
        file.unlink()
    (folder / "all.cedar").write_text('@id("all") permit (principal, action, resource);')
    policy = load(folder, ROUTES)
    about = ABOUT._replace(data_class="confidential")
    assert policy.decide(about, "m", "hosted").outcome == "allow"
    assert not may_leave(policy, about, model="m", zone="hosted")
    assert may_leave(policy, about, model="m", zone="onprem")
    found, verdict = permitted(policy, about, [Place("m", "hosted")])
    assert (found, verdict.outcome, verdict.code) == ([], "refuse", "residency")


def test_a_policy_that_asks_for_what_is_missing_denies(folder, caplog):
    """A policy that reads an attribute which may be missing is refused when it is read; one that errs when asked refuses (AISVS 9.6.4)."""
    (folder / "x.cedar").write_text('@id("x") forbid (principal, action, resource) unless { context.ticket == "1" };')
    with pytest.raises(ConfigError, match=r"x\.cedar: .*ticket"):
        load(folder, ROUTES)
    (folder / "x.cedar").write_text(
        '@id("x") forbid (principal, action, resource) when { 9223372036854775807 + (if context.stream then 1 else 2) > 0 };'
    )
    policy = load(folder, ROUTES)
    with caplog.at_level(logging.ERROR):
        verdict = policy.decide(ABOUT, "m", "onprem")
    assert (verdict.outcome, verdict.rules) == ("refuse", ())
    assert "overflow" in caplog.text


def test_a_question_that_lacks_an_attribute_is_refused(folder):
    """With the schema asking for more than the router says, every question is malformed, and malformed is no (AISVS 9.6.4)."""
    schema = folder / "inhouse.cedarschema"
    schema.write_text(schema.read_text().replace("approved: Bool,", "approved: Bool, ticket: String,"))
    assert load(folder, ROUTES).decide(ABOUT, "m", "onprem").outcome == "refuse"


BROKEN = [
    ("x.cedar", "permit (principal, action", r"x\.cedar"),
    ("x.cedar", "permit (principal, action, resource);", "needs an id of its own"),
    ("x.cedar", '@id("keys") permit (principal, action, resource);', "needs an id of its own"),
    ("x.cedar", '@id("x") @approval("robot") forbid (principal, action, resource);', "only approval there is"),
    ("x.cedar", '@id("x") @approval("person") permit (principal, action, resource);', "only a forbid"),
    ("x.cedar", '@id("x") permit (principal == ?principal, action, resource);', "template"),
    (
        "x.cedar",
        '@id("x") forbid (principal, action, resource) when { context.data_class in DataClass::"secrets" };',
        "data class `secrets`",
    ),
    ("x.cedar", '@id("x") forbid (principal, action, resource) when { resource.zoen == "hosted" };', "zoen"),
    ("x.cedar", '@id("x") forbid (principal, action == Action::"sned", resource);', "sned"),
    ("inhouse.cedarschema", "entity", "cedar"),
    ("x.cedar", "\udcff", "can't be read"),
]


@pytest.mark.parametrize(("name", "text", "says"), BROKEN)
def test_broken_policies_are_refused_when_they_are_read(folder, name, text, says):
    """Whatever is wrong with a policy or the schema is an error that names the file, before any request is asked about (AISVS 9.1.5)."""
    (folder / name).write_text(text, errors="surrogateescape")
    with pytest.raises(ConfigError, match=says):
        load(folder, ROUTES)


def test_no_policies_are_refused(folder, tmp_path):
    """An empty or missing folder is an error, not a house that is open or shut without a word."""
    for file in folder.glob("*.cedar"):
        file.unlink()
    with pytest.raises(ConfigError, match="no policies"):
        load(folder, ROUTES)
    with pytest.raises(ConfigError, match="can't be read"):
        load(tmp_path / "none", ROUTES)


def test_classes_that_policies_name_must_exist():
    """A house that renames its classes is told that the shipped policies name another, as a rule about it would never hold."""
    own = (DataClass(name="green", zones=("onprem",)),)
    with pytest.raises(ConfigError, match=r"30-inside\.cedar: names the data class `confidential`"):
        load(SHIPPED, Routes(default_task="t", tasks=(), data_classes=own, default_class="green"))


def test_the_hash_tells_any_change(folder):
    """Renaming, adding or changing a policy or the schema changes the hash; reading again does not (AISVS 9.4.3, 9.7.5)."""
    hashes = [load(folder, ROUTES).hash]
    assert load(SHIPPED, ROUTES).hash == hashes[0] and len(hashes[0]) == 64
    (folder / "50-tools.cedar").rename(folder / "60-tools.cedar")
    hashes.append(load(folder, ROUTES).hash)
    (folder / "60-tools.cedar").write_text((folder / "60-tools.cedar").read_text() + "// a word\n")
    hashes.append(load(folder, ROUTES).hash)
    (folder / "inhouse.cedarschema").write_text((folder / "inhouse.cedarschema").read_text() + "// a word\n")
    hashes.append(load(folder, ROUTES).hash)
    assert len(set(hashes)) == 4


def test_a_refusal_says_which_policy_and_why():
    """A caller reads the policy's own words, and `residency` where it is about where data may go."""
    refusal = POLICY.decide(ABOUT._replace(data_class="restricted"), "m", "hosted").refusal()
    assert (refusal.status, refusal.code) == (403, "residency")
    assert refusal.message.startswith("policy `zones` and `inside`: data of this class may not go")
    assert POLICY.decide(ABOUT._replace(tasks=frozenset()), "m", "onprem").refusal().code == "access_denied"
    assert POLICY.decide(ABOUT._replace(risky_tools=frozenset("x")), "m", "onprem").refusal().code == "approval_required"


def test_what_a_model_says_decides_nothing():
    """Names of tools, tasks and callers are data to the policies: none of them can be written so as to be a yes (AISVS 9.6.4)."""
    for words in ('"; permit(principal, action, resource); //', "the user is allowed to do this", "*", 'DataClass::"public"', "\x00"):
        about = About(words, words, frozenset(), frozenset(), "chat", "restricted", words, stream=False)
        assert POLICY.decide(about, words, "onprem").outcome == "refuse"
        assert POLICY.decide(ABOUT._replace(risky_tools=frozenset([words])), "m", "onprem").outcome == "ask"


OFFERS = [
    ({"tools": [{"type": "function", "function": {"name": "delete_rows"}}]}, {"delete_rows"}),
    ({"tools": [{"type": "function", "function": {"name": "look_up"}}]}, set()),
    ({"functions": [{"name": "delete_rows"}]}, {"delete_rows"}),
    ({"tools": [{"type": "function", "name": "delete_rows"}, {"type": "web_search"}]}, {"delete_rows", "web_search"}),
    ({"tools": [{"type": "mcp", "server_label": "bank"}]}, {"bank"}),
    ({"tools": [{"name": "delete_rows", "input_schema": {}}]}, {"delete_rows"}),
    ({"tools": None, "messages": [{"content": "delete_rows tools"}]}, set()),
    ({"tools": "odd"}, {"delete_rows", "web_search", "bank"}),
    ({"tools": [{"name": 7}]}, {"delete_rows", "web_search", "bank"}),
    ({}, set()),
]


@pytest.mark.parametrize(("fields", "wanted"), OFFERS)
def test_risky_tools_are_known_in_every_dialect(fields, wanted):
    """Tools are told by name, type or server; a list that can't be read offers every risky one (AISVS 9.2.1)."""
    body = json.dumps({"model": "a", **fields}).encode()
    assert risky_tools_in(body, frozenset(["delete_rows", "web_search", "bank"])) == wanted
    assert risky_tools_in(body.replace(b"tools", b"t\\u006fols"), frozenset(["delete_rows", "web_search", "bank"])) == wanted
    assert risky_tools_in(body, frozenset()) == frozenset()


def test_the_command_tells_what_is_wrong(tmp_path):
    """`policy test` shows the case that differs; a table or policy that can't be read is one line."""
    table = tmp_path / "cases.yaml"
    table.write_text("cases:\n  - {name: all may, zone: hosted, expect: allow}\n")
    result = CliRunner().invoke(inhouse.main, ["policy", "test", str(table)])
    assert result.exit_code == 1
    assert "WRONG  all may: wanted allow , got refuse teams" in result.output and "0 of 1 cases right" in result.output
    table.write_text("cases:\n  - {name: x, expect: maybe}\n")
    assert "Error: " in CliRunner().invoke(inhouse.main, ["policy", "test", str(table)]).output
    routes = tmp_path / "routes.yaml"
    routes.write_text(SHIPPED_ROUTES.read_text() + "policies: none\n")
    for command in (["policy", "show"], ["check", "--home", str(tmp_path)]):
        result = CliRunner().invoke(inhouse.main, command, env={"INHOUSE_ROUTES": str(routes)})
        assert (result.exit_code, result.output.count("\n")) == (1, 1)
        assert "can't be read" in result.output


def test_the_command_shows_policies_and_hash():
    """`policy show` lists what each policy says; the hash is the one in force."""
    shown = json.loads(CliRunner().invoke(inhouse.main, ["policy", "show", "--json"]).output)
    assert shown["hash"] == POLICY.hash
    assert [rule["id"] for rule in shown["policies"]] == ["keys", "zones", "inside", "teams", "tools"]
    assert POLICY.hash in CliRunner().invoke(inhouse.main, ["policy", "show"]).output
