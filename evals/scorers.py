"""Scorers: functions from a case and its answer to a value from 0 to 1, or None where they can't tell, with a reason. Pure.

Each answers one question and says in its docstring what looks right and is wrong. SQL is in sql.py as it is executed, a model as a judge
in judge.py as it is asked; which one a task gets is scoring.py's work.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from evals.case import Answer, Case

_NUMBER = r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"
_FENCE = re.compile(r"\s*```[a-zA-Z]*\n(.*?)\n?```\s*", re.DOTALL)


class ScorerError(Exception):
    """A scorer that doesn't exist, an option that it doesn't have, or a case that it can't score."""


class Mark(NamedTuple):
    """A scorer's word on one answer. None: it could not tell, which is not wrong."""

    value: float | None
    reason: str = ""


RIGHT = Mark(1.0)
Scorer = Callable[[Case, Answer], Mark]


def exact() -> Scorer:
    """The answer's text is the expected one, letter for letter, or one of a list of them."""
    return lambda case, answer: RIGHT if answer.text in _texts(case.expected) else Mark(0.0, "another text")


def normalised(*, strip: str = "") -> Scorer:
    """As `exact`, but letters' case and spacing do not count, nor the characters `strip` at both ends."""

    def fold(text: str) -> str:
        return " ".join(text.casefold().split()).strip(strip + " ")

    return lambda case, answer: RIGHT if fold(answer.text) in set(map(fold, _texts(case.expected))) else Mark(0.0, "another text")


def numeric(*, after: str = "", tolerance: float = 0.0, relative: float = 0.0) -> Scorer:
    """The answer is one number, within `tolerance` or within `relative` times the expected one, whichever is more.

    With `after`, the last line is that word and the number: a right number in an earlier step, or one of two, does not count.
    """
    pattern = re.compile(rf"\s*{re.escape(after)}\s*({_NUMBER})\.?\s*")

    def score(case: Case, answer: Answer) -> Mark:
        lines = answer.text.strip().splitlines()
        found = pattern.fullmatch(lines[-1] if after else answer.text.strip()) if lines else None
        if found is None:
            return Mark(0.0, f"no line `{after} <number>` at the end" if after else "not one number")
        value, expected = _number(found.group(1)), _number(str(case.expected))
        return RIGHT if abs(value - expected) <= max(tolerance, relative * abs(expected)) else Mark(0.0, f"{value:g}, not {expected:g}")

    return score


def regex(*, pattern: str = "") -> Scorer:
    """All of the answer matches `pattern`, or the case's own pattern where none is given."""

    def score(case: Case, answer: Answer) -> Mark:
        return RIGHT if re.fullmatch(pattern or str(case.expected), answer.text.strip(), re.DOTALL) else Mark(0.0, "does not match")

    return score


def json_equal(*, fenced: bool = False) -> Scorer:
    """The answer is one JSON value equal to the expected: same keys, same values; 5 and 5.0 are the same, 1 and true are not.

    `fenced` lets one Markdown fence stand around it. A key that comes twice is no JSON here.
    """

    def score(case: Case, answer: Answer) -> Mark:
        try:
            value = read_json(answer.text, fenced=fenced)
        except ValueError as error:
            return Mark(0.0, f"not JSON: {error}")
        return RIGHT if same(value, _expected_json(case)) else Mark(0.0, "another value")

    return score


def json_schema(*, schema: dict[str, Any] | None = None, fenced: bool = False) -> Scorer:
    """The answer is JSON that is valid under `schema`, or under the case's own schema where none is given. Formats are checked."""
    from jsonschema import validators

    def score(case: Case, answer: Answer) -> Mark:
        rules = schema if schema is not None else _expected_json(case)
        kind = validators.validator_for(rules, default=validators.Draft202012Validator)
        try:
            value = read_json(answer.text, fenced=fenced)
        except ValueError as error:
            return Mark(0.0, f"not JSON: {error}")
        wrong = next(iter(kind(rules, format_checker=kind.FORMAT_CHECKER).iter_errors(value)), None)
        return RIGHT if wrong is None else Mark(0.0, f"{wrong.json_path}: {wrong.message}"[:300])

    return score


def field_f1(*, fenced: bool = False) -> Scorer:
    """F1 over the fields of a JSON object: a field is right if path and value are. Null means not said, and earns nothing.

    The harmonic mean of precision and recall over the leaves; items of lists count at their place.
    """

    def score(case: Case, answer: Answer) -> Mark:
        try:
            found = Counter(_leaves(read_json(answer.text, fenced=fenced)))
        except ValueError as error:
            return Mark(0.0, f"not JSON: {error}")
        wanted = Counter(_leaves(_expected_json(case)))
        if not found and not wanted:
            return RIGHT
        right = (found & wanted).total()
        wrong = sorted({path for path, _ in (found - wanted) + (wanted - found)})
        return Mark(2 * right / (found.total() + wanted.total()), "wrong: " + ", ".join(wrong) if wrong else "")

    return score


def tool_calls(*, ordered: bool = False) -> Scorer:
    """The calls are the expected ones: names and arguments, in any order unless `ordered`. Expected `[]`: no call at all.

    Arguments are compared as JSON values; a number as text is wrong, and so is a call that is only talked about.
    """

    def score(case: Case, answer: Answer) -> Mark:
        wanted = _expected_json(case)
        wanted = [wanted] if isinstance(wanted, dict) else list(wanted)
        try:
            found = [{"name": call["name"], "arguments": read_json(call["arguments"] or "{}")} for call in answer.tool_calls]
        except ValueError as error:
            return Mark(0.0, f"arguments are not JSON: {error}")
        if len(found) != len(wanted):
            return Mark(0.0, f"{len(found)} calls, not {len(wanted)}")
        for call in wanted:
            at = next((at for at, one in enumerate(found) if same(one, call)), None)
            if at is None or (ordered and at > 0):
                return Mark(0.0, f"no call {call['name']} with the arguments expected{' at its place' if ordered else ''}")
            del found[at]
        return RIGHT

    return score


def same(one: Any, two: Any) -> bool:
    """Whether two JSON values are equal: numbers by value, true and 1 apart."""
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(map(same, one, two))
    return isinstance(one, bool) == isinstance(two, bool) and bool(one == two)


def read_json(text: str, *, fenced: bool = False) -> Any:
    """The whole text as one JSON value; a ValueError says why it is none."""
    found = _FENCE.fullmatch(text) if fenced else None
    try:
        return json.loads(found.group(1) if found else text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key comes twice")
    return found


def _no_constant(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")


def _expected_json(case: Case) -> Any:
    """`expected` as a value; the trained suites keep it as JSON text."""
    return json.loads(case.expected) if isinstance(case.expected, str) else case.expected


def _texts(expected: Any) -> list[str]:
    return [str(one) for one in expected] if isinstance(expected, list) else [str(expected)]


def _number(text: str) -> float:
    return float(text.replace(",", ""))


def _leaves(value: Any, path: str = "$") -> Iterator[tuple[str, str]]:
    """(path, value as JSON) of everything that is said: 5 and 5.0 alike, nulls left out."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}")
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            yield from _leaves(inner, f"{path}[{at}]")
    elif value is not None:
        yield path, json.dumps(int(value) if isinstance(value, float) and value.is_integer() else value)
