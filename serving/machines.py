"""The machines that models may go on, as far as memory is concerned: from options, a YAML list, or this machine itself.

Starts nothing and knows no models.
"""

import re
import subprocess
from pathlib import Path

import msgspec

from serving.strict import ConfigError, Document, nearest

_UNITS = {"": 1, "b": 1, "k": 10**3, "kb": 10**3, "m": 10**6, "mb": 10**6, "g": 10**9, "gb": 10**9, "t": 10**12, "tb": 10**12,
          "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


class Node(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One machine: its GPUs (all alike) and its memory, in bytes."""

    name: str
    gpus: int = 0
    gpu_memory_bytes: int = 0
    gpu_type: str | None = None
    ram_bytes: int = 0


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: str
    gpus: int = 0
    gpu_memory: str | int = 0
    gpu_type: str | None = None
    ram: str | int = 0


class _Lines(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    nodes: tuple[_Line, ...]


def read_nodes(path: Path) -> list[Node]:
    """The machines of a file such as `nodes: [{name: gpu1, gpus: 4, gpu_memory: 80GiB, ram: 512GiB}]`. Raises `ConfigError`."""
    document = Document(path)
    return [_node(line, document.error(f"$.nodes[{i}]", "")) for i, line in enumerate(document.read(_Lines).nodes)]


def parse_node(text: str) -> Node:
    """The machine of an option such as `name=gpu1,gpus=4,gpu_memory=80GiB,gpu_type=h100,ram=512GiB`. Raises `ConfigError`."""
    pairs = dict(part.strip().partition("=")[::2] for part in text.split(","))
    known = [field.name for field in msgspec.structs.fields(_Line)]
    for key in pairs:
        if key not in known:
            raise ConfigError(f"--node {text}: unknown key `{key}`{nearest(key, known)}")
    try:
        return _node(msgspec.convert(pairs, _Line, strict=False), ConfigError(f"--node {text}: "))
    except msgspec.ValidationError as error:
        raise ConfigError(f"--node {text}: {error}; write it like name=gpu1,gpus=4,gpu_memory=80GiB,ram=512GiB") from error


def _node(line: _Line, where: ConfigError) -> Node:
    node = Node(name=line.name, gpus=line.gpus, gpu_memory_bytes=_bytes(line.gpu_memory, where), gpu_type=line.gpu_type,
                ram_bytes=_bytes(line.ram, where))
    if node.gpus < 0 or (node.gpus > 0) != (node.gpu_memory_bytes > 0):
        raise ConfigError(f"{where}`{node.name}` needs both `gpus` and `gpu_memory` (of one GPU), or neither")
    return node


def _bytes(size: str | int, where: ConfigError) -> int:
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)", str(size).strip().lower())
    if found is None or found.group(2) not in _UNITS:
        raise ConfigError(f"{where}`{size}` is not a size; write it like 80GiB or 512GB")
    return int(float(found.group(1)) * _UNITS[found.group(2)])


def this_machine(nvidia_smi: str = "nvidia-smi", meminfo: Path = Path("/proc/meminfo")) -> Node:
    """This machine: its GPUs if the NVIDIA driver's program finds any, and its memory."""
    gpus = _gpus(nvidia_smi)
    total = re.search(r"MemTotal:\s+(\d+) kB", meminfo.read_text(encoding="ascii")) if meminfo.exists() else None
    return Node(name="this machine", gpus=len(gpus), gpu_memory_bytes=min((size for size, _ in gpus), default=0),
                gpu_type=gpus[0][1] if gpus else None, ram_bytes=int(total.group(1)) * 1024 if total else 0)


def _gpus(nvidia_smi: str) -> list[tuple[int, str]]:
    """(bytes, name) of each GPU."""
    asked = [nvidia_smi, "--query-gpu=memory.total,name", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=20).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return []
    found = [line.partition(",") for line in lines if line.partition(",")[0].strip().isdigit()]
    return [(int(size) * 2**20, name.strip()) for size, _, name in found]
