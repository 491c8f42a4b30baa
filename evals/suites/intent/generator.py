"""Makes customers' messages from words.yaml and the one label that each deserves. Pure: the same rng gives the same case.

Hard cases name a second intent that is over or denied. Not covered: two wishes in one message, languages other than English.
"""

import random
from pathlib import Path
from typing import Any

import yaml

WORDS = yaml.safe_load((Path(__file__).parent / "words.yaml").read_text(encoding="utf-8"))
INTENTS = [name for name, words in WORDS.items() if isinstance(words, dict)]


def case(rng: random.Random, *, unseen: bool = False) -> dict[str, Any]:
    """One message, its label, and how hard it was made."""
    intent = rng.choice(INTENTS)
    want = rng.choice(WORDS[intent]["unseen" if unseen else "say"])
    text, kind = want, "unseen-phrasing" if unseen else "out-of-scope" if intent == "other" else "plain"
    if rng.random() < 0.35:
        text, kind = _with_another(rng, intent, want), "names-another" if not unseen else "unseen-names-another"
    text = text.format(**_slots(rng))
    if rng.random() < 0.2:
        text = _typo(rng, text)
        kind = "noisy" if kind == "plain" else kind
    return {
        "prompt": f"{rng.choice(WORDS['leads'])}{text}{rng.choice(WORDS['ends'])}",
        "completion": intent,
        "target": intent,
        "slice": kind,
        "cluster": intent,
    }


def _with_another(rng: random.Random, intent: str, want: str) -> str:
    """The wish beside an intent that is not meant."""
    another = rng.choice([name for name in INTENTS if name != intent and WORDS[name]["did"]])
    want = want if want[-1] in ".?!" else f"{want}."
    return str(rng.choice(WORDS["joins"])).format(did=rng.choice(WORDS[another]["did"]), want=want)


def _slots(rng: random.Random) -> dict[str, str]:
    return {
        "order": f"{rng.choice('ABCDEFGHKLMN')}{rng.randint(1000, 9999)}",
        "item": rng.choice(WORDS["items"]),
        "city": rng.choice(WORDS["cities"]),
        "day": rng.choice(WORDS["days"]),
    }


def _typo(rng: random.Random, text: str) -> str:
    """Two neighbouring letters of a longer word swapped."""
    words = text.split(" ")
    at = rng.choice([at for at, word in enumerate(words) if len(word) > 3])
    cut = rng.randint(1, len(words[at]) - 3)
    words[at] = words[at][:cut] + words[at][cut + 1] + words[at][cut] + words[at][cut + 2 :]
    return " ".join(words)
