"""What notebooks call: the charts show the figures they are of, and a stand-in is billed and named as one."""

import asyncio
import json

import pytest

from evals import plots
from evals.client import Endpoint
from evals.compare import compare, pair, usd_per_success
from evals.comparison import keep
from evals.cost import CostError, Own, Price, Prices, break_even, own_price, usd
from evals.load import Load
from evals.report import Share
from evals.study import CommandError, Standing, ask, billed, command, frontier, hosted, own_listed, own_measured, promotion, standing

OWN = Own(usd_per_gpu_hour=2.5, gpus=2, input_tokens_per_s=20_000, output_tokens_per_s=2_000, prefill_share=0.4, utilisation=0.3)
PRICES = Prices(date="2026-11-25", hosted={"openai/gpt-5-nano": Price(input=0.05, output=0.4)})
LOCAL = Endpoint("http://127.0.0.1:1/v1", "demo-generalist")


@pytest.fixture
def suite(tmp_path):
    """The folder of a suite of twenty cases, the answer to each its own number."""
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "task.yaml").write_text("name: own\nscorer: exact\nsensitive: false\n")
    cases = [{"id": f"c{at}", "messages": [{"role": "user", "content": str(at)}], "expected": str(at)} for at in range(20)]
    (folder / "cases.jsonl").write_text("".join(json.dumps(case) + "\n" for case in cases))
    return str(folder)


def data_of(chart):
    """The values of each layer of a valid chart; altair checks it against Vega-Lite's schema on the way."""
    spec = chart.to_dict()
    return [spec["datasets"][layer["data"]["name"]] if "name" in layer["data"] else layer["data"]["values"] for layer in spec["layer"]]


def test_the_cost_curve_shows_the_costs():
    """A point of the curve is cost.py's, the hosted line is its price, and the mark is where they meet."""
    price = Price(input=0.25, output=2.0)
    lines, rules, marks = data_of(plots.cost_curve({"ours": OWN}, {"theirs": price}, 1000, 100, {"ours": 0.8}))
    half = next(one for one in lines if one["utilisation"] == 0.5)
    assert half["usd"] == pytest.approx(1000 * usd(own_price(OWN, 0.5), 1000, 100) / 0.8)
    assert rules == [{"model": "theirs", "usd": pytest.approx(1000 * usd(price, 1000, 100))}]
    at = break_even(OWN, price, 1000, 100, own_success=0.8)
    assert marks == [{"utilisation": at, "usd": pytest.approx(rules[0]["usd"]), "what": f"ours = theirs at {at:.0%}"}]


def test_a_chart_without_break_even_has_no_mark():
    """Where own accelerators never pay there is a curve and a line, and no point."""
    assert data_of(plots.cost_curve({"ours": OWN}, {"cheap": Price(input=0.001, output=0.001)}, 1000, 100))[2] == []


def test_intervals_show_the_verdicts(tmp_path, keep_run):
    """The drawn interval is the document's, in points."""
    pairs = pair(keep_run(tmp_path, "old", [1.0, 0.0] * 50), keep_run(tmp_path, "new", [1.0] * 100))
    verdict = keep(tmp_path, compare([pairs], margin=0.02)[0], PRICES).verdict
    drawn = data_of(plots.intervals([verdict]))
    assert drawn[1] == [{"at": -2.0}]
    assert drawn[2][0]["effect"] == pytest.approx(50)
    assert (drawn[2][0]["low"], drawn[2][0]["high"]) == pytest.approx((100 * verdict.interval[0], 100 * verdict.interval[1]))


def test_charts_are_kept_for_jupyterlabs_own_viewer():
    """The output that JupyterLab 4 shows without a network is Vega-Lite 5, as data."""
    plots.offline()
    bundle, _ = plots.cost_curve({"ours": OWN}, {}, 1, 1)._repr_mimebundle_()
    assert "application/vnd.vegalite.v5+json" in bundle
    assert "text/html" not in bundle


def test_without_a_key_the_stand_in_is_named_as_one(upstream, suite, tmp_path):
    """The stand-in's rows cost what the hosted model would, and its name in the verdict says what it is."""
    other = hosted("openai/gpt-5-nano", "https://api.openai.com/v1", "NO_SUCH_KEY_IN_ANY_ENVIRONMENT", LOCAL, PRICES)
    assert (other.endpoint, other.is_stand_in) == (LOCAL, True)
    with upstream.serving(lambda body: upstream.Reply(body["messages"][-1]["content"])) as server:
        ours = asyncio.run(_inside_a_loop(suite, Endpoint(server.base_url, "ours"), tmp_path))
        theirs = billed(ask(suite, Endpoint(server.base_url, "demo-generalist"), tmp_path, limit=10), other)
    verdict = keep(tmp_path, compare([pair(theirs, ours)], margin=0.02)[0], PRICES).verdict
    assert verdict.incumbent == "demo-generalist, a stand-in for openai/gpt-5-nano"
    row = theirs.rows[0]
    assert usd_per_success(pair(theirs, ours), PRICES)[0] == pytest.approx(usd(other.price, row.prompt_tokens, row.completion_tokens))


async def _inside_a_loop(suite, endpoint, home):
    """As in a notebook, whose own event loop is running."""
    return ask(suite, endpoint, home)


def test_own_throughput_is_what_was_measured_at_the_goal(upstream, suite, tmp_path):
    """A run under load gives tokens a second; one without load, without a goal or that missed it gives an error that says so."""
    with upstream.serving(lambda body: upstream.Reply(body["messages"][-1]["content"])) as server:
        runs = [ask(suite, Endpoint(server.base_url, "ours"), tmp_path, load=load) for load in (
            Load(rate_per_s=100, slo_ttft_s=60), None, Load(rate_per_s=100), Load(rate_per_s=100, slo_ttft_s=1e-9))]  # fmt: skip
    held, *others = runs
    own = own_measured(held, usd_per_gpu_hour=2.0, prefill_share=0.4)
    assert own.output_tokens_per_s == pytest.approx(sum(row.completion_tokens for row in held.rows) / held.facts["load"]["duration_s"])
    reasons = ("was not under load", "had no latency goal", "of the requests and 95% are needed; lower --rate")
    for made, said in zip(others, reasons, strict=True):
        with pytest.raises(CostError, match=said):
            own_measured(made, usd_per_gpu_hour=2.0, prefill_share=0.4)


def test_a_model_without_a_price_is_refused():
    """Comparing costs with an unpriced model is an error that says what names there are."""
    with pytest.raises(CostError, match=r"names are provider/model, as in evals/prices\.yaml"):
        hosted("openai/none", "https://api.openai.com/v1", "NO_SUCH_KEY", LOCAL, PRICES)


def at(model, success, paid, task="extraction"):
    """A standing."""
    return Standing(task, model, Share(success, 0.0, 1.0, 100), paid)


def test_the_frontier_leaves_out_what_another_beats():
    """A model that is dearer and no better is off it, equals are both on it, other tasks do not compete, the unpriced are not on it."""
    cheap, good, dear, twin = at("cheap", 0.8, 1.0), at("good", 0.9, 2.0), at("dear", 0.9, 3.0), at("twin", 0.8, 1.0)
    elsewhere, unpriced = at("elsewhere", 0.1, 9.0, task="chat"), at("unpriced", 1.0, None)
    points = [cheap, good, dear, twin, elsewhere, unpriced]
    assert frontier(points) == [cheap, good, twin, elsewhere]
    line, bars, *_ = data_of(plots.quality_cost(points))
    assert [one["model"] for one in line] == ["cheap", "good", "twin", "elsewhere"]
    assert {one["model"]: one["usd"] for one in bars}["dear"] == 3000.0 and len(bars) == 5


def test_a_standing_has_what_all_answers_cost_over_the_right_ones(tmp_path, keep_run):
    """Half right doubles the price of a success; without a price or a success it is unknown, never 0."""
    half, none = keep_run(tmp_path, "half", [1.0, 0.0] * 10), keep_run(tmp_path, "none", [0.0] * 20)
    prices = Prices(date="2026-11-25", own={name: own_listed(usd_per_gpu_hour=3.6, tokens_per_s=1000) for name in ("half", "none")})
    row = half.rows[0]
    assert own_price(prices.own["half"], 1.0) == Price(input=1.0, output=1.0)
    one = usd(own_price(prices.own["half"]), row.prompt_tokens, row.completion_tokens)
    assert standing(half, prices).usd_per_success == pytest.approx(2 * one)
    assert standing(half, PRICES).usd_per_success is None and standing(none, prices).usd_per_success is None


def test_only_a_verdict_that_promotes_has_a_command(tmp_path, keep_run):
    """The command names task, model and evidence; a worse candidate has none."""
    good, bad = keep_run(tmp_path, "good", [1.0] * 100), keep_run(tmp_path, "bad", [1.0, 0.0] * 50)
    better, worse = (keep(tmp_path, compare([pair(*two)], margin=0.02)[0], PRICES).verdict for two in ((bad, good), (good, bad)))
    assert promotion(better) == f"inhouse routes promote --task {better.task} --to good --evidence {better.id}"
    assert promotion(worse) is None


def test_the_command_is_asked_for_what_other_rooms_know():
    """What it prints is data, and what it refuses is its own one line."""
    assert {"demo-extractor", "demo-generalist"} <= {one["name"] for one in command("models", "list")}
    with pytest.raises(CommandError, match="no model `demo-extracter` in the catalog"):
        command("models", "fit", "demo-extracter")
