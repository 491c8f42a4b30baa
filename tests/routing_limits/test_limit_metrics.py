"""What refusals, budgets, circles and costs look like to Prometheus, with label sets that no caller can blow up."""

import os
import subprocess
import sys

import pytest

COUNT = """
from msgspec.structs import replace
from routing.ledger import Row
from routing.loops import Finding
from routing.metrics import Metrics, exposition
metrics = Metrics()
row = Row(1.0, "r", 1, "k", "c", "/v1", "extraction", "small", "w", 200, "", 7, 3, True, 1.5, 2.5, team="red",
          cost_nanousd=2_500_000_000, gpu_ms=1500)
metrics.observe([row, replace(row, attempt=2, team="blue", cost_nanousd=0, gpu_ms=0)])
metrics.observe([replace(row, attempt=0, status=402, model="", error="budget_exceeded", cost_nanousd=0)] * 3)
metrics.observe([replace(row, attempt=0, status=400, error=f"e{i}", team=f"t{i}") for i in range(500)])
metrics.budget_refused("team", "usd")
metrics.found(Finding("cycle", "d", "warn"), "extraction")
print(exposition().decode())
"""


@pytest.fixture(scope="module")
def exposed(tmp_path_factory):
    """What a scrape of a router shows that counted these."""
    folder = str(tmp_path_factory.mktemp("metrics"))
    return subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True, timeout=60,
                          env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": folder}).stdout  # fmt: skip


@pytest.mark.parametrize("line", [
    'inhouse_refusals_total{code="budget_exceeded",task="extraction"} 3.0',
    'inhouse_budget_refusals_total{scope="team",unit="usd"} 1.0',
    'inhouse_loop_findings_total{kind="cycle",severity="warn",task="extraction"} 1.0',
    'inhouse_cost_usd_total{model="small",team="red"} 2.5',
    'inhouse_gpu_seconds_total{model="small",team="red"} 1.5',
])  # fmt: skip
def test_the_limits_are_counted(exposed, line):
    """Refusals by code, budgets by scope and unit, circles by kind, money and GPU time by team."""
    assert line in exposed.splitlines()


def test_labels_are_bounded(exposed):
    """Five hundred teams and codes make two hundred lines each, and one for all others."""
    for name, label in (("inhouse_refusals_total", "code"), ("inhouse_cost_usd_total", "team")):
        lines = [line for line in exposed.splitlines() if line.startswith(name)]
        assert len(lines) <= 201 and any(f'{label}="other"' in line for line in lines)
