"""An agent that goes in circles, at a real router's door; and what ledger and audit log say of it afterwards. OWASP AISVS C9.1."""

import json

from routing.audit import place_of
from routing.audit_verify import ledger_requests, missing_requests, verify


def agent(chat, steps, *, tool="read", **more):
    """The request of an agent that has made that many equal tool calls."""
    said = [{"role": "user", "content": "fix it"}]
    for i in range(steps):
        call = {"id": f"c{i}", "type": "function", "function": {"name": tool, "arguments": '{"path": "a"}'}}
        said += [{"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "tool_call_id": f"c{i}", "content": "same"}]
    return chat(messages=said, **more)


async def test_a_circle_is_told_then_refused_and_the_model_is_not_asked(router, upstream, chat):
    """Two equal calls pass in silence, three with a warning in a header, five are refused with 409 before any model is asked."""
    assert not [name for name in (await router.ask(agent(chat, 2))).headers if "warning" in name]
    warned = await router.ask(agent(chat, 3))
    assert warned.status == 200 and any("repeated_call" in value for value in warned.headers.values())
    asked = agent(chat, 5)
    stopped = await router.ask(asked)
    assert stopped.status == 409
    assert "repeated_call" in stopped.json["error"]["message"] and "`read`" in stopped.json["error"]["message"]
    assert asked["tag"] not in upstream.seen


async def test_a_tools_name_can_write_no_header(router, chat):
    """A name with line breaks or letters that no header has comes out plain: nothing of it becomes a header of its own."""
    warned = await router.ask(agent(chat, 3, tool="a\r\nset-cookie: b=c\r\n\u00e9\u2028"))
    assert warned.status == 200 and "set-cookie" not in warned.headers
    assert "a??set-cookie: b=c????" in warned.headers["inhouse-loop"]


async def test_every_request_of_the_ledger_is_in_the_audit_log(router, chat, wait_until, tag):
    """Answers and refusals alike: the log is whole, and knows whatever the ledger knows."""
    assert (await router.ask(chat(), headers={"x-request-id": f"{tag}-a"})).status == 200
    assert (await router.ask(chat(model="nobody"), headers={"x-request-id": f"{tag}-b"})).status == 404
    wait_until(lambda: {f"{tag}-a", f"{tag}-b"} <= set(ledger_requests(router.engine, 0, 1e12)))
    known = ledger_requests(router.engine, 0, 1e12)
    report, audited = verify(place_of(router.home))
    assert report.ok, report
    assert missing_requests(known, audited) == []
    text = b"".join(path.read_bytes() for path in place_of(router.home).segments())
    assert router.key.encode() not in text and json.dumps(chat()["messages"]).encode() not in text
