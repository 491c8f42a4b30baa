"""Presidio as one more detector: names and places, which patterns can't tell. Not installed with inhouse: `pip install presidio-analyzer`.

It brings spaCy and needs a language model beside it; it takes milliseconds a request, in the router's own process.
"""

from collections.abc import Iterable
from typing import Any, Protocol

from serving.catalog import ConfigError

_KINDS = {
    "PERSON": "name", "LOCATION": "place", "CREDIT_CARD": "card", "IBAN_CODE": "iban", "EMAIL_ADDRESS": "email", "PHONE_NUMBER": "phone",
    "US_SSN": "national_id", "UK_NHS": "national_id", "ES_NIF": "national_id",
}  # fmt: skip
_MIN_SCORE = 0.5


class Analyzer(Protocol):
    """The part of Presidio's AnalyzerEngine that is used."""

    def analyze(self, text: str, language: str, entities: list[str] | None = None) -> list[Any]: ...


class Presidio:
    """A detector. What its analyzer raises goes on to the caller, where it means the highest class."""

    def __init__(self, analyzer: Analyzer, language: str) -> None:
        self._analyzer = analyzer
        self._language = language

    def __call__(self, text: str) -> Iterable[str]:
        results = self._analyzer.analyze(text, self._language, list(_KINDS))
        return {_KINDS[result.entity_type] for result in results if result.score >= _MIN_SCORE}


def load_presidio(language: str) -> Presidio:
    """Starts Presidio, which takes seconds. Raises `ConfigError` where it is not installed or lacks the language's model."""
    try:
        from presidio_analyzer import AnalyzerEngine

        return Presidio(AnalyzerEngine(supported_languages=[language]), language)
    except (ImportError, OSError, ValueError, SystemExit) as error:  # spaCy exits where it can't download a model
        raise ConfigError(f"routes.yaml asks for presidio in `{language}`, which did not start ({error}): install presidio-analyzer and "
                          "the language's spaCy model, or take `presidio` out") from error  # fmt: skip
