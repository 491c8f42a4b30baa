"""A router whose disk fills up: what is limited is refused, the rest goes on, and with room again everything is written."""

import asyncio
import contextlib
import os
import subprocess

import pytest

from routing.audit_verify import verify
from routing.budgets import budgets_of
from routing.chain import place_of
from routing.keys import Allowed, create


@pytest.fixture
def disk(tmp_path):
    """A disk of 12 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a small disk here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(file):
    """Takes every byte that is left."""
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as out:
        while True:
            out.write(bytes(4096))


async def until(router, chat, key, is_so):
    """Asks with a key until an answer is as it should be; the answer, and how many there were of status 200."""
    good = 0
    async with asyncio.timeout(30):
        while True:
            got = await router.ask(chat(), headers={"authorization": f"Bearer {key}"})
            good += got.status == 200
            if await is_so(got):
                return got, good
            await asyncio.sleep(0.02)


async def test_a_full_disk_stops_spending_and_loses_nothing(disk, start_router, chat, wait_until):
    """Calls without a budget are answered on, those with one get a 503 that says why; afterwards each answer has its row and its entry."""
    router = start_router(home=disk)
    spender = create(router.engine, "spender", allowed=Allowed(limits=budgets_of(("100usd/day",))))

    async def is_answered(got):
        return got.status == 200

    async def is_refused(got):
        return got.status == 503 and got.error["code"] == "budgets_unavailable"

    async def cannot_write(_got):
        ready = await router.get("/readyz")
        return ready.status == 503 and {ready.json["ledger"], ready.json["audit"]} == {"cannot write"}

    async def is_ready(_got):
        return (await router.get("/readyz")).status == 200

    _, answered = await until(router, chat, spender, is_answered)
    fill(disk / "other's")
    _, more = await until(router, chat, router.key, cannot_write)
    answered += more
    refusal, more = await until(router, chat, spender, is_refused)
    answered += more
    assert refusal.headers["retry-after"]
    (disk / "other's").unlink()
    _, more = await until(router, chat, router.key, is_ready)
    answered += more
    got, more = await until(router, chat, spender, is_answered)
    answered += more
    assert "inhouse-budget-left" in got.headers
    rows = wait_until(lambda: len(found := [row for row in router.rows() if row["status"] == 200]) == answered and found)
    report, audited = verify(place_of(disk))
    assert report.ok
    assert all(audited[row["request_id"]] for row in rows)
