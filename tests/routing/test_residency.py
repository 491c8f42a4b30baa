"""From a body to whether it may leave: detectors, labels and policies together, without a router around them."""

import canaries

from routing.config import SHIPPED, read_site
from routing.detect import NOTHING, find
from routing.labels import Ladder, class_of
from routing.policy import SHIPPED as POLICIES
from routing.policy import About, load, may_leave
from serving.catalog import read_catalog

ROUTES = read_site(SHIPPED, read_catalog()).routes
LADDER = Ladder.of(ROUTES)


def leaves(policy, body, *, found=None):
    """Whether a body may be sent to a hosted model by somebody whose key and team may do everything and who declares it public."""
    label = class_of(LADDER, declared=b"public", default="public", found=find(body) if found is None else found)
    about = About("ihk_1", "research", frozenset("*"), frozenset("*"), "chat", label, "/v1/chat/completions", stream=False)
    return may_leave(policy, about, model="gpt", zone="hosted")


def allowing(*teams):
    """The shipped configuration with teams that may use hosted models."""
    zones = tuple(type(zone)(name=zone.name, teams=("*",) if zone.name == "onprem" else teams) for zone in ROUTES.zones)
    return load(POLICIES, type(ROUTES)(default_task=ROUTES.default_task, tasks=(), zones=zones, data_classes=ROUTES.data_classes))


def test_no_planted_value_may_leave():
    """6,156 conversations with a planted value, declared public by a caller who may do everything: none may leave (AISVS 9.6.3, 9.7.1)."""
    policy = allowing("research")
    assert [one for one in canaries.conversations() if leaves(policy, one.body)] == []


def test_without_detectors_the_same_conversations_leave():
    """With the detectors taken out every one of them may: the test above can fail."""
    policy = allowing("research")
    assert all(leaves(policy, one.body, found=NOTHING) for one in canaries.conversations())


def test_harmless_conversations_may_leave():
    """What holds nothing is not kept inside for nothing."""
    policy = allowing("research")
    assert all(leaves(policy, canaries.harmless(1, place, "plain")) for place in canaries.PLACES)


def test_as_shipped_nothing_leaves_at_all():
    """Until an administrator lists a team, no class of data and no caller gets anything to a hosted model."""
    policy = load(POLICIES, ROUTES)
    assert not any(leaves(policy, canaries.harmless(1, place, "plain")) for place in canaries.PLACES)
