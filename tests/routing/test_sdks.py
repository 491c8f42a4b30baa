"""The OpenAI and Anthropic Python SDKs against the router: answers, streams, and each error as the class their users catch."""

import anthropic
import openai
import pytest


@pytest.fixture
def ask_openai(router):
    """An OpenAI client of the router."""
    with openai.OpenAI(base_url=f"http://127.0.0.1:{router.port}/v1", api_key=router.key, max_retries=0) as client:
        yield client


@pytest.fixture
def ask_anthropic(router):
    """An Anthropic client of the router."""
    with anthropic.Anthropic(base_url=f"http://127.0.0.1:{router.port}", api_key=router.key, max_retries=0) as client:
        yield client


HELLO = [{"role": "user", "content": "hello"}]


def script_of(steps):
    return {"extra_body": {"script": steps}}


def test_openai_answers_and_streams(ask_openai, say):
    """Whole answers, streams and the wish for usage work as with OpenAI itself."""
    answer = ask_openai.chat.completions.create(model="task/chat", messages=HELLO)
    assert answer.choices[0].message.content == "hi"
    assert answer.usage.completion_tokens == 3
    chunks = list(ask_openai.chat.completions.create(model="alpha", messages=HELLO, stream=True))
    assert "".join(chunk.choices[0].delta.content for chunk in chunks) == "w0 w1 w2 "
    chunks = list(ask_openai.chat.completions.create(model="alpha", messages=HELLO, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage.total_tokens == 10
    assert "auto" in [model.id for model in ask_openai.models.list()]
    assert ask_openai.models.retrieve("gamma").id == "gamma"


def test_openai_errors_have_their_classes(router, ask_openai, say):
    """401, 403, 404, 400, 429 and 5xx become the SDK's own exceptions, with code, parameter, request id and Retry-After."""
    create = ask_openai.chat.completions.create
    with (
        openai.OpenAI(base_url=ask_openai.base_url, api_key="wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError) as refused,
    ):
        stranger.chat.completions.create(model="alpha", messages=HELLO)
    assert refused.value.code == "invalid_api_key"
    with pytest.raises(openai.NotFoundError) as missing:
        create(model="alfa", messages=HELLO, extra_headers={"x-request-id": "find-me"})
    assert (missing.value.code, missing.value.param, missing.value.request_id) == ("model_not_found", "model", "find-me")
    with pytest.raises(openai.PermissionDeniedError):
        create(model="alpha", messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://10.0.0.1/"}}]}])
    with pytest.raises(openai.BadRequestError):
        create(model="", messages=HELLO)
    with pytest.raises(openai.RateLimitError) as busy:
        create(model="gamma", messages=HELLO, **script_of(say.answer({}, 429)))
    assert int(busy.value.response.headers["retry-after"]) >= 1
    for status in (500, 503, 504):
        with pytest.raises(openai.InternalServerError):
            create(model="gamma", messages=HELLO, **script_of(say.answer({}, status)))


def test_openai_sees_a_cut_stream(ask_openai, say):
    """A stream that breaks raises APIError after the words that came; it never ends as if it were whole."""
    words = []
    stream = ask_openai.chat.completions.create(
        model="alpha", messages=HELLO, stream=True, **script_of([say.HEAD, ["chunk", say.words(1)[0]], ["sleep", 0.05], ["cut"]])
    )
    with pytest.raises(openai.APIError, match="stopped before its answer was complete"):
        words.extend(chunk.choices[0].delta.content for chunk in stream)
    assert words == ["w0 "]


def test_openai_sees_a_cut_responses_stream(ask_openai, say):
    """The same holds for the Responses API."""
    delta = {
        "type": "response.output_text.delta",
        "delta": "a",
        "item_id": "i",
        "output_index": 0,
        "content_index": 0,
        "sequence_number": 1,
    }
    first = "event: response.output_text.delta\n" + say.event({**delta, "logprobs": []})
    stream = ask_openai.responses.create(model="alpha", input="hello", stream=True, **script_of(say.stream(first)))
    seen = []
    with pytest.raises(openai.APIError):
        seen.extend(event.type for event in stream)
    assert seen == ["response.output_text.delta"]


MESSAGE = {
    "id": "m",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [{"type": "text", "text": "hi"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 4, "output_tokens": 2},
}


def test_anthropic_answers_and_streams(ask_anthropic, say):
    """Messages and their streams work as with Anthropic itself."""
    answer = ask_anthropic.messages.create(model="task/chat", max_tokens=5, messages=HELLO, **script_of(say.answer(MESSAGE)))
    assert answer.content[0].text == "hi"
    assert answer.usage.input_tokens == 4
    events = [
        ("message_start", {"message": {**MESSAGE, "content": []}}),
        ("content_block_start", {"index": 0, "content_block": {"type": "text", "text": ""}}),
        ("content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": "hey"}}),
        ("content_block_stop", {"index": 0}),
        ("message_delta", {"delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": {"output_tokens": 2}}),
        ("message_stop", {}),
    ]
    script = say.stream(*(f"event: {name}\n{say.event({'type': name, **data})}" for name, data in events))
    with ask_anthropic.messages.stream(model="alpha", max_tokens=5, messages=HELLO, **script_of(script)) as stream:
        assert "".join(stream.text_stream) == "hey"
        assert stream.get_final_message().stop_reason == "end_turn"


def test_anthropic_errors_have_their_classes(ask_anthropic, say):
    """401, 403, 404, 400, 429, 503 and a cut stream become the SDK's own exceptions."""

    def create(**more):
        return ask_anthropic.messages.create(max_tokens=5, **{"model": "gamma", "messages": HELLO, **more})

    with (
        anthropic.Anthropic(base_url=ask_anthropic.base_url, api_key="wrong", max_retries=0) as stranger,
        pytest.raises(anthropic.AuthenticationError),
    ):
        stranger.messages.create(model="alpha", max_tokens=5, messages=HELLO)
    with pytest.raises(anthropic.NotFoundError):
        create(model="nobody")
    with pytest.raises(anthropic.PermissionDeniedError):
        create(messages=[{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "http://10.0.0.1/"}}]}])
    with pytest.raises(anthropic.BadRequestError):
        create(model="")
    with pytest.raises(anthropic.RateLimitError) as busy:
        create(**script_of(say.answer({}, 429)))
    assert int(busy.value.response.headers["retry-after"]) >= 1
    with pytest.raises(anthropic.APIStatusError) as down:
        create(**script_of(say.answer({}, 503)))
    assert (down.value.status_code, down.value.body["error"]["type"]) == (503, "overloaded_error")
    first = 'event: message_start\ndata: {"type":"ping"}\n\n'
    with pytest.raises(anthropic.APIStatusError, match="stopped before its answer was complete"):
        list(create(stream=True, **script_of(say.stream(first))))


async def test_a_large_body_gets_its_refusal_and_not_a_reset(router):
    """A body over the limit that is being sent all the same ends in 413 for the SDK, not in a broken connection."""
    async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{router.port}/v1", api_key=router.key, max_retries=0) as client:
        for _ in range(5):
            with pytest.raises(openai.APIStatusError) as refused:
                await client.chat.completions.create(model="alpha", messages=[{"role": "user", "content": "x" * (4 << 20)}])
            assert refused.value.status_code == 413
