# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Which model gets which task?
#
# **Conclusion.** The commands under "Make it so": one for each task whose candidate is *better* or *not worse by more than the margin*.
# A task without a command keeps the model that it has.
#
# **Evidence.** Every model answers every task's cases. The plot shows what a success costs and how often it comes; only what is solid,
# its task's frontier, is worth a thought. The verdicts are read off paired intervals, and share one error rate over all tasks (Holm).
#
# Runs against `make up`. It changes no route: you do, with the command.

# %% tags=["parameters"]
decisions = {  # task: (who has it, who might take it)
    "extraction": ("demo-generalist", "demo-extractor"),
    "reasoning": ("demo-generalist", "demo-extractor"),
}
base_url = "http://127.0.0.1:8000/v1"
home = "../.inhouse"
margin = 0.02
utilisation = 0.3
limit = None

# %%
from pathlib import Path

import msgspec

from evals import plots, tracking
from evals.client import Endpoint
from evals.compare import compare, pair
from evals.compare_cli import lines
from evals.cost import SHIPPED as PRICES
from evals.cost import read_prices
from evals.study import ask, frontier, origin, own_listed, promotion, standing
from serving.catalog import SHIPPED, read_catalog

home = Path(home).resolve()
key = (home / "key").read_text().strip()
plots.offline()

# %% [markdown]
# ## What own models cost
#
# By their lines in `models.yaml`, at the utilisation in the parameters; `50_what_it_costs` measures it.

# %%
listed = {model.name: model.price for model in read_catalog().models if model.price.usd_per_gpu_hour and model.price.tokens_per_s}
own = {name: own_listed(usd_per_gpu_hour=price.usd_per_gpu_hour, tokens_per_s=price.tokens_per_s, utilisation=utilisation)
       for name, price in listed.items()}  # fmt: skip
prices = msgspec.structs.replace(read_prices(), own=own)

# %% [markdown]
# ## Ask

# %%
runs = {(task, model): ask(task, Endpoint(base_url, model, key=key, onprem=True), home, limit=limit)
        for task, models in decisions.items() for model in models}  # fmt: skip

# %% [markdown]
# ## The frontier of quality and cost

# %%
points = [standing(run, prices) for run in runs.values()]
plots.quality_cost(points)

# %%
best = frontier(points)
for one in points:
    cost = "unknown" if one.usd_per_success is None else f"{one.usd_per_success:.2g}"
    print(f"{one.task:12} {one.model:16} {one.success.value:6.1%}  USD {cost} a success  {'on the frontier' if one in best else ''}")

# %% [markdown]
# ## Verdicts

# %%
made = compare([pair(runs[task, has], runs[task, might]) for task, (has, might) in decisions.items()], margin=margin)
kept = [tracking.keep(home, one, prices) for one in made]
for one in kept:
    print("\n".join(lines(one, prices)[:3]), end="\n\n")

# %%
plots.intervals([one.verdict for one in kept])

# %% [markdown]
# ## Make it so

# %%
for one in kept:
    print(promotion(one.verdict) or f"# {one.verdict.task} stays with {one.verdict.incumbent}: {one.verdict.sentence}")

# %%
assert all((promotion(one.verdict) is not None) == (one.verdict.interval[0] > -margin and not one.verdict.reasons) for one in kept)

# %% [markdown]
# ## Where this came from

# %%
data = {one.verdict.task: one.verdict.data_sha256[:16] for one in kept}
{**origin(SHIPPED, PRICES), "data": data, "evidence": [one.verdict.id for one in kept], "mlflow": [one.verdict.mlflow_run for one in kept]}
