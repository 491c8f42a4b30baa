# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Which model can I host on my machines?
#
# **Conclusion.** The last table: per machine the models that fit, and for each that does not, the smallest change that would make it.
# A model that fits and whose licence you accept is worth measuring; whether it is *good enough* is `30_compare_with_hosted`'s question.
#
# **Evidence.** Weights and cache are summed from the models' own files, what the engine takes beside them is a range whose high end
# counts. The hub says licence and size where it can be reached; **offline the list is the local catalog's and says so.**
#
# Needs no running house.

# %% tags=["parameters"]
query = "Qwen3"
licences = ["apache-2.0", "mit"]
machines = [
    {"name": "gpu1", "gpus": 1, "gpu_memory_bytes": 80 * 2**30, "ram_bytes": 256 * 2**30},
    {"name": "office", "ram_bytes": 16 * 2**30},
    {"name": "tiny", "ram_bytes": 2**30},
]
base_url = "http://127.0.0.1:8000/v1"
home = "../.inhouse"

# %%
from pathlib import Path

from evals.study import CommandError, command, origin
from serving.catalog import SHIPPED, read_catalog
from serving.fit import Node, fit, gib, read_subject

home = Path(home).resolve()
catalog = read_catalog()
nodes = [Node(**machine) for machine in machines]

# %% [markdown]
# ## What there is

# %%
try:
    found, source = command("models", "search", query), "the hub"
except CommandError as error:
    found, source = [], f"THE LOCAL CATALOG, not the hub: {error}"
print(f"from {source}")

# %%
offered = [(one["repo"], one["license"], one["weight_bytes"]) for one in found]
offered = offered or [(one.name, one.license, None) for one in catalog.models]
for name, licence, size in offered:
    print(f"{name:44} {licence:14} {gib(size) if size else ''}")

# %% [markdown]
# ## Which licences I accept
#
# A licence is a person's decision: the list in the parameters is yours. What is not on it needs reading, not hope.

# %%
for name, licence, _ in offered:
    print(f"{name:44} {'accepted' if licence.lower() in licences else f'read it first: {licence}'}")

# %% [markdown]
# ## What fits on my machines
#
# To size one of the hub's, put it in `models.yaml` with its pinned revision (`inhouse models search` prints it) and call
# `inhouse models fit NAME`: that reads its headers there, no weights. Here are those whose files this machine has.

# %%
fetched = [model for model in catalog.models if (model.folder(home, SHIPPED.parent) / "config.json").is_file()]
subjects = [read_subject(model, home, SHIPPED.parent, describe=None) for model in fetched]
answers = [fit(subject, node) for subject in subjects for node in nodes]
for answer in answers:
    print(answer.sentence)

# %% [markdown]
# ## Where the memory goes

# %%
for answer in answers:
    runtime = f"{gib(answer.other_low_bytes)} to {gib(answer.other_high_bytes)}"
    print(f"{answer.model:16} {answer.node:8} {answer.verdict:6} weights {gib(answer.weights_bytes):10} runtime {runtime:22} "
          f"cache {gib(answer.kv_low_bytes)}")  # fmt: skip

# %%
assert all(answer.changes or answer.verdict == "fits" or answer.reason for answer in answers)

# %% [markdown]
# ## Where this came from

# %%
{"list": source, **origin(SHIPPED)}
