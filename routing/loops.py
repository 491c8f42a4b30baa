"""Tells an agent that goes in circles, from the conversation that its request carries: no memory, so any worker may look.

Rules look at the end of the conversation alone: an agent that has left its circle is let be. Steps of polling tools, declared in
routes.yaml, do not count. Who writes keys with `\\u` escapes is not seen: a loop is a mishap, budgets stop what is meant.
"""

import re
from collections import OrderedDict, deque
from collections.abc import Collection, Iterator, Sequence
from hashlib import blake2b
from typing import Any, Literal, NamedTuple

import msgspec

_REPEATS = 3  # the same once more than a retry explains
_STUBBORN = 2  # so many steps more, with the warning in their answers, and the agent is stopped
_LONGEST_PERIOD = 4
_IDLE_STEPS = 8  # steps without anything new: more than two rounds of the longest period
_SHORTEST_ANSWER = 16  # characters: "yes" may be right three times
_WINDOW = 256  # messages looked at, from the end: 5,000 tool steps (1.6 MB) take 18 ms, nearly all decoding, where looking at all takes 31
_RUNS = 4096
_EXCEPTION = re.compile(r"\b([A-Za-z_][\w.]*(?:Error|Exception|Timeout|Denied|NotFound|Refused))\b")
_ERROR = re.compile(r'\s*(?:\{\s*"(?:error|errors|exception)"\s*:|\[?(?:error|fatal|traceback|exception|failed|failure|panic)\b'
                    r'|[\w.]+(?:Error|Exception)\b|(?:http|status|exit code|exit status)\W{0,3}(?!0\b|200\b)\d)', re.I)  # fmt: skip
_VARIES = re.compile(r"'[^']*'|\"[^\"]*\"|[\w.~-]*[/\\][\w./\\~-]*|0x[0-9a-f]+|\d+", re.IGNORECASE)


class Finding(NamedTuple):
    """A circle. `warn`: the agent is told; `stop`: its run ends with this as the reason. `detail` names tools, never what was said."""

    kind: Literal["repeated_call", "cycle", "repeated_answer", "repeated_error", "no_progress", "spend_velocity"]
    detail: str
    severity: Literal["warn", "stop"]


class Step(NamedTuple):
    """A tool call and its result. Arguments are canonical JSON. `failed` is the class of its error, empty where it has none."""

    tool: str
    arguments: str
    result: str
    failed: str


class Conversation(NamedTuple):
    """What the rules look at: the tool steps since somebody last said something new, each answer without tool calls after what it
    answered, and what was said last."""

    steps: list[Step]
    answers: list[tuple[str, str]]
    asked: str


class _Body(msgspec.Struct):
    messages: Any = None
    input: Any = None


_decode = msgspec.json.Decoder(_Body).decode
_decode_any = msgspec.json.Decoder().decode


def find_loop(body: bytes, polling: Collection[str] = (), *, patience: int = 0) -> Finding | None:
    """The gravest circle at the end of a request's conversation, in any dialect. Linear in the body.

    A body with neither tool steps nor three answers costs a search through its bytes. `patience` is how many repeats more than usual
    are let be: what a person gives a run that was stopped and goes on.
    """
    if body.count(b"{") <= _REPEATS:  # the body itself, and fewer messages
        return None
    if body.count(b'"assistant"') < _REPEATS and body.count(b"_call") < _REPEATS and body.count(b'"tool_result"') < _REPEATS:
        return None
    try:
        document = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None  # the engine says what is wrong with it
    said = document.messages if isinstance(document.messages, list) else document.input
    if not isinstance(said, list):
        return None
    talk = read_conversation(said[-_WINDOW:])
    found = [*_about_steps([step for step in talk.steps if step.tool not in polling], patience), *_about_answers(talk, patience)]
    return max(found, key=lambda finding: finding.severity == "stop", default=None)


def read_conversation(said: Sequence[Any]) -> Conversation:
    """The conversation in `messages` or `input`. Parts that make no sense are passed over."""
    calls: dict[str, tuple[str, str]] = {}
    steps: list[Step] = []
    answers: list[tuple[str, str]] = []
    told: set[str] = set()
    asked: list[str] = []
    for message in said:
        if not isinstance(message, dict):
            continue
        parts = list(_parts(message))
        for kind, key, name, value in parts:
            if kind == "call":
                calls[key] = name, _canonical(value)
            elif key in calls:
                result = _text(value)
                steps.append(Step(*calls.pop(key), result, error_class(result, failed=name == "failed")))
        text = "" if parts else _text(message.get("content"))
        if message.get("role") == "assistant" and not parts:
            answers.append(("\n".join(asked), text))
            asked = []
        elif text:
            asked.append(text)
            if text not in told:
                steps.clear()  # a new word from outside may well be a reason to do the same again
            told.add(text)
    return Conversation(steps, answers, "\n".join(asked))


def _parts(message: dict[str, Any]) -> Iterator[tuple[str, str, str, Any]]:
    """(call | result, its id, the tool's name or `failed`, arguments or result) of a message or item, whichever dialect it is of."""
    kind = message.get("type")
    if isinstance(calls := message.get("tool_calls"), list):  # chat completions
        for call in calls:
            function = call.get("function") or call.get("custom") if isinstance(call, dict) else None
            if isinstance(function, dict):
                yield "call", str(call.get("id")), str(function.get("name")), function.get("arguments", function.get("input"))
    elif message.get("role") == "tool":
        yield "result", str(message.get("tool_call_id")), "", message.get("content")
    elif kind in ("function_call", "custom_tool_call"):  # responses
        yield "call", str(message.get("call_id")), str(message.get("name")), message.get("arguments", message.get("input"))
    elif kind in ("function_call_output", "custom_tool_call_output"):
        yield "result", str(message.get("call_id")), "", message.get("output")
    elif kind == "mcp_call":
        yield "call", str(message.get("id")), str(message.get("name")), message.get("arguments")
        yield "result", str(message.get("id")), "failed" if message.get("error") else "", message.get("error") or message.get("output")
    elif isinstance(content := message.get("content"), list):  # messages
        for block in content:
            if isinstance(block, dict) and block.get("type") == "tool_use":
                yield "call", str(block.get("id")), str(block.get("name")), block.get("input")
            elif isinstance(block, dict) and block.get("type") == "tool_result":
                yield "result", str(block.get("tool_use_id")), "failed" if block.get("is_error") else "", block.get("content")


def _canonical(arguments: Any) -> str:
    """Arguments as JSON with sorted keys, so that spelling makes no difference; as they are where they are no JSON."""
    if isinstance(arguments, str):
        try:
            arguments = _decode_any(arguments)
        except (msgspec.DecodeError, RecursionError):
            return str(arguments).strip()
    return msgspec.json.encode(arguments, order="sorted").decode()


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str))
    return "" if content is None else msgspec.json.encode(content, order="sorted").decode()


def error_class(result: str, *, failed: bool = False) -> str:
    """What kind of error a result is: an exception's name, else its first line without names and numbers; empty for none.

    Only a result that begins like an error is one: a file that was read may speak of errors.
    """
    if not failed and not _ERROR.match(result[:200]):
        return ""
    head, tail = result[:400], result[-400:]
    if named := _EXCEPTION.findall(tail if "Traceback" in head else head):
        return str(named[-1 if "Traceback" in head else 0])
    line = head.strip().partition("\n")[0]
    return _VARIES.sub("_", line)[:80] or "error"


def _about_steps(steps: Sequence[Step], patience: int) -> Iterator[Finding]:
    numbers: dict[Step, int] = {}
    seen = [numbers.setdefault(step, len(numbers)) for step in steps]
    if len(seen) < _REPEATS:
        return
    last, tool = steps[-1], f"`{steps[-1].tool[:64]}`"
    if (times := _rounds(seen, 1)) >= _REPEATS + patience:
        yield _finding("repeated_call", f"{tool} with the same arguments and result {times} times in a row", times - patience)
    elif circle := _cycle(seen, "tool calls", patience):
        yield circle
    elif (times := seen.count(seen[-1])) >= _REPEATS + patience:  # after other steps it may have had reason to: it is told, not stopped
        yield Finding("repeated_call", f"{tool} with the same arguments and result {times} times", "warn")
    if last.failed and (times := _failures(steps, last)) >= _REPEATS + patience:
        is_stuck = all(step.failed == last.failed for step in steps[-_IDLE_STEPS - patience :]) and len(steps) >= _IDLE_STEPS + patience
        yield Finding("repeated_error", f"{tool} failed {times} times in a row with the same kind of error", "stop" if is_stuck else "warn")
    idle = len(seen) - 1 - seen.index(len(numbers) - 1)  # steps are numbered as they first come: the highest is the newest
    if idle >= _IDLE_STEPS + patience:
        yield Finding("no_progress", f"{idle} tool calls brought nothing new", "stop" if idle >= 2 * _IDLE_STEPS + patience else "warn")


def _about_answers(talk: Conversation, patience: int) -> Iterator[Finding]:
    """An answer given again to the same words. The same answer to other words is a classifier's day, or examples in a prompt."""
    if not talk.answers or len(talk.answers[-1][1]) < _SHORTEST_ANSWER:
        return
    asked, answer = talk.answers[-1]
    if talk.asked not in ("", asked):
        return
    times = 1
    for i in range(len(talk.answers) - 1, 0, -1):
        if talk.answers[i][0] != asked or talk.answers[i - 1][1] != answer:
            break
        times += 1
    if times >= _REPEATS + patience:
        yield _finding("repeated_answer", f"the same answer {times} times in a row", times - patience)


def _finding(kind: Literal["repeated_call", "repeated_answer"], detail: str, times: int) -> Finding:
    return Finding(kind, detail, "stop" if times >= _REPEATS + _STUBBORN else "warn")


def _rounds(seen: Sequence[Any], period: int) -> int:
    """How often the last `period` things stand at the end, one after the other."""
    same = 0
    while same + period < len(seen) and seen[-1 - same] == seen[-1 - same - period]:
        same += 1
    return (same + period) // period


def _cycle(seen: Sequence[Any], what: str, patience: int) -> Finding | None:
    """A-B-A-B, up to A-B-C-D-A-B-C-D: the second round warns, the third stops."""
    for period in range(2, _LONGEST_PERIOD + 1):
        rounds = _rounds(seen, period) if len(seen) >= 2 * period else 0
        if rounds >= 2 + patience and any(seen[-i] != seen[-1] for i in range(2, period + 1)):
            return Finding("cycle", f"the same {period} {what} {rounds} times in a row", "stop" if rounds > 2 + patience else "warn")
    return None


def _failures(steps: Sequence[Step], last: Step) -> int:
    """How often the last step's tool has failed in this way since it did anything else; other tools may have worked in between.

    Then it is told and never stopped: tests fail in the same way again and again while somebody mends the code.
    """
    times = 0
    for step in reversed(steps):
        if step.tool == last.tool:
            if step.failed != last.failed:
                break
            times += 1
    return times


class Answers:
    """What runs were answered of late, for agents that send no history: digests of question and answer, of the latest 4,096 runs."""

    def __init__(self, runs: int = _RUNS) -> None:
        self._runs = runs
        self._seen: OrderedDict[str, deque[bytes]] = OrderedDict()

    def add(self, run_id: str, asked: bytes, answer: bytes) -> Finding | None:
        """Takes in one answer of a run, both as bytes of any length; says whether the run goes in circles."""
        digest = blake2b(answer, digest_size=12, key=blake2b(asked, digest_size=16).digest()).digest()
        seen = self._seen.setdefault(run_id, deque(maxlen=3 * _LONGEST_PERIOD))
        self._seen.move_to_end(run_id)
        if len(self._seen) > self._runs:
            self._seen.popitem(last=False)
        seen.append(digest)
        if (times := _rounds(seen, 1)) >= _REPEATS:
            return _finding("repeated_answer", f"the same answer to the same request {times} times in a row", times)
        return _cycle(seen, "answers", 0)

    def forget(self, run_id: str) -> None:
        """A run that has ended, or that a person lets go on, begins anew."""
        self._seen.pop(run_id, None)


def answer_text(body: bytes) -> bytes:
    """What a whole JSON answer says and calls, without ids and times: what `Answers` compares. Empty where it is no answer."""
    try:
        document = _decode_any(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return b""
    if not isinstance(document, dict):
        return b""
    said = document.get("choices") or document.get("output") or document.get("content")
    return msgspec.json.encode(_without_ids(said), order="sorted") if said else b""


def _without_ids(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_ids(item) for key, item in value.items() if key not in ("id", "call_id", "logprobs", "token_ids")}
    return [_without_ids(item) for item in value] if isinstance(value, list) else value
