"""Asking: what is measured, what is retried, what is remembered, and what is never sent. Against a real server on a real socket."""

import asyncio
import contextlib
import socket

import pytest

from evals.ask import AskError, Asking, questions
from evals.cache import Cache
from evals.case import Case
from evals.client import Endpoint, open_client
from evals.pace import Pace
from evals.suite import Suite


def last(body):
    return body["messages"][-1]["content"]


def test_answers_come_in_the_order_of_the_cases_with_their_measures(upstream, ask):
    """Text, finish reason, tokens and times are there for each case and sample, in order, however late each one came."""
    waits = {"question 0": 0.02}
    with upstream.serving(lambda body: upstream.Reply(f"says {last(body)}", wait_s=waits.get(last(body), 0), gap_s=0.001)) as server:
        answers = ask(Endpoint(server.base_url, "m"), 5, samples=2)
    assert [(answer.case_id, answer.sample) for answer in answers] == [(f"c{at}", sample) for at in range(5) for sample in (0, 1)]
    assert all(answer.text == f"says question {answer.case_id[1:]}" and answer.finish_reason == "stop" for answer in answers)
    assert all((answer.prompt_tokens, answer.completion_tokens) == (7, 3) and not answer.failed for answer in answers)
    assert all(0 < answer.ttft_s <= answer.total_s and len(answer.itl_s) == 3 and answer.itl_s[0] <= answer.itl_s[2] for answer in answers)
    assert answers[0].ttft_s > 0.02


def test_the_time_to_first_token_does_not_count_empty_chunks(upstream, ask):
    """The first chunk only names the role: the clock stops at the first word, here after a gap."""
    with upstream.serving(lambda _: upstream.Reply("one two", gap_s=0.05)) as server:
        (answer,) = ask(Endpoint(server.base_url, "m"), 1)
    assert answer.ttft_s >= 0.05


def test_tool_calls_are_put_together_from_their_pieces(upstream, ask):
    """Name and arguments of parallel calls arrive whole, in both dialects and unstreamed."""
    calls = ({"name": "a", "arguments": {"x": 1, "y": "two words"}}, {"name": "b", "arguments": {}})
    for streams, api in ((True, "openai"), (True, "anthropic"), (False, "openai")):
        with upstream.serving(lambda _, streams=streams: upstream.Reply("", calls, streams=streams)) as server:
            (answer,) = ask(Endpoint(server.base_url, f"{api} {streams}", api=api), 1)
        found = [(call["name"], call["arguments"]) for call in answer.tool_calls]
        assert found == [("a", '{"x": 1, "y": "two words"}'), ("b", "{}")]


def test_anthropic_is_asked_in_its_own_words(upstream, ask):
    """System apart, a limit of tokens, tools in their shape, the key in their header; tokens of the prompt include cached ones."""
    tool = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
    with upstream.serving(lambda _: upstream.Reply("hello there")) as server:
        endpoint = Endpoint(server.base_url, "c", api="anthropic", key="k")
        (answer,) = ask(endpoint, 1, request={"tools": [tool], "tool_choice": "required", "temperature": 0})
    assert (answer.text, answer.finish_reason, answer.prompt_tokens, answer.completion_tokens) == ("hello there", "end_turn", 7, 3)
    (body,) = server.asked
    assert body["tools"] == [{"name": "f", "description": "d", "input_schema": {"type": "object"}}]
    assert body["tool_choice"] == {"type": "any"} and body["max_tokens"] > 0 and "system" not in body
    assert server.keys == ["k"]


def test_a_field_set_to_none_is_left_out(upstream, ask):
    """`--body '{"stream_options": null}'` speaks to servers that refuse the field."""
    with upstream.serving(lambda _: upstream.Reply()) as server:
        ask(Endpoint(server.base_url, "m", key="k"), 1, request={"stream_options": None, "seed": 5})
    assert "stream_options" not in server.asked[0] and server.asked[0]["seed"] == 5
    assert server.keys == ["bearer k"]


def test_an_answer_that_does_not_stream_has_no_time_to_first_token(upstream, ask):
    """What was not measured is not made up."""
    with upstream.serving(lambda _: upstream.Reply("whole", streams=False)) as server:
        (answer,) = ask(Endpoint(server.base_url, "m"), 1)
    assert (answer.text, answer.ttft_s, answer.itl_s, answer.failed) == ("whole", None, (), False)


def test_a_long_answer_arrives_whole_streamed_or_not(upstream, ask):
    """A megabyte comes in many pieces; none is lost."""
    text = "word " * 200_000
    for streams in (True, False):
        with upstream.serving(lambda _, streams=streams: upstream.Reply(text, streams=streams)) as server:
            (answer,) = ask(Endpoint(server.base_url, str(streams)), 1)
        assert answer.text == text and not answer.failed


@pytest.mark.parametrize("status", [429, 503, 529])
def test_come_later_is_tried_again(upstream, ask, status):
    """Told to come back at once, we do, and have the answer."""
    with upstream.serving(
        lambda _: upstream.Reply(status=status if len(server.asked) == 1 else 200, headers={"retry-after": "0"})
    ) as server:
        (answer,) = ask(Endpoint(server.base_url, "m"), 1)
        assert not answer.failed and len(server.asked) == 2


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        ({"cut_after": 2}, "cut: "),
        ({"finish": None}, "cut: "),
        ({"error_event": True}, "protocol: error in the stream: the engine died"),
        ({"status": 500}, "http_500: "),
        ({"status": 503}, "http_503: "),
        ({"status": 307, "headers": {"location": "/v1/elsewhere"}}, "http_307: "),
        ({"wait_s": 5.0}, "timeout: "),
    ],
)
def test_what_breaks_is_a_failure_and_is_not_tried_again(upstream, ask, reply, error):
    """A cut, an error within the stream, a server's error, a deadline: an outcome of the service, counted once, never hidden by a retry."""
    with upstream.serving(lambda _: upstream.Reply("one two three", **reply)) as server:
        (answer,) = ask(Endpoint(server.base_url, "m", timeout_s=0.5 if "wait_s" in reply else 30.0), 1)
        assert answer.failed and answer.error.startswith(error)
        assert len(server.asked) == 1


def test_an_error_event_of_anthropic_is_a_failure(upstream, ask):
    """Their streams report errors as events too."""
    with upstream.serving(lambda _: upstream.Reply("one two", error_event=True)) as server:
        (answer,) = ask(Endpoint(server.base_url, "m", api="anthropic"), 1)
    assert answer.error.startswith("protocol: error in the stream: the engine died")


def test_a_429_is_waited_out_and_its_wait_is_no_latency(upstream, ask):
    """Retry-After is kept to, all cases are answered, fewer are asked at once, and the wait is in no answer's time."""
    seen = []

    def say(body):
        seen.append(body)
        return upstream.Reply(status=429, headers={"retry-after": "1"}) if len(seen) <= 8 else upstream.Reply("fine")

    told = []
    with upstream.serving(say) as server:
        answers = ask(Endpoint(server.base_url, "m"), 40, told=told.append)
    assert all(answer.text == "fine" for answer in answers)
    assert told[-1].refusals == 8 and told[0].at_once < 8
    assert len(server.asked) == 48
    assert min(answer.total_s for answer in answers[:8]) < 1


def test_no_more_than_allowed_are_under_way(upstream, ask):
    """`at_once` is a bound, and it is used."""
    with upstream.serving(lambda _: upstream.Reply(wait_s=0.05)) as server:
        ask(Endpoint(server.base_url, "m"), 40, at_once=6)
        assert server.most_under_way == 6


def test_what_was_answered_is_not_asked_again_and_what_failed_is(upstream, ask):
    """The second time only the failed cases are asked; each answer is the one from before, and says that it is."""
    broken = {"question 3", "question 7"}
    with upstream.serving(lambda body: upstream.Reply(f"to {last(body)}", status=500 if last(body) in broken else 200)) as server:
        endpoint = Endpoint(server.base_url, "m")
        first = ask(endpoint)
        assert [answer.case_id for answer in first if answer.failed] == ["c3", "c7"]
        broken.clear()
        second = ask(endpoint)
        assert len(server.asked) == 12
    assert [answer.cached for answer in second] == [at not in (3, 7) for at in range(10)]
    assert [answer.text for answer in second] == [f"to question {at}" for at in range(10)]


def test_cases_that_are_twins_are_asked_each_and_found_again_each(upstream, tmp_path):
    """Two cases with the same words are two questions, with two answers under their own names, also when they come from the cache."""
    twins = Suite(
        name="t",
        cases=[Case(name, [{"role": "user", "content": "same"}], "x") for name in ("one", "two")],
        data_sha256="",
        scorer={},
        folder=tmp_path,
    )

    async def work(endpoint):
        with Cache(tmp_path) as cache:
            async with open_client(endpoint, sensitive=False) as client:
                return await Asking(client, cache, Pace(1), lambda _: None).all(list(questions(client, twins, 2, {})))

    with upstream.serving(lambda _: upstream.Reply(str(len(server.asked)))) as server:
        first, second = (asyncio.run(work(Endpoint(server.base_url, "m"))) for _ in range(2))
        assert len(server.asked) == 4
    assert [(one.case_id, one.sample, one.text) for one in first] == [("one", 0, "1"), ("one", 1, "2"), ("two", 0, "3"), ("two", 1, "4")]
    assert [(one.case_id, one.sample, one.text, one.cached) for one in second] == [
        (one.case_id, one.sample, one.text, True) for one in first
    ]


@pytest.mark.parametrize("change", [{"model": "n"}, {"digest": "d2"}, {"api": "anthropic"}])
def test_another_model_digest_or_dialect_is_another_question(upstream, ask, change):
    """The cache's key holds whatever could change the answer."""
    with upstream.serving(lambda _: upstream.Reply()) as server:
        ask(Endpoint(server.base_url, "m", digest="d1"), 3)
        ask(Endpoint(**{"base_url": server.base_url, "model": "m", "digest": "d1"} | change), 3)
        ask(Endpoint(server.base_url, "m", digest="d1"), 3, samples=2)
        ask(Endpoint(server.base_url, "m", digest="d1"), 3, request={"temperature": 1})
        assert len(server.asked) == 3 + 3 + 3 + 3


@pytest.mark.parametrize("status", [401, 404])
def test_a_wrong_key_or_name_ends_the_run_with_what_to_do(upstream, ask, status):
    """Ten thousand refusals help nobody: after a handful the run ends and says why."""
    with upstream.serving(lambda _: upstream.Reply(status=status)) as server:
        with pytest.raises(AskError, match=f"http_{status}.*--key-env"):
            ask(Endpoint(server.base_url, "m"), 1000)
        assert len(server.asked) < 100


def test_a_refused_case_among_good_ones_is_that_case_alone(upstream, ask):
    """A policy that refuses some cases with 403 does not end the run once anything has worked."""
    with upstream.serving(lambda body: upstream.Reply(status=200 if last(body) == "question 0" else 403)) as server:
        answers = ask(Endpoint(server.base_url, "m"), 20, at_once=1)
    assert sum(answer.failed for answer in answers) == 19


def test_nobody_there_is_told(ask):
    """A port where nothing listens ends the run, after a few tries."""
    with pytest.raises(AskError, match=r"connect: .*Is it running"):
        ask(Endpoint("http://127.0.0.1:9/v1", "m"), 1, at_once=1)


def test_a_server_that_takes_no_connection_is_not_there(tmp_path):
    """A full backlog: nothing was sent, which is told apart from an answer that is late."""
    listening = socket.socket()
    waiting = [socket.socket() for _ in range(4)]
    with contextlib.ExitStack() as stack:
        for one in (listening, *waiting):
            stack.enter_context(one)
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(listening.getsockname())

        async def work():
            endpoint = Endpoint(f"http://127.0.0.1:{listening.getsockname()[1]}/v1", "m", timeout_s=1.0)
            async with open_client(endpoint, sensitive=False) as client:
                return await client.ask(b"{}", "c")

        outcome = asyncio.run(work())
    assert outcome.answer.error.startswith("connect: ") and outcome.again and outcome.hopeless


def test_sensitive_data_opens_no_connection_to_a_place_not_declared_ours(upstream):
    """The rule sits where the socket is: without the declaration nothing is sent, with it the answer comes."""

    async def work(endpoint, *, sensitive):
        async with open_client(endpoint, sensitive=sensitive) as client:
            return await client.ask(client.body([{"role": "user", "content": "secret"}], {}), "c")

    with upstream.serving(lambda _: upstream.Reply("fine")) as server:
        with pytest.raises(AskError, match="not declared to be on premises: nothing was sent"):
            asyncio.run(work(Endpoint(server.base_url, "m"), sensitive=True))
        assert server.asked == []
        assert asyncio.run(work(Endpoint(server.base_url, "m", onprem=True), sensitive=True)).answer.text == "fine"
        assert asyncio.run(work(Endpoint(server.base_url, "m"), sensitive=False)).answer.text == "fine"


def test_the_class_of_the_data_goes_along_and_changes_no_answer(upstream, ask):
    """The router is told the class; the answers' cache is not, as the class decides who answers and not what."""
    with upstream.serving(lambda _: upstream.Reply()) as server:
        ask(Endpoint(server.base_url, "m", data_class="confidential"), 2)
        ask(Endpoint(server.base_url, "m"), 3)
        assert server.classes == ["confidential", "confidential", ""]


def test_a_key_is_in_no_text_of_an_endpoint():
    """What is printed or logged of an endpoint has neither key nor the address's secrets."""
    endpoint = Endpoint("https://user:hidden@api.example.com/v1", "m", key="sk-secret")
    assert "sk-secret" not in repr(endpoint)
    assert endpoint.host == "api.example.com"


def test_what_the_router_says_is_kept(upstream, ask):
    """Headers of the router come along: which model answered, what it cost."""
    headers = {"inhouse-model": "a", "Inhouse-Cost-Usd": "0.25", "x-other": "no"}
    with upstream.serving(lambda _: upstream.Reply(headers=headers)) as server:
        (answer,) = ask(Endpoint(server.base_url, "task/x"), 1)
    assert answer.headers == {"inhouse-model": "a", "inhouse-cost-usd": "0.25"}
    assert answer.cost_usd == 0.25
