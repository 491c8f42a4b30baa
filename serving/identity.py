"""What tells a model's weights apart from others of the same name: a digest that is cheap enough to be taken at every look.

Does not prove that files are whole; `manifest` does.
"""

import hashlib
from functools import lru_cache
from pathlib import Path

from serving import manifest

_LOADED = {".bin", ".gguf", ".jinja", ".json", ".model", ".pt", ".safetensors", ".txt"}
_WHOLE_BYTES = 64 << 20
_SAMPLES = 64
_SAMPLE_BYTES = 64 << 10


def digest_of(folder: Path) -> str:
    """A SHA-256 in hex that changes when what the engine loads from a folder changes; empty where nothing is there or can be read.

    With a manifest it is the manifest's own. Without one it is over the names and bytes of configuration, tokenizer and weights; of a file
    above 64 MiB over its size and 64 samples of 64 KiB from end to end, so a change of a few weights in one of those may go unseen.
    """
    try:
        if (kept := manifest.read(folder)) is not None:
            return kept.digest
        files = [path for path in sorted(folder.iterdir()) if path.suffix in _LOADED and path.is_file()]
        lines = "".join(f"{path.name}\0{_digest(path, (stat := path.stat()).st_size, stat.st_mtime_ns)}\n" for path in files)
    except (OSError, manifest.IntegrityError):
        return ""
    return hashlib.sha256(lines.encode()).hexdigest() if lines else ""


@lru_cache(maxsize=4096)
def _digest(path: Path, size: int, _mtime_ns: int) -> str:
    """Of one file. Size and time are in the cache's key: a file that keeps both is not read again."""
    if size <= _WHOLE_BYTES:
        return manifest.hash_file(path).sha256
    made = hashlib.sha256(str(size).encode())
    with path.open("rb") as stream:
        for nth in range(_SAMPLES):
            stream.seek(nth * (size - _SAMPLE_BYTES) // (_SAMPLES - 1))
            made.update(stream.read(_SAMPLE_BYTES))
    return made.hexdigest()
