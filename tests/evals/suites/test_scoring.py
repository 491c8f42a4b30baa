"""The scorers, each with an answer that looks right and is wrong, and the scoring command against a real server."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from evals.suites.__main__ import main
from evals.suites.scoring import ask, final_number, held_out, json_equal, one_of, score_task

TARGET = {"target": '{"order": "AB-1", "quantity": 1, "total_eur": 5.0}'}


ANSWERS = {row["messages"][-1]["content"]: row["target"] for row in held_out("extraction")}
FAILING, WRONG = list(ANSWERS)[:2]


class Oracle(BaseHTTPRequestHandler):
    """Answers every held-out extraction case rightly, except that it fails on the first and is wrong on the second."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        prompt = asked["messages"][-1]["content"]
        allowed = self.headers["authorization"] == "Bearer secret" and prompt != FAILING
        content = "{}" if prompt == WRONG else ANSWERS[prompt]
        body = json.dumps({"choices": [{"message": {"content": content}}]}).encode()
        self.send_response(200 if allowed else 503)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the name is http.server's
        """Says nothing."""


@pytest.fixture
def base_url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Oracle)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


def test_json_equal_compares_values_not_letters() -> None:
    """Key order and spacing do not count."""
    assert json_equal('{"total_eur":5,"quantity":1,"order":"AB-1"}', TARGET)


@pytest.mark.parametrize(
    "answer",
    [
        '{"order": "AB-1", "quantity": "1", "total_eur": 5.0}',
        '{"order": "AB-1", "quantity": true, "total_eur": 5.0}',
        '{"order": "AB-1", "quantity": 1, "total_eur": 5.0, "note": null}',
        '{"order": "AB-1", "quantity": 1}',
        'Here it is: {"order": "AB-1", "quantity": 1, "total_eur": 5.0}',
        "",
    ],
)
def test_json_equal_refuses_what_only_looks_right(answer: str) -> None:
    """A number as text, true for 1, a key too many or too few, talk around the JSON: all wrong."""
    assert not json_equal(answer, TARGET)


def test_final_number_reads_only_the_last_line() -> None:
    """The right number in a step, before more text, or as part of a longer number does not count."""
    row = {"target": "14"}
    assert final_number("12 + 7 = 19\n19 - 5 = 14\nAnswer: 14\n", row)
    for answer in ("7 + 7 = 14\nAnswer: 15", "Answer: 14\nAnswer: 15", "Answer: 145", "Answer: 14 or 15", "14", "Answer: 14.5", ""):
        assert not final_number(answer, row)


def test_one_of_wants_a_whole_accepted_answer() -> None:
    """Letters' case and spacing are free; another name or more words are wrong."""
    row = {"accept": ["Nice to meet you, Ana!"]}
    assert one_of("nice to  meet you, Ana!", row)
    assert not one_of("Nice to meet you, Anna!", row)
    assert not one_of("Nice to meet you, Ana! Bye.", row)


def test_score_counts_right_wrong_and_failed_apart(base_url: str) -> None:
    """A failed request is wrong, and is reported as failed too."""
    report = score_task(base_url, "m", "extraction", limit=20, key="secret")
    assert (report["asked"], report["right"], report["failed"], report["valid_json"]) == (20, 18, 1, 19)
    assert report["exact"] == pytest.approx(0.9)
    assert sum(counts["asked"] for counts in report["slices"].values()) == 20
    assert [miss["answer"] for miss in report["misses"]] == [None, "{}"]


def test_score_without_the_key_gets_nothing_right(base_url: str) -> None:
    """A refused caller scores 0 instead of crashing or passing."""
    assert score_task(base_url, "m", "extraction", limit=3)["failed"] == 3
    assert ask("http://127.0.0.1:9/v1", "m", [{"role": "user", "content": "hi"}]) is None


def test_score_command_prints_a_table_or_json(base_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The command shows the same numbers in both forms."""
    arguments = ["score", "--base-url", base_url, "--model", "m", "--task", "extraction", "--limit", "10", "--key", "secret"]
    main(arguments)
    assert "8 of 10 right (80.0%)" in capsys.readouterr().out
    main([*arguments, "--json"])
    assert json.loads(capsys.readouterr().out)["right"] == 8
