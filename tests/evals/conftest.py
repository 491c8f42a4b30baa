"""The model server of these tests, and short ways to ask it."""

import asyncio
import importlib.util
from pathlib import Path

import pytest

from evals.case import Case
from evals.suite import Suite


@pytest.fixture(scope="session")
def upstream():
    """`upstream.py` beside this file; pytest's importlib mode leaves test folders off the path."""
    spec = importlib.util.spec_from_file_location("upstream", Path(__file__).parent / "upstream.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def ask(tmp_path):
    """`ask(endpoint, n)`: the answers to n cases, asked with a cache in this test's folder."""
    from evals.ask import Asking, questions
    from evals.cache import Cache
    from evals.client import open_client
    from evals.pace import Pace

    def asked(endpoint, n=10, *, samples=1, at_once=8, request=None, told=lambda _: None):
        async def work():
            with Cache(tmp_path) as cache:
                async with open_client(endpoint, sensitive=False) as client:
                    asking = Asking(client, cache, Pace(at_once), told)
                    return await asking.all(list(questions(client, suite_of(n), samples, request or {})))

        return asyncio.run(work())

    return asked


def suite_of(n):
    """N small cases."""
    cases = [Case(f"c{at}", [{"role": "user", "content": f"question {at}"}], "ok") for at in range(n)]
    return Suite(name="small", cases=cases, data_sha256="d", scorer={"use": "exact"}, folder=Path(), sensitive=False)
