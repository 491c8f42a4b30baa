"""A model without a price is no model: nothing could be reserved for it, and budgets would never stop it."""

import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

import inhouse


@pytest.mark.parametrize("price", [None, {}, {"tokens_per_s": 100}, {"usd_per_million_input_tokens": 1}])
def test_check_fails_and_the_router_does_not_start(tmp_path, write_site, price):
    """No price, an empty one, half of one: `inhouse check` names the model's line, and the router ends before it listens."""
    write_site(tmp_path, cells=["http://127.0.0.1:9"], limits={}, taught=False)
    models = json.loads((tmp_path / "models.yaml").read_text())
    del models["models"][1]["price"]
    if price is not None:
        models["models"][1]["price"] = price
    (tmp_path / "models.yaml").write_text(json.dumps(models, indent=1))
    named = {f"INHOUSE_{name}": str(tmp_path / path) for name, path in
             (("HOME", ""), ("MODELS", "models.yaml"), ("ROUTES", "routes.yaml"))}  # fmt: skip
    checked = CliRunner().invoke(inhouse.main, ["check", "--home", str(tmp_path)], env=named)
    assert checked.exit_code == 1 and "models.yaml:" in checked.output and "price" in checked.output
    if price is None or "tokens_per_s" in price:  # starting takes a second
        started = subprocess.run([sys.executable, "-m", "routing.server"], env={**os.environ, **named, "INHOUSE_PORT": "0"},
                                 capture_output=True, text=True, timeout=60, check=False)  # fmt: skip
        assert started.returncode != 0 and "price" in started.stderr and "Traceback" not in started.stderr
