"""A run from the command to the files: what is kept, what a kill costs, what the report says, what a user is told."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import inhouse
from evals.case import Row
from evals.store import StoreError, read_run, run_ids


def last(body):
    return body["messages"][-1]["content"]


@pytest.fixture
def data(tmp_path):
    """Sixty cases, the answer to each its own number."""
    file = tmp_path / "own.jsonl"
    cases = [{"id": f"c{at}", "prompt": str(at), "expected": str(at), "slice": ("even", "odd")[at % 2]} for at in range(60)]
    file.write_text("".join(json.dumps(case) + "\n" for case in cases))
    return file


@pytest.fixture
def command(tmp_path):
    """`inhouse eval ...` with a home of its own."""

    def call(*words):
        return CliRunner().invoke(inhouse.main, ["eval", *words, "--home", str(tmp_path / "home")], catch_exceptions=False)

    return call


def test_a_run_is_kept_with_what_is_needed_to_judge_it(upstream, data, command, tmp_path):
    """One parquet of rows with the agreed columns, one run.json with hashes and settings; neither key nor address in it."""
    replies = {"4": upstream.Reply("wrong"), "5": upstream.Reply(status=500)}
    with upstream.serving(lambda body: replies.get(last(body), upstream.Reply(last(body)))) as server:
        made = command(
            "run",
            str(data),
            "--model",
            "m",
            "--base-url",
            server.base_url,
            "--scorer",
            "exact",
            "--not-sensitive",
            "--digest",
            "abc",
            "--body",
            '{"temperature": 0}',
            "--samples",
            "2",
        )
    assert made.exit_code == 0, made.output
    (run_id,) = run_ids(tmp_path / "home")
    run = read_run(tmp_path / "home", run_id[:12])
    table = pq.read_table(run.folder / "rows.parquet")
    assert tuple(table.column_names) == Row.__struct_fields__
    assert table.column_names[:13] == [
        "case_id",
        "sample",
        "slice",
        "cluster",
        "value",
        "failed",
        "ttft_s",
        "total_s",
        "prompt_tokens",
        "completion_tokens",
        "cost_usd",
        "text",
        "error",
    ]
    assert len(run.rows) == 120 == run.facts["n"]
    assert {row.case_id for row in run.rows if row.value == 0} == {"c4"}
    assert {row.case_id for row in run.rows if row.failed} == {"c5"} == {row.case_id for row in run.rows if row.value is None}
    assert (run.facts["model"], run.facts["model_digest"], run.facts["host"]) == ("m", "abc", f"127.0.0.1:{server.port}")
    assert run.facts["settings"]["request"] == {"temperature": 0} and server.asked[0]["temperature"] == 0
    assert len(run.facts["data_sha256"]) == len(run.facts["prompt_sha256"]) == 64
    said = " ".join(made.output.split())
    assert "completion 98.3%" in said and "effective success 96.7%" in said and "quality 98.3%" in said


def test_a_killed_run_goes_on_without_asking_twice(upstream, data, tmp_path):
    """After `kill -9` the same command asks only what had no answer yet: at most what was under way is asked again."""
    words = [
        sys.executable,
        "-m",
        "inhouse",
        "eval",
        "run",
        str(data),
        "--model",
        "m",
        "--scorer",
        "exact",
        "--not-sensitive",
        "--at-once",
        "4",
        "--home",
        str(tmp_path / "home"),
        "--json",
    ]
    with upstream.serving(lambda body: upstream.Reply(last(body), wait_s=0.05)) as server:
        words += ["--base-url", server.base_url]
        first = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 60
        while len(server.asked) < 25 and time.monotonic() < until:
            time.sleep(0.01)
        first.send_signal(signal.SIGKILL)
        first.wait()
        before = len(server.asked)
        assert 25 <= before < 60
        assert run_ids(tmp_path / "home") == []
        second = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120)
        asked = Counter(map(last, server.asked))
    report = json.loads(second.stdout)["report"]
    assert report["overall"]["effective"][0] == 1.0 and report["overall"]["rows"] == 60
    assert set(asked) == set(map(str, range(60))) and sum(asked.values()) <= 60 + 4 and max(asked.values()) <= 2
    assert report["cached"] == before - (sum(asked.values()) - 60)


def test_a_report_is_shown_again_and_runs_are_listed(upstream, data, command, tmp_path):
    """`report` shows what `run` showed; without an id it lists; an unknown id names those that there are."""
    assert "no runs yet" in command("report").output
    with upstream.serving(lambda body: upstream.Reply(last(body))) as server:
        made = command(
            "run", str(data), "--model", "m", "--base-url", server.base_url, "--scorer", "exact", "--not-sensitive", "--limit", "10"
        )
    (run_id,) = run_ids(tmp_path / "home")
    assert command("report").output.strip() == run_id
    shown = command("report", run_id).output
    assert shown in made.output and "even" in shown and "n=10" in shown
    as_json = json.loads(command("report", run_id, "--json").output)
    assert as_json["run"] == run_id and as_json["report"]["slices"]["odd"]["rows"] == 5
    assert run_id in command("report", "nope").output
    with pytest.raises(StoreError, match="inhouse eval run"):
        read_run(tmp_path / "nowhere", "x")


def test_fresh_asks_what_was_answered_before(upstream, data, command):
    """A name that stands for another model now must not be judged by the old one's answers."""
    words = ("run", str(data), "--model", "m", "--scorer", "exact", "--not-sensitive", "--limit", "5")
    with upstream.serving(lambda body: upstream.Reply(last(body) if len(server.asked) > 5 else "old")) as server:
        first, again, fresh, after = (command(*words, *more, "--base-url", server.base_url) for more in ((), (), ("--fresh",), ()))
        assert len(server.asked) == 10
    said = [" ".join(one.output.split()) for one in (first, again, fresh, after)]
    assert ["effective success 100.0%" in one for one in said] == [False, False, True, True]
    assert ["from the cache 5 of 5" in one for one in said] == [False, True, False, True]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("nothing-like-it",), "no suite and no file `nothing-like-it`. The shipped suites: chat, extraction"),
        (("DATA",), "how is an answer scored?"),
        (("DATA", "--scorer", "exakt"), "did you mean `exact`?"),
        (("DATA", "--scorer", "{use: numeric, tolerence: 1}"), "has no option `tolerence`; did you mean `tolerance`?"),
        (("DATA", "--scorer", "exact"), "the data counts as sensitive"),
        (("DATA", "--scorer", "exact", "--body", "[]"), "--body is a JSON object"),
        (("DATA", "--scorer", "exact", "--key-env", "NO_SUCH_NAME"), "there is no such environment variable"),
        (("DATA", "--scorer", "exact", "--base-url", "localhost"), "begins with http:// or https://"),
        (("DATA", "--scorer", "exact", "--base-url", "http:///v1"), "for example http://127.0.0.1:8000/v1"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line_that_helps(command, data, words, says):
    """Wrong names, missing scorers, undeclared data: what is so and what to do, and no traceback."""
    words = [str(data) if word == "DATA" else word for word in words]
    made = command("run", *words, "--model", "m", *([] if "--base-url" in words else ["--base-url", "http://127.0.0.1:9/v1"]))
    assert made.exit_code != 0 and says in made.output and "Traceback" not in made.output


def test_the_keys_of_this_house_go_to_no_other_address(upstream, data, command, tmp_path):
    """INHOUSE_KEY and the home's key are for this machine's router; another base URL gets only what --key-env names."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "key").write_text("house-key\n")
    ask = ("run", str(data), "--model", "m", "--scorer", "exact", "--not-sensitive", "--limit", "1")
    os.environ |= {"INHOUSE_KEY": "house-key", "THEIR_KEY": "their-key"}
    try:
        with upstream.serving(lambda body: upstream.Reply(last(body))) as server:
            assert command(*ask, "--base-url", server.base_url).exit_code == 0
            assert command(*ask, "--base-url", server.base_url, "--key-env", "THEIR_KEY", "--digest", "2").exit_code == 0
            os.environ["INHOUSE_PORT"] = str(server.port)
            assert command(*ask, "--digest", "3").exit_code == 0
            del os.environ["INHOUSE_KEY"]
            assert command(*ask, "--digest", "4").exit_code == 0
        assert server.keys == ["", "bearer their-key", "bearer house-key", "bearer house-key"]
    finally:
        for name in ("INHOUSE_KEY", "THEIR_KEY", "INHOUSE_PORT"):
            os.environ.pop(name, None)
