"""`inhouse eval plan`, `compare` and `calibrate`: arguments in, text or JSON out. Importing this costs nothing but click."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from evals.comparison import Kept

_HOME = click.option("--home", envvar="INHOUSE_HOME", default=".inhouse", show_default=True, type=click.Path(path_type=Path),
                     help="Where runs are kept (INHOUSE_HOME).")  # fmt: skip
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_SHARE = click.FloatRange(0, 1, min_open=True, max_open=True)
_ALPHA = click.option("--alpha", default=0.05, show_default=True, type=_SHARE, help="1 - confidence of the two-sided interval.")
_MARGIN = click.option("--margin", default=0.02, show_default=True, type=_SHARE,
                       help="How much worse is still good enough, as a share: 0.02 is 2 points of effective success.")  # fmt: skip


@click.command()
@_MARGIN
@_ALPHA
@click.option("--discordant", default=0.15, show_default=True, type=_SHARE, help="Share of cases on which the two models will differ.")
@click.option("--effect", default=0.0, show_default=True, type=click.FloatRange(-1, 1), help="The true difference that is assumed.")
@click.option("--power", default=0.8, show_default=True, type=_SHARE, help="Wanted chance of a verdict.")
@click.option("--cluster-size", default=1.0, show_default=True, type=click.FloatRange(1), help="Cases in a cluster.")
@click.option("--correlation", default=0.3, show_default=True, type=click.FloatRange(0, 1), help="Of cases in one cluster.")
@click.option("--tasks", default=1, show_default=True, type=click.IntRange(1), help="Tasks that are compared at once (Holm).")
@click.option("--cases", type=click.IntRange(2), help="What so many cases can show, beside.")
@click.option("--like", nargs=2, metavar="RUN RUN", help="Take discordance and clusters from two runs of a pilot.")
@_HOME
@_JSON
def plan(*, home: Path, as_json: bool, like: tuple[str, str] | None, **asked: Any) -> None:
    """How many cases a comparison needs, before it is run.

    Example: inhouse eval plan --margin 0.02 --discordant 0.1
    """
    with _told():
        variance, spread = _pilot(home, like) if like else _assumed(**asked)
    found = _sizes(variance, spread, asked)
    click.echo(json.dumps(found, indent=1) if as_json else "\n".join(_planned(found)))


def _pilot(home: Path, like: tuple[str, str]) -> tuple[float, float]:
    """Variance of one difference and design effect, of two runs."""
    from evals import stats, store
    from evals.compare import pair

    pairs = pair(*(store.read_run(home, run) for run in like))
    made = stats.paired(*pairs.values(), pairs.clusters)
    return made.se**2 * made.n / made.design_effect, made.design_effect


def _assumed(*, discordant: float, effect: float, cluster_size: float, correlation: float, **_: Any) -> tuple[float, float]:
    from evals import power

    variance = power.discordant_variance(discordant, effect)
    if variance <= 0 or abs(effect) > discordant:
        raise click.UsageError(f"--effect {effect:g}: models that differ on {discordant:g} of the cases can't be that far apart; "
                               "raise --discordant")  # fmt: skip
    return variance, power.design_effect(cluster_size, correlation)


def _sizes(variance: float, spread: float, asked: dict[str, Any]) -> dict[str, Any]:
    from evals.power import cases_needed, margin_shown, power_of

    level, total = asked["alpha"] / asked["tasks"], variance * spread
    margin, effect, power = asked["margin"], asked["effect"], asked["power"]
    found: dict[str, Any] = {"cases": cases_needed(margin, total, effect=effect, alpha=level, power=power), "margin": margin,
                             "alpha": level, "power": power, "variance": variance, "design_effect": spread, "effect": effect}  # fmt: skip
    if cases := asked["cases"]:
        found["with_cases"] = {"cases": cases, "power": power_of(cases, margin, total, effect=effect, alpha=level),
                               "margin": margin_shown(cases, total, alpha=level, power=power)}  # fmt: skip
    return found


def _planned(found: dict[str, Any]) -> Iterator[str]:
    margin, power = f"{found['margin'] * 100:g} points", f"{found['power']:.0%}"
    if found["cases"] is None:
        yield f"no number of cases shows \"not worse by more than {margin}\" of a model that is worse by as much"
    else:
        yield (f"{found['cases']:,} cases show \"not worse by more than {margin}\" with a chance of {power}, if the true difference is "
               f"{found['effect'] * 100:+g} points")  # fmt: skip
    yield (f"  (paired, {1 - found['alpha']:.4g} two-sided interval, variance of a difference {found['variance']:.3g}, "
           f"a case in clusters counts as {1 / found['design_effect']:.2f})")  # fmt: skip
    if beside := found.get("with_cases"):
        yield (f"{beside['cases']:,} cases have a chance of {beside['power']:.0%}; the smallest margin for {power} is "
               f"{beside['margin'] * 100:.1f} points")  # fmt: skip


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="INCUMBENT CANDIDATE [INCUMBENT CANDIDATE]...")
@_MARGIN
@_ALPHA
@click.option("--prices", "price_file", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="A price file in the form of evals/prices.yaml, with own models (default: the shipped snapshot).")  # fmt: skip
@click.option("--track/--no-track", default=True, show_default=True,
              help="Also keep it in MLflow: at MLFLOW_TRACKING_URI, or in a SQLite file in the home.")  # fmt: skip
@_HOME
@_JSON
def compare(
    *, home: Path, runs: tuple[str, ...], margin: float, alpha: float, price_file: Path | None, track: bool, as_json: bool
) -> None:
    """Compare runs of two models on the same cases and say whether the candidate may take the task.

    Paired by case and sample, clustered, failed requests counting as failures. The verdict is better, not worse by more than the margin,
    worse, or not enough evidence; it is read off one interval of the difference. Several pairs of runs are several tasks that share the
    error rate (Holm). The last lines name the folder with verdict.json, the evidence for a route.

    \b
    Example:
      inhouse eval compare 20261125-1301 20261125-1302 --margin 0.02
    """
    from evals import store
    from evals.compare import compare as decide
    from evals.compare import pair
    from evals.cost import SHIPPED, read_prices

    if len(runs) % 2:
        raise click.UsageError("runs come in pairs: INCUMBENT CANDIDATE, and again for each further task; list them: inhouse eval report")
    with _told():
        prices = read_prices(price_file or SHIPPED)
        found = [store.read_run(home, run) for run in runs]
        several = [pair(one, two) for one, two in zip(found[::2], found[1::2], strict=True)]
        with _progress() as tell:
            kept = [_kept(home, made, prices, tell if track else None) for made in decide(several, margin=margin, alpha=alpha)]
    if as_json:
        import msgspec

        click.echo(json.dumps([msgspec.to_builtins(one.verdict) | {"folder": str(one.folder)} for one in kept], indent=1))
        return
    click.echo("\n\n".join("\n".join(lines(one, prices)) for one in kept))


def _kept(home: Path, made: Any, prices: Any, track: Callable[[str], None] | None) -> "Kept":
    if track is None:
        from evals.comparison import keep

        return keep(home, made, prices)
    from evals import tracking

    return tracking.keep(home, made, prices, track)


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """A line on standard error that says what is under way."""
    from rich.console import Console

    with Console(stderr=True).status("comparing") as status:
        yield status.update


def lines(kept: "Kept", prices: Any) -> Sequence[str]:
    """A comparison as text."""
    from evals.compare import measures

    verdict, (low, high) = kept.verdict, kept.verdict.interval
    return [
        f"{verdict.task}: {verdict.candidate} is {verdict.sentence} (than {verdict.incumbent})",
        *(f"  {reason}" for reason in verdict.reasons),
        f"  effective success       {verdict.candidate_success:.1%} against {verdict.incumbent_success:.1%}: {verdict.effect * 100:+.1f} "
        f"points, {1 - verdict.level:.2%} interval {low * 100:+.1f} to {high * 100:+.1f}",
        f"  evidence                {verdict.n} pairs in {verdict.clusters} clusters, {verdict.unscored} unscored, "
        f"{verdict.unpaired} unpaired",
        *(f"  {one.name:<24}{one.candidate:.4g} against {one.incumbent:.4g}"
          + (f", difference {one.interval[0]:+.4g} to {one.interval[1]:+.4g}" if one.interval else "")
          for one in measures(kept.made.pairs, prices)),
        f"  USD per success         {_usd(verdict.candidate_usd_per_success)} against {_usd(verdict.incumbent_usd_per_success)} "
        f"(prices of {verdict.prices_date}, else the router's)",
        f"evidence {verdict.id}" + (f", MLflow run {verdict.mlflow_run}" if verdict.mlflow_run else ""),
        f"kept in {kept.folder}",
    ]  # fmt: skip


def _usd(amount: float | None) -> str:
    return "unknown" if amount is None else f"{amount:.3g}"


@click.command()
@click.option("--repeats", default=4000, show_default=True, type=click.IntRange(10), help="Simulated comparisons of each kind.")
@_JSON
def calibrate(*, repeats: int, as_json: bool) -> None:
    """Simulate comparisons with a known truth and count how often the intervals and verdicts are right.

    Exits with 1 where a 95% interval covers less than 94%, or models that are equal or too bad pass more often than stated.

    Example: inhouse eval calibrate --repeats 500
    """
    from evals import stats_bench

    found = stats_bench.run(repeats)
    plain = [one._asdict() | {"holds": one.holds} for one in found]
    click.echo(json.dumps(plain, indent=1) if as_json else "\n".join(stats_bench.lines(found)))
    if stats_bench.offences(found):
        raise SystemExit(1)


@contextmanager
def _told() -> Iterator[None]:
    """What a user can cause is told in one line."""
    from evals.compare import CompareError
    from evals.cost import CostError
    from evals.store import StoreError
    from evals.tracking import TrackingError

    try:
        yield
    except (CompareError, CostError, StoreError, TrackingError) as error:
        raise click.ClickException(str(error)) from None


COMMANDS: tuple[click.Command, ...] = (plan, compare, calibrate)
