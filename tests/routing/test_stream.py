"""The tee over a model's stream: what is forwarded, what is held back, what is counted."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.errors import BadAnswer
from routing.stream import Tee, Tokens, tokens_of

USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":%d}}\n\n'
DONE = b"data: [DONE]\n\n"


def through(pieces, dialect="openai", *, strip_usage=True):
    tee = Tee(dialect, strip_usage=strip_usage)
    return b"".join(tee.feed(piece) for piece in pieces if piece) + tee.rest(), tee


def cut_at(data, places):
    places = sorted({min(place, len(data)) for place in places})
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]


content = st.builds(lambda text: b"data: %b\n\n" % json.dumps({"choices": [{"delta": {"content": text}}]}).encode(), st.text(max_size=30))
unicode = st.builds(
    lambda text: b"data: %b\n\n" % json.dumps({"choices": [{"delta": {"content": text}}]}, ensure_ascii=False).encode(),
    st.text(st.characters(min_codepoint=0x80, exclude_categories=["Cs"]), max_size=10),
)
odd = st.sampled_from(
    [
        b": ping\n\n",
        b"data: {bad json\n\n",
        b'data: {"usage": "none", "choices": []}\n\n',
        b"\xff\xfe\n\n",
        b"event: x\ndata: 1\n\n",
        b'data: {"usage":null,"choices":[]}\n\n',
        b"data: a\ndata: b\n\n",
        b"retry: 5\n\n",
        b"data: [1,2]\n\n",
    ]
)
events = st.lists(st.one_of(content, unicode, odd), max_size=8)


@given(events=events, places=st.lists(st.integers(0, 2000), max_size=30), crlf=st.booleans(), asked=st.booleans())
def test_any_chunking_forwards_the_same_bytes_but_for_the_usage_that_nobody_asked_for(events, places, crlf, asked):
    """However a stream is cut into chunks, its bytes come through untouched, less the usage event where the caller did not ask."""
    line_end = (lambda data: data.replace(b"\n", b"\r\n")) if crlf else (lambda data: data)
    usage = line_end(USAGE % 0)
    kept = line_end(b"".join(events))
    whole = kept + usage + line_end(DONE)
    got, tee = through(cut_at(whole, places), strip_usage=not asked)
    assert got == (whole if asked else kept + line_end(DONE))
    assert tee.ended
    assert tee.tokens == Tokens(5, 0)
    assert b"".join([tee.feed(b"data: 1\n\n"), tee.rest()]) == b"data: 1\n\n"


@given(
    data=st.binary(max_size=300),
    places=st.lists(st.integers(0, 300), max_size=10),
    dialect=st.sampled_from(["openai", "anthropic", "responses"]),
)
def test_garbage_comes_through_as_it_is(data, places, dialect):
    """Bytes that are no event stream at all neither raise nor change."""
    got, tee = through(cut_at(data, places), dialect)
    assert got == data
    assert tee.cut(BadAnswer("cut")).endswith(b"\n\n")


@pytest.mark.parametrize(
    "usage",
    [
        b'data: {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 3}}\n\n',
        b'data:{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":3}}\n\n',
        b'id: 1\ndata: {"usage":{"prompt_tokens":5,"completion_tokens":3},"choices":[]}\n\n',
        b'data: {"choices":[],\ndata: "usage":{"prompt_tokens":5,"completion_tokens":3}}\n\n',
    ],
)
def test_usage_is_seen_however_it_is_written(usage):
    """Spaces, a missing space after `data:`, other fields and several lines hide no usage, and it is stripped."""
    got, tee = through([b'data: {"choices":[{"delta":{}}]}\n\n', usage, DONE])
    assert tee.tokens == Tokens(5, 3)
    assert got == b'data: {"choices":[{"delta":{}}]}\n\n' + DONE


def test_usage_beside_content_is_never_stripped():
    """Where an engine puts usage into a chunk with choices, the chunk goes out whole."""
    data = b'data: {"choices":[{"delta":{"content":"x"}}],"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n'
    got, tee = through([data, DONE])
    assert got == data + DONE
    assert tee.tokens == Tokens(1, 2)


@pytest.mark.parametrize("count", [b"-1", b"1e3", b'"7"', b"9223372036854775808", b"1" + b"0" * 400, b"null"])
def test_a_count_that_is_none_is_not_believed(count):
    """A negative, fractional or enormous count is taken for nothing: the ledger and the metrics would break over it."""
    body = b'{"usage":{"prompt_tokens":4,"completion_tokens":%b}}' % count
    assert tokens_of(body).completion is None
    got, tee = through([b'data: {"choices":[],"usage":{"completion_tokens":%b}}\n\n' % count, DONE])
    assert tee.tokens.completion is None
    assert got.endswith(DONE)


@pytest.mark.parametrize("body", [b"", b"[]", b"not json", b'{"usage":7}', b"\xff", b'{"usage":' + b"[" * 5000, b"{}"])
def test_an_answer_without_usage_has_no_tokens(body):
    """Any body that tells no usage gives none, and never raises."""
    assert tokens_of(body) == Tokens()


@pytest.mark.parametrize(
    ("dialect", "end"),
    [
        ("openai", b"data: [DONE]\n\n"),
        ("openai", b"data:[DONE]\r\n\r\n"),
        ("anthropic", b'event: message_stop\ndata: {"type":"message_stop"}\n\n'),
        ("responses", b"event: response.completed\ndata: {}\n\n"),
        ("responses", b"event: response.failed\ndata: {}\n\n"),
    ],
)
def test_each_dialect_has_its_own_end(dialect, end):
    """The last word of each dialect is recognised, also byte by byte, and not before it is complete."""
    tee = Tee(dialect, strip_usage=False)
    for byte in end[:-1]:
        tee.feed(bytes((byte,)))
        assert not tee.ended
    tee.feed(end[-1:])
    assert tee.ended


def test_text_that_mentions_the_end_does_not_end_a_stream():
    """`[DONE]` inside a model's words is no end."""
    _, tee = through([b'data: {"choices":[{"delta":{"content":"data: [DONE]"}}]}\n\n'])
    assert not tee.ended


def test_anthropic_counts_come_from_its_first_and_last_events():
    """Input tokens of `message_start` and output tokens of `message_delta` are both kept, and nothing is stripped."""
    data = (
        b'event: message_start\ndata: {"type":"message_start","message":{"usage":{"input_tokens":9,"output_tokens":0}}}\n\n'
        b'event: message_delta\ndata: {"type":"message_delta","usage":{"output_tokens":4}}\n\n'
        b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
    )
    got, tee = through([data], "anthropic", strip_usage=False)
    assert got == data
    assert tee.tokens == Tokens(9, 4)


def test_responses_counts_come_from_the_completed_event():
    """The Responses dialect keeps its usage inside `response`."""
    _, tee = through([b'event: response.completed\ndata: {"response":{"usage":{"input_tokens":2,"output_tokens":6}}}\n\n'], "responses")
    assert tee.tokens == Tokens(2, 6)


@pytest.mark.parametrize("step", [20_000, 300_000])
def test_a_huge_event_is_forwarded_without_being_held_whole(step):
    """An event of 2 MB comes through as it is, of which at most 1 MiB and a chunk is ever held."""
    event = b'data: {"x":"' + b"y" * 2_000_000 + b'"}\n\n'
    tee = Tee("openai", strip_usage=True)
    out = sent = 0
    for start in range(0, len(event), step):
        piece = event[start : start + step]
        sent += len(piece)
        out += len(tee.feed(piece))
        assert sent - out <= (1 << 20) + step
    assert out + len(tee.rest()) == len(event)


def test_an_error_event_stands_by_itself_after_half_a_huge_event():
    """A stream cut inside an event that has partly gone out already still gives an error event that a parser sees."""
    tee = Tee("openai", strip_usage=True)
    sent = tee.feed(b'data: {"x":"' + b"y" * 2_000_000)
    assert sent
    assert b'\n\ndata: {"error"' in sent + tee.cut(BadAnswer("cut"))


def test_half_an_event_is_not_forwarded_before_the_error():
    """A stream cut inside an event drops the half and says what happened, in the dialect's own shape."""
    for dialect, start in (
        ("openai", b'data: {"error":'),
        ("anthropic", b'event: error\ndata: {"type":"error"'),
        ("responses", b"event: error\ndata: "),
    ):
        tee = Tee(dialect, strip_usage=True)
        assert tee.feed(b'data: {"a":1}\n\ndata: {"b"') == b'data: {"a":1}\n\n'
        last = tee.cut(BadAnswer("cut"))
        assert last.startswith(start)
        assert json.loads(last.split(b"data: ")[1])["error"]["message"] == "cut"
        assert tee.rest() == b""


def test_events_are_counted_for_an_estimate():
    """Without usage the number of events stands in for tokens, however they are chunked."""
    data = b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n' * 7
    for pieces in ([data], cut_at(data, range(0, len(data), 11))):
        assert through(pieces)[1].events == 7


def test_a_stream_that_is_ended_says_what_was_counted():
    """Each event counts as a token where the model has not said more; OpenAI's callers are told where they asked for it."""
    word = b'data: {"choices":[{"index":0,"delta":{"content":"w"}}]}\n\n'
    asked, silent = Tee("openai", strip_usage=False), Tee("openai", strip_usage=True)
    for tee in (asked, silent):
        tee.feed(word * 3)
    end, told, done = asked.finish(1030).split(b"\n\n")[:3]
    assert b'"finish_reason":"length"' in end and done == DONE.strip()
    assert json.loads(told[6:])["usage"] == {"prompt_tokens": 1030, "completion_tokens": 3, "total_tokens": 1033}
    assert b"usage" not in silent.finish(1030)
    claude = Tee("anthropic", strip_usage=False)
    claude.feed(b'event: message_delta\ndata: {"type":"message_delta","usage":{"output_tokens":9}}\n\n')
    assert json.loads(claude.finish(7).split(b"\n")[1][6:])["usage"] == {"output_tokens": 9}
