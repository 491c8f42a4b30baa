"""The suites' rows: repeatable, disjoint, and the committed files are what the generators make."""

import json
import random
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from evals.case import Answer, Case
from evals.scoring import score, scorer_of
from evals.sql import execute, open_database
from evals.suite import SUITES, read_cases, read_suite
from evals.suites.__main__ import main
from evals.suites.extraction import generator as extraction
from evals.suites.generate import TASKS, as_jsonl, prompts, rows, split_of, task
from evals.suites.policy import generator as policy
from evals.suites.reasoning import generator as reasoning
from evals.suites.sql import generator as sql
from evals.suites.tools import generator as tools

TRAINING_ROWS = 4000  # a slice of the training split; the hash rule makes the rest disjoint too
GENERATED = pytest.mark.parametrize("name", TASKS)
TRAINED = pytest.mark.parametrize("name", ["extraction", "reasoning", "chat"])  # demo models learn these


def held_out(name: str) -> list[dict[str, Any]]:
    lines = (SUITES / name / "cases.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


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
    """No prompt is in both splits, in the last message or in the history; there are 300 at least, all different."""
    cases = held_out(name)
    tested = {last_prompt(row) for row in cases}
    trained = {message["content"] for row in rows(name, "train", TRAINING_ROWS) for message in row["messages"]}
    assert len(tested) == len(cases) == task(name).held_out >= 300
    assert not tested & trained
    assert all(split_of(prompt) == "test" for prompt in tested)


@TRAINED
def test_no_held_out_prompt_is_an_example_of_the_router(name: str) -> None:
    """What trains the router's classifier is not what it is measured on."""
    examples = set(yaml.safe_load((SUITES / name / "examples.yaml").read_text(encoding="utf-8")))
    assert not {last_prompt(row) for row in held_out(name)} & examples


def test_a_prompt_in_other_letters_or_spaces_stays_in_its_split() -> None:
    """A training prompt that differs from a test prompt only in case or spaces would be a leak in disguise."""
    for prompt in prompts("chat", 40, seed=3):
        assert split_of(prompt) == split_of(f"  {prompt.upper()} ")


@GENERATED
def test_cases_carry_what_a_report_needs(name: str) -> None:
    """Ids are unique, every case has a slice and a cluster, some have a system message and some a history."""
    cases = held_out(name)
    assert len({row["id"] for row in cases}) == len(cases)
    assert all(row["slice"] and row["cluster"] and "completion" not in row for row in cases)
    assert all(case.expected is not None and case.slice and case.cluster for case in read_cases(SUITES / name / "cases.jsonl"))
    assert len({row["slice"] for row in cases}) >= 3 and any(row["slice"].startswith("unseen") for row in cases)
    assert {row["messages"][0]["role"] for row in cases} == {"system", "user"}
    assert any(message["role"] == "assistant" for row in cases for message in row["messages"])


@GENERATED
def test_the_text_to_learn_is_right_by_the_tasks_own_scorer(name: str, tmp_path: Path) -> None:
    """The gold answers of 500 training rows score 1, each given to the next case scores 1 only by chance."""
    made = list(rows(name, "train", 500))
    file = tmp_path / "cases.jsonl"
    file.write_text(as_jsonl(iter(made)), encoding="utf-8")
    suite = read_suite(name)
    cases = read_cases(file)
    scorer = scorer_of(suite.scorer, suite.folder, cases)
    gold = [answer_of(case, row["completion"]) for case, row in zip(cases, made, strict=True)]
    assert all(score(scorer, case, answer).value == 1 for case, answer in zip(cases, gold, strict=True))
    by_chance = [score(scorer, case, answer).value for case, answer in zip(cases, gold[1:], strict=False)]
    assert sum(by_chance) < 0.5 * len(by_chance)


def answer_of(case: Case, completion: str) -> Answer:
    """The completion as a model gives it; the tools suite is answered by calls."""
    calls = case.expected if isinstance(case.expected, list) and "arguments" in str(case.expected) else []
    return Answer(case_id=case.id, text=completion, tool_calls=[call | {"arguments": json.dumps(call["arguments"])} for call in calls])


@TRAINED
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


def test_the_databases_are_what_the_generator_makes() -> None:
    """Nobody edits the scripts by hand; two instances of a database differ in their rows and agree in their schema."""
    made = dict(sql.databases())
    assert {file.name: file.read_text(encoding="utf-8") for file in (SUITES / "sql" / "databases").glob("*.sql")} == made
    assert len(made) == 8 and len(set(made.values())) == 8


def test_sql_answers_have_rows_and_differ_between_instances() -> None:
    """A question whose answer is empty, or the same on both instances, tells little: both are rare."""
    opened: dict[str, list[Any]] = {}
    for name, script in sql.databases():
        opened.setdefault(name.split("-")[0], []).append(open_database(script))
    results = [[execute(one, row["expected"]["sql"], 5)[1] for one in opened[row["expected"]["database"]]] for row in held_out("sql")]
    assert sum(not any(found and found != [(None,)] for found in both) for both in results) < 0.05 * len(results)
    assert sum(both[0] == both[1] for both in results) < 0.1 * len(results)


@pytest.mark.parametrize(
    ("request_", "decision"),
    [
        (("employee", "goods", 200, False), "allow"),
        (("employee", "goods", 201, False), "ask"),
        (("manager", "goods", 2000, False), "allow"),
        (("manager", "goods", 2001, False), "deny"),
        (("manager", "goods", 2001, True), "ask"),
        (("contractor", "goods", 101, True), "deny"),
        (("contractor", "software", 100, False), "ask"),
        (("employee", "approved", 100, False), "allow"),
        (("employee", "gift", 51, False), "deny"),
        (("employee", "gift", 50, False), "allow"),
        (("manager", "alcohol", 5, True), "deny"),
    ],
)
def test_the_policy_as_code_is_the_policy_as_text(request_: tuple[str, str, int, bool], decision: str) -> None:
    """Read off the eight rules by hand, at each border."""
    role, kind, amount, has_order = request_
    assert policy.decide(role, kind, amount, has_order=has_order)[0] == decision


def test_expected_calls_fit_the_tools_that_are_offered() -> None:
    """Names and arguments of every expected call are valid under the tools' schemas, and every string stands in the request."""
    offered = {tool["function"]["name"]: tool["function"]["parameters"] for tool in read_suite("tools").request["tools"]}
    assert set(offered) == set(tools.WORDS["tools"])
    for row in held_out("tools"):
        for call in row["expected"]:
            jsonschema.validate(call["arguments"], offered[call["name"]])
            assert all(str(value) in last_prompt(row) for value in call["arguments"].values())
