"""A process that races for a budget: `python racer.py HOW` with the place in its environment; what it was given is printed as JSON.

HOW is `purse`, or one of two ways that must lose: `naive` checks and then records, `hold` takes what it can and waits to be killed.
"""

import asyncio
import json
import os
import sys
import time
from pathlib import Path

from sqlalchemy import select, update

from routing import accounts as books
from routing.accounts import Key
from routing.budgets import budgets_of
from routing.errors import BudgetExceeded
from routing.holds import Ask
from routing.prices import priced
from routing.purse import Purse
from routing.store import ACCOUNTS, open_store

PRICE = priced(10_000.0, 10_000.0)  # a cent a token
CAP = ["1usd", "1000calls"]


async def race(engine) -> list[int]:
    """Ten tasks that call until they are refused twice, a second apart: on a busy machine others' reserves return late. The charges."""
    purse = Purse(engine)
    await purse.start()
    ask = Ask(purse.accounts("team", "t", budgets_of(CAP)), 1, 1, PRICE, "r")
    charged = []

    async def _calls() -> None:
        refused = 0
        while refused < 2:
            try:
                hold = await purse.reserve(ask)
            except BudgetExceeded:
                refused += 1
                await asyncio.sleep(1.0)
                continue
            refused = 0
            await asyncio.sleep(0.002)
            charged.append(hold.settle(1, 1, exact=True).nanousd)

    await asyncio.gather(*(_calls() for _ in range(10)))
    await purse.close()
    return charged


async def hold(engine) -> list[int]:
    """Takes the whole budget and never says anything again."""
    purse = Purse(engine, lease_s=2.0)
    await purse.start()
    ask = Ask(purse.accounts("team", "t", budgets_of(CAP)), 1, 9, PRICE, "r")
    for _ in range(10):
        await purse.reserve(ask)
    print("holding", flush=True)
    await asyncio.sleep(600)
    return []


def naive(engine) -> list[int]:
    """What gateways do: look whether there is money, call, write down what it was."""
    books.open_accounts(engine, {Key("team", "t", "nanousd", "total"): 10**9})
    charged = []
    while True:
        with engine.connect() as connection:
            if connection.execute(select(ACCOUNTS.c.spent)).scalar_one() + 20_000_000 > 10**9:
                return charged
        time.sleep(0.02)  # the call
        charged.append(20_000_000)
        with books.locked(engine) as connection:
            connection.execute(update(ACCOUNTS).values(spent=ACCOUNTS.c.spent + 20_000_000))


if __name__ == "__main__":
    store = open_store(Path(os.environ["INHOUSE_HOME"]))
    print("ready", flush=True)
    sys.stdin.readline()
    how = sys.argv[1]
    print(json.dumps(naive(store) if how == "naive" else asyncio.run((race if how == "purse" else hold)(store))))
