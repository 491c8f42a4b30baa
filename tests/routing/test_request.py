"""Reading what a caller asked: sense, refusals, and nothing else."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.errors import BadRequest, Denied, Refusal
from routing.request import ENDPOINTS, read_asked

CHAT = ENDPOINTS["/v1/chat/completions"]
FORM = ENDPOINTS["/v1/audio/transcriptions"]


def read(body, endpoint=CHAT, *, depth=64, domains=("media.example",)):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_asked(endpoint, data, json_depth=depth, media_domains=domains)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=15,
)
keys = st.sampled_from(
    ["model", "stream", "stream_options", "messages", "role", "content", "text", "input", "prompt", "url", "image_url", "type"]
)
near_requests = st.dictionaries(
    keys,
    st.recursive(
        json_values | st.sampled_from(["auto", "user", "tool_use", "http://x", "http://[", "data:x"]),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
        max_leaves=10,
    ),
    max_size=6,
)


def only_refuses(data, endpoint):
    try:
        asked = read_asked(endpoint, data, json_depth=64, media_domains=())
        asked.text()
        asked.for_model("other")
    except Refusal:
        return None
    return asked


@given(data=st.binary(max_size=200), endpoint=st.sampled_from(list(ENDPOINTS.values())))
def test_garbage_is_refused_and_nothing_else(data, endpoint):
    """Any bytes at all give a request or a refusal, never another exception."""
    only_refuses(data, endpoint)


@given(document=near_requests)
def test_near_requests_are_read_or_refused(document):
    """JSON that looks like a request but has any value in any place gives a request or a refusal."""
    only_refuses(json.dumps({"model": "auto", **document}).encode(), CHAT)


@given(document=near_requests, place=st.integers(0, 300), byte=st.integers(0, 255))
def test_a_damaged_request_is_read_or_refused(document, place, byte):
    """One wrong byte anywhere in a request gives a request or a refusal; what is taken is valid UTF-8 and JSON to Python, too."""
    data = bytearray(json.dumps({"model": "auto", **document}, ensure_ascii=False).encode("utf-8", "replace"))
    data[place % len(data)] = byte
    if only_refuses(bytes(data), CHAT):
        json.loads(bytes(data))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"1",
        b'"x"',
        b"{}",
        b'{"model":""}',
        b'{"model":null}',
        b'{"model":7}',
        b'{"model":"a"} {"model":"b"}',
        b'{"model":"a"',
        b'{"model":"a","x":NaN}',
        b'{"model":"a","x":"\xff"}',
        b'\xef\xbb\xbf{"model":"a"}',
        '{"model":"a"}'.encode("utf-16"),
        b'{"model":"a","stream":"yes"}',
        b'{"model":"a","stream_options":[]}',
        b'{"model":"a","x":"\x00"}',
    ],
)
def test_what_is_no_request_is_refused(body):
    """Each of these is a 400 and says so in words."""
    with pytest.raises(BadRequest) as refused:
        read(body)
    assert len(refused.value.message) > 20


def test_numbers_beyond_any_float_are_refused_where_they_matter():
    """A number that can't be read is a refusal, not a crash, when the text must be read for `auto`."""
    with pytest.raises(BadRequest):
        read(b'{"model":"auto","x":1e999}').text()


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_depth_is_bounded(opening):
    """64 levels are taken, 65 are not, whatever they are made of."""
    closing = b"]" if opening == b"[" else b"}"
    for levels, fits in ((63, True), (64, False), (100_000, False)):
        body = b'{"model":"a","x":' + opening * levels + b"1" + closing * levels + b"}"
        if fits:
            assert read(body).model == "a"
        else:
            with pytest.raises(BadRequest, match="nest"):
                read(body)


@given(document=json_values, depth=st.integers(1, 12))
def test_depth_is_counted_as_json_nests(document, depth):
    """The measured depth is the document's own, brackets inside strings not counted."""

    def height(value):
        if isinstance(value, dict):
            return 1 + max(map(height, value.values()), default=0)
        return 1 + max(map(height, value), default=0) if isinstance(value, list) else 0

    body = {"model": "a", "x": document, "y": "[" * 50 + '"}\\'}
    if height(body) <= depth:
        assert read(body, depth=depth)
    else:
        with pytest.raises(BadRequest):
            read(body, depth=depth)


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":' + b"[" * 65 + b'"' + b'\\"' * 500_000,
        b'{"a":' + b"[" * 65 + b'"\\\n' * 300_000,
        b'{"model":"a","x":[' + b"[]," * 300_000 + b"1]}",
        b'"' * 1_000_000 + b"[" * 65,
        (b"[" * 63 + b"]" * 63) * 8_000,
    ],
)
def test_hostile_nesting_is_read_in_linear_time(body):
    """A megabyte made to be slow to look through is read at once: it once took minutes, and this suite would hang."""
    for data in (body, body[: len(body) // 2]):
        only_refuses(data, CHAT)


def test_the_last_of_two_equal_keys_counts_as_it_does_in_the_engine():
    """The router routes by the model that Python's and the engine's JSON readers would see."""
    asked = read(b'{"model":"a","model":"b","messages":[]}')
    assert asked.model == json.loads(asked.body)["model"] == "b"
    assert json.loads(asked.for_model("c")) == {"model": "c", "messages": []}
    assert read(b'{"mod\\u0065l":"a"}').model == "a"


@pytest.mark.parametrize("body", [
    '{"model" : "task/x", "messages": [{"role": "user", "content": "my \\"model\\": \\"task/x\\""}]}',
    '{"messages": [{"role": "user", "content": "model", "model": "task/x"}], "model":"task/x"}',
    '{"metadata": {"model": "task/x"}, "mod\\u0065l": "task/x"}',
    '{"model": "a", "model": "task/x"}',
    '{"stop": ["model", "task/x"], "model": "task/x"}',
])  # fmt: skip
def test_only_the_name_of_the_model_changes(body):
    """Wherever else the word stands, and however the key is spelled: the last key of that name at the top is replaced, nothing else."""
    found = json.loads(read(body.encode()).for_model("b"))
    assert found == json.loads(body) | {"model": "b"}


def test_a_named_model_gets_the_callers_own_bytes():
    """Where nothing must change nothing does, spaces and all."""
    body = b'{ "model" : "a",\n "temperature": 1.0, "messages":[ ] }'
    assert read(body).for_model("a") is body


@given(
    document=st.dictionaries(
        st.text(max_size=8).filter(lambda key: key not in {"model", "stream", "stream_options"}), json_values, max_size=5
    ),
    stream=st.booleans(),
    options=st.sampled_from([None, {}, {"include_usage": True}, {"include_usage": False}, {"continuous_usage_stats": True}]),
)
def test_for_model_changes_the_name_and_the_wish_for_usage_alone(document, stream, options):
    """Every other value reaches the model as it was, and usage is asked for on streams only."""
    asked = {**document, "model": "auto", "stream": stream, "stream_options": options}
    try:
        made = read(asked)
    except Refusal:
        return  # a media key by chance
    wanted = dict(asked, model="b")
    if stream:
        wanted["stream_options"] = {**(options or {}), "include_usage": True}
    assert json.loads(made.for_model("b")) == json.loads(json.dumps(wanted))


def test_usage_is_only_asked_for_where_engines_know_the_wish():
    """Anthropic's and Responses' streams tell usage unasked, so their bodies stay as they are."""
    for path in ("/v1/messages", "/v1/responses"):
        assert json.loads(read({"model": "task/x", "stream": True}, ENDPOINTS[path]).for_model("b")) == {"model": "b", "stream": True}


REMOTE = [
    "http://169.254.169.254/latest",
    "https://evil.example/x.png",
    "file:///etc/passwd",
    "ftp://media.example/x",
    "HTTP://evil.example/",
    "//evil.example",
    "http://media.example.evil.example/",
    "http://media.example@evil.example/",
    "http://evil.example\\@media.example/",
    " http://evil.example",
    "http://[::1]/",
    "http://[",
    "http://media.example\\.evil.example/",
    "http://media.example:80@evil.example/",
    "http:///x",
    "http://media.example\t/",
    "http://evil.example#@media.example/",
    "http://evil.example?@media.example",
]


def parts(url):
    return [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "image_url", "image_url": url},
        {"image_url": url},
        {"type": "audio_url", "audio_url": {"url": url}},
        {"type": "video_url", "video_url": {"url": url}},
        {"type": "input_image", "image_url": url},
        {"type": "input_file", "file_url": url},
        {"type": "image", "source": {"type": "url", "url": url}},
        {"type": "document", "source": {"type": "url", "url": url}},
        {"type": "input_audio", "input_audio": url},
        {"type": "tool_result", "content": [{"type": "image", "source": {"type": "url", "url": url}}]},
    ]


@pytest.mark.parametrize("url", REMOTE)
def test_no_engine_is_made_to_fetch_from_a_stranger(url):
    """Each way to name media by URL is refused unless the URL is surely of a listed domain."""
    for part in parts(url):
        for endpoint in ("/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/embeddings"):
            key = "input" if endpoint == "/v1/responses" else "messages"
            with pytest.raises(Denied) as refused:
                read({"model": "a", key: [{"role": "user", "content": [part]}]}, ENDPOINTS[endpoint])
            assert refused.value.code == "remote_media"


def test_escaped_keys_hide_no_url():
    """A key may be spelled with escapes; it is still that key."""
    for spelled in (b"\\u0075\\u0072\\u006c", b"\\u0075rl", b"image_\\u0075\\u0072\\u006c", b"\\u0069mage_url"):
        with pytest.raises(Denied):
            read(b'{"model":"a","messages":[{"content":[{"type":"image_url","%b":"http://evil.example"}]}]}' % spelled)


@pytest.mark.parametrize("key", ["images", "audio", "videos"])
def test_lists_of_media_are_looked_into(key):
    """`/v1/systemone` takes plain lists of URLs; strangers' are refused there as well."""
    endpoint = ENDPOINTS["/v1/systemone"]
    assert read({"model": "a", "state": "s", key: ["data:x"]}, endpoint)
    with pytest.raises(Denied):
        read({"model": "a", "state": "s", key: ["data:x", "http://evil.example"]}, endpoint)


@pytest.mark.parametrize(
    "url", ["https://media.example/x.png", "http://media.example:8080/x?y#z", "https://MEDIA.example", "data:image/png;base64,AA=="]
)
def test_listed_domains_and_data_are_taken(url):
    """What the administrator listed and what comes with the request itself goes through."""
    for part in parts(url):
        assert read({"model": "a", "messages": [{"role": "user", "content": [part]}]}).model == "a"


def test_urls_that_no_engine_fetches_are_let_be():
    """URLs in text, in tools' schemas, in tool calls and metadata are words, not orders to fetch."""
    call = {"type": "tool_use", "id": "t", "name": "get", "input": {"url": "https://evil.example", "deep": {"image_url": "http://x"}}}
    assert read(
        {
            "model": "a",
            "messages": [{"role": "user", "content": "see http://evil.example"}, {"role": "assistant", "content": [call]}],
            "tools": [{"function": {"parameters": {"properties": {"url": {"type": "string", "default": "http://x"}}}}}],
            "metadata": {"url": "http://evil.example"},
        }
    )


def form(*fields, boundary="b0undary"):
    sections = "".join(f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in fields)
    return f"{sections}--{boundary}--\r\n".encode()


def test_a_form_names_its_model():
    """The model of a form is found and replaced; the rest stays."""
    body = form(("file", "bytes"), ("model", "task/hear"), ("stream", "true"))
    asked = read(body, FORM)
    assert (asked.model, asked.stream) == ("task/hear", True)
    assert asked.for_model("whisper") == body.replace(b"task/hear", b"whisper")
    assert asked.for_model("task/hear") is body
    assert asked.text() == ""


@pytest.mark.parametrize("fields", [(), (("file", "x"),), (("model", "a"), ("model", "b"))])
def test_a_form_without_exactly_one_model_is_refused(fields):
    """No model or two of them is a 400."""
    with pytest.raises(BadRequest):
        read(form(*fields), FORM)


@pytest.mark.parametrize(
    ("document", "text"),
    [
        (
            {
                "messages": [
                    {"role": "user", "content": "first"},
                    {"role": "assistant", "content": "no"},
                    {"role": "user", "content": "last"},
                    {"role": "tool", "content": "t"},
                ]
            },
            "last",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}, {"type": "text", "text": "b"}]}
                ]
            },
            "a\nb",
        ),
        ({"input": "said"}, "said"),
        ({"input": ["one", "two"]}, "two"),
        ({"prompt": "p"}, "p"),
        ({"query": "q"}, "q"),
        ({"input": [[1, 2]]}, ""),
        ({"messages": 7}, ""),
        ({"messages": [{"role": ["user"], "content": "x"}]}, ""),
        ({}, ""),
        ({"messages": [None, {"content": {"a": 1}}]}, ""),
    ],
)
def test_the_text_for_auto_is_what_the_person_said_last(document, text):
    """Whatever the dialect, the last words of the user are what is classified; where there are none, nothing is."""
    assert read({"model": "auto", **document}).text() == text


def test_only_the_start_of_a_long_text_is_read():
    """A long prompt costs `auto` no more than a short one."""
    assert len(read({"model": "auto", "prompt": "x" * 100_000}).text()) == 4000
