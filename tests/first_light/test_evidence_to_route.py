"""Evals' acceptance, by the commands of a user: two runs, a verdict, a promotion that a request shows, a rollback, MLflow's page."""

import json
import urllib.error
import urllib.request

import pytest

from serving.processes import marked
from serving.sockets import held_by, listeners

pytestmark = pytest.mark.slow
ORDER = "Please confirm AB-4711. 12 pumps go to Ann Keller at our Leeds site before 3 May 2027; we pay EUR 980.50."


@pytest.fixture
def house(house):
    """The house with extraction at the generalist, as if nobody had measured yet; afterwards as it was."""
    before = house.routes.read_text()
    given = "candidates: [{model: demo-extractor}]\n    fallbacks: [demo-generalist]\n"
    assert before.count(given) == 1
    house.routes.write_text(before.replace(given, "candidates: [{model: demo-generalist}]\n    fallbacks: [demo-extractor]\n"))
    try:
        assert house.eventually(lambda: answers(house) == "demo-generalist", 30)
        yield house
    finally:
        house.routes.write_text(before)
        assert house.eventually(lambda: answers(house) == "demo-extractor", 30)


def answers(house):
    """Who answers an order, by the header that `curl -i` shows."""
    body = {"model": "task/extraction", "max_tokens": 1, "messages": [{"role": "user", "content": ORDER}]}
    headers = {"Authorization": f"Bearer {house.key}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{house.url}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        return response.headers["inhouse-model"]


def told(house, *words):
    """The JSON that a command prints."""
    done = house.command(*words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def page(house, path, **body):
    """(status, JSON or text) of MLflow's page."""
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(f"http://127.0.0.1:{house.mlflow_port}{path}", data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            text = response.read().decode()
            return response.status, json.loads(text) if "json" in response.headers["Content-Type"] else text
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_a_verdict_changes_the_live_route_and_is_on_mlflows_page(house):
    """Measured better, the specialist takes the task from the generalist and a request shows it; rolled back, the generalist has it again.

    The other way round the verdict is "worse" and the promotion is refused. The page that `inhouse up` started shows all of it.
    """
    runs = {model: told(house, "eval", "run", "extraction", "--model", model, "--limit", "40")["run"]
            for model in ("demo-generalist", "demo-extractor")}  # fmt: skip
    both = told(house, "eval", "compare", runs["demo-generalist"], runs["demo-extractor"], runs["demo-extractor"], runs["demo-generalist"])
    assert [one["verdict"] for one in both] == ["better", "worse"]
    refused = house.command("routes", "promote", "--task", "extraction", "--to", "demo-generalist", "--evidence", both[1]["id"])
    assert refused.returncode == 1 and "only `better` and `not worse` promote" in refused.stderr
    done = house.command("routes", "promote", "--task", "extraction", "--to", "demo-extractor", "--evidence", both[0]["id"])
    assert done.returncode == 0, done.stderr
    assert house.eventually(lambda: answers(house) == "demo-extractor", 30)
    assert both[0]["id"] in house.routes.read_text()
    done = house.command("routes", "rollback")
    assert done.returncode == 0, done.stderr
    assert house.eventually(lambda: answers(house) == "demo-generalist", 30)
    is_on_the_page(house, both)


def is_on_the_page(house, verdicts):
    """The page's own REST API lists the comparisons with their verdicts, shows their files, and does nothing else; all on loopback."""
    experiment = page(house, "/api/2.0/mlflow/experiments/get-by-name?experiment_name=task/extraction")[1]["experiment"]["experiment_id"]
    found = page(house, "/api/2.0/mlflow/runs/search", experiment_ids=[experiment], filter="tags.`inhouse.task` = 'extraction'")[1]["runs"]
    tags = [{tag["key"]: tag["value"] for tag in run["data"]["tags"]} for run in found]
    assert {(one["inhouse.comparison"], one["inhouse.verdict"]) for one in tags} >= {(one["id"], one["verdict"]) for one in verdicts}
    status, report = page(house, f"/get-artifact?path=report.html&run_uuid={verdicts[0]['mlflow_run']}")
    assert status == 200 and "demo-extractor" in report
    assert page(house, "/")[1].startswith("<!doctype html>")
    assert page(house, "/ajax-api/3.0/mlflow/assistant/config")[0] == 403
    assert json.loads(house.command("status", "--json").stdout)["mlflow"]["is_running"]
    assert f"http://127.0.0.1:{house.mlflow_port}\n" in house.said
    inodes = set().union(*(held_by(pid) for pid in marked(str(house.home.resolve()))))
    ours = [one for one in listeners() if one.inode in inodes]
    assert {house.port, house.mlflow_port} <= {one.port for one in ours}
    assert [one for one in ours if not one.is_loopback] == []
