"""Which targets a request gets, in which order."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.choose import Fleet
from routing.config import Candidate, Cell, Routes, Site, Task
from routing.upstream import Origin
from serving.catalog import Adapter, Model, Price

NAMES = ("a", "b", "c", "d")


def site(cells=1, **task):
    models = {
        name: Model(name=name, license="x", price=Price(usd_per_gpu_hour=1.0), path=".",
                    adapters=(Adapter(name="a-de", path="."),) if name == "a" else ())
        for name in NAMES
    }
    models["a-de"] = models["a"]
    made = Task(name="t", **task) if task else Task(name="t", candidates=(Candidate(model="a"),))
    places = tuple(Cell(name=f"cell{i}", url=f"http://h{i}:81/x/") for i in range(cells))
    return Site(Routes(default_task="t", tasks=(made,), cells=places), {"t": made}, models, places, {}, "")


def fleet_of(made, healthy=(*NAMES, "a-de")):
    fleet = Fleet(made)
    for target in fleet.all():
        target.ready = target.model in healthy
    return fleet


def test_weights_share_the_traffic():
    """Over many draws each candidate comes first about as often as its weight says, and weight 0 never."""
    made = site(candidates=(Candidate(model="a", weight=3), Candidate(model="b"), Candidate(model="c", weight=0)))
    fleet = fleet_of(made)
    first = Counter(fleet.for_task(made.tasks["t"])[0].model for _ in range(4000))
    assert 2800 < first["a"] < 3200
    assert first["a"] + first["b"] == 4000
    assert all(target.model != "c" for target in fleet.for_task(made.tasks["t"]))


@given(healthy=st.sets(st.sampled_from(NAMES)), cells=st.integers(1, 3), resting=st.sets(st.integers(0, 11)))
def test_every_target_is_there_once_and_the_healthy_come_first(healthy, cells, resting):
    """Whatever is up, each eligible target appears exactly once, and no sick one stands before a healthy one."""
    made = site(cells, candidates=(Candidate(model="a"), Candidate(model="b")), fallbacks=("c", "a", "d"))
    fleet = fleet_of(made, healthy)
    for i, target in enumerate(fleet.all()):
        if i in resting:
            target.rest()
    for _ in range(5):
        targets = fleet.for_task(made.tasks["t"])
        assert Counter((t.model, t.cell) for t in targets) == Counter((n, f"cell{i}") for n in NAMES for i in range(cells))
        assert [t.is_healthy() for t in targets] == sorted((t.is_healthy() for t in targets), reverse=True)


def test_healthy_targets_keep_the_written_order():
    """Candidates come before fallbacks, and fallbacks in their order."""
    made = site(candidates=(Candidate(model="b"),), fallbacks=("d", "a"))
    assert [t.model for t in fleet_of(made).for_task(made.tasks["t"])] == ["b", "d", "a"]
    assert [t.model for t in fleet_of(made, {"a", "d"}).for_task(made.tasks["t"])] == ["d", "a", "b"]


def test_a_sick_candidate_leaves_its_share_to_the_healthy():
    """While one candidate is down all draws go to the other."""
    made = site(candidates=(Candidate(model="a", weight=1000), Candidate(model="b", weight=0.001)))
    fleet = fleet_of(made, {"b"})
    assert {fleet.for_task(made.tasks["t"])[0].model for _ in range(50)} == {"b"}


def test_cells_take_turns_and_a_sick_one_is_last():
    """Two healthy cells share by turns; a cell that is down is only asked last."""
    made = site(2)
    fleet = fleet_of(made)
    assert Counter(fleet.for_model("a")[0].cell for _ in range(10)) == {"cell0": 5, "cell1": 5}
    fleet.targets["a"][0].ready = False
    assert {fleet.for_model("a")[0].cell for _ in range(10)} == {"cell1"}


def test_a_rest_ends_when_the_target_answers():
    """A target that failed is not healthy until it has answered; its readiness is another matter."""
    target = fleet_of(site()).targets["a"][0]
    target.rest()
    assert target.ready
    assert not target.is_healthy()
    target.recovered()
    assert target.is_healthy()


def test_an_adapter_is_answered_by_its_models_engine():
    """The adapter's target lies at its model's address and keeps the adapter's name."""
    target = fleet_of(site()).for_model("a-de")[0]
    assert (target.model, target.origin) == ("a-de", Origin("h0", 81, False, "/x/models/a", "h0:81"))


def test_nothing_is_ready_before_its_first_check():
    """A fleet starts unready, and is still asked: a wrong health check must not stop the house."""
    made = site()
    fleet = Fleet(made)
    assert not fleet.is_ready("a")
    assert len(fleet.for_task(made.tasks["t"])) == 1


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("http://h", Origin("h", 80, False, "", "h")),
        ("https://h/", Origin("h", 443, True, "", "h")),
        ("http://[::1]:8/a/b/", Origin("::1", 8, False, "/a/b", "[::1]:8")),
    ],
)
def test_an_origin_is_read_from_an_address(url, origin):
    """Scheme, host, port and prefix are split with their defaults."""
    assert Origin.of(url) == origin
