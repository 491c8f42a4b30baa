"""Bytes from strangers that are no HTTP, or two kinds at once: nothing of them reaches a model, and no worker minds."""

import asyncio
import contextlib
import random

import pytest

BODY = b'{"model":"alpha","tag":"smuggled","messages":[]}'


def smuggled(key, *headers, body=BODY, method="POST", target="/v1/chat/completions", version="HTTP/1.1"):
    lines = b"".join(b"%b\r\n" % header for header in (b"host: r", b"authorization: Bearer %b" % key, *headers))
    return b"%b %b %b\r\n%b\r\n%b" % (method.encode(), target.encode(), version.encode(), lines, body)


async def leaves_nothing(router, data):
    """Sends bytes and hangs up; gives whatever came back."""
    reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
    try:
        writer.write(data)
        async with asyncio.timeout(2):
            await writer.drain()
            return await reader.read(65536)
    except (ConnectionError, TimeoutError):
        return b""
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):  # the router hung up first
            await writer.wait_closed()


async def test_random_bytes_kill_nothing(router, upstream, chat):
    """Noise, halves of requests and requests with noise in them: the same worker answers afterwards and no model heard any of it."""
    rng = random.Random(7)
    workers = router.workers()
    known = sum(map(len, upstream.seen.values()))
    good = router.client.request(chat())
    head = good.index(b"\r\n\r\n") + 4
    noise = [rng.randbytes(rng.choice((1, 10, 100, 5000))) for _ in range(30)]
    noise += [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\r\n" * 50,
        b"GET\r\n\r\n",
        b"\x00" * 100,
        b"A" * 100_000,
        b" / HTTP/1.1\r\n\r\n",
    ]
    for _ in range(30):
        damaged = bytearray(good)
        for _ in range(3):
            damaged[rng.randrange(head)] = rng.choice(b"\x00\r\n :\xff,;")
        noise.append(bytes(damaged).replace(router.key.encode(), b"x" * len(router.key)))
    await asyncio.gather(
        *(leaves_nothing(router, data[: rng.randint(1, len(data))] if i % 3 == 0 else data) for i, data in enumerate(noise))
    )
    assert (await router.ask(chat())).status == 200
    assert router.workers() == workers
    assert sum(map(len, upstream.seen.values())) == known + 1


async def test_bad_chunks_are_no_body(router, upstream, chat):
    """A body with broken chunked encoding is refused or dropped, whatever is broken."""
    for chunks in (
        b"zz\r\n" + BODY,
        b"-5\r\n" + BODY,
        b"ffffffffffffffffff\r\n" + BODY,
        b"5\r\n" + BODY,
        b"%x\r\n" % len(BODY) + BODY + b"XX0\r\n\r\n",
        b"0x30\r\n" + BODY + b"\r\n0\r\n\r\n",
        b"%x\n" % len(BODY) + BODY + b"\n0\n\n",
    ):
        got = await leaves_nothing(router, smuggled(router.key.encode(), b"transfer-encoding: chunked", body=chunks))
        assert b" 200 " not in got
    assert "smuggled" not in upstream.seen
    assert (await router.ask(chat())).status == 200


SMUGGLING = {
    "length_and_chunks": lambda key: smuggled(
        key, b"content-length: 5", b"transfer-encoding: chunked", body=b"0\r\n\r\n" + smuggled(key, b"content-length: 48")
    ),
    "chunks_and_length": lambda key: smuggled(key, b"transfer-encoding: chunked", b"content-length: %d" % len(BODY)),
    "two_lengths": lambda key: smuggled(key, b"content-length: 5", b"content-length: %d" % len(BODY)),
    "two_lengths_in_one": lambda key: smuggled(key, b"content-length: 5, %d" % len(BODY)),
    "signed_length": lambda key: smuggled(key, b"content-length: +%d" % len(BODY)),
    "negative_length": lambda key: smuggled(key, b"content-length: -1"),
    "hex_length": lambda key: smuggled(key, b"content-length: 0x30"),
    "huge_length": lambda key: smuggled(key, b"content-length: " + b"9" * 5000),
    "folded_header": lambda key: smuggled(key, b"x: y\r\n transfer-encoding: chunked", b"content-length: %d" % len(BODY)),
    "space_before_colon": lambda key: smuggled(key, b"transfer-encoding : chunked", b"content-length: %d" % len(BODY)),
    "null_in_header": lambda key: smuggled(key, b"x: a\x00b", b"content-length: %d" % len(BODY)),
    "bare_cr": lambda key: smuggled(key, b"x: a\rtransfer-encoding: chunked", b"content-length: %d" % len(BODY)),
    "bad_encoding": lambda key: smuggled(key, b"transfer-encoding: xchunked"),
    "encoding_list": lambda key: smuggled(key, b"transfer-encoding: chunked, identity"),
    "old_with_chunks": lambda key: smuggled(key, b"transfer-encoding: chunked", version="HTTP/1.0"),
    "unknown_version": lambda key: smuggled(key, b"content-length: %d" % len(BODY), version="HTTP/9.9"),
    "connect": lambda key: smuggled(key, method="CONNECT", target="169.254.169.254:80", body=b""),
    "many_headers": lambda key: smuggled(key, *(b"x-%d: y" % i for i in range(5000)), b"content-length: %d" % len(BODY)),
}


@pytest.mark.parametrize("way", SMUGGLING)
async def test_a_request_of_two_meanings_reaches_no_model(router, upstream, chat, way):
    """Where two readers could disagree about a request's length or end, none of it is taken."""
    got = await leaves_nothing(router, SMUGGLING[way](router.key.encode()))
    assert b" 200 " not in got
    await asyncio.sleep(0.05)
    assert "smuggled" not in upstream.seen
    assert (await router.ask(chat())).status == 200


async def test_an_absolute_target_names_no_other_host(router, upstream, chat):
    """`POST http://elsewhere/v1/...` is our own path or nothing; the model's address never comes from a request."""
    for i, target in enumerate(
        ("http://169.254.169.254/v1/chat/completions", "//evil/v1/chat/completions", "/models/alpha/v1/chat/completions")
    ):
        asked = chat(tag=f"absolute{i}")
        data = router.client.request(asked, target)
        got = await leaves_nothing(router, data.replace(b"host: router", b"host: evil.example\r\nconnection: close"))
        assert got
        for seen in upstream.seen.get(f"absolute{i}", ()):
            assert seen.path == "/v1/chat/completions"
            assert seen.header("host").startswith("127.0.0.1")


async def test_pipelined_requests_each_get_their_own_answer(router, chat, say, connected, read_answer):
    """Requests sent without waiting are answered in their order."""
    async with connected(router.port) as (reader, writer), asyncio.timeout(20):
        writer.write(b"".join(router.client.request(chat(say.answer({"n": n}))) for n in range(5)))
        assert [(await read_answer(reader)).json["n"] for _ in range(5)] == [0, 1, 2, 3, 4]


async def test_a_header_sent_twice_does_not_raise_anybodys_rights(router, upstream, chat):
    """Two Authorization headers are judged by one of them, and neither goes on."""
    asked = chat()
    data = router.client.request(asked).replace(b"authorization:", b"authorization: Bearer wrong\r\nauthorization:")
    await leaves_nothing(router, data.replace(b"host: router", b"host: router\r\nconnection: close"))
    for seen in upstream.seen.get(asked["tag"], ()):
        assert seen.header("authorization") is None
