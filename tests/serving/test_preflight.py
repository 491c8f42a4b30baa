"""Preconditions: each that fails says in one line what is so and what to do."""

import json
import socket
from pathlib import Path

import pytest

from serving.catalog import Catalog, Model, Price
from serving.preflight import PreflightError, check_cpu, check_folder, check_memory, check_port, needed_bytes

MODEL = Model(name="m", license="MIT", price=Price(usd_per_gpu_hour=1.0), path="m", engine={"kv_cache_memory_bytes": 2**26})


def _weights(path: Path, *, end: int = 4, content: bytes = b"1234") -> None:
    header = json.dumps({"t": {"dtype": "F16", "shape": [2], "data_offsets": [0, end]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + content)


def test_a_cpu_without_avx2_is_refused() -> None:
    """vLLM's CPU engine would die of an illegal instruction."""
    with pytest.raises(PreflightError, match="no AVX2"):
        check_cpu("flags\t\t: fpu sse4_2 avx\n", "x86_64")
    check_cpu("flags\t\t: fpu avx avx2\n", "x86_64")
    check_cpu("Features\t: fp asimd\n", "aarch64")


def test_too_little_memory_is_refused_with_both_figures() -> None:
    """Before anything starts, not by the kernel in the middle of it."""
    with pytest.raises(PreflightError, match=r"needs about 4\.0 GiB of memory, 2\.0 GiB are free"):
        check_memory("MemTotal: 9 kB\nMemAvailable:    2097152 kB\n", 4 * 2**30)
    check_memory("MemAvailable:    8388608 kB\n", 4 * 2**30)


def test_the_estimate_grows_with_models_and_replicas() -> None:
    """The demo's two models are held to the 5 GB that the whole may take."""
    assert needed_bytes(Catalog(models=(MODEL, MODEL))) < 5e9
    assert needed_bytes(Catalog(models=(MODEL, MODEL))) > needed_bytes(Catalog(models=(MODEL,)))


def test_a_port_in_use_names_who_holds_it() -> None:
    """A person can end that program without looking for it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PreflightError, match=rf"port {port} is in use by .+ \(pid \d+\); end it, or: choose another"):
            check_port(port, "choose another")
    check_port(port, "choose another")


def test_a_whole_model_folder_passes(tmp_path: Path) -> None:
    """Configuration, weights of the size their header says."""
    (tmp_path / "config.json").write_text("{}")
    _weights(tmp_path / "model.safetensors")
    check_folder(MODEL, tmp_path)


@pytest.mark.parametrize(("name", "problem"), [
    ("nothing", "there is no folder"), ("no config", "has no config.json"), ("no weights", "has no weights"),
    ("cut", "is cut short or damaged"), ("not a safetensors", "is not a safetensors file"), ("shard gone", "lacks b.safetensors")])
def test_a_broken_model_folder_is_one_line(tmp_path: Path, name: str, problem: str) -> None:
    """Whatever is wrong, the message names the model and what to do."""
    folder = tmp_path / "m"
    if name != "nothing":
        folder.mkdir()
    if name not in ("nothing", "no config"):
        (folder / "config.json").write_text("{}")
    if name == "cut":
        _weights(folder / "model.safetensors", end=400)
    elif name == "not a safetensors":
        (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    elif name == "shard gone":
        _weights(folder / "a.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"t": "a.safetensors", "u": "b.safetensors"}}))
    with pytest.raises(PreflightError, match=rf"^model m: [^\n]*{problem}[^\n]*; correct `path` in models.yaml or restore the folder$"):
        check_folder(MODEL, folder)
