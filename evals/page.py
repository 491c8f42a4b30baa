"""A comparison as one HTML file that needs nothing else: verdict, intervals drawn, slices, times and costs, where the models differ."""

import html
from collections.abc import Iterable, Sequence

from evals.case import Row
from evals.compare import Comparison, Measure, slices
from evals.verdict import Verdict

SHOWN = 50  # disagreements on the page; all are in pairs.parquet
_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:1em 0}td,th{padding:.25em .8em;border-bottom:1px solid #ddd;text-align:left;vertical-align:top}
td.n{text-align:right;font-variant-numeric:tabular-nums}pre{white-space:pre-wrap;margin:0;max-width:28em}h1{font-size:1.4em}
.yes{color:#05690d}.no{color:#a02015}"""


def page(verdict: Verdict, made: Comparison, figures: Sequence[Measure]) -> str:
    """The page. Everything that a model or a user wrote is escaped."""
    title = f"{verdict.task}: {verdict.candidate} against {verdict.incumbent}"
    low, high = verdict.interval
    parts = [
        f"<h1>{_text(title)}</h1>",
        f'<p>The candidate is <b class="{"yes" if verdict.promotes else "no"}">{_text(verdict.sentence)}</b>.</p>',
        *(f"<p>{_text(reason)}</p>" for reason in verdict.reasons),
        f"<p>Effective success {verdict.candidate_success:.1%} against {verdict.incumbent_success:.1%}: a difference of "
        f"{_points(verdict.effect)} ({_points(low)} to {_points(high)} with {1 - verdict.level:.2%} confidence), {verdict.n} pairs in "
        f"{verdict.clusters} clusters; {verdict.unscored} pairs unscored, {verdict.unpaired} rows without a partner.</p>",
        drawn(verdict.effect, low, high, verdict.margin),
        "<h2>Time and cost</h2>",
        _table(("", "incumbent", "candidate", "difference", "95% interval", "pairs"), map(_figure, figures)),
        f"<p>Cost per successful task: {_usd(verdict.incumbent_usd_per_success)} against {_usd(verdict.candidate_usd_per_success)} "
        f"(prices of {_text(verdict.prices_date)}, else the router's).</p>",
        "<h2>Slices</h2>",
        _table(("slice", "pairs", "incumbent", "candidate"),
               ((name, str(n), f"{one:.1%}", f"{two:.1%}") for name, (n, one, two) in slices(made.pairs).items())),
        "<h2>Where they differ</h2>",
        _table(("case", "slice", "incumbent", "candidate"), _differing(made)),
        "<h2>Evidence</h2>",
        _table(("", ""), ((name, str(getattr(verdict, name))) for name in verdict.__struct_fields__)),
    ]  # fmt: skip
    return f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{_text(title)}</title><style>{_STYLE}</style>' + "\n".join(parts)


def drawn(effect: float, low: float, high: float, margin: float) -> str:
    """The interval on an axis with zero and the margin, as SVG."""
    reach = 1.15 * max(abs(low), abs(high), margin, 0.01)

    def x(value: float) -> float:
        return 300 + 280 * value / reach

    marks = "".join(
        f'<line x1="{x(at):.1f}" x2="{x(at):.1f}" y1="12" y2="52" stroke="{colour}" stroke-dasharray="{dash}"/>'
        f'<text x="{x(at):.1f}" y="68" text-anchor="middle" font-size="11">{name}</text>'
        for at, name, colour, dash in ((0, "equal", "#555", "0"), (-margin, f"margin {_points(-margin)}", "#a02015", "4"))
    )
    return (f'<svg width="600" height="74" role="img" aria-label="difference {_points(effect)}, {_points(low)} to {_points(high)}">{marks}'
            f'<line x1="{x(low):.1f}" x2="{x(high):.1f}" y1="32" y2="32" stroke="#1c4f9c" stroke-width="3"/>'
            f'<circle cx="{x(effect):.1f}" cy="32" r="5" fill="#1c4f9c"/></svg>')  # fmt: skip


def _differing(made: Comparison) -> Iterable[tuple[str, ...]]:
    different = [both for both in made.pairs.rows if (both[0].value or 0.0) != (both[1].value or 0.0)]
    hidden = made.pairs.is_sensitive
    return ((one.case_id, one.slice, _said(one, hidden=hidden), _said(two, hidden=hidden)) for one, two in different[:SHOWN])


def _said(row: Row, *, hidden: bool) -> str:
    mark = "failed" if row.failed else f"{row.value:g}"
    return mark if hidden else f"{mark}: {row.error or row.text or row.tool_calls}"[:400]


def _figure(one: Measure) -> tuple[str, ...]:
    interval = "unknown" if one.interval is None else f"{one.interval[0]:.4g} to {one.interval[1]:.4g}"
    return one.name, f"{one.incumbent:.4g}", f"{one.candidate:.4g}", f"{one.effect:+.4g}", interval, str(one.n)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    body = "".join("<tr>" + "".join(f"<td><pre>{_text(cell)}</pre></td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{_text(cell)}</th>' for cell in head)}</tr>{body}</table>" if body else "<p>nothing</p>"


def _points(difference: float) -> str:
    return f"{difference * 100:+.1f} points"


def _usd(amount: float | None) -> str:
    return "unknown" if amount is None else f"{amount:.3g} USD"


def _text(words: str) -> str:
    return html.escape(words)
