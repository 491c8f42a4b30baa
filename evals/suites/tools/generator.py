"""Makes requests to an assistant with eight tools, and the calls that each needs. Pure: the same rng gives the same case.

No call is right for small talk, for a wish that no tool does, and where an argument is missing. Not covered: calls that need a result of
another call, arguments that have to be worked out.
"""

import random
from pathlib import Path
from typing import Any

import yaml

WORDS = yaml.safe_load((Path(__file__).parent / "words.yaml").read_text(encoding="utf-8"))
Call = dict[str, Any]


def case(rng: random.Random, *, unseen: bool = False) -> dict[str, Any]:
    """One request, the calls expected, and why it is hard."""
    calls: list[Call] = []
    kind = rng.choice(["one", "one", "one", "one", "two", "missing", "no-tool"])
    if kind == "no-tool":
        text, cluster = rng.choice(WORDS["no_tool"]).format(**_values(rng)), "none"
    elif kind == "missing":
        name = rng.choice([name for name, tool in WORDS["tools"].items() if tool["missing"]])
        text, cluster = rng.choice(WORDS["tools"][name]["missing"]).format(**_values(rng)), name
    else:
        names = rng.sample(list(WORDS["tools"]), 2 if kind == "two" else 1)
        wishes = [_wish(rng, name, unseen=unseen) for name in names]
        text, calls, cluster = _joined(rng, [wish for wish, _ in wishes]), [call for _, call in wishes], names[0]
    hard = {"one": "one-call", "two": "two-calls", "missing": "missing-argument", "no-tool": "no-tool"}[kind]
    return {
        "prompt": f"{rng.choice(WORDS['leads'])}{text}{rng.choice(WORDS['ends'])}",
        "completion": "Done." if calls else "I need to know more for that.",
        "expected": calls,
        "slice": "unseen-phrasing" if unseen and calls else hard,
        "cluster": cluster,
    }


def _wish(rng: random.Random, name: str, *, unseen: bool) -> tuple[str, Call]:
    values = _values(rng)
    tool = WORDS["tools"][name]
    text = rng.choice(tool["unseen" if unseen else "say"]).format(**values)
    return text, {"name": name, "arguments": {key: values[slot] for key, slot in tool["arguments"].items()}}


def _joined(rng: random.Random, texts: list[str]) -> str:
    return str(rng.choice(WORDS["joins"])).join(texts)


def _values(rng: random.Random) -> dict[str, Any]:
    """Values as the text shows them and as the calls carry them: copied, never worked out."""
    one, two = rng.sample(WORDS["cities"], 2)
    source, target = rng.sample(["EUR", "USD", "GBP", "CHF", "JPY", "SEK"], 2)
    first, last = rng.choice(WORDS["first"]), rng.choice(WORDS["last"])
    return {
        "order": f"{rng.choice('ABCDEFGHKLMN')}-{rng.randint(10000, 99999)}",
        "city": one,
        "other_city": two,
        "date": f"{rng.randint(2026, 2028)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}",
        "amount": rng.randint(2, 9000),
        "source": source,
        "target": target,
        "mail": f"{first}.{last}@example.com".lower(),
        "sku": f"SKU{rng.randint(100, 999)}",
        "priority": rng.choice(["low", "normal", "high"]),
        "minutes": rng.randint(2, 90),
        "quantity": rng.randint(1, 60),
    }
