"""Asks a served model the held-out cases over HTTP and counts exact answers.

A request that fails counts as wrong and is reported apart. Not here: confidence intervals, comparisons, cost.
"""

import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from evals.suites.generate import SUITES, Row, task

WORKERS = 8
TIMEOUT_S = 120


def json_equal(answer: str, row: Row) -> bool:
    """The answer is one JSON value equal to the target: same keys, same values, 5 and 5.0 the same, 1 and true not."""
    try:
        return _same(json.loads(answer), json.loads(row["target"]))
    except ValueError:
        return False


def _same(one: Any, two: Any) -> bool:
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(_same(one[key], two[key]) for key in one)
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(map(_same, one, two))
    return isinstance(one, bool) == isinstance(two, bool) and bool(one == two)


def final_number(answer: str, row: Row) -> bool:
    """The last line says "Answer: N" with exactly the target; a right number in an earlier step does not count."""
    lines = answer.strip().splitlines()
    found = re.fullmatch(r"\s*Answer:\s*(-?\d+(?:\.\d+)?)\.?\s*", lines[-1]) if lines else None
    return found is not None and float(found.group(1)) == float(row["target"])


def one_of(answer: str, row: Row) -> bool:
    """The answer is one of `accept`; case and spacing do not count, everything else does."""
    return _folded(answer) in {_folded(accepted) for accepted in row["accept"]}


def _folded(text: str) -> str:
    return " ".join(text.lower().split())


SCORERS: dict[str, Callable[[str, Row], bool]] = {
    "json_equal": json_equal,
    "final_number": final_number,
    "one_of": one_of,
}


def is_json(answer: str) -> bool:
    """Whether the whole answer parses as JSON."""
    try:
        json.loads(answer)
    except ValueError:
        return False
    return True


def held_out(name: str) -> list[Row]:
    """The committed cases of a task."""
    lines = (SUITES / name / "cases.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def ask(base_url: str, model: str, messages: list[Row], key: str | None = None) -> str | None:
    """The model's answer with the server's default sampling; None when the request failed."""
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
    body = json.dumps({"model": model, "messages": messages}).encode()
    request = urllib.request.Request(f"{base_url.rstrip('/')}/chat/completions", body, headers)  # noqa: S310  # the caller names the server
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310
            content = json.load(response)["choices"][0]["message"]["content"]
    except (urllib.error.URLError, TimeoutError, ValueError, LookupError):
        return None
    return content if isinstance(content, str) else None


def score_task(base_url: str, model: str, name: str, *, limit: int | None = None, key: str | None = None) -> dict[str, Any]:
    """Counts for one model and task: asked, failed, right, exact, valid_json, the counts of each slice, the misses."""
    rows, scorer = held_out(name)[:limit], SCORERS[task(name).scorer]
    with ThreadPoolExecutor(WORKERS) as pool:
        answers = list(pool.map(lambda row: ask(base_url, model, row["messages"], key), rows))
    right = [answer is not None and scorer(answer, row) for answer, row in zip(answers, rows, strict=True)]
    slices: dict[str, dict[str, int]] = {}
    for row, hit in zip(rows, right, strict=True):
        counts = slices.setdefault(row["slice"], {"asked": 0, "right": 0})
        counts["asked"] += 1
        counts["right"] += hit
    return {
        "task": name,
        "model": model,
        "asked": len(rows),
        "failed": answers.count(None),
        "right": sum(right),
        "exact": sum(right) / len(rows) if rows else 0.0,
        "valid_json": sum(answer is not None and is_json(answer) for answer in answers),
        "slices": dict(sorted(slices.items())),
        "misses": [
            {"id": row["id"], "prompt": row["messages"][-1]["content"], "answer": answer, "target": row["target"]}
            for row, answer, hit in zip(rows, answers, right, strict=True)
            if not hit
        ],
    }
