"""Asks all cases of a suite: bounded, as fast as the other side lets us, from the cache where an answer is known.

Only "come later" (429, 529, 503 with Retry-After) and failing to connect are tried again: the first is our doing, by the second nothing was
sent. Any other failure is an outcome of the service and is kept as one. Waiting is never part of an answer's times.
"""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

from msgspec.structs import replace

from evals.cache import Cache, key_of
from evals.case import Answer, Case
from evals.client import AskError, Client, Outcome
from evals.pace import Pace
from evals.suite import Suite

PATIENCE_S = 600.0  # for one question that is refused again and again
_CONNECT_TRIES = 3
_HOPELESS = 5  # outcomes of the kind that a wrong key gives, before anything has worked


class Question(NamedTuple):
    """One sample of a case, ready to be sent. `nth`: how often the same body was asked before in this pass.

    Samples of a case, and cases that are twins, are questions of their own with answers of their own.
    """

    place: int
    case: Case
    sample: int
    body: bytes
    nth: int = 0


class Told(NamedTuple):
    """How far it is, after each answer."""

    done: int
    of: int
    cached: int
    failed: int
    at_once: int
    refusals: int


def questions(client: Client, suite: Suite, samples: int, request: dict[str, object]) -> Iterator[Question]:
    """All samples of all cases, in the order in which they are asked and stored."""
    seen: Counter[bytes] = Counter()
    for place, (case, sample) in enumerate((case, sample) for case in suite.cases for sample in range(samples)):
        body = client.body(suite.messages(case), suite.request | request)
        yield Question(place, case, sample, body, seen[body])
        seen[body] += 1


class Asking:
    """The state of one pass over the questions."""

    def __init__(self, client: Client, cache: Cache, pace: Pace, tell: Callable[[Told], None]) -> None:
        self._client = client
        self._url, self._weights = client.endpoint.url, client.endpoint.weights
        self._cache = cache
        self._pace = pace
        self._tell = tell
        self._answers: dict[int, Answer] = {}
        self._of = self._cached = self._failed = self._hopeless = 0

    async def all(self, asked: list[Question]) -> list[Answer]:
        """The answers, in the questions' order. Raises `AskError` if the first attempts show that none can be answered."""
        self._of = len(asked)
        todo = iter(asked)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._pace.most, len(asked))):
                    group.create_task(self._work(todo))
        except* AskError as problems:
            raise problems.exceptions[0] from None
        return [self._answers[at] for at in range(len(asked))]

    async def _work(self, todo: Iterator[Question]) -> None:
        for question in todo:
            key = key_of(self._url, question.body, question.nth, self._weights)
            known = self._cache.get(key)
            answer = (
                await self._ask(question)
                if known is None
                else replace(known, case_id=question.case.id, sample=question.sample, cached=True)
            )
            self._cache.put(key, answer)
            self._answers[question.place] = answer
            self._cached += answer.cached
            self._failed += answer.failed
            self._tell(Told(len(self._answers), self._of, self._cached, self._failed, int(self._pace.limit), self._pace.refusals))

    async def _ask(self, question: Question) -> Answer:
        """Asks until there is an outcome, with patience for refusals and little for a server that is not there."""
        give_up_at = time.monotonic() + PATIENCE_S
        for tried in itertools.count(1):
            await self._pace.turn()
            try:
                outcome = await self._client.ask(question.body, question.case.id, question.sample)
            finally:
                self._pace.over()
            if not outcome.again or time.monotonic() > give_up_at or (outcome.hopeless and tried == _CONNECT_TRIES):
                break
            self._pace.refused(outcome.wait_s)
        if outcome.hopeless:
            self._lose_hope(outcome)
        elif not outcome.answer.failed:
            self._pace.answered()
        return outcome.answer

    def _lose_hope(self, outcome: Outcome) -> None:
        """Ends the run if its first outcomes are all such that the rest would be the same: a wrong key, a wrong name, nobody there."""
        self._hopeless += 1
        if self._hopeless == min(_HOPELESS, self._of) and len(self._answers) == self._failed:
            where = self._client.endpoint
            raise AskError(f"{where.host} can't answer for model `{where.model}`: {outcome.answer.error}. Is it running, is the "
                           "model's name right, does the key (--key-env) open it?")  # fmt: skip
