# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # How do I ask, over plain HTTP?
#
# **Conclusion.** POST to `/v1/chat/completions` as for OpenAI, with your key. `model` is `task/NAME`, a model's own name, or `auto`.
# Four headers say what became of it: `inhouse-task` and `inhouse-model` who answered what, `inhouse-why` the reason,
# `x-request-id` the row in the ledger.
#
# **Evidence.** Each way of asking, done by hand below with nothing but the standard library; any OpenAI or Anthropic SDK does the same.
#
# Runs against `make up`.

# %% tags=["parameters"]
base_url = "http://127.0.0.1:8000/v1"
home = "../.inhouse"
order = "Please confirm AB-4711. 12 pumps go to Ann Keller at our Leeds site before 3 May 2027; we pay EUR 980.50."
sum_ = "Tom picks 10 pens and Wei picks 8. They are shared equally among 2 friends. How many does each get?"

# %%
import json
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from evals.study import origin
from serving.catalog import SHIPPED

key = (Path(home) / "key").read_text().strip()


# %%
def ask(model, text, **more):
    body = {"model": model, "messages": [{"role": "user", "content": text}], **more}
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    return urlopen(Request(f"{base_url}/chat/completions", json.dumps(body).encode(), headers), timeout=120)


def show(answer):
    for name in ("inhouse-task", "inhouse-model", "inhouse-why"):
        print(f"{name:14} {answer.headers[name]}")


# %% [markdown]
# ## By task: the house chooses the model

# %%
with ask("task/extraction", order) as answer:
    show(answer)
    whole = json.load(answer)
print(whole["choices"][0]["message"]["content"])
assert answer.headers["inhouse-task"] == "extraction"

# %% [markdown]
# ## By `auto`: the house tells the task from the text
#
# `inhouse-why` has how sure it was. Below its threshold it abstains and the default task takes the request.

# %%
for text in (order, sum_):
    with ask("auto", text) as answer:
        show(answer)

# %% [markdown]
# ## By name: you choose the model
#
# No task is involved, so `inhouse-task` is empty; evidence does not reroute this.

# %%
named = whole["model"]
with ask(named, order) as answer:
    show(answer)
assert not answer.headers["inhouse-task"]

# %% [markdown]
# ## As a stream
#
# Each `data:` line is a piece, `[DONE]` is the end. A stream that is cut ends with an error event, never as if it were complete.

# %%
with ask("task/reasoning", sum_, stream=True) as answer:
    events = [line[6:].strip() for line in answer if line.startswith(b"data: ")]
pieces = [json.loads(event)["choices"] for event in events[:-1]]
"".join(choices[0]["delta"].get("content") or "" for choices in pieces if choices)

# %%
assert events[-1] == b"[DONE]"
f"{len(events)} events; the request is {answer.headers['x-request-id'][:4]}... in the ledger"

# %% [markdown]
# ## When it is refused
#
# The message says what was asked, what is so, and what to do.

# %%
try:
    ask("task/extractoin", order)
except HTTPError as refusal:
    with refusal:
        refused = json.load(refusal)["error"]
refused

# %%
assert refused["code"] == "model_not_found"

# %% [markdown]
# ## Where this came from

# %%
origin(SHIPPED, SHIPPED.parent.parent / "routing" / "routes.yaml")
