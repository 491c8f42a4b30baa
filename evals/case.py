"""The plain data of this room: a case, the answer to it, its score, and the row that is stored. No I/O, no arithmetic.

Everything after asking (reports, comparisons, tracking) reads rows and needs nothing else of the runner.
"""

from typing import Any

import msgspec


class Case(msgspec.Struct, frozen=True):
    """One line of a data set. `cluster` joins cases that are not independent (one template, one document); empty: it stands alone."""

    id: str
    messages: list[dict[str, Any]]
    expected: Any
    slice: str = ""
    cluster: str = ""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What came back for one sample of a case. A request that failed has `error`, a short word and a reason; its text may be partial.

    Times are seconds from the moment the successful attempt was sent (in open-loop load: from when it was due). `itl_s` sums up the gaps
    between chunks with content as (median, 95th percentile, longest), and is empty below two chunks. Token counts are the server's own.
    `cost_usd` and `headers` are what the router said (`inhouse-cost-usd`, `inhouse-model`, ...); None and empty elsewhere.
    """

    case_id: str
    sample: int = 0
    text: str = ""
    tool_calls: list[dict[str, Any]] = msgspec.field(default_factory=list)
    finish_reason: str = ""
    ttft_s: float | None = None
    itl_s: tuple[float, ...] = ()
    total_s: float = 0.0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    error: str = ""
    cached: bool = False
    cost_usd: float | None = None
    headers: dict[str, str] = msgspec.field(default_factory=dict)

    @property
    def failed(self) -> bool:
        """Whether no complete answer came."""
        return bool(self.error)


class Score(msgspec.Struct, frozen=True):
    """How right an answer is, from 0 to 1. None is unscored, which is not wrong: the scorer could not tell, and `reason` says why."""

    case_id: str
    sample: int
    value: float | None
    reason: str = ""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One answer with its score: a line of `rows.parquet`, whose columns are these fields in this order.

    `failed` rows have no value: no answer was there to score. A row that is neither failed nor valued is unscored.
    """

    case_id: str
    sample: int
    slice: str
    cluster: str
    value: float | None
    failed: bool
    ttft_s: float | None
    total_s: float
    prompt_tokens: int | None
    completion_tokens: int | None
    cost_usd: float | None
    text: str
    error: str
    reason: str = ""
    finish_reason: str = ""
    tool_calls: str = "[]"  # JSON
    itl_s: tuple[float, ...] = ()
    cached: bool = False
    model: str = ""  # that answered, where the router said it


def row(case: Case, answer: Answer, score: Score) -> Row:
    """Joins the three. A failed request keeps no value, whatever a scorer said."""
    return Row(
        case_id=case.id,
        sample=answer.sample,
        slice=case.slice,
        cluster=case.cluster,
        value=None if answer.failed else score.value,
        failed=answer.failed,
        ttft_s=answer.ttft_s,
        total_s=answer.total_s,
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
        cost_usd=answer.cost_usd,
        text=answer.text,
        error=answer.error,
        reason=score.reason,
        finish_reason=answer.finish_reason,
        tool_calls=msgspec.json.encode(answer.tool_calls).decode(),
        itl_s=answer.itl_s,
        cached=answer.cached,
        model=answer.headers.get("inhouse-model", ""),
    )
