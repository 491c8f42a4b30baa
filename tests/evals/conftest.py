"""The model server of these tests, and short ways to ask it."""

import asyncio
import importlib.util
from pathlib import Path

import pytest

from evals.case import Case, Row
from evals.store import read_run, write_run
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


@pytest.fixture
def keep_run():
    """`keep_run(home, id, values, model=..., **facts)`: a stored run; a value of "failed" is a failed request, None is unscored."""

    def kept(home, run_id, values, *, clusters=None, changes=None, **facts):
        known = {"suite": "extraction", "data_sha256": "d" * 64, "prompt_sha256": "p" * 64, "scorer": {"use": "exact"}, "model": run_id,
                 "model_digest": f"sha256:{run_id}", "host": "127.0.0.1", "n": len(values), "started": "2026-11-25T12:00:00+00:00",
                 "settings": {"api": "openai", "sensitive": False, "onprem": True, "request": {}}} | facts  # fmt: skip
        rows = [_row(at, value, clusters[at] if clusters else "", changes or {}) for at, value in enumerate(values)]
        write_run(home, run_id, known, rows)
        return read_run(home, run_id)

    return kept


def _row(at, value, cluster, changes):
    failed = value == "failed"
    fields = {"case_id": f"c{at}", "sample": 0, "slice": "odd" if at % 2 else "even", "cluster": cluster, "failed": failed,
              "value": None if failed else value, "ttft_s": None if failed else 0.1 + at % 7 / 100, "total_s": 1 + at % 5 / 10,
              "prompt_tokens": None if failed else 100, "completion_tokens": None if failed else 20, "cost_usd": None,
              "text": "" if failed else f"<b>said {at}</b>", "error": "http 500: gone" if failed else ""}  # fmt: skip
    return Row(**fields | changes)
