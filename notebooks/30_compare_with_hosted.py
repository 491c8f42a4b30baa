# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Is our own model good enough, beside a hosted one?
#
# **Conclusion.** The verdict under "Decide" says it, for this task and these cases: *better*, *not worse by more than the margin*,
# *worse*, or *not enough evidence* and about how many more cases. Only the first two let our model take the task.
#
# **Evidence.** Both models answer the same cases; the interval is of the paired difference in effective success, where a failed
# request is a failure. Without a key for the hosted model a local **stand-in** answers in its place, billed at the hosted model's
# published price: then the verdict is about the stand-in, and every record says so.
#
# Runs against `make up`.

# %% tags=["parameters"]
task = "extraction"
ours = "demo-extractor"
theirs, their_url, their_key = "openai/gpt-5-nano", "https://api.openai.com/v1", "OPENAI_API_KEY"
stand_in = "demo-generalist"
base_url = "http://127.0.0.1:8000/v1"
home = "../.inhouse"
margin = 0.02
utilisation = 0.3  # of our own machines: what they cost an hour is in models.yaml
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
from evals.study import ask, billed, hosted, own_listed, provenance
from serving.catalog import SHIPPED, read_catalog

home = Path(home).resolve()
key = (home / "key").read_text().strip()
listed = read_catalog().named(ours).price
own = {ours: own_listed(usd_per_gpu_hour=listed.usd_per_gpu_hour, tokens_per_s=listed.tokens_per_s, utilisation=utilisation)}
prices = msgspec.structs.replace(read_prices(), own=own)
plots.offline()

# %% [markdown]
# ## Who stands beside ours

# %%
local = Endpoint(base_url, stand_in, key=key, onprem=True)
other = hosted(theirs, their_url, their_key, local, prices)
f"compared with: {other.name}, at {other.price.input} USD in and {other.price.output} USD out per million tokens ({prices.date})"

# %% [markdown]
# ## Ask

# %%
incumbent = billed(ask(task, other.endpoint, home, limit=limit), other)
candidate = ask(task, Endpoint(base_url, ours, key=key, onprem=True), home, limit=limit)

# %% [markdown]
# ## Decide

# %%
made = compare([pair(incumbent, candidate)], margin=margin)[0]
kept = tracking.keep(home, made, prices)
print("\n".join(lines(kept, prices)))

# %%
plots.intervals([kept.verdict])

# %% [markdown]
# ## Where this came from

# %%
assert kept.verdict.data_sha256 == candidate.facts["data_sha256"] == incumbent.facts["data_sha256"]
{**provenance(candidate, SHIPPED, PRICES), "comparison": kept.verdict.id, "mlflow": kept.verdict.mlflow_run}
