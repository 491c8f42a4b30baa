"""Two ways to say the same over HTTP: OpenAI's chat completions (vLLM, the router, most hosted APIs) and Anthropic's messages.

A dialect makes a request's body and headers, and a reader that takes the events of its stream. Nothing is sent here.
"""

from typing import Any, Literal

import msgspec

Api = Literal["openai", "anthropic"]
ANTHROPIC_MAX_TOKENS = 1024  # their API wants a number; `--body` overrules it


class ProtocolError(Exception):
    """The other side said something that is not of its dialect, or reported an error within a stream."""


class Reader:
    """Takes the data of a stream's events. `complete` once the model has said why it ended."""

    def __init__(self) -> None:
        self.finish_reason = ""
        self.prompt_tokens: int | None = None
        self.completion_tokens: int | None = None
        self.complete = False
        self._texts: list[str] = []
        self._calls: dict[int, list[str]] = {}  # id, name, arguments

    def feed(self, data: bytes) -> bool:
        """Takes one event; whether it brought something of the answer: text, reasoning or a part of a tool call."""
        raise NotImplementedError

    def result(self) -> tuple[str, list[dict[str, Any]]]:
        """The text, and the tool calls as {id, name, arguments (JSON text)}."""
        calls = [{"id": call, "name": name, "arguments": arguments or "{}"} for _, (call, name, arguments) in sorted(self._calls.items())]
        return "".join(self._texts), calls


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct):
    index: int = 0
    id: str | None = None
    function: _Function = msgspec.field(default_factory=_Function)


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    message: _Delta | None = None  # of an answer that was not streamed
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = msgspec.field(default_factory=list)
    usage: _Usage | None = None
    error: Any = None


_DECODE_CHUNK = msgspec.json.Decoder(_Chunk).decode


class OpenAIReader(Reader):
    """Reads `chat.completion.chunk` events, and a whole `chat.completion` as if it were one."""

    def feed(self, data: bytes) -> bool:
        if data == b"[DONE]":
            return False
        try:
            chunk = _DECODE_CHUNK(data)
        except msgspec.MsgspecError as error:
            raise ProtocolError(f"not a chunk of a chat completion: {error}") from None
        if chunk.error is not None:
            raise ProtocolError(f"error in the stream: {_said(chunk.error)}")
        if chunk.usage is not None:
            self.prompt_tokens, self.completion_tokens = chunk.usage.prompt_tokens, chunk.usage.completion_tokens
        return any([self._take(choice) for choice in chunk.choices])  # noqa: C419  # all are taken, not up to the first

    def _take(self, choice: _Choice) -> bool:
        if choice.finish_reason:
            self.finish_reason, self.complete = choice.finish_reason, True
        delta = choice.delta or choice.message
        if delta is None:
            return False
        if delta.content:
            self._texts.append(delta.content)
        for at, call in enumerate(delta.tool_calls or ()):
            known = self._calls.setdefault(call.index if choice.delta else at, ["", "", ""])
            known[0] = known[0] or call.id or ""
            known[1] = known[1] or call.function.name or ""
            known[2] += call.function.arguments or ""
        return bool(delta.content or delta.reasoning_content or delta.reasoning or delta.tool_calls)


class _Block(msgspec.Struct):
    type: str = ""
    text: str | None = None
    id: str = ""
    name: str = ""
    input: Any = None


class _AnthropicUsage(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None


class _Part(msgspec.Struct):
    text: str | None = None
    thinking: str | None = None
    partial_json: str | None = None
    stop_reason: str | None = None


class _Message(msgspec.Struct):
    usage: _AnthropicUsage | None = None


class _Event(msgspec.Struct):
    type: str = ""
    index: int = 0
    message: _Message | None = None
    content_block: _Block | None = None
    delta: _Part | None = None
    usage: _AnthropicUsage | None = None
    error: Any = None
    content: list[_Block] = msgspec.field(default_factory=list)  # of an answer that was not streamed
    stop_reason: str | None = None


_DECODE_EVENT = msgspec.json.Decoder(_Event).decode


class AnthropicReader(Reader):
    """Reads the events of a message stream, and a whole `message` as if it were one. Tokens of the prompt include cached ones."""

    def feed(self, data: bytes) -> bool:
        try:
            event = _DECODE_EVENT(data)
        except msgspec.MsgspecError as error:
            raise ProtocolError(f"not an event of a message: {error}") from None
        if event.type == "error" or event.error is not None:
            raise ProtocolError(f"error in the stream: {_said(event.error)}")
        for usage in (event.message and event.message.usage, event.usage):
            if usage:
                self._count(usage)
        if event.type == "message":
            return self._whole(event)
        if event.content_block is not None and event.content_block.type == "tool_use":
            self._calls[event.index] = [event.content_block.id, event.content_block.name, ""]
            return True
        return event.delta is not None and self._take(event.index, event.delta)

    def _take(self, index: int, part: _Part) -> bool:
        if part.stop_reason:
            self.finish_reason, self.complete = part.stop_reason, True
        if part.text:
            self._texts.append(part.text)
        if part.partial_json and index in self._calls:
            self._calls[index][2] += part.partial_json
        return bool(part.text or part.thinking or part.partial_json)

    def _count(self, usage: _AnthropicUsage) -> None:
        if usage.input_tokens is not None:
            self.prompt_tokens = usage.input_tokens + (usage.cache_read_input_tokens or 0) + (usage.cache_creation_input_tokens or 0)
        self.completion_tokens = usage.output_tokens if usage.output_tokens is not None else self.completion_tokens

    def _whole(self, event: _Event) -> bool:
        self.finish_reason, self.complete = event.stop_reason or "", True
        for at, block in enumerate(event.content):
            if block.type == "tool_use":
                self._calls[at] = [block.id, block.name, msgspec.json.encode(block.input).decode()]
            elif block.text:
                self._texts.append(block.text)
        return bool(event.content)


READERS: dict[Api, type[Reader]] = {"openai": OpenAIReader, "anthropic": AnthropicReader}


def path(api: Api) -> str:
    """Where to post, below a base URL that ends in /v1."""
    return "/chat/completions" if api == "openai" else "/messages"


def headers(api: Api, key: str) -> dict[str, str]:
    """What goes with every request. The key is in here: never print it."""
    if api == "openai":
        return {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
    return {"content-type": "application/json", "anthropic-version": "2023-06-01"} | ({"x-api-key": key} if key else {})


def body(api: Api, model: str, messages: list[dict[str, Any]], request: dict[str, Any]) -> bytes:
    """The request's body, always for a stream. `request` adds fields in OpenAI's words; one that is None is left out."""
    if api == "openai":
        made = {"model": model, "messages": messages, "stream": True, "stream_options": {"include_usage": True}} | request
    else:
        made = _anthropic(model, messages) | {key: _ANTHROPIC.get(key, lambda value: value)(value) for key, value in request.items()}
    return msgspec.json.encode({key: value for key, value in made.items() if value is not None})


def _anthropic(model: str, messages: list[dict[str, Any]]) -> dict[str, Any]:
    system = "\n\n".join(str(one["content"]) for one in messages if one["role"] == "system")
    rest = [one for one in messages if one["role"] != "system"]
    return {"model": model, "max_tokens": ANTHROPIC_MAX_TOKENS, "stream": True, "system": system or None, "messages": rest}


def _tools(tools: Any) -> Any:
    """OpenAI's tools in Anthropic's shape."""
    of = [tool["function"] for tool in tools]
    return [{"name": one["name"], "description": one.get("description", ""), "input_schema": one.get("parameters", {})} for one in of]


def _tool_choice(choice: Any) -> Any:
    if isinstance(choice, dict):
        return {"type": "tool", "name": choice["function"]["name"]}
    return {"type": {"required": "any"}.get(choice, choice)}


_ANTHROPIC = {"tools": _tools, "tool_choice": _tool_choice}


def _said(error: Any) -> str:
    found = error.get("message", error) if isinstance(error, dict) else error
    return str(found)[:300]
