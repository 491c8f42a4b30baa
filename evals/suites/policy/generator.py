"""Makes purchase requests and decides them by the policy that task.yaml states. Pure: the same rng gives the same case.

`decide` is the policy as code; its rules are numbered as in the text. Not covered: requests that lack a fact.
"""

import random
from pathlib import Path
from typing import Any

import yaml

WORDS = yaml.safe_load((Path(__file__).parent / "words.yaml").read_text(encoding="utf-8"))
BORDERS = (50, 51, 100, 101, 200, 201, 2000, 2001)
RANKS = ("allow", "ask", "deny")


def case(rng: random.Random, *, unseen: bool = False) -> dict[str, Any]:
    """One request, the decision, and the rules that made it."""
    role = rng.choice(["employee", "employee", "manager", "contractor"])
    kind = rng.choice(["goods", "goods", "goods", "approved", "software", "gift", "alcohol"])
    on_border = rng.random() < 0.3
    amount = rng.choice(BORDERS) if on_border else rng.choice([rng.randint(5, 240), rng.randint(150, 2200), rng.randint(1800, 9000)])
    has_order = rng.random() < (0.5 if amount > 2000 else 0.15)
    decision, rules = decide(role, kind, amount, has_order=has_order)
    pressed = rng.random() < 0.25
    order = rng.choice(WORDS["with_order"]).format(n=rng.randint(10000, 99999)) if has_order else ""
    text = rng.choice(WORDS["unseen" if unseen else "say"]).format(
        who=rng.choice(WORDS["names"]),
        role=rng.choice(WORDS["roles"][role]),
        what=rng.choice(WORDS["things"][kind]),
        amount=amount,
        order=order,
    )
    hard = "border" if on_border else "pressure" if pressed else "several-rules" if len(rules) > 1 else "plain"
    return {
        "prompt": text + (rng.choice(WORDS["pressure"]) if pressed else ""),
        "completion": decision,
        "target": decision,
        "slice": "unseen-phrasing" if unseen else hard,
        "cluster": "-".join([kind, role]),
    }


def decide(role: str, kind: str, amount: int, *, has_order: bool) -> tuple[str, list[int]]:
    """The decision, and the numbers of the rules that ask or deny (rule 1 where none does)."""
    found = {
        2: "ask" if role == "employee" and 200 < amount <= 2000 else "allow",
        3: ("ask" if has_order else "deny") if amount > 2000 else "allow",
        4: "deny" if role == "contractor" and amount > 100 else "allow",
        5: "ask" if kind == "software" else "allow",
        6: "deny" if kind == "gift" and amount > 50 else "allow",
        7: "deny" if kind == "alcohol" else "allow",
    }
    strictest = max(found.values(), key=RANKS.index)
    return strictest, [rule for rule, word in found.items() if word != "allow"] or [1]
