"""What must be so before anything starts; each check that fails says in one line what is so and what to do."""

import json
import platform
import re
import struct
from pathlib import Path

from serving.catalog import Catalog, Model
from serving.sockets import owner

_MIB = 2**20
# Measured 2026-11-22 on two cores, resident memory: Ray, Serve and HAProxy; then the two processes of one CPU model without weights and KV.
_NODE_BYTES = 1100 * _MIB
_MODEL_BYTES = 1700 * _MIB
_DEFAULT_KV_BYTES = 4 * 2**30  # vLLM's own on a CPU
_MAX_HEADER_BYTES = 100_000_000  # the safetensors format's own limit


class PreflightError(Exception):
    """A precondition does not hold; the message says which and what to do."""


def check_machine(catalog: Catalog) -> None:
    """Enough memory for the catalog's models, and a CPU that the CPU engine runs on. Raises `PreflightError`."""
    on_cpu = [model for model in catalog.models if model.gpus == 0]
    if on_cpu:
        check_cpu(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace"), platform.machine())
    check_memory(Path("/proc/meminfo").read_text(encoding="ascii"), needed_bytes(catalog))


def check_cpu(cpuinfo: str, machine: str) -> None:
    """vLLM's CPU engine is built for AVX2 on x86-64."""
    flags = re.search(r"^flags\s*:(.*)$", cpuinfo, re.MULTILINE)
    if machine == "x86_64" and flags is not None and "avx2" not in flags.group(1).split():
        raise PreflightError("this CPU has no AVX2, which the CPU engine needs; use a machine from after 2013 or one with a GPU "
                             "(virtual machines: pass the host's CPU through)")


def check_memory(meminfo: str, needed: int) -> None:
    """`needed` bytes must be available without swapping."""
    found = re.search(r"^MemAvailable:\s*(\d+) kB", meminfo, re.MULTILINE)
    available = int(found.group(1)) * 1024 if found else needed
    if available < needed:
        raise PreflightError(f"needs about {needed / 2**30:.1f} GiB of memory, {available / 2**30:.1f} GiB are free; "
                             "end other programs or host fewer models (models.yaml)")


def needed_bytes(catalog: Catalog) -> int:
    """An estimate of what a catalog takes in this machine's memory, GPU memory aside."""
    return _NODE_BYTES + sum(model.replicas * _model_bytes(model) for model in catalog.models)


def _model_bytes(model: Model) -> int:
    if model.gpus:
        return _MODEL_BYTES * max(1, model.gpus)
    kv = model.engine.get("kv_cache_memory_bytes", _DEFAULT_KV_BYTES)
    return _MODEL_BYTES + (kv if isinstance(kv, int) else _DEFAULT_KV_BYTES)


def check_port(port: int, use: str) -> None:
    """Nobody listens on a port. Raises `PreflightError` that names who does."""
    holder = owner(port)
    if holder is not None:
        raise PreflightError(f"port {port} is in use by {holder}; end it, or: {use}")


def check_folder(model: Model, folder: Path) -> None:
    """A model's folder can be loaded: configuration and weights are there, and no weights file is cut short. Raises `PreflightError`.

    Sizes are checked against the files' own headers, not their content: that is the manifest's work.
    """
    remedy = f"fetch it again: inhouse models fetch {model.name}" if model.repo else "correct `path` in models.yaml or restore the folder"
    if not folder.is_dir():
        raise PreflightError(f"model {model.name}: there is no folder {folder}; {remedy}")
    if not (folder / "config.json").is_file():
        raise PreflightError(f"model {model.name}: {folder} has no config.json; {remedy}")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights and not any(folder.glob("*.bin")) and not any(folder.glob("*.gguf")):
        raise PreflightError(f"model {model.name}: {folder} has no weights (*.safetensors); {remedy}")
    for file in weights:
        if problem := safetensors_problem(file):
            raise PreflightError(f"model {model.name}: {file} {problem}; {remedy}")
    _check_index(model, folder, remedy)


def _check_index(model: Model, folder: Path, remedy: str) -> None:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError) as error:
        raise PreflightError(f"model {model.name}: {index} is damaged; {remedy}") from error
    if missing := sorted(name for name in names if not (folder / name).is_file()):
        raise PreflightError(f"model {model.name}: {folder} lacks {missing[0]} (of {len(missing)} missing); {remedy}")


def safetensors_problem(file: Path) -> str | None:
    """What is wrong with a safetensors file by its header and size (8 bytes of length, JSON, then the tensors' bytes); None if nothing."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
            return "is not a safetensors file or is cut short"
        try:
            header = json.loads(stream.read(length))
            end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            return "has a damaged header"
    if size != 8 + length + end:
        return f"is cut short or damaged: {size:,} bytes where its header says {8 + length + end:,}"
    return None
