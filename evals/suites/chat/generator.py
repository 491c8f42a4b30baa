"""Makes small talk from intents.yaml: a phrasing, varied a little, and its one answer. Pure.

Unseen cases use phrasings that training never has. Not covered: open conversation; the toy knows one answer per intent.
"""

import random
from pathlib import Path
from typing import Any

import yaml

INTENTS = yaml.safe_load((Path(__file__).parent / "intents.yaml").read_text(encoding="utf-8"))
WORDS = yaml.safe_load((Path(__file__).parent / "words.yaml").read_text(encoding="utf-8"))


def case(rng: random.Random, *, unseen: bool = False) -> dict[str, Any]:
    """One remark, its answer, and the intent behind it."""
    name, intent = rng.choice(list(INTENTS.items()))
    slots = _slots(rng)
    phrasing = rng.choice(intent["unseen" if unseen else "say"])
    answer = intent["answer"].format(**slots)
    return {
        "prompt": _vary(rng, phrasing.format(**slots)),
        "completion": answer,
        "target": name,
        "accept": [answer],
        "slice": "unseen-phrasing" if unseen else "filled" if "{" in phrasing else "fixed",
        "cluster": name,
    }


def _slots(rng: random.Random) -> dict[str, str]:
    language, country, term = rng.choice(list(WORDS["translations"])), rng.choice(list(WORDS["capitals"])), rng.choice(list(WORDS["terms"]))
    word = rng.choice(list(WORDS["translations"][language]))
    return {
        "name": rng.choice(WORDS["names"]),
        "topic": rng.choice(WORDS["topics"]),
        "word": word,
        "language": language,
        "translation": WORDS["translations"][language][word],
        "country": country,
        "capital": WORDS["capitals"][country],
        "term": term,
        "meaning": WORDS["terms"][term],
    }


def _vary(rng: random.Random, text: str) -> str:
    """Other leads and endings; the first letter may be small."""
    lead, end = rng.choice(WORDS["leads"]), rng.choice(WORDS["ends"])
    if (lead or rng.random() < 0.25) and text.split(maxsplit=1)[0].rstrip(",") not in ("I", *WORDS["names"], *WORDS["capitals"]):
        text = text[0].lower() + text[1:]
    return f"{lead}{text}{end}"
