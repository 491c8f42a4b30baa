"""Makes word problems whose every number lies between 0 and 99, with the steps that solve them. Pure.

A problem is a story with slots and a chain of operations; a draw that leaves the range is thrown away. Unseen cases use
names and things that training never has. Not covered: fractions, negative numbers, units, problems with spare facts.
"""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

WORDS = yaml.safe_load((Path(__file__).parent / "words.yaml").read_text(encoding="utf-8"))
Step = tuple[int, str, int]
Story = tuple[str, list[Step]]


def case(rng: random.Random, *, unseen: bool = False) -> dict[str, Any]:
    """One problem, its worked answer, and the number that counts as right."""
    while True:
        cluster, story = rng.choice(list(STORIES.items()))
        slots = _slots(rng, unseen=unseen)
        text, steps = story(rng, slots)
        results = [_result(step) for step in steps]
        if all(result is not None and 0 <= result <= 99 for result in results):
            break
    if rng.random() < 0.25:
        text = rng.choice(WORDS["instructions"]) + text
    lines = [f"{a} {sign} {b} = {result}" for (a, sign, b), result in zip(steps, results, strict=True)]
    return {
        "prompt": text,
        "completion": "\n".join([*lines, f"Answer: {results[-1]}"]),
        "target": str(results[-1]),
        "slice": "unseen-words" if unseen else {1: "one-step", 2: "two-step"}.get(len(steps), "three-step"),
        "cluster": cluster,
    }


def _slots(rng: random.Random, *, unseen: bool) -> dict[str, str]:
    who, other = rng.sample(WORDS["unseen_people" if unseen else "people"], 2)
    return {"who": who, "other": other, "things": rng.choice(WORDS["unseen_things" if unseen else "things"])}


def _result(step: Step) -> int | None:
    """What a step makes; None for a division with a remainder."""
    a, sign, b = step
    if sign == "/":
        return a // b if a % b == 0 else None
    return {"+": a + b, "-": a - b, "*": a * b}[sign]


def _events(rng: random.Random, slots: dict[str, str]) -> Story:
    start = now = rng.randint(5, 60)
    parts = [rng.choice(["{who} has {n} {things}.", "{who} starts with {n} {things}.", "There are {n} {things} in a box."])]
    texts, steps = [parts[0].format(n=start, **slots)], []
    for _ in range(rng.choice([2, 2, 3])):
        n = rng.randint(2, 40)
        sign = "+" if (now + n <= 99 and rng.random() < 0.5) or now < n else "-"
        texts.append(rng.choice(WORDS["plus" if sign == "+" else "minus"]).format(n=n, **slots))
        steps.append((now, sign, n))
        now = now + n if sign == "+" else now - n
    end = rng.choice(["How many {things} are there now?", "How many {things} are left?", "How many {things} is that in the end?"])
    return " ".join([*texts, end.format(**slots)]), steps


def _boxes(rng: random.Random, slots: dict[str, str]) -> Story:
    boxes, each, n = rng.randint(2, 9), rng.randint(2, 12), rng.randint(2, 30)
    holder = rng.choice(["boxes", "bags", "baskets", "shelves"])
    first = rng.choice(["There are {b} {h} with {e} {things} each.", "{who} has {b} {h}. Each holds {e} {things}."])
    text = first.format(b=boxes, h=holder, e=each, **slots)
    if rng.random() < 0.5:
        text += rng.choice([" {n} {things} break. How many are left?", " {who} takes {n} out. How many {things} remain?"])
        sign = "-"
    else:
        text += rng.choice([" {n} more {things} arrive. How many is that?", " {who} has {n} more at home. How many in all?"])
        sign = "+"
    return text.format(n=n, **slots), [(boxes, "*", each), (boxes * each, sign, n)]


def _shop(rng: random.Random, slots: dict[str, str]) -> Story:
    price, count, other_price = rng.randint(2, 12), rng.randint(2, 9), rng.randint(2, 40)
    cheap, dear = rng.sample(["pen", "cup", "lamp", "ball", "hat", "book", "bag", "chair"], 2)
    text = f"A {cheap} costs {price} euros and a {dear} costs {other_price} euros. {slots['who']} buys {count} {cheap}s and one {dear}. "
    steps: list[Step] = [(count, "*", price), (count * price, "+", other_price)]
    if rng.random() < 0.6:
        return text + rng.choice(["How much is that?", "What does it cost in total?"]), steps
    paid = min(99, count * price + other_price + rng.randint(1, 30))
    text += f"{slots['who']} pays with {paid} euros. How much comes back?"
    return text, [*steps, (paid, "-", count * price + other_price)]


def _share(rng: random.Random, slots: dict[str, str]) -> Story:
    friends, each = rng.randint(2, 9), rng.randint(2, 11)
    second = rng.randint(1, max(1, friends * each - 2))
    first = friends * each - second
    text = rng.choice(["{who} has {a} {things} and gets {b} more.", "{who} picks {a} {things} and {other} picks {b}."])
    end = rng.choice(
        ["They are shared equally among {k} friends. How many does each get?", "{k} children share them equally. How many for each?"]
    )
    return (
        f"{text} {end}".format(a=first, b=second, k=friends, **slots),
        [(first, "+", second), (first + second, "/", friends)],
    )


def _together(rng: random.Random, slots: dict[str, str]) -> Story:
    mine, apart = rng.randint(2, 45), rng.randint(2, 30)
    sign, word = rng.choice([("+", "more"), ("-", "fewer")])
    theirs = mine + apart if sign == "+" else mine - apart
    text = "{who} has {a} {things}. {other} has {b} {word} than {who}. How many do they have together?"
    return text.format(a=mine, b=apart, word=word, **slots), [(mine, sign, apart), (mine, "+", theirs)]


def _days(rng: random.Random, slots: dict[str, str]) -> Story:
    pages, days, total = rng.randint(2, 15), rng.randint(2, 9), rng.randint(20, 99)
    text = rng.choice(
        [
            "A book has {t} pages. {who} reads {p} pages a day for {d} days. How many pages are left?",
            "{who} must pack {t} {things} and packs {p} an hour for {d} hours. How many are still to do?",
        ]
    )
    return text.format(t=total, p=pages, d=days, **slots), [(days, "*", pages), (total, "-", days * pages)]


def _bus(rng: random.Random, slots: dict[str, str]) -> Story:
    start, off, on = rng.randint(10, 60), rng.randint(2, 30), rng.randint(2, 30)
    ride = rng.choice(["bus", "train", "tram", "boat"])
    text = f"A {ride} has {start} people on it. {off} get off and {on} get on."
    steps: list[Step] = [(start, "-", off), (start - off, "+", on)]
    if rng.random() < 0.4:
        more = rng.randint(2, 20)
        text += f" At the next stop {more} get off."
        steps.append((start - off + on, "-", more))
    return f"{text} How many people are on the {ride} now?", steps


def _plain(rng: random.Random, slots: dict[str, str]) -> Story:
    a, b, c = rng.randint(1, 60), rng.randint(1, 40), rng.randint(1, 40)
    ask = rng.choice(["What is {}?", "Calculate {}.", "How much is {}?", "{} = ?"])
    if rng.random() < 0.3:
        sign = rng.choice("+-")
        return ask.format(f"{a} {sign} {b}"), [(a, sign, b)]
    if rng.random() < 0.4:
        a, b = rng.randint(2, 9), rng.randint(2, 12)
        sign = rng.choice("+-")
        return ask.format(f"{a} * {b} {sign} {c}"), [(a, "*", b), (a * b, sign, c)]
    one, two = rng.choice("+-"), rng.choice("+-")
    return ask.format(f"{a} {one} {b} {two} {c}"), [(a, one, b), (a + b if one == "+" else a - b, two, c)]


STORIES: dict[str, Callable[[random.Random, dict[str, str]], Story]] = {
    "events": _events,
    "boxes": _boxes,
    "shop": _shop,
    "share": _share,
    "together": _together,
    "days": _days,
    "bus": _bus,
    "plain": _plain,
}
