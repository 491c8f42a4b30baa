"""Where packages come from is the machine's own pip and apt configuration, or asked: no file of the house names a registry's host."""

from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
# Spelled apart, so that this file names none either.
NAMES = ("deb debian org", "security debian org", "archive ubuntu com", "pypi org", "files pythonhosted org", "download pytorch org",
         "developer download nvidia com", "nvcr io", "docker io", "registry npmjs org", "conda anaconda org", "galaxy ansible com")
REGISTRIES = tuple(name.replace(" ", ".") for name in NAMES)
LAST_RESORT = ("Makefile", REGISTRIES[5])  # PyTorch's CPU build is on no general index, and `TORCH_INDEX` names another place
BUILT = {".git", ".venv", ".inhouse", ".uv-cache", "build", "dist", "mlruns"}


def named(texts: Iterable[tuple[str, str]]) -> list[str]:
    """Files with the host that they name."""
    return [f"{file}: {host}" for file, text in texts for host in REGISTRIES if host in text and (file, host) != LAST_RESORT]


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
    assert len(looked_at) > 300 and named([("ansible/x.yml", f"bundle_mirror: http://{REGISTRIES[0]}/debian")])
