"""Data classes: the highest of all that is said and found counts, a class never falls, and what is not understood is the highest."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.classes import Detected
from routing.config import ConfigError, Routes, read_site
from routing.detect import FAILED, KINDS
from routing.errors import BadRequest, Denied
from routing.labels import Ladder, check_class, class_of, may_go
from serving.catalog import read_catalog

NAMES = ["public", "internal", "confidential", "restricted"]
LADDER = Ladder.of(Routes(default_task="t", tasks=(), detected=Detected(email="confidential", phone="internal")))
said = st.sampled_from(["", *NAMES])
findings = st.frozensets(st.sampled_from([*KINDS, FAILED]))


def rank(name):
    return NAMES.index(name)


@given(declared=said, default=said, found=findings, run=said)
def test_a_class_is_the_highest_of_all_sources(declared, default, found, run):
    """Whatever is declared, configured, found and remembered, the label is the highest of them and nothing else (AISVS 9.7.1)."""
    label = class_of(LADDER, declared=declared.encode(), default=default, found=found, run=run)
    of_found = [{"email": 2, "phone": 1}.get(kind, 3) for kind in found]
    sources = [rank(default or "internal"), *(rank(name) for name in (declared, run) if name), *of_found]
    assert rank(label) == max(sources)


@given(turns=st.lists(st.tuples(said, findings), max_size=6))
def test_within_a_run_a_class_never_falls(turns):
    """Turn after turn, the run's class only rises, whatever a later turn declares."""
    run, before = "", -1
    for declared, found in turns:
        run = class_of(LADDER, declared=declared.encode(), default="public", found=found, run=run)
        assert rank(run) >= before
        before = rank(run)


@pytest.mark.parametrize("declared", [b"secret", b"Internal", b"\xff", b"internal, public", b" "])
def test_a_class_that_does_not_exist_is_refused(declared):
    """A wrong header is a 400 that names the classes there are; it is never taken for the lowest."""
    with pytest.raises(BadRequest, match="public, internal, confidential, restricted") as refused:
        class_of(LADDER, declared=declared, default="", found=())
    assert refused.value.param == "inhouse-data-class"


def test_a_class_that_was_removed_is_the_highest():
    """A key or a run with a class that routes.yaml no longer has gets the most sensitive one."""
    assert class_of(LADDER, declared=b"", default="gone", found=(), run="public") == "restricted"
    assert class_of(LADDER, declared=b"", default="gone", found=()) == "restricted"
    assert class_of(LADDER, declared=b"", default="", found=(), run="gone") == "restricted"


def test_a_kind_without_a_class_and_a_failure_are_the_highest():
    """Nobody has to list every kind, and a detector that fails raises to the top (AISVS 9.7.1)."""
    for kind in (FAILED, "card", "a kind of a plug-in"):
        assert class_of(LADDER, declared=b"public", default="public", found={kind}) == "restricted"


@pytest.mark.parametrize(("label", "highest", "fits"), [
    ("public", "internal", True), ("internal", "internal", True), ("confidential", "internal", False), ("restricted", "", True),
    ("public", "gone", False), ("gone", "confidential", False), ("gone", "restricted", True), ("restricted", "restricted", True),
])  # fmt: skip
def test_a_caller_sends_up_to_its_highest_class(label, highest, fits):
    """Above the key's highest class is a 403; a class that is not known counts as the highest there is."""
    if fits:
        check_class(LADDER, label, max_class=highest)
    else:
        with pytest.raises(Denied, match="ask for a key") as refused:
            check_class(LADDER, label, max_class=highest)
        assert refused.value.code == "data_class"


def test_data_goes_to_the_zones_of_its_class_alone():
    """A class that is not known goes nowhere, and a zone that is not known gets nothing."""
    assert [may_go(LADDER, name, "hosted") for name in NAMES] == [True, True, False, False]
    assert all(may_go(LADDER, name, "onprem") for name in NAMES)
    assert not may_go(LADDER, "gone", "onprem")
    assert not may_go(LADDER, "public", "elsewhere")


MODELS = "models:\n  - {name: alpha, path: ., license: x, price: {usd_per_gpu_hour: 1}}\n"
BASE = "default_task: chat\ntasks:\n  - {name: chat, candidates: [{model: alpha}]}\n"


@pytest.fixture
def site(tmp_path):
    """Reads a site from the lines after its one task."""

    def read(lines):
        (tmp_path / "models.yaml").write_text(MODELS)
        (tmp_path / "routes.yaml").write_text(BASE + lines)
        return read_site(tmp_path / "routes.yaml", read_catalog(tmp_path / "models.yaml"))

    return read


def test_own_classes_and_zones_are_read(site):
    """A house may have its own words for both."""
    ladder = Ladder.of(site("zones: [{name: onprem, teams: ['*']}, {name: lab}]\ndefault_class: green\n"
                            "data_classes: [{name: green, zones: [onprem, lab]}, {name: red, zones: [onprem]}]\n").routes)  # fmt: skip
    assert class_of(ladder, declared=b"", default="", found={"email"}) == ladder.highest == "red"


def test_without_a_word_about_it_everything_found_is_restricted(site):
    """A file that says nothing of data classes has the four, and every finding is of the highest."""
    ladder = Ladder.of(site("").routes)
    assert list(ladder.ranks) == NAMES
    assert {class_of(ladder, declared=b"", default="", found={kind}) for kind in KINDS} == {"restricted"}


WRONG = [
    ("data_classes: []\n", "at least one data class"),
    ("data_classes: [{name: a, zones: [onprem]}, {name: a, zones: [onprem]}]\ndefault_class: a\n", "is there twice"),
    ("data_classes: [{name: 'a b', zones: [onprem]}]\ndefault_class: 'a b'\n", "is not made of letters"),
    ("data_classes: [{name: a, zones: [on-prem]}]\ndefault_class: a\n", "no zone `on-prem`; did you mean `onprem`"),
    ("default_class: intern\n", "no data class `intern`; did you mean `internal`"),
    ("detected: {card: restrictd}\n", "no data class `restrictd`; did you mean `restricted`"),
    ("detected: {cards: restricted}\n", "unknown key `cards`; did you mean `card`"),
    ("cells: [{name: a, url: 'http://a', zone: onpremise}]\n", "no zone `onpremise`; did you mean `onprem`"),
    ("cells: [{name: a, url: 'http://a', zone: hosted}]\n",
     "class `confidential` may go to onprem, and every model of the task `chat` is in hosted"),
    ("oidc: {issuer: i, audience: a, jwks: j, grants: [{claim: c, value: v, max_class: secret}]}\n", "no data class `secret`"),
    ("data_classes: [{name: a, zones: [onprem]}, {name: b, zones: []}]\ndefault_class: a\n", "class `b` may go to no zone"),
    ("data_classes: [{name: a, zones: [onprem]}, {name: b, zones: [hosted]}]\ndefault_class: a\n", "class `b` may go to hosted, and every"),
]  # fmt: skip


@pytest.mark.parametrize(("lines", "says"), WRONG)
def test_a_file_in_which_data_has_nowhere_to_go_is_refused(site, lines, says):
    """Wrong names and classes without a target are found when the file is read, not by the first caller who needs them."""
    with pytest.raises(ConfigError) as refused:
        site(lines)
    assert says in str(refused.value)
