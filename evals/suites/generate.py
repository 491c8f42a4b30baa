"""Makes a task's rows from a seed: training rows, held-out rows, and prompts for a router's classifier.

A prompt belongs to exactly one split, decided by a hash of its text, so no split can leak into another however many
rows are drawn. This file knows no task: each suite's generator.py does.
"""

import hashlib
import importlib
import json
import random
from collections.abc import Iterator
from typing import Any, Protocol, cast

from evals.suite import SUITES, Task, read_task

Row = dict[str, Any]
TASKS = ("extraction", "reasoning", "chat", "intent", "policy", "tools", "sql")
SPLITS = ("train", "test")
TEST_SHARE = 10  # one prompt in ten can only ever be a test prompt
UNSEEN_SHARE = 0.3  # of the test cases: words or phrasings that training never has
EXAMPLE_LETTERS = 220
SYSTEM_SHARE = 0.15
HISTORY_SHARE = 0.08
SYSTEM_MESSAGES = (
    "You are a helpful assistant.",
    "Be brief.",
    "You are the assistant of a small company. Answer politely and in English.",
    "Answer the user.",
)


class Generator(Protocol):
    """What a suite's generator.py offers. The case has prompt, completion, slice, cluster, and target, accept or expected."""

    def case(self, rng: random.Random, *, unseen: bool = False) -> Row: ...


def task(name: str) -> Task:
    """Reads evals/suites/NAME/task.yaml."""
    return read_task(SUITES / name)


def split_of(prompt: str) -> str:
    """The one split a prompt may appear in. Case and spaces do not count, so near-copies stay together."""
    digest = hashlib.sha256(" ".join(prompt.lower().split()).encode()).digest()
    return "test" if digest[0] * 256 + digest[1] < 65536 // TEST_SHARE else "train"


def _draw(generator: Generator, rng: random.Random, split: str, *, unseen: bool) -> Row:
    while True:
        made = generator.case(rng, unseen=unseen)
        if split_of(made["prompt"]) == split:
            return made


def _messages(generator: Generator, rng: random.Random, split: str, made: Row) -> list[Row]:
    """The prompt, sometimes behind a system message or an earlier exchange."""
    messages: list[Row] = []
    if rng.random() < SYSTEM_SHARE:
        messages.append({"role": "system", "content": rng.choice(SYSTEM_MESSAGES)})
    if rng.random() < HISTORY_SHARE:
        earlier = _draw(generator, rng, split, unseen=False)
        messages.append({"role": "user", "content": earlier["prompt"]})
        messages.append({"role": "assistant", "content": earlier["completion"]})
    return [*messages, {"role": "user", "content": made["prompt"]}]


def rows(name: str, split: str, n: int, seed: int | None = None) -> Iterator[Row]:
    """N rows of a task, the same ones for the same arguments. Test rows are all different prompts.

    Training rows carry `completion`, the text to learn; test rows do not. The seed is the task's own unless given.
    """
    spec = task(name)
    generator = cast(Generator, importlib.import_module(spec.generator))
    rng = random.Random(f"{name} {split} {spec.seed if seed is None else seed}")  # noqa: S311  # repeatable on purpose
    seen: set[str] = set()
    done = 0
    while done < n:
        made = _draw(generator, rng, split, unseen=split == "test" and rng.random() < UNSEEN_SHARE)
        if split == "test" and made["prompt"] in seen:
            continue
        seen.add(made["prompt"])
        done += 1
        row = {"id": f"{name}-{done:04d}", "messages": _messages(generator, rng, split, made)}
        kept = ("target", "accept", "expected", "slice", "cluster") + (("completion",) if split == "train" else ())
        yield row | {field: made[field] for field in kept if field in made}


def prompts(name: str, n: int, seed: int) -> list[str]:
    """N different bare training prompts, short ones, spread evenly over the clusters."""
    spec = task(name)
    generator = cast(Generator, importlib.import_module(spec.generator))
    rng = random.Random(f"{name} examples {seed}")  # noqa: S311  # repeatable on purpose
    drawn = [_draw(generator, rng, "train", unseen=False) for _ in range(50 * n)]
    short = {made["prompt"]: made["cluster"] for made in drawn if len(made["prompt"]) <= EXAMPLE_LETTERS}
    times: dict[str, int] = {}
    turn: dict[str, int] = {}
    for prompt, cluster in short.items():
        turn[prompt] = times[cluster] = times.get(cluster, 0) + 1
    return sorted(short, key=turn.__getitem__)[:n]


def as_jsonl(made: Iterator[Row]) -> str:
    """The rows as the committed files hold them."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made)
