"""Charts of verdicts and costs for notebooks: data in, altair chart out. The figures are those of cost.py and compare.py.

JupyterLab shows them without a network after `offline()`: altair's own default loads its viewer from a CDN.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from evals.cost import Own, Price, break_even, curve, own_price, usd
from evals.study import Standing, frontier
from evals.verdict import Verdict

_STEPS = [at / 100 for at in range(5, 101)]
_RED = "#a02015"
_BELOW = alt.Legend(title="the candidate is", orient="bottom", labelLimit=320)  # beside the plot it would not fit into a cell


def offline() -> None:
    """Makes notebooks keep charts as data for JupyterLab's own viewer."""
    alt.renderers.enable("mimetype")


def cost_curve(own: Mapping[str, Own], hosted: Mapping[str, Price], prompt_tokens: float, completion_tokens: float,
               success: Mapping[str, float] | None = None) -> alt.LayerChart:  # fmt: skip
    """US dollars per thousand successful tasks over utilisation: own models as curves, hosted ones as lines, break-even points marked.

    `success` is each model's effective success; a model that is not in it counts as always right.
    """
    right = success or {}
    layers = [_lines(own, prompt_tokens, completion_tokens, right), _rules(hosted, prompt_tokens, completion_tokens, right)]
    return alt.layer(*layers, _crossings(own, hosted, prompt_tokens, completion_tokens, right)).properties(
        width=520, height=320, title=f"A task of {prompt_tokens:,.0f} tokens in and {completion_tokens:,.0f} out"
    )


def _chart(values: list[dict[str, Any]]) -> alt.Chart:
    return alt.Chart(alt.InlineData(values=values))


def _y() -> alt.Y:
    return alt.Y("usd:Q", scale=alt.Scale(type="log"), title="USD per 1,000 successful tasks")


def _x() -> alt.X:
    return alt.X("utilisation:Q", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%"), title="utilisation of own accelerators")


def _lines(own: Mapping[str, Own], tokens_in: float, tokens_out: float, right: Mapping[str, float]) -> alt.Chart:
    values = [{"model": name, "utilisation": point.utilisation, "usd": 1000 * point.usd_per_task / right.get(name, 1.0)}
              for name, fleet in own.items() for point in curve(fleet, tokens_in, tokens_out, _STEPS)]  # fmt: skip
    chart: alt.Chart = _chart(values).mark_line().encode(x=_x(), y=_y(), color=alt.Color("model:N", title="model"))
    return chart


def _rules(hosted: Mapping[str, Price], tokens_in: float, tokens_out: float, right: Mapping[str, float]) -> alt.Chart:
    values = [{"model": name, "usd": 1000 * usd(price, tokens_in, tokens_out) / right.get(name, 1.0)} for name, price in hosted.items()]
    chart: alt.Chart = _chart(values).mark_rule(strokeDash=[4, 3]).encode(y=_y(), color="model:N", tooltip=["model:N", "usd:Q"])
    return chart


def _crossings(own: Mapping[str, Own], hosted: Mapping[str, Price], tokens_in: float, tokens_out: float,
               right: Mapping[str, float]) -> alt.Chart:  # fmt: skip
    found = []
    for name, fleet in own.items():
        for other, price in hosted.items():
            success = {"own_success": right.get(name, 1.0), "hosted_success": right.get(other, 1.0)}
            at = break_even(fleet, price, tokens_in, tokens_out, **success)
            if at:
                paid = 1000 * usd(own_price(fleet, at), tokens_in, tokens_out) / success["own_success"]
                found.append({"utilisation": at, "usd": paid, "what": f"{name} = {other} at {at:.0%}"})
    chart: alt.Chart = _chart(found).mark_point(size=90, filled=True, color=_RED).encode(x=_x(), y=_y(), tooltip="what:N")
    return chart


def intervals(verdicts: Sequence[Verdict]) -> alt.LayerChart:
    """Each comparison's difference with its interval, beside zero and the margin, in points of effective success."""
    values = [{"who": f"{one.task}: {one.candidate}\nagainst {one.incumbent}", "effect": 100 * one.effect, "low": 100 * one.interval[0],
               "high": 100 * one.interval[1], "verdict": one.sentence} for one in verdicts]  # fmt: skip
    who = alt.Y("who:N", title=None, axis=alt.Axis(labelLimit=340, labelExpr="split(datum.label, '\\n')"))
    drawn = _chart(values).encode(y=who, color=alt.Color("verdict:N", legend=_BELOW), tooltip=["who:N", "verdict:N"])
    borders = [_chart([{"at": 0}]).mark_rule(color="#555").encode(x="at:Q")]
    borders += [_chart([{"at": -100 * margin}]).mark_rule(color=_RED, strokeDash=[4, 3]).encode(x="at:Q")
                for margin in sorted({one.margin for one in verdicts})]  # fmt: skip
    bar = drawn.mark_rule(strokeWidth=3).encode(x=alt.X("low:Q", title="difference in effective success, points"), x2="high:Q")
    return alt.layer(*borders, bar, drawn.mark_point(filled=True, size=90).encode(x="effect:Q")).properties(width=330, height=alt.Step(44))


def quality_cost(points: Sequence[Standing]) -> alt.LayerChart:
    """Each model at each task: what a thousand successes cost, and how often it succeeds, with intervals. What is on its task's
    frontier is solid and joined by a line, what is not is faint.

    A model without a price or without a success has no place on the cost axis and is not drawn.
    """
    best = frontier(points)
    values = [{"task": one.task, "model": one.model, "usd": 1000 * one.usd_per_success, "success": one.success.value,
               "low": one.success.low, "high": one.success.high, "on the frontier": one in best}
              for one in points if one.usd_per_success is not None]  # fmt: skip
    x = alt.X("usd:Q", scale=alt.Scale(type="log"), axis=alt.Axis(tickCount=4), title="USD per 1,000 successful tasks")
    y = alt.Y("success:Q", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%"), title="effective success")
    solid = alt.Opacity("on the frontier:N", scale=alt.Scale(domain=[True, False], range=[1.0, 0.3]))
    drawn = _chart(values).encode(x=x, color=alt.Color("task:N", title="task"), opacity=solid)
    line = _chart([one for one in values if one["on the frontier"]]).mark_line(strokeDash=[4, 3]).encode(x=x, y=y, color="task:N")
    bar = drawn.mark_rule().encode(y=alt.Y("low:Q", scale=alt.Scale(domain=[0, 1])), y2="high:Q")
    told = ["task:N", "model:N", "usd:Q", "success:Q", "on the frontier:N"]
    dot = drawn.mark_point(size=120, filled=True).encode(y=y, shape=alt.Shape("model:N", title="model"), tooltip=told)
    return alt.layer(line, bar, dot).properties(width=480, height=320)
