"""What a caller asked, read from path, headers and body without decoding more of the body than the decision needs.

Knows the surfaces that are open to callers; everything else that an engine serves (adapter loading, sleep, weight updates, profiling)
is closed because it is not listed.
"""

import re
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, cast

import msgspec

from routing.errors import BadRequest, Denied

Dialect = Literal["openai", "responses", "anthropic"]
_TEXT_CHARS = 4000  # enough to tell the task; `auto` must not cost more for a long prompt
_MEDIA_KEYS = {"url", "image_url", "audio_url", "video_url", "file_url", "input_audio", "images", "audio", "videos"}
_HOST = re.compile(r"https?://([A-Za-z0-9.-]+)(?::\d{1,5})?(?:[/?#]|$)")  # no user, no backslash: readers of URLs disagree about those
_NO_MEDIA = {"tools", "functions", "metadata", "response_format", "text", "tool_choice", "logit_bias"}
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)  # also one that never ends: going back to look again is quadratic
_SQUARE = bytes.maketrans(b"{}", b"[]")
_NO_BRACKET = bytes(set(range(256)) - set(b"[]{}"))
_RUN = re.compile(rb"\[+|\]+")
_FORM_FIELD = re.compile(rb'name="(model|stream)"\r\n(?:[^\r\n]+\r\n)*\r\n([^\r\n]*)\r\n')


class Endpoint(NamedTuple):
    """A path that callers may POST to: whose dialect it speaks, whether `usage` must be asked for, whether it is a form.

    `media_lists` says that it takes lists of URLs, under keys that do not say so; `is_free` that no model runs for it.
    """

    path: str
    dialect: Dialect = "openai"
    usage_on_request: bool = False
    form: bool = False
    media_lists: bool = False
    is_free: bool = False


ENDPOINTS = {
    endpoint.path: endpoint
    for endpoint in (
        Endpoint("/v1/chat/completions", usage_on_request=True),
        Endpoint("/v1/completions", usage_on_request=True),
        Endpoint("/v1/messages", "anthropic"),
        Endpoint("/v1/messages/count_tokens", "anthropic", is_free=True),
        Endpoint("/v1/responses", "responses"),
        *(Endpoint(f"/v1/{name}") for name in ("chat/completions/batch", "embeddings", "rerank", "score")),
        *(
            Endpoint(f"/v1/{name}", is_free=True)
            for name in (
                "chat/completions/render", "chat/completions/derender", "completions/render", "completions/derender", "responses/render",
            )
        ),
        Endpoint("/v1/systemone", media_lists=True),
        Endpoint("/v1/messages/render", "anthropic", is_free=True),
        Endpoint("/v1/audio/transcriptions", form=True),
        Endpoint("/v1/audio/translations", form=True),
    )
}  # fmt: skip


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class Head(msgspec.Struct, frozen=True, gc=False):
    """The fields of a body that decide where it goes and what it may cost; all else is skipped, not built."""

    model: str | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    priority: Any = None
    max_tokens: Any = None
    max_completion_tokens: Any = None
    max_output_tokens: Any = None
    n: Any = None
    best_of: Any = None


_NO_HEAD = Head()
_decode_head = msgspec.json.Decoder(Head).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_any = msgspec.json.Decoder().decode


class Asked(msgspec.Struct, frozen=True, gc=False):
    """A request that made sense. `model` is the caller's word: `auto`, `task/<name>` or a model's name."""

    endpoint: Endpoint
    model: str
    stream: bool
    wants_usage: bool
    body: bytes
    head: Head = _NO_HEAD  # of JSON

    def for_model(self, name: str) -> bytes:
        """The body that goes to a model: the caller's bytes, with only the name and the wish for usage changed where they must be."""
        if self.endpoint.form:
            return self.body if name == self.model else _form_for_model(self.body, name)
        ask_usage = self.stream and self.endpoint.usage_on_request and not self.wants_usage
        if name == self.model and not ask_usage:
            return self.body
        fields = _decode_fields(self.body)
        fields["model"] = msgspec.Raw(msgspec.json.encode(name))
        if ask_usage:
            options = _decode_any(fields["stream_options"]) if "stream_options" in fields else None
            fields["stream_options"] = msgspec.Raw(msgspec.json.encode({**(options or {}), "include_usage": True}))
        return msgspec.json.encode(fields)

    def text(self) -> str:
        """What the person wrote last, for the classifier; empty where there is nothing to read."""
        if self.endpoint.form:
            return ""
        document = _whole(self.body)
        said = document.get("messages") or document.get("input") or document.get("prompt") or document.get("query") or ""
        return _last_words(said)[:_TEXT_CHARS]


def read_asked(endpoint: Endpoint, body: bytes, *, json_depth: int, media_domains: tuple[str, ...]) -> Asked:
    """Reads a body. Raises `BadRequest` where it makes no sense, `Denied` where it would make an engine fetch from a stranger."""
    if endpoint.form:
        return _read_form(endpoint, body)
    if body.count(b"{") + body.count(b"[") > json_depth and _nests_deeper(body, json_depth):
        raise BadRequest(f"the body nests deeper than {json_depth} levels; flatten it")
    try:
        head = _decode_head(body)
        if not body.isascii():
            body.decode()  # msgspec does not look into the strings that it skips
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _not_json(error) from error
    if not head.model:
        raise BadRequest("`model` is missing: name a model, `task/<name>` or `auto`; GET /v1/models lists them", param="model")
    if head.priority is not None and not (isinstance(head.priority, int) and head.priority >= 0):
        raise BadRequest("`priority` is a whole number from 0 (interactive, the default) upwards (batch): nobody goes before all others",
                         param="priority")  # fmt: skip
    if endpoint.media_lists or _may_name_media(body, head.model):
        _check_media(_whole(body), media_domains)
    options = head.stream_options
    return Asked(endpoint, head.model, bool(head.stream), bool(options and options.include_usage), body, head)


def _may_name_media(body: bytes, model: str) -> bool:
    """Whether an address may stand under a key for media: none has no slash, but that of `task/<name>` is none. A `\\u` may spell either.

    Looking for one byte costs a thirtieth of looking for two.
    """
    is_spelled = b"\\" in body and b"\\u" in body
    return is_spelled or (body.count(b"/") > model.count("/") and (b"url" in body or b"input_audio" in body))


def _whole(body: bytes) -> dict[str, Any]:
    """All of a body whose head was read. Numbers that no float holds are only found here."""
    try:
        return cast(dict[str, Any], _decode_any(body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _not_json(error) from error


def _not_json(error: Exception) -> BadRequest:
    what = "it nests too deep" if isinstance(error, RecursionError) else str(error)
    return BadRequest(f"the body is not the JSON object this endpoint takes: {what}")


def _nests_deeper(body: bytes, most: int) -> bool:
    """Whether brackets outside strings nest deeper than `most`. Linear: 0.4 ms per 100 kB of chat, 1 s for 16 MiB of nothing but brackets.

    Taking out all innermost pairs lowers the whole by one level at the speed of `replace`; runs of brackets are stepped through only
    where some remain.
    """
    brackets = _STRING.sub(b"", body).translate(_SQUARE, _NO_BRACKET)
    depth = min(most, 4)
    for _ in range(depth):
        brackets = brackets.replace(b"[]", b"")
    for run in _RUN.finditer(brackets):
        length = run.end() - run.start()
        depth += length if brackets[run.start()] == ord("[") else -length
        if depth > most:
            return True
    return False


def _last_words(said: Any) -> str:
    if isinstance(said, str):
        return said
    if not isinstance(said, list):
        return ""
    for part in reversed(said):
        if isinstance(part, str):
            return part
        if isinstance(part, dict) and part.get("role", "user") == "user" and (text := _content_text(part.get("content", part.get("text")))):
            return text
    return ""


def _content_text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str))
    return ""


def _check_media(document: dict[str, Any], domains: tuple[str, ...]) -> None:
    """Refuses what would make an engine fetch: a URL from strangers reaches every address the engine can, metadata services included."""
    for url in _media_urls({key: value for key, value in document.items() if key not in _NO_MEDIA}):
        if url.startswith("data:"):
            continue
        found = _HOST.match(url)
        if found is None or found[1].lower() not in domains:
            raise Denied(f"remote media is not fetched from `{found[1] if found else url[:40]}`: send the content as a `data:` URL, "
                         "or ask the administrator to list the domain under `media_domains`", code="remote_media")  # fmt: skip


def _media_urls(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for item in value:
            yield from _media_urls(item)
    elif isinstance(value, dict):
        called = value.get("type") == "tool_use"  # Anthropic's: what the model told a tool, which no engine fetches
        for key, item in value.items():
            if key in _MEDIA_KEYS:
                yield from (one for one in (item if isinstance(item, list) else (item,)) if isinstance(one, str))
            if isinstance(item, dict | list) and not (called and key == "input"):
                yield from _media_urls(item)


def _read_form(endpoint: Endpoint, body: bytes) -> Asked:
    fields = _FORM_FIELD.findall(body)
    models = [value for name, value in fields if name == b"model"]
    if len(models) != 1:
        raise BadRequest("the form needs exactly one field `model`: a model's name, `task/<name>` or `auto`", param="model")
    stream = any(name == b"stream" and value.lower() in (b"true", b"1") for name, value in fields)
    return Asked(endpoint, models[0].decode("utf-8", "replace"), stream, True, body)


def _form_for_model(body: bytes, name: str) -> bytes:
    found = next(match for match in _FORM_FIELD.finditer(body) if match.group(1) == b"model")
    return body[: found.start(2)] + name.encode() + body[found.end(2) :]
