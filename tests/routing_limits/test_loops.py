"""An agent that goes in circles is told and then stopped; one that works, or polls, is let be. OWASP AISVS C9.1."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.loops import Answers, answer_text, error_class, find_loop

DIALECTS = ("chat", "responses", "anthropic")


def talk(dialect, steps, *, first="fix the build", end=()):
    """A conversation of (tool, arguments, result) steps as an agent of that dialect sends it."""
    said = [{"role": "user", "content": first}]
    for i, (tool, arguments, result) in enumerate(steps):
        key, told = f"call_{i}", json.dumps(arguments)
        if dialect == "chat":
            said.append({"role": "assistant", "content": None,
                         "tool_calls": [{"id": key, "type": "function", "function": {"name": tool, "arguments": told}}]})
            said.append({"role": "tool", "tool_call_id": key, "content": result})
        elif dialect == "responses":
            said.append({"type": "function_call", "call_id": key, "name": tool, "arguments": told})
            said.append({"type": "function_call_output", "call_id": key, "output": result})
        else:
            said.append({"role": "assistant", "content": [{"type": "text", "text": "Let me see."},
                                                          {"type": "tool_use", "id": key, "name": tool, "input": arguments}]})
            said.append({"role": "user", "content": [{"type": "tool_result", "tool_use_id": key,
                                                      "content": [{"type": "text", "text": result}]}]})
    said += end
    return json.dumps({"model": "m", "tools": [{"x": 1}], ("input" if dialect == "responses" else "messages"): said}).encode()


def chatted(*turns):
    """A conversation of user and assistant texts in turn."""
    roles = ("user", "assistant")
    return json.dumps({"model": "m", "messages": [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]}).encode()


READ = ("read", {"path": "a", "limit": 5}, "the text of a")
LIST = ("list", {"path": "."}, "a b")
ONWARD = [("read", {"path": f"f{i}"}, f"text {i}") for i in range(20)]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_same_call_thrice_warns_and_goes_on_to_a_stop(dialect):
    """Same tool, arguments and result: nothing at two, a warning at three, a stop at five; in every dialect."""
    found = [find_loop(talk(dialect, [READ] * n)) for n in range(1, 7)]
    assert [one and (one.kind, one.severity) for one in found] == [
        None, None, ("repeated_call", "warn"), ("repeated_call", "warn"), ("repeated_call", "stop"), ("repeated_call", "stop")]  # fmt: skip


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("period", [2, 3, 4])
def test_a_cycle_warns_in_its_second_round_and_stops_in_its_third(dialect, period):
    """A-B-A-B up to a period of four."""
    circle = ONWARD[:period]
    found = [find_loop(talk(dialect, circle * rounds)) for rounds in (1, 2, 3)]
    assert [one and (one.kind, one.severity) for one in found] == [None, ("cycle", "warn"), ("cycle", "stop")]


def test_calls_that_a_server_made_itself_are_steps_too():
    """Responses: an MCP call carries its own result, or its error."""
    call = {"type": "mcp_call", "id": "m", "name": "search", "arguments": "{}", "output": "nothing"}
    assert find_loop(json.dumps({"input": [call] * 3}).encode()).kind == "repeated_call"
    failed = [{**call, "arguments": json.dumps(i), "output": None, "error": "boom"} for i in range(3)]
    assert find_loop(json.dumps({"input": failed}).encode()).kind == "repeated_error"


def test_the_order_and_spelling_of_arguments_make_no_difference():
    """Arguments are compared as data."""
    turned = ("read", {"limit": 5, "path": "a"}, "the text of a")
    assert find_loop(talk("chat", [READ, turned, READ])).kind == "repeated_call"


@pytest.mark.parametrize("dialect", DIALECTS)
def test_work_is_no_loop(dialect):
    """New arguments or new results are progress, also of one tool, also between equal steps."""
    assert find_loop(talk(dialect, ONWARD)) is None
    assert find_loop(talk(dialect, [("test", {}, f"{n} failures") for n in range(9, 0, -1)])) is None
    assert find_loop(talk(dialect, [READ, READ])) is None


def test_an_agent_that_left_its_circle_is_let_be():
    """Only the end of the conversation counts."""
    assert find_loop(talk("chat", [READ] * 9 + ONWARD[:1])) is None


def test_the_same_step_between_others_only_warns():
    """An agent that runs its tests again after each change has reason to: it is told, never stopped."""
    steps = [step for i in range(9) for step in (("edit", {"line": i}, "ok"), ("test", {}, "2 failures"))]
    found = find_loop(talk("chat", steps))
    assert (found.kind, found.severity) == ("repeated_call", "warn")


def test_steps_that_bring_nothing_new_warn_then_stop():
    """Eight steps that all were there before warn, sixteen stop, also where they make no cycle."""
    order = random.Random(5)
    known = ONWARD[:6]
    again = [order.choice(known) for _ in range(40)]
    found = [find_loop(talk("chat", known + again[:n])) for n in range(40)]
    kinds = [[one.kind if one else "", one.severity if one else ""] for one in found]
    assert all(kind[0] != "no_progress" for kind in kinds[:8])
    assert kinds[16][1] == "stop" or kinds[17][1] == "stop"
    assert all(kind[1] == "stop" for kind in kinds[17:])


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_declared_polling_tool_is_exempt(dialect):
    """A tool that is there to be asked again is asked again; others are still looked at."""
    poll = ("job_status", {"id": 7}, "running")
    assert find_loop(talk(dialect, [poll] * 30), {"job_status"}) is None
    assert find_loop(talk(dialect, [poll] * 30)).severity == "stop"
    assert find_loop(talk(dialect, [poll, READ] * 5), {"job_status"}).kind == "repeated_call"


def test_a_new_word_from_a_person_begins_anew_and_a_nudge_does_not():
    """Who is told something new may read again; `continue` for the third time is nothing new."""
    said = json.loads(talk("chat", [READ] * 3))["messages"]
    fresh = [*said, {"role": "user", "content": "look again, I changed it"}]
    assert find_loop(json.dumps({"messages": fresh}).encode()) is None
    nudged = [{"role": "user", "content": "go"}]
    for i in range(6):
        nudged += [*json.loads(talk("chat", [READ]))["messages"][1:], {"role": "user", "content": "continue"}]
        nudged[-2]["tool_call_id"] = nudged[-3]["tool_calls"][0]["id"] = f"n{i}"
    assert find_loop(json.dumps({"messages": nudged}).encode()).severity == "stop"


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_same_error_class_thrice_is_found(dialect):
    """Other arguments, other line numbers, the same kind of failure of the same tool."""
    steps = [("query", {"sql": f"select {i}"}, f"Error: no such table: t{i} (line {i})") for i in range(9)]
    found = [find_loop(talk(dialect, steps[:n])) for n in (2, 3, 7, 8)]
    assert [one and (one.kind, one.severity) for one in found] == [
        None, ("repeated_error", "warn"), ("repeated_error", "warn"), ("repeated_error", "stop")]  # fmt: skip
    mended = [*steps[:2], ("query", {"sql": "select 9"}, "9"), *steps[2:4]]
    assert find_loop(talk(dialect, mended)) is None


def test_tests_that_fail_while_code_is_mended_never_stop_the_agent():
    """The same kind of failure again and again with work of other tools in between: told, not stopped."""
    steps = [step for i in range(20) for step in (("edit", {"line": i}, "ok"), ("bash", {"run": "pytest"}, f"exit code: 1\n{i} failed"))]
    found = find_loop(talk("chat", steps))
    assert (found.kind, found.severity) == ("repeated_error", "warn")


@pytest.mark.parametrize(("result", "kind"), [
    ("Traceback (most recent call last):\n  File \"x.py\", line 3\nKeyError: 'a'", "KeyError"),
    ("openai.RateLimitError: slow down", "openai.RateLimitError"),
    ('{"error": "no such file /tmp/a12"}', '{_: _}'),
    ("exit code: 2", "exit code: _"),
    ("exit code: 0\nfine", ""),
    ("def f():\n    raise ValueError('x')", ""),
    ("The report mentions an Error in 2019.", ""),
    ("", ""),
])  # fmt: skip
def test_only_results_that_begin_like_an_error_are_errors(result, kind):
    """A file that speaks of errors is none."""
    assert error_class(result) == kind


def test_identical_answers_to_the_same_words_warn_then_stop():
    """The same text after the same nudge is a circle; the same label for other texts is a classifier's day."""
    answer = "I will now begin the work."
    assert find_loop(chatted("write it", answer, "go on", answer, "go on")) is None
    assert find_loop(chatted("write it", *[answer, "go on"] * 3)).severity == "warn"
    assert find_loop(chatted("write it", *[answer, "go on"] * 5)).severity == "stop"
    assert find_loop(chatted("write it", *[answer, "go on"] * 4, answer, "stop it")) is None
    shots = [turn for i in range(9) for turn in (f"text {i}", '{"label": "refund", "sure": true}')]
    assert find_loop(chatted(*shots, "text")) is None
    assert find_loop(chatted("well?", *["Yes.", "sure?"] * 9)) is None


def test_patience_moves_every_threshold():
    """What a person gives a run that goes on holds back each rule by as many repeats."""
    assert find_loop(talk("chat", [READ] * 6), patience=4) is None
    assert find_loop(talk("chat", [READ] * 7), patience=4).severity == "warn"
    assert find_loop(talk("chat", [READ, LIST] * 3), patience=2) is None


ARGUMENTS = st.dictionaries(st.sampled_from("abc"), st.integers(0, 2), max_size=2)
STEPS = st.lists(st.tuples(st.sampled_from(["read", "write", "run"]), ARGUMENTS,
                           st.sampled_from(["ok", "done", "Error: no", "{}"])), min_size=1, max_size=12)  # fmt: skip


@given(STEPS, st.sampled_from(DIALECTS))
def test_fresh_results_are_never_a_loop_and_a_tail_of_one_step_always_is(steps, dialect):
    """Whatever came before: five equal steps at the end stop, and steps that each bring something new and no error find nothing."""
    assert find_loop(talk(dialect, steps + [READ] * 5)).severity == "stop"
    fresh = [(tool, arguments, f"result {i}") for i, (tool, arguments, _) in enumerate(steps)]
    assert find_loop(talk(dialect, fresh)) is None


@given(STEPS, st.integers(0, 6))
def test_the_dialects_agree(steps, patience):
    """The same agent is judged alike, whichever dialect its conversation is written in."""
    found = {find_loop(talk(dialect, steps * 2), patience=patience) for dialect in DIALECTS}
    assert len(found) == 1


KEYS = ["role", "content", "tool_calls", "function", "name", "arguments", "type", "id", "call_id", "tool_use_id", "text", "input", "output"]
WORDS = st.sampled_from(["assistant", "tool", "tool_use", "tool_result", "function_call", "function_call_output", "mcp_call"])
JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=8) | WORDS,
                    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner | WORDS, max_size=5),
                    max_leaves=25)  # fmt: skip


@given(JSON, JSON)
def test_no_body_makes_it_fail(messages, other):
    """Whatever a caller sends, looking raises nothing."""
    padding = {"x": ['"assistant"'] * 3}
    body = json.dumps({"messages": messages, "input": other, **padding, "y": [{"role": "assistant"}] * 3}).encode()
    find_loop(body)
    find_loop(body[: len(body) // 2])


def test_answers_of_a_run_without_history_are_remembered():
    """The same request and answer thrice warn, five times stop; A-B-A-B too; another run's do not count; a resumed run begins anew."""
    seen = Answers()
    found = [seen.add("r", b"q", b"a") for _ in range(5)]
    assert [one and one.severity for one in found] == [None, None, "warn", "warn", "stop"]
    assert seen.add("other", b"q", b"a") is None
    seen.forget("r")
    assert [one and one.kind for one in (seen.add("r", b"q", bytes([i % 2])) for i in range(4))] == [None, None, None, "cycle"]
    assert [seen.add("s", bytes([i]), b"yes") for i in range(9)] == [None] * 9


def test_the_memory_of_runs_is_bounded():
    """The least recent run is forgotten first."""
    seen = Answers(runs=2)
    for run in ("a", "b", "c"):
        seen.add(run, b"q", b"x")
        seen.add(run, b"q", b"x")
    assert seen.add("c", b"q", b"x").kind == "repeated_answer"
    assert seen.add("a", b"q", b"x") is None


def test_answers_are_compared_without_ids_and_times():
    """Two answers that differ in what every answer differs in are the same."""
    def one(i, text):
        call = {"id": f"c{i}", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        return json.dumps({"id": f"chatcmpl-{i}", "created": i, "choices": [{"message": {"content": text, "tool_calls": [call]}}]}).encode()

    assert answer_text(one(1, "a")) == answer_text(one(2, "a")) != answer_text(one(3, "b"))
    assert answer_text(b"no json") == answer_text(b"[]") == b""
