"""Which tools a request offers to the model, by name, in every dialect. Reads no more of the body than its lists of tools."""

import msgspec


class _Function(msgspec.Struct):
    name: str = ""


class _Tool(msgspec.Struct):
    name: str = ""
    type: str = ""
    server_label: str = ""
    function: _Function | None = None


class _Offer(msgspec.Struct):
    tools: list[_Tool] | None = None
    functions: list[_Function] | None = None


_decode = msgspec.json.Decoder(_Offer).decode


def risky_tools_in(body: bytes, risky: frozenset[str]) -> frozenset[str]:
    """Those of the risky tools that a JSON body offers: by the function's name, a built-in's type or an MCP server's label.

    A list of tools that can't be read offers all of them.
    """
    if not risky or (b"tools" not in body and b"functions" not in body and b"\\u" not in body):  # `\u` may spell any key
        return frozenset()
    try:
        offer = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return risky
    names = {name for tool in offer.tools or () for name in (tool.name, tool.type, tool.server_label, tool.function and tool.function.name)}
    return risky & (names | {function.name for function in offer.functions or ()})
