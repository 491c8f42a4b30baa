"""The suites' rows: repeatable, disjoint, and the committed files are what the generators make."""

import json
import random
import re
from fractions import Fraction
from typing import Any

import pytest
import yaml

from evals.suites.__main__ import main
from evals.suites.extraction import generator as extraction
from evals.suites.generate import SUITES, TASKS, as_jsonl, prompts, rows, split_of, task
from evals.suites.reasoning import generator as reasoning
from evals.suites.scoring import SCORERS, held_out

TRAINING_ROWS = 4000  # a slice of the training split; the hash rule makes the rest disjoint too
GENERATED = pytest.mark.parametrize("name", TASKS)


def last_prompt(row: dict[str, Any]) -> str:
    return str(row["messages"][-1]["content"])


@GENERATED
def test_same_seed_makes_the_same_rows(name: str) -> None:
    """A rebuild of the training data is the same data; another seed is other data."""
    assert as_jsonl(rows(name, "train", 50)) == as_jsonl(rows(name, "train", 50))
    assert as_jsonl(rows(name, "train", 50)) != as_jsonl(rows(name, "train", 50, seed=1))


@GENERATED
def test_committed_cases_are_what_the_generator_makes(name: str) -> None:
    """Nobody edits the held-out cases by hand, and a changed generator comes with its new cases."""
    assert (SUITES / name / "cases.jsonl").read_text(encoding="utf-8") == as_jsonl(rows(name, "test", task(name).held_out))


@GENERATED
def test_held_out_prompts_are_never_training_prompts(name: str) -> None:
    """No prompt is in both splits, in the last message or in the history, and none is in the router's examples."""
    cases = held_out(name)
    tested = {last_prompt(row) for row in cases}
    trained = {message["content"] for row in rows(name, "train", TRAINING_ROWS) for message in row["messages"]}
    examples = set(yaml.safe_load((SUITES / name / "examples.yaml").read_text(encoding="utf-8")))
    assert len(tested) == len(cases) == 300
    assert not tested & trained
    assert not tested & examples
    assert all(split_of(prompt) == "test" for prompt in tested)


def test_a_prompt_in_other_letters_or_spaces_stays_in_its_split() -> None:
    """A training prompt that differs from a test prompt only in case or spaces would be a leak in disguise."""
    for prompt in prompts("chat", 40, seed=3):
        assert split_of(prompt) == split_of(f"  {prompt.upper()} ")


@GENERATED
def test_cases_carry_what_a_report_needs(name: str) -> None:
    """Ids are unique, every case has a slice and a cluster, some have a system message and some a history."""
    cases = held_out(name)
    assert len({row["id"] for row in cases}) == len(cases)
    assert all(row["slice"] and row["cluster"] and row["target"] and "completion" not in row for row in cases)
    assert any(row["slice"].startswith("unseen") for row in cases)
    assert {row["messages"][0]["role"] for row in cases} == {"system", "user"}
    assert any(message["role"] == "assistant" for row in cases for message in row["messages"])


@GENERATED
def test_the_text_to_learn_is_right_by_the_tasks_own_scorer(name: str) -> None:
    """Training never teaches an answer that scoring would refuse."""
    scorer = SCORERS[task(name).scorer]
    assert all(scorer(row["completion"], row) for row in rows(name, "train", 500))


@GENERATED
def test_examples_for_a_router_are_forty_different_prompts(name: str) -> None:
    """examples.yaml is a plain list a person can paste into a route."""
    examples = yaml.safe_load((SUITES / name / "examples.yaml").read_text(encoding="utf-8"))
    assert len(examples) == len(set(examples)) == 40
    assert all(isinstance(example, str) and example for example in examples)


def test_extraction_targets_are_in_the_text() -> None:
    """Every value but a null stands in the prompt as written, so the case can be solved by reading alone."""
    rng = random.Random(5)
    for made in (extraction.case(rng, unseen=rng.random() < 0.5) for _ in range(300)):
        target = json.loads(made["target"])
        assert tuple(target) == extraction.FIELDS
        copied = [target[field] for field in ("order", "name", "city", "item", "quantity", "due") if target[field] is not None]
        assert all(str(value)[:5] in made["prompt"] for value in copied)
        assert target["total_eur"] is None or f"{target['total_eur']:.2f}" in made["prompt"]


def test_missing_fields_are_null() -> None:
    """Some texts leave something out, and their target says null instead of a guess."""
    missing = [row for row in held_out("extraction") if row["slice"] == "missing-field"]
    assert missing
    assert all(None in json.loads(row["target"]).values() for row in missing)


def test_reasoning_steps_are_true_and_use_the_numbers_of_the_text() -> None:
    """Each written step is correct arithmetic within 0..99, and the answer is the last step's result."""
    rng = random.Random(6)
    for made in (reasoning.case(rng) for _ in range(300)):
        *steps, last = made["completion"].splitlines()
        known = {int(number) for number in re.findall(r"\d+", made["prompt"])}
        for step in steps:
            parts = re.fullmatch(r"(\d+) ([-+*/]) (\d+) = (\d+)", step)
            assert parts is not None
            one, two, result = int(parts[1]), int(parts[3]), int(parts[4])
            assert {one, two} <= known
            assert {"+": one + two, "-": one - two, "*": one * two, "/": Fraction(one, max(two, 1))}[parts[2]] == result
            assert 0 <= result <= 99
            known.add(result)
        assert last == f"Answer: {made['target']}" == f"Answer: {result}"


def test_generate_command_writes_jsonl_and_prompts(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The command a rebuild uses writes what `rows` makes, and --prompts prints bare text."""
    file = tmp_path / "new" / "chat.jsonl"
    main(["generate", "--task", "chat", "-n", "5", "--out", str(file)])
    assert [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] == list(rows("chat", "train", 5))
    main(["generate", "--task", "chat", "--prompts", "-n", "3"])
    assert capsys.readouterr().out.count("\n---\n") == 3
