"""The checksum manifest of a model folder: written last, so that a folder without one is unfinished and never used.

Does not know where the files came from; `hub` and `bundle` do.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import msgspec

NAME = "inhouse-manifest.json"
PARTS = ".inhouse-parts"  # half-fetched files; gone once the manifest is there
_CHUNK = 1 << 20


class IntegrityError(Exception):
    """Files are not what their checksums say, or not what may be there. The message names the file and what to do."""


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of a model: its size in bytes and the SHA-256 of its bytes in hex."""

    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a finished model folder holds. `repo` and `revision` are None for a model that never was on a hub."""

    format: int = 1
    repo: str | None = None
    revision: str | None = None
    license: str
    files: dict[str, File]

    @property
    def bytes(self) -> int:
        """The size of all files together."""
        return sum(file.size for file in self.files.values())

    @property
    def digest(self) -> str:
        """A SHA-256 over names, sizes and checksums: equal for equal content, wherever it came from."""
        lines = "".join(f"{name}\0{file.size}\0{file.sha256}\n" for name, file in sorted(self.files.items()))
        return hashlib.sha256(lines.encode()).hexdigest()


def safe_name(name: str) -> str:
    """A relative file name that stays below its folder. Raises `IntegrityError` for any other."""
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or str(path) != name:
        raise IntegrityError(f"`{name!r}` is not a file name inside a model folder; refused")
    return name


def read(folder: Path) -> Manifest | None:
    """The folder's manifest, or None where there is none (the folder is unfinished). Raises `IntegrityError` for a damaged one."""
    try:
        manifest = msgspec.json.decode((folder / NAME).read_bytes(), type=Manifest)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except msgspec.DecodeError as error:
        raise IntegrityError(f"{folder / NAME} is damaged ({error}); delete the folder and fetch or import it again") from error
    for name in manifest.files:
        safe_name(name)
    return manifest


def write(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest atomically and durably; the folder counts as finished from then on."""
    draft = folder / f".{NAME}.draft"
    with draft.open("wb") as out:
        out.write(msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n")
        out.flush()
        os.fsync(out.fileno())
    draft.replace(folder / NAME)
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Makes renames inside a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def hash_file(path: Path, seen: Callable[[int], None] = lambda _: None) -> File:
    """Size and SHA-256 of a file; `seen` is told of every chunk's bytes."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
            seen(len(chunk))
    return File(size, digest.hexdigest())


def listed(folder: Path) -> Iterator[str]:
    """The names of the files that a model folder holds, without the manifest and what a fetch leaves. Links are named too, not followed."""
    for at, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(at) / name).is_symlink()]
        folders[:] = sorted(name for name in folders if name != PARTS and name not in links)
        for name in sorted(files + links):
            path = (Path(at) / name).relative_to(folder).as_posix()
            if path not in (NAME, f".{NAME}.draft"):
                yield path


def is_finished(folder: Path) -> bool:
    """Whether the manifest is there and every file has its size: the quick look before a start (no hashing)."""
    manifest = read(folder)
    return manifest is not None and all(_size(folder / name) == file.size for name, file in manifest.files.items())


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def problems(folder: Path, seen: Callable[[int], None] = lambda _: None) -> list[str]:
    """Hashes every file again. One line per file that is missing, changed or does not belong; empty when all is well."""
    manifest = read(folder)
    if manifest is None:
        return [f"{folder}: no {NAME}: not finished; fetch or import it"]
    found = []
    for name, file in manifest.files.items():
        path = folder / name
        if not path.is_file() or path.is_symlink():
            found.append(f"{path}: missing")
        elif _size(path) != file.size:
            found.append(f"{path}: {_size(path)} bytes, the manifest says {file.size}")
        elif (now := hash_file(path, seen)).sha256 != file.sha256:
            found.append(f"{path}: sha256 is {now.sha256}, the manifest says {file.sha256}")
    # The engine loads every *.safetensors it sees, so a file too many is as bad as a changed one.
    found += [f"{folder / name}: not in the manifest" for name in listed(folder) if name not in manifest.files]
    return found
