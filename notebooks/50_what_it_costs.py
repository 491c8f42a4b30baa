# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What does a task cost on our own machines?
#
# **Conclusion.** It depends on how busy they are: half the use doubles the price of each task. The last table names the utilisation
# above which our model is cheaper than each hosted one, per *successful* task; "never" means not even at full use.
#
# **Evidence.** A run under open-loop load gives the tokens a second that the machine does while it meets a latency goal; what it
# costs an hour is yours to say. At the mix of tokens that was measured, the split between prompts and answers does not change the
# sum.
#
# Runs against `make up`. Raise `rate_per_s` until the goal is missed: the last rate that held it is what your machine can do.

# %% tags=["parameters"]
task = "extraction"
model = "demo-extractor"
base_url = "http://127.0.0.1:8000/v1"
home = "../.inhouse"
rate_per_s, slo_ttft_s = 2.0, 2.0
usd_per_gpu_hour, gpus = 0.05, 1
rivals = ["openai/gpt-5-nano", "openai/gpt-5-mini"]
limit = 60

# %%
from pathlib import Path
from statistics import fmean

from evals import plots
from evals.client import Endpoint
from evals.cost import SHIPPED as PRICES
from evals.cost import break_even, own_price, read_prices, usd
from evals.load import Load
from evals.report import report
from evals.study import ask, own_measured, provenance

home = Path(home).resolve()
key = (home / "key").read_text().strip()
prices = read_prices()
hosted = {name: prices.hosted[name] for name in rivals}
plots.offline()

# %% [markdown]
# ## What the machine does while it meets the goal

# %%
run = ask(task, Endpoint(base_url, model, key=key, onprem=True), home, limit=limit, load=Load(rate_per_s=rate_per_s, slo_ttft_s=slo_ttft_s))
own = own_measured(run, usd_per_gpu_hour=usd_per_gpu_hour, gpus=gpus, prefill_share=0.5)
own

# %%
done = [row for row in run.rows if not row.failed]
tokens = fmean(row.prompt_tokens for row in done), fmean(row.completion_tokens for row in done)
success = {model: report(run.rows).overall.effective.value}
{"tokens in": tokens[0], "tokens out": tokens[1], "effective success": success[model]}

# %% [markdown]
# ## The price of a task over utilisation
#
# Hosted models are shown as if they were always right: what they cost at least. `30_compare_with_hosted` measures them.

# %%
plots.cost_curve({model: own}, hosted, *tokens, success)

# %% [markdown]
# ## Break-even

# %%
crossing = {name: break_even(own, price, *tokens, own_success=success[model]) for name, price in hosted.items()}
for name, at in crossing.items():
    print(f"{name:24} {'never' if at is None else f'above {at:.2%} utilisation'}")

# %%
for name, at in crossing.items():
    if at:
        assert abs(usd(own_price(own, at), *tokens) / success[model] / usd(hosted[name], *tokens) - 1) < 1e-9

# %% [markdown]
# ## Where this came from

# %%
{**provenance(run, PRICES), "prices": prices.date, **run.facts["load"]}
