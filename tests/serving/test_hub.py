"""The hub's side, against a real HTTP server that speaks the hub's API (hubserver.py)."""

import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving import hub, manifest
from serving.catalog import Model, Price
from serving.download import Remote
from serving.fetch import fetch
from serving.hub import HubError
from serving.manifest import IntegrityError

_spec = importlib.util.spec_from_file_location("hubserver", Path(__file__).with_name("hubserver.py"))
assert _spec is not None and _spec.loader is not None
hubserver: Any = importlib.util.module_from_spec(_spec)
sys.modules["hubserver"] = hubserver  # dataclasses look their module up
_spec.loader.exec_module(hubserver)

REPO, REVISION = "acme/tiny", hubserver.REVISION
WEIGHTS = bytes(range(256)) * 12_000  # 3 MB
FILES = {"config.json": b'{"model_type": "llama"}', "model.safetensors": WEIGHTS, "tokenizer.json": b"{}" * 4000,
         "LICENSE": b"Apache", "README.md": b"# tiny", "pytorch_model.bin": b"pickle" * 1000, "model.gguf": b"gguf",
         "onnx/model.onnx": b"onnx", "original/consolidated.safetensors": b"copy", "1_Pooling/config.json": b"{}"}
NEEDED = {"config.json", "model.safetensors", "tokenizer.json", "LICENSE", "README.md", "1_Pooling/config.json"}


def model(**changes: Any) -> Model:
    pinned = {"name": "tiny", "license": "Apache-2.0", "price": Price(usd_per_gpu_hour=1), "repo": REPO, "revision": REVISION}
    return Model(**{**pinned, **changes})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with hubserver.running() as running:
        running.repos[REPO] = hubserver.Repo(dict(FILES), parameters={"BF16": 1000, "F32": 10})
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield running


def folder(home: Path) -> Path:
    return home / "models" / "acme--tiny" / REVISION


def test_search_gives_what_a_catalog_line_needs(server: Any) -> None:
    """Licence, size, parameters, gate and the revision to pin come with one request."""
    server.repos["acme/big"] = hubserver.Repo({}, gated=True, downloads=99)
    found = hub.search("acme", limit=5)
    assert [one.repo for one in found] == ["acme/big", REPO]
    assert (found[1].revision, found[1].license, found[1].parameters, found[1].weight_bytes) == (REVISION, "apache-2.0", 1010, 2040)
    assert (found[1].gated, found[1].last_modified, found[0].gated, found[0].parameters) == (False, "2026-10-01", True, None)
    assert [path for method, path, _, _ in server.asked if method == "GET"] == ["/api/models"]


def test_search_by_full_name_gives_that_model(server: Any) -> None:
    """The command that the catalog's error message suggests prints the current revision."""
    assert [one.revision for one in hub.search(REPO)] == [REVISION]
    assert hub.search("acme/nothing-like-it") == []


def test_fetch_takes_what_the_engine_needs_and_verifies_it(server: Any, tmp_path: Path) -> None:
    """No pickles, no copies for other programs; every byte as the hub says; the manifest is there and the parts are gone."""
    seen: list[tuple[int, int]] = []
    result = fetch(model(), tmp_path, progress=lambda there, size: seen.append((there, size)))
    assert set(result.files) == NEEDED == set(manifest.listed(folder(tmp_path)))
    assert all((folder(tmp_path) / name).read_bytes() == FILES[name] for name in NEEDED)
    assert manifest.read(folder(tmp_path)) == result and manifest.problems(folder(tmp_path)) == []
    assert (result.repo, result.revision, result.license) == (REPO, REVISION, "Apache-2.0")
    assert seen[-1] == (result.bytes, result.bytes)
    assert not (folder(tmp_path) / manifest.PARTS).exists()


def test_fetching_again_asks_the_hub_nothing(server: Any, tmp_path: Path) -> None:
    """A finished folder is looked at, not fetched."""
    fetch(model(), tmp_path)
    asked = len(server.asked)
    fetch(model(), tmp_path)
    assert len(server.asked) == asked


def test_a_cut_download_continues_at_its_byte(server: Any, tmp_path: Path) -> None:
    """Two cuts in one fetch: each time the server is asked for the rest only."""
    server.faults.cut_after["model.safetensors"] = [1_000_000, 500_000]
    fetch(model(), tmp_path)
    assert server.ranges("-/model.safetensors") == [None, "bytes=1000000-", "bytes=1500000-"]
    assert (folder(tmp_path) / "model.safetensors").read_bytes() == WEIGHTS


def test_a_server_without_ranges_is_read_from_the_start(server: Any, tmp_path: Path) -> None:
    """An answer of 200 to a Range request is the whole file; it is not appended."""
    server.faults.cut_after["model.safetensors"], server.faults.no_ranges = [1_000_000], True
    fetch(model(), tmp_path)
    assert (folder(tmp_path) / "model.safetensors").read_bytes() == WEIGHTS


def test_kill_and_fetch_again(server: Any, tmp_path: Path) -> None:
    """After kill -9 half-way nothing looks finished, and the next fetch asks only for what is missing."""
    server.faults.drip = threading.Event()
    catalog = tmp_path / "models.yaml"
    line = f"{{name: tiny, license: Apache-2.0, price: {{usd_per_gpu_hour: 1}}, repo: {REPO}, revision: '{REVISION}'}}"
    catalog.write_text(f"models:\n- {line}\n")
    command = [sys.executable, "-c", "from serving.cli import models; models()", "fetch", "--catalog", catalog, "--home", tmp_path]
    process = subprocess.Popen(command, env={**os.environ, "HF_ENDPOINT": server.url})
    parts = folder(tmp_path) / manifest.PARTS
    deadline = time.monotonic() + 30
    while not any(part.stat().st_size >= len(WEIGHTS) // 2 for part in parts.glob("*")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert manifest.read(folder(tmp_path)) is None and not manifest.is_finished(folder(tmp_path))
    server.faults.drip.set()
    server.faults.drip = None
    fetch(model(), tmp_path)
    assert server.ranges("-/model.safetensors")[-1] == f"bytes={len(WEIGHTS) // 2}-"
    assert manifest.problems(folder(tmp_path)) == []


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_wrong_bytes_leave_no_manifest(server: Any, tmp_path: Path, name: str) -> None:
    """Large files are held against their sha256, small ones against git's; the bad file is named, deleted and fetched anew."""
    server.faults.wrong_bytes.add(name)
    with pytest.raises(IntegrityError, match=rf"^{name}: the wrong bytes arrived .* the hub says"):
        fetch(model(), tmp_path)
    assert manifest.read(folder(tmp_path)) is None and not (folder(tmp_path) / name).exists()
    server.faults.wrong_bytes.clear()
    assert set(fetch(model(), tmp_path).files) == NEEDED


def test_a_finished_part_that_changed_is_fetched_again(server: Any, tmp_path: Path) -> None:
    """An unfinished folder's complete files are hashed before they count; what the hub does not list goes."""
    folder(tmp_path).mkdir(parents=True)
    (folder(tmp_path) / "config.json").write_bytes(b'{"model_type": "evil!"}')
    (folder(tmp_path) / "extra.safetensors").write_bytes(b"x")
    fetch(model(), tmp_path)
    assert manifest.problems(folder(tmp_path)) == []


def test_a_full_disk_is_seen_before_the_first_byte(server: Any, tmp_path: Path) -> None:
    """Nothing is downloaded that can't be kept."""
    with pytest.raises(HubError, match=r"needs 0\.0 GiB more, .* has 0\.0 GiB free; free some, or choose another place with INHOUSE_HOME"):
        fetch(model(), tmp_path, free_bytes=lambda _: 1000)
    assert server.ranges("-/model.safetensors") == []


@pytest.mark.skipif(os.geteuid() != 0 or not os.access("/dev/shm", os.W_OK), reason="needs to mount a small disk")
def test_a_disk_that_fills_up_on_the_way(server: Any, tmp_path: Path) -> None:
    """Another process takes the space meanwhile: one line, what arrived stays, and there is no manifest."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, check=False).returncode:
        pytest.skip("may not mount here")
    try:
        with pytest.raises(HubError, match=r"the disk under .* is full; free some space and fetch again"):
            fetch(model(), disk, free_bytes=lambda _: 10**9)
        assert manifest.read(folder(disk)) is None
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("revision", [None, "main", REVISION[:12]])
def test_an_unpinned_revision_is_refused(server: Any, tmp_path: Path, revision: str | None) -> None:
    """A branch can change under us, so it is not even asked for."""
    with pytest.raises(HubError, match="only pinned models are fetched"):
        fetch(model(revision=revision), tmp_path)
    assert server.asked == []


def test_errors_say_what_to_do(server: Any, tmp_path: Path) -> None:
    """Gated, unknown, unknown revision, refused by rate: one line each."""
    server.repos["acme/gated"] = hubserver.Repo(dict(FILES), gated=True)
    for changes, text in (({"repo": "acme/gated"}, "acme/gated@.* is gated: accept its licence at .*/acme/gated.* and set HF_TOKEN"),
                          ({"repo": "acme/none"}, "has no model acme/none@"),
                          ({"revision": "f" * 40}, "no such revision; `inhouse models search acme/tiny`"),
                          ({"repo": "no good name"}, "can't be a model's name on the hub")):
        with pytest.raises(HubError, match=text) as error:
            fetch(model(**changes), tmp_path)
        assert "\n" not in str(error.value)


def test_a_token_opens_a_gate_and_never_leaves_the_hub(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HF_TOKEN goes to the hub's own address only, not to the storage it redirects to."""
    server.repos[REPO].gated = True
    monkeypatch.setenv("HF_TOKEN", "right")
    fetch(model(), tmp_path)
    sent = {path.startswith("/storage/"): auth for _, path, _, auth in server.asked}
    assert sent == {False: "Bearer right", True: None}
    assert not any("right" in path.read_text(errors="replace") for path in folder(tmp_path).rglob("*") if path.is_file())


def test_slow_down_is_honoured(server: Any, tmp_path: Path) -> None:
    """A 429 with Retry-After while files are fetched is waited out."""
    server.faults.slow_down = []
    result = hub.remote_files(model())
    server.faults.slow_down = [0]
    assert fetch(model(), tmp_path).bytes == sum(file.size for file in result)


def test_a_hub_out_of_reach_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens there: the message names the address and the two ways out."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for call in (lambda: hub.search("x"), lambda: fetch(model(), tmp_path)):
        with pytest.raises(HubError, match=r"can't reach the hub at http://127\.0\.0\.1:9 \(.*\); set HF_ENDPOINT to a mirror, or carry"):
            call()


def test_offline_mode_is_one_line_on_the_command_line(tmp_path: Path) -> None:
    """HF_HUB_OFFLINE=1, which the serving processes have, is named when a person searches."""
    command = [sys.executable, "-W", "error", "-c", "from serving.cli import models; models()", "search", "x"]
    done = subprocess.run(command, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "Error: HF_HUB_OFFLINE is set, so the hub is not asked; unset it, or bring the model in a bundle\n"


def test_pickles_alone_are_refused(server: Any, tmp_path: Path) -> None:
    """A repository without safetensors is not fetched."""
    server.repos[REPO].files = {"config.json": b"{}", "pytorch_model.bin": b"x"}
    with pytest.raises(HubError, match="has no safetensors weights; pickled weights"):
        fetch(model(), tmp_path)


def test_names_that_climb_out_are_refused(server: Any, tmp_path: Path) -> None:
    """A hostile listing can't write beside the folder."""
    server.repos[REPO].files["../../evil.json"] = b"{}"
    with pytest.raises(IntegrityError, match="not a file name inside a model folder"):
        fetch(model(), tmp_path)
    assert not list(tmp_path.rglob("evil.json"))


def test_two_fetches_do_not_share_a_folder(server: Any, tmp_path: Path) -> None:
    """The second says so instead of writing into the first one's files."""
    from serving.fetch import alone

    with alone(folder(tmp_path)), pytest.raises(HubError, match="another fetch or import is at work"):
        fetch(model(), tmp_path)


def test_verify_names_every_file_that_is_wrong(server: Any, tmp_path: Path) -> None:
    """Changed, missing and extra files are found; a size change also by the quick look."""
    fetch(model(), tmp_path)
    path = folder(tmp_path)
    (path / "model.safetensors").write_bytes(WEIGHTS[:-1] + b"!")
    (path / "LICENSE").unlink()
    (path / "more.safetensors").write_bytes(b"")
    found = manifest.problems(path)
    assert [line.partition(": ")[0].rpartition("/")[2] for line in found] == ["LICENSE", "model.safetensors", "more.safetensors"]
    assert not manifest.is_finished(path)


def test_a_damaged_manifest_is_an_error(tmp_path: Path) -> None:
    """Neither finished nor unfinished: it says what to do."""
    folder(tmp_path).mkdir(parents=True)
    (folder(tmp_path) / manifest.NAME).write_text("{")
    with pytest.raises(IntegrityError, match=r"is damaged .* delete the folder and fetch or import it again"):
        manifest.is_finished(folder(tmp_path))


def test_choosing_files() -> None:
    """Mistral's second copy, code and foreign formats stay out; code comes in when the catalog trusts it."""
    names = ["model-1.safetensors", "consolidated.safetensors", "modeling_x.py", "tokenizer.model.v3", "a.pt", "2_Dense/model.safetensors"]
    assert hub.choose(names) == ["model-1.safetensors", "tokenizer.model.v3", "2_Dense/model.safetensors"]
    assert "modeling_x.py" in hub.choose(names, code=True)
    assert hub.choose(["consolidated.safetensors"]) == ["consolidated.safetensors"]


def test_describing_reads_headers_only(server: Any) -> None:
    """`fit` before `fetch`: config and safetensors headers, not the weights."""
    header = json.dumps({"w": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}}).encode()
    server.repos[REPO].files["model.safetensors"] = len(header).to_bytes(8, "little") + header + bytes(5_000_000)
    config, tensors = hub.describe(model())
    assert config == {"model_type": "llama"}
    assert tensors["w"].shape == (2, 3) and tensors["w"].bytes == 12
    assert server.ranges("-/model.safetensors") == ["bytes=0-100000"]


def test_no_telemetry(server: Any, tmp_path: Path) -> None:
    """The client says who it is and nothing about the machine's other software; in a process of its own, as commands are."""
    code = ("import os, sys; from pathlib import Path; from serving.catalog import Model, Price; from serving.fetch import fetch\n"
            "tiny = Model(name='tiny', license='x', price=Price(usd_per_gpu_hour=1), repo=sys.argv[1], revision=sys.argv[2])\n"
            "fetch(tiny, Path(sys.argv[3]))\n"
            "assert os.environ['HF_HUB_DISABLE_TELEMETRY'] == '1'")  # fmt: skip
    told = {name: value for name, value in os.environ.items() if name != "HF_HUB_DISABLE_TELEMETRY"}
    subprocess.run([sys.executable, "-c", code, REPO, REVISION, str(tmp_path)], env=told, check=True)
    assert server.agents
    assert all("torch" not in agent for agent in server.agents)


def test_a_part_of_other_content_is_not_continued(tmp_path: Path) -> None:
    """Half-fetched files are named by the hash they shall have."""
    one, two = (Remote("a", "", 3, digest, "") for digest in ("1" * 64, "2" * 64))
    assert one.key != two.key
