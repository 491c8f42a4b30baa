"""Where packages come from is the machine's own pip and apt configuration, or asked: no file of the house names a registry's host."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
# The first 16 hexadecimal digits of SHA-256 of each host's name: those of Debian, Ubuntu, PyPI (two), PyTorch, NVIDIA (two), Docker, npm,
# conda and Ansible, as this file is to name none either.
REGISTRIES = frozenset((
    "e680c440a2e92079", "1ba4e37997a2e986", "a0f007d863a0ed19", "a4aa2ac280bb8d1a", "c899567ee9068517", "03e390c8d8a6f2cf",
    "e56002408dd4d44e", "0bf8a811d2e271e8", "3530c4415dd857fb", "0dc11026ac75c015", "4db460c55b85212e", "57630988f95417c0",
))  # fmt: skip
LAST_RESORT = ("Makefile", "03e390c8d8a6f2cf")  # PyTorch's CPU build is on no general index, and `TORCH_INDEX` names another place
HOST = re.compile(r"[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+")
BUILT = {".git", ".venv", ".inhouse", ".uv-cache", "build", "dist", "mlruns"}


def digest(host: str) -> str:
    """A host as `REGISTRIES` has it."""
    return hashlib.sha256(host.lower().encode()).hexdigest()[:16]


def named(texts: Iterable[tuple[str, str]], registries: frozenset[str] = REGISTRIES) -> list[str]:
    """Files with the host that they name, under whatever other name in front of it."""
    found = []
    for file, text in texts:
        for host in sorted(set(HOST.findall(text))):
            labels = host.split(".")
            told = {digest(".".join(labels[i:])) for i in range(len(labels) - 1)} & registries
            found += [f"{file}: {host}" for one in told if (file, one) != LAST_RESORT]
    return found


def texts() -> Iterator[tuple[str, str]]:
    """Every file of the checkout with its text, without what was built in it."""
    for path in sorted(ROOT.rglob("*")):
        inside = path.relative_to(ROOT)
        is_ours = not BUILT & set(inside.parts) and "cache" not in str(inside.parent) and path.suffix != ".safetensors"
        if is_ours and path.is_file():
            yield str(inside), path.read_text(encoding="utf-8", errors="replace")


def test_no_registry_is_named():
    """A site behind mirrors of its own has nothing to find and override; and the check can fail."""
    looked_at = dict(texts())
    assert named(looked_at.items()) == []
    planted = [("ansible/x.yml", "bundle_mirror: http://deb.registry.example/debian")]
    assert len(looked_at) > 300 and named(planted, frozenset((digest("registry.example"),)))
