"""From a task's `scorer:` to the function, and from an answer to its score. The functions themselves are in scorers.py and sql.py.

A task names one (`scorer: exact`), or one with options (`scorer: {use: numeric, relative: 0.01}`).
"""

import difflib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from evals import scorers
from evals.case import Answer, Case, Score
from evals.scorers import Mark, Scorer, ScorerError


def _sql(folder: Path, *, databases: str, deadline_s: float = 2.0) -> Scorer:
    from evals.sql import sql_equal

    return sql_equal(folder / databases, deadline_s=deadline_s)


def _judge(*, criteria: str = "") -> Scorer:
    """Stands for judge.py, which asks and so is no function of an answer; its options are checked like any other's."""
    return lambda _case, _answer: Mark(None, criteria)


FACTORIES: dict[str, Callable[..., Scorer]] = {
    "exact": scorers.exact,
    "normalised": scorers.normalised,
    "numeric": scorers.numeric,
    "regex": scorers.regex,
    "json_equal": scorers.json_equal,
    "json_schema": scorers.json_schema,
    "field_f1": scorers.field_f1,
    "tool_calls": scorers.tool_calls,
    "sql": _sql,
    "judge": _judge,
}
_SELF_SUFFICIENT = {"regex": "pattern", "json_schema": "schema"}  # with this option a case needs no `expected`


def scorer_of(spec: dict[str, Any], folder: Path, cases: list[Case], *, has_judge: bool = False) -> Scorer:
    """The scorer that a task names, with its options; paths in them are relative to `folder`.

    Raises `ScorerError` for an unknown name or option, and where a case has nothing to be compared with.
    """
    name, options = str(spec.get("use", "")), {key: value for key, value in spec.items() if key != "use"}
    if name not in FACTORIES:
        raise ScorerError(f"no scorer `{name}`{_nearest(name, list(FACTORIES))}. There are: {', '.join(FACTORIES)}")
    if (name == "judge") != has_judge:
        raise ScorerError("the scorer `judge` and a model that judges go together: --scorer judge --judge-model NAME --judge-url URL")
    known = [key for key in inspect.signature(FACTORIES[name]).parameters if key != "folder"]
    for key in options:
        if key not in known:
            raise ScorerError(f"scorer {name} has no option `{key}`{_nearest(key, known)}. It has: {', '.join(known) or 'none'}")
    lacking = next((case.id for case in cases if case.expected is None), None)
    if lacking is not None and not options.get(_SELF_SUFFICIENT.get(name, "")):
        raise ScorerError(f"scorer {name} compares with `expected`, and case {lacking} has none")
    place = {"folder": folder} if name == "sql" else {}
    try:
        return FACTORIES[name](**place, **options)
    except TypeError as error:
        raise ScorerError(f"scorer {name}: {error}") from None


def score(scorer: Scorer, case: Case, answer: Answer) -> Score:
    """One answer's score. A failed request is unscored here: that it counts as a failure is the report's word."""
    try:
        mark = Mark(None, "the request failed") if answer.failed else scorer(case, answer)
    except RecursionError:
        mark = Mark(0.0, "nested too deeply")
    return Score(case.id, answer.sample, mark.value, mark.reason)


def _nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, 1)
    return f"; did you mean `{close[0]}`?" if close else ""
