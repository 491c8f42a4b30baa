# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What runs here, and what can I ask it?
#
# **Conclusion.** A house of models behind one address. You ask for a *task* and get the model that evidence chose for it; you can also
# ask for a model by name, or for `auto`. The table below lists all three; the question after it was answered by the task's own model.
#
# **Evidence.** The house's own list, and one answer with the headers that say how it came about.
#
# Runs against `make up`.

# %% tags=["parameters"]
base_url = "http://127.0.0.1:8000/v1"
home = "../.inhouse"
question = "Please confirm AB-4711. 12 pumps go to Ann Keller at our Leeds site before 3 May 2027; we pay EUR 980.50."

# %%
import json
from pathlib import Path
from urllib.request import Request, urlopen

from evals.study import origin
from evals.suite import read_suite, shipped
from serving.catalog import SHIPPED, read_catalog

key = (Path(home) / "key").read_text().strip()
headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}

# %% [markdown]
# ## What my key opens

# %%
with urlopen(Request(f"{base_url}/models", headers=headers)) as answer:
    listed = json.load(answer)["data"]
for one in listed:
    print(one["id"])
assert "auto" in {one["id"] for one in listed}

# %% [markdown]
# ## One question

# %%
body = json.dumps({"model": "auto", "messages": [{"role": "user", "content": question}]}).encode()
with urlopen(Request(f"{base_url}/chat/completions", body, headers)) as answer:
    said = json.load(answer)["choices"][0]["message"]["content"]
    why = {name: value for name, value in answer.headers.items() if name.startswith("inhouse-")}
print(said)
why

# %%
assert why["inhouse-task"] and why["inhouse-model"]

# %% [markdown]
# ## What is hosted, and what can be measured

# %%
for model in read_catalog().models:
    print(f"{model.name:18} {model.license:12} {model.description}")

# %%
for name in shipped():
    print(f"{name:12} {len(read_suite(name).cases)} cases")

# %% [markdown]
# ## Where things are
#
# | question | notebook |
# |---|---|
# | Which model fits my machines, and may I use it? | `10_choose_a_model` |
# | How do I ask, over plain HTTP? | `20_ask` |
# | Is ours good enough beside a hosted one? | `30_compare_with_hosted` |
# | Which model gets which task? | `40_decide_routes` |
# | What does a task cost on our own machines? | `50_what_it_costs` |
#
# `serving/models.yaml` says what is hosted, `routing/routes.yaml` who answers what; keys, runs and evidence are in the home (`.inhouse`).
# `inhouse status` shows what runs, `inhouse usage` what was asked.

# %% [markdown]
# ## Where this came from

# %%
origin(SHIPPED, SHIPPED.parent.parent / "routing" / "routes.yaml")
