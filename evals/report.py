"""What a run says: quality, completion, effective success with intervals; by slice; latency; tokens and cost. From rows alone, pure.

A failed request is a failure: it lowers effective success, which is what gates. An unscored answer is neither right nor wrong: it is left
out of both and its number is shown. Comparing two runs is compare.py's work.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from evals.case import Row

_Z = 1.959964  # of a 95% interval


class Share(NamedTuple):
    """A mean between 0 and 1 with its 95% interval, over n rows. `value` is None where n is 0."""

    value: float | None
    low: float
    high: float
    n: int


class Spread(NamedTuple):
    """Seconds over n rows: median, 95th and 99th percentile, longest."""

    p50: float
    p95: float
    p99: float
    longest: float
    n: int

    def __str__(self) -> str:
        words = ("p50", "p95", "p99", "longest")
        return (
            "  ".join(f"{word} {_ms(time)}" for word, time in zip(words, self[:4], strict=True) if not math.isnan(time)) + f"  (n={self.n})"
        )


class Quality(msgspec.Struct, frozen=True, kw_only=True):
    """The three numbers that belong together, of all rows or of a slice."""

    rows: int
    failed: int
    unscored: int
    quality: Share  # of the completed and scored
    completion: Share  # of all
    effective: Share  # of the completed and scored, and the failed as 0


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A run summed up. Latencies are of answers that were asked in this run: those from the cache were measured at another time."""

    overall: Quality
    slices: dict[str, Quality]
    ttft: Spread | None
    gap: Spread | None  # the medians of the times between chunks
    total: Spread | None
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float | None
    cached: int
    errors: dict[str, int]
    an_error: str  # the first failure in full
    truncated: int  # complete answers that ended because no more tokens were allowed


def report(rows: Sequence[Row]) -> Report:
    """Sums up the rows of a run."""
    fresh = [row for row in rows if not row.cached and not row.failed]
    names = sorted({row.slice for row in rows if row.slice})
    costs = [row.cost_usd for row in rows if row.cost_usd is not None]
    return Report(
        overall=quality(rows),
        slices={name: quality([row for row in rows if row.slice == name]) for name in names},
        ttft=spread(row.ttft_s for row in fresh),
        gap=spread(row.itl_s[0] for row in fresh if row.itl_s),
        total=spread(row.total_s for row in fresh),
        prompt_tokens=sum(row.prompt_tokens or 0 for row in rows),
        completion_tokens=sum(row.completion_tokens or 0 for row in rows),
        cost_usd=math.fsum(costs) if costs else None,
        cached=sum(row.cached for row in rows),
        an_error=next((row.error for row in rows if row.failed), ""),
        truncated=sum(row.finish_reason in ("length", "max_tokens") for row in rows),
        errors=_counted(row.error.partition(":")[0] for row in rows if row.failed),
    )


def quality(rows: Sequence[Row]) -> Quality:
    """The three shares of some rows."""
    scored = [row for row in rows if row.value is not None]
    failed = [row for row in rows if row.failed]
    return Quality(
        rows=len(rows),
        failed=len(failed),
        unscored=len(rows) - len(scored) - len(failed),
        quality=share(scored, lambda row: row.value or 0.0),
        completion=share(rows, lambda row: float(not row.failed)),
        effective=share([*scored, *failed], lambda row: row.value or 0.0),
    )


def share(rows: Sequence[Row], value: Callable[[Row], float]) -> Share:
    """The mean and its Wilson interval, with the effective number of rows that the clusters leave (Korn and Graubard 1998).

    Samples of one case are one cluster at least. For values between 0 and 1 the interval is too wide rather than too narrow.
    """
    n = len(rows)
    if n == 0:
        return Share(None, 0.0, 1.0, 0)
    mean = math.fsum(map(value, rows)) / n
    return Share(mean, *wilson(mean, n / _design_effect(rows, value, mean)), n)


def wilson(mean: float, n: float) -> tuple[float, float]:
    """Wilson's score interval (1927) for a share, 95%; n need not be whole."""
    centre = (mean + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(mean * (1 - mean) / n + _Z**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def _design_effect(rows: Sequence[Row], value: Callable[[Row], float], mean: float) -> float:
    """How many dependent rows are worth one independent: the clustered variance of the mean over the plain one, 1 at least."""
    sums: dict[str, float] = {}
    for row in rows:
        cluster = row.cluster or f"\0{row.case_id}"
        sums[cluster] = sums.get(cluster, 0.0) + value(row) - mean
    plain = math.fsum((value(row) - mean) ** 2 for row in rows)
    if len(sums) in (1, len(rows)) or plain == 0:
        return 1.0
    return max(1.0, len(sums) / (len(sums) - 1) * math.fsum(one**2 for one in sums.values()) / plain)


def spread(times: Iterable[float | None]) -> Spread | None:
    """Percentiles (nearest rank) of what was measured."""
    known = sorted(time for time in times if time is not None)
    if not known:
        return None
    p50, p95, p99 = (known[math.ceil(len(known) * part) - 1] for part in (0.5, 0.95, 0.99))
    return Spread(p50, p95, p99, known[-1], len(known))


def _counted(words: Iterable[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for word in words:
        found[word] = found.get(word, 0) + 1
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def lines(facts: dict[str, Any], made: Report) -> list[str]:
    """A report as text."""
    whole = made.overall
    out = [
        f"{facts['suite']} on {facts['model']} at {facts['host']}, {facts['started']}, data {facts['data_sha256'][:12]}",
        f"  effective success    {_said(whole.effective)}   failed requests count as failures",
        f"  quality              {_said(whole.quality)}   of what was completed and scored",
        f"  completion           {_said(whole.completion)}",
    ]
    if whole.unscored:
        out.append(f"  unscored             {whole.unscored} of {whole.rows}: in neither number above but completion")
    if made.errors:
        out.append("  failures             " + ", ".join(f"{count} {word}" for word, count in made.errors.items()))
        out.append(f"    the first          {made.an_error[:100]}")
    if made.truncated:
        out.append(f"  cut by max_tokens    {made.truncated} of {whole.rows}: complete, but not to the model's own end")
    for title, times in (("time to first token", made.ttft), ("gap between chunks", made.gap), ("whole answer", made.total)):
        if times:
            out.append(f"  {title:<21}{times}")
    settings = facts.get("settings", {})
    if made.total and not settings.get("load"):
        out.append(f"                       asked as answers came, at most {settings.get('at_once')} at once")
    cost = "" if made.cost_usd is None else f", {made.cost_usd:.6f} USD by the router's account"
    out.append(f"  tokens               {made.prompt_tokens:,} in, {made.completion_tokens:,} out{cost}")
    if made.cached:
        out.append(f"  from the cache       {made.cached} of {whole.rows}: not in the times above; --fresh asks anew")
    width = max(map(len, made.slices), default=0)
    out += [f"  {name:<{width}}  {_said(part.effective)}" for name, part in made.slices.items()]
    return out


def judge_lines(facts: dict[str, Any]) -> list[str]:
    """What run.json says about the judge, as text."""
    out = [f"judged by {facts['model']} at {facts['host']}; it changed its mind on {facts['flips']} of {facts['asked']} when swapped"]
    if "fault" not in facts:
        return [*out, "  how often it is wrong is unknown: label some answers and add --judge-labels FILE"]
    fault = facts["fault"]
    errors = f"passed {fault['false_pass']} wrong, failed {fault['false_fail']} right answers"
    return [
        *out,
        f"  wrong                {_said(Share(*fault['wrong']))}   {errors}",
        f"  quality, corrected   {_said(Share(*fault['rectified']))}   by {fault['labelled']} labels, if these were drawn at random",
    ]


def _said(part: Share) -> str:
    if part.value is None:
        return "unknown: nothing was scored"
    return f"{part.value:6.1%}  ({part.low:.1%} to {part.high:.1%}, n={part.n})"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 10 else f"{seconds:.1f} s"
