"""Rows sampled from traffic: only where a task asks for it, and never of what is sensitive; readable as a data set."""

import json
import types

import pytest

from evals.suite import read_cases
from routing.audit_verify import verify
from routing.chain import place_of
from routing.classes import Sample
from routing.config import ConfigError, Routes, read_site
from routing.labels import Ladder
from routing.samples import Samples
from serving.catalog import read_catalog

CARD = "4539 1488 0343 6467"
SAID = {"the answer has a card": f"your card is {CARD}", "refused": "400"}
LADDER = Ladder.of(Routes(default_task="t", tasks=()))


@pytest.fixture(scope="module")
def sampling(start_router, start_upstream, say):
    """A router whose task `extraction` is sampled, whole, up to `internal`; a found e-mail address raises no class there.

    Its model says what `SAID` has for a question.
    """

    def script(model, asked):
        words = SAID.get(asked["messages"][-1]["content"], "as JSON") if "messages" in asked else ""
        if words == "400":
            return say.answer({"error": {"message": "no"}}, 400)
        if asked.get("stream"):
            return say.stream("data: [DONE]\n\n")
        if "system" in asked:
            return say.answer({"content": [{"type": "text", "text": words}], "usage": {"input_tokens": 1, "output_tokens": 1}})
        message = {"role": "assistant", "content": words}
        return say.answer({"choices": [{"message": message}], "usage": {"prompt_tokens": 1, "completion_tokens": 1}})

    tasks = [{"name": "extraction", "candidates": [{"model": "alpha"}], "sample": {"share": 1, "up_to": "internal"}},
             {"name": "chat", "candidates": [{"model": "beta"}]}]  # fmt: skip
    return start_router(cells=[f"http://127.0.0.1:{start_upstream(script).port}"], tasks=tasks, detected={"email": "public"})


def rows(router):
    """What is kept of the task."""
    file = router.home / "samples" / "extraction.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def entries(router):
    """The audit log's lines about rows."""
    files = (router.home / "state" / "audit").glob("*.jsonl")
    return [one for file in files for line in file.read_text().splitlines() if (one := json.loads(line))["kind"] == "sample"]


async def test_only_what_may_be_kept_is_kept(sampling, wait_until):
    """Of all kinds of calls the plain ones of the sampled task are rows, in a private file, as the audit log says; of others no word is."""

    async def ask(text, path="/v1/chat/completions", *, model="task/extraction", headers=None, status=200, **more):
        body = {"model": model, "messages": [{"role": "user", "content": text}], **more}
        got = await sampling.client.ask(body, path, headers=headers)
        assert got.status == status, got.body

    run = (await sampling.client.ask({}, "/v1/runs")).json["id"]
    await ask("of a run", headers={"inhouse-run": run})
    await ask("declared higher", headers={"inhouse-data-class": "confidential"})
    await ask(f"a card {CARD}")
    await ask("an address that raises no class: ann@example.com")
    await ask("the answer has a card")
    await ask("with tools", tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}])
    await ask("streamed", stream=True)
    await ask("long " * 20_000)
    await ask("refused", status=400)
    await ask("another task", model="task/chat")
    await ask("no task", model="alpha")
    await ask("plain", headers={"x-request-id": "the-plain-one"})
    await ask("also plain", "/v1/messages", system="be brief", max_tokens=9)
    wait_until(lambda: len(rows(sampling)) >= 2)
    found = rows(sampling)
    plain, also = {"role": "user", "content": "plain"}, {"role": "user", "content": "also plain"}
    assert [one["messages"] for one in found] == [[plain], [{"role": "system", "content": "be brief"}, also]]
    assert {name: found[0][name] for name in ("answer", "model", "task", "data_class", "request_id")} == {
        "answer": "as JSON", "model": "alpha", "task": "extraction", "data_class": "internal", "request_id": "the-plain-one"}  # fmt: skip
    folder = sampling.home / "samples"
    assert [file.name for file in folder.iterdir()] == ["extraction.jsonl"]
    assert (folder.stat().st_mode & 0o077, (folder / "extraction.jsonl").stat().st_mode & 0o077) == (0, 0)
    assert [case.messages[-1]["content"] for case in read_cases(folder / "extraction.jsonl")] == ["plain", "also plain"]
    wait_until(lambda: len(entries(sampling)) == 2)
    assert entries(sampling)[0]["request_id"] == "the-plain-one"
    assert verify(place_of(sampling.home))[0].ok
    assert "plain" not in sampling.log.read_text()


def call(text="hello", data_class="internal", run=None):
    """What `Samples` reads of a call."""
    body = json.dumps({"messages": [{"role": "user", "content": text}]}).encode()
    plain = types.SimpleNamespace
    return plain(asked=plain(body=body), run=run, data_class=data_class, endpoint=plain(path="/v1/chat/completions"), task="t", at=0.0,
                 request_id="r", caller=plain(name="c", team=""))  # fmt: skip


def offered(tmp_path, *calls, up_to="internal", share=1.0, detectors=(), **more):
    """The rows that are there once these calls were offered, and the audit's entries."""
    noted = []
    samples = Samples(tmp_path, noted.append, **more)
    for one in calls:
        answer = json.dumps({"choices": [{"message": {"content": "hi"}}]}).encode()
        samples.offer(Sample(share=share, up_to=up_to), one, b"inhouse-model: m\r\n", answer, ladder=LADDER, detectors=detectors)
    samples.close()
    file = tmp_path / "samples" / "t.jsonl"
    kept = [json.loads(line)["messages"][0]["content"] for line in file.read_text().splitlines()] if file.exists() else []
    return kept, noted


@pytest.mark.parametrize("data_class", ["confidential", "restricted", "", "gone"])
def test_a_class_above_the_setting_or_unknown_is_never_kept(tmp_path, data_class):
    """Fails closed: what the ladder does not know counts as the highest."""
    assert offered(tmp_path, call(data_class=data_class)) == ([], [])


def test_a_detector_that_fails_keeps_nothing(tmp_path):
    """What could not be looked at is not written."""

    def broken(text):
        raise ValueError(text)

    assert offered(tmp_path, call(), detectors=(broken,)) == ([], [])


def test_a_file_is_full_at_its_bound_and_goes_on_when_it_is_moved(tmp_path, caplog):
    """No file grows past its bound; that is said once, and moving the file away lets sampling go on."""
    kept, noted = offered(tmp_path, *(call(f"row {n}") for n in range(30)), file_bytes=1000)
    assert 0 < len(kept) == len(noted) < 30
    assert (tmp_path / "samples" / "t.jsonl").stat().st_size <= 1000
    assert caplog.text.count("is full") == 1
    (tmp_path / "samples" / "t.jsonl").rename(tmp_path / "mine.jsonl")
    assert offered(tmp_path, call("later"), file_bytes=1000)[0] == ["later"]


def test_a_link_in_its_place_is_not_followed(tmp_path):
    """Nobody can have rows written elsewhere."""
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "t.jsonl").symlink_to(tmp_path / "elsewhere")
    assert offered(tmp_path, call())[0] == []
    assert not (tmp_path / "elsewhere").exists()


def test_a_share_is_a_share(tmp_path):
    """About as many rows as asked for: of 30 calls at one in a million none, at one in one all."""
    assert offered(tmp_path, *(call() for _ in range(30)), share=1e-6)[0] == []
    assert len(offered(tmp_path, *(call() for _ in range(30)))[0]) == 30


@pytest.mark.parametrize(("sample", "says"), [
    ({"share": 0, "up_to": "internal"}, "a share is a number above 0"), ({"share": 2, "up_to": "internal"}, "at most 1"),
    ({"share": 0.1, "up_to": "intern"}, "no data class `intern`; did you mean `internal`"), ({"share": 0.1}, "up_to"),
])  # fmt: skip
def test_a_wrong_setting_is_told(tmp_path, sample, says):
    """Opting in says how much and up to which class, or the file is not taken."""
    tasks = [{"name": "a", "candidates": [{"model": "m"}], "sample": sample}]
    (tmp_path / "routes.yaml").write_text(json.dumps({"default_task": "a", "tasks": tasks}))
    models = [{"name": "m", "path": ".", "license": "x", "price": {"usd_per_gpu_hour": 1}}]
    (tmp_path / "models.yaml").write_text(json.dumps({"models": models}))
    with pytest.raises(ConfigError, match=says):
        read_site(tmp_path / "routes.yaml", read_catalog(tmp_path / "models.yaml"))
