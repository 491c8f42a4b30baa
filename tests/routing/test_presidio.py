"""The Presidio plug-in with an analyzer that is passed in: what it maps, what it leaves out, and that it is only asked for by name."""

import importlib.util
from typing import NamedTuple

import pytest

from routing.config import ConfigError
from routing.detect import FAILED, find
from routing.presidio import Presidio, load_presidio


class Result(NamedTuple):
    entity_type: str
    score: float


class Analyzer:
    """Finds the words that it is made with, as Presidio's AnalyzerEngine would."""

    def __init__(self, **words):
        self.words = words

    def analyze(self, text, language, entities=None):
        assert language == "en"
        return [Result(kind, score) for kind, (word, score) in self.words.items() if word in text and kind in entities]


def body(text):
    return f'{{"model":"a","prompt":"{text}"}}'.encode()


def test_names_and_places_are_found_by_it():
    """What patterns can't tell comes from the analyzer, above its score of one half, beside what patterns find."""
    presidio = Presidio(Analyzer(PERSON=("Ann", 0.85), LOCATION=("Leeds", 0.4)), "en")
    assert find(body("Ann lives in Leeds"), others=[presidio]) == {"name"}
    assert find(body("Ann has 4111 1111 1111 1111"), others=[presidio]) == {"name", "card"}
    assert find(body("nobody"), others=[presidio]) == frozenset()


def test_an_analyzer_that_fails_is_a_failure():
    """Its error means that nothing is known of the text."""

    class Broken:
        def analyze(self, text, language, entities=None):
            raise KeyError("model")

    assert FAILED in find(body("hello"), others=[Presidio(Broken(), "en")])


@pytest.mark.skipif(importlib.util.find_spec("presidio_analyzer") is not None, reason="presidio-analyzer is installed here")
def test_asking_for_it_without_having_it_says_what_to_install():
    """A house that asks for Presidio and lacks it does not start without it (AISVS 9.7.1)."""
    with pytest.raises(ConfigError, match="install presidio-analyzer"):
        load_presidio("en")
