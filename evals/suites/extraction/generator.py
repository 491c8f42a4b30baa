"""Makes order texts and the JSON they stand for. Pure: the same rng gives the same case.

Names are made of syllables, so that copying has to be learned. Unseen cases use syllables, real-world names and
templates that training never has. Not covered: several orders in one text, languages other than English.
"""

import json
import random
import re
from pathlib import Path
from typing import Any

import yaml

TEXTS = yaml.safe_load((Path(__file__).parent / "templates.yaml").read_text(encoding="utf-8"))
WORDS = yaml.safe_load((Path(__file__).parent / "words.yaml").read_text(encoding="utf-8"))
FIELDS = ("order", "name", "city", "item", "quantity", "due", "total_eur")
GAPS = (" ", "\n", "\n\n")
LETTERS = "ABCDEFGHKLMNPRSTUVWXYZ"


def case(rng: random.Random, *, unseen: bool = False) -> dict[str, Any]:
    """One order text (`prompt`) and its JSON (`completion` and `target`)."""
    fields = _fields(rng, unseen=unseen)
    from_held_out = unseen and rng.random() < 0.25
    cluster, template = _template(rng, held_out=from_held_out)
    noisy = rng.random() < 0.25
    body = _typos(rng, template) if noisy else template
    text = _dress(rng, body, cluster).format(**_written(rng, fields), other=rng.choice(WORDS["first"]))
    present = {key: value for key, value in fields.items() if _mentioned(key, template)}
    answer = json.dumps({key: present.get(key) for key in FIELDS}, ensure_ascii=False)
    unseen_part = "unseen-template" if from_held_out else "unseen-words"
    known = "missing-field" if len(present) < len(FIELDS) else "noisy" if noisy else "plain"
    return {
        "prompt": text,
        "completion": answer,
        "target": answer,
        "slice": unseen_part if unseen else known,
        "cluster": cluster,
    }


def _template(rng: random.Random, *, held_out: bool) -> tuple[str, str]:
    """A fixed text, or pieces in any order: otherwise a model learns places instead of meanings."""
    if held_out or rng.random() < 0.7:
        cluster: str = rng.choice(list(TEXTS["held_out" if held_out else "train"]))
        return cluster, TEXTS["held_out" if held_out else "train"][cluster]
    cluster = rng.choice(list(TEXTS["shuffled"]))
    loose = TEXTS["shuffled"][cluster]
    pieces = rng.sample(loose["pieces"], len(loose["pieces"]) - (rng.random() < 0.15))
    return cluster, rng.choice(loose["between"]).join(pieces)


def _fields(rng: random.Random, *, unseen: bool) -> dict[str, Any]:
    prefix = "".join(rng.choice(LETTERS) for _ in range(2))
    order = f"{prefix}-{rng.randint(1000, 99999)}" if rng.random() < 0.8 else f"PO{rng.randint(10000, 99999)}"
    day, month, year = rng.randint(1, 28), rng.randint(1, 12), rng.randint(2024, 2029)
    return {
        "order": order,
        "name": f"{rng.choice(WORDS['first'])} {_word(rng, 'names', unseen=unseen)}",
        "city": _word(rng, "cities", unseen=unseen),
        "item": rng.choice(list(WORDS["items"])),
        "quantity": rng.randint(1, 99) if rng.random() < 0.7 else rng.randint(100, 999),
        "due": f"{day} {WORDS['months'][month - 1]} {year}" if rng.random() < 0.8 else f"{year}-{month:02d}-{day:02d}",
        "total_eur": rng.randint(5, 9999) + rng.choice([0, 0, 50, rng.randint(1, 99), rng.randint(1, 99)]) / 100,
    }


def _word(rng: random.Random, kind: str, *, unseen: bool) -> str:
    """A name somebody could have: from a list, made of syllables, or of any letters, so that every token gets copied."""
    if rng.random() < (0.7 if unseen else 0.2):
        return str(rng.choice(WORDS[f"{'unseen' if unseen else 'known'}_{kind}"]))
    if rng.random() < 0.5:
        return "".join(rng.choice(WORDS["syllables"]) for _ in range(rng.randint(2, 4))).capitalize()
    start, length = rng.randint(0, 1), rng.randint(3, 7)
    return "".join(rng.choice(WORDS["consonants" if (start + i) % 2 else "vowels"]) for i in range(length)).capitalize()


def _written(rng: random.Random, fields: dict[str, Any]) -> dict[str, str]:
    """The fields as a person writes them."""
    item, quantity, total = fields["item"], fields["quantity"], f"{fields['total_eur']:.2f}"
    return {
        "order": fields["order"],
        "who": fields["name"],
        "city": fields["city"],
        "what": f"{quantity} {item if quantity == 1 else WORDS['items'][item]}",
        "due": fields["due"],
        "total": rng.choice([f"EUR {total}", f"EUR {total}", f"{total} EUR", f"{total} euros", f"€{total}"]),
    }


def _mentioned(field: str, template: str) -> bool:
    places = {"name": "who", "item": "what", "quantity": "what", "total_eur": "total"}
    return "{" + places.get(field, field) + "}" in template


def _typos(rng: random.Random, template: str) -> str:
    """Spoils one or two words that are not placeholders: a letter dropped or doubled, two swapped, or all lower case."""
    words = re.split(r"(\s+)", template)
    glue = [i for i, word in enumerate(words) if word.isalpha() and len(word) > 4]
    for i in rng.sample(glue, min(len(glue), rng.randint(1, 2))):
        word, at = words[i], rng.randint(1, len(words[i]) - 2)
        swapped = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        words[i] = rng.choice([word[:at] + word[at + 1 :], word[:at] + word[at] + word[at:], swapped, word.lower()])
    return "".join(words)


def _dress(rng: random.Random, body: str, cluster: str) -> str:
    """Adds what surrounds an order: an instruction, a greeting, an aside, a closing with somebody else's name."""
    text = body
    if cluster.startswith("email"):
        greeted = rng.random() < 0.6
        text = f"{rng.choice(TEXTS['greetings'])}{rng.choice(GAPS[:2])}{text}" if greeted else text[0].upper() + text[1:]
        if rng.random() < 0.25:
            text = f"{text} {rng.choice(TEXTS['asides'])}"
        if rng.random() < 0.5:
            text = f"{text}{rng.choice(GAPS[:2])}{rng.choice(TEXTS['closings'])}"
    if rng.random() < 0.4:
        text = f"{rng.choice(TEXTS['instructions'])}{rng.choice(GAPS)}{text}"
    return text
