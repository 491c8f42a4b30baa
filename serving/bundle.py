"""Carries models into a site without a network: a folder or a tar with every file's checksum, verified before anything becomes visible.

Does not edit models.yaml: it hands back the lines to put there.
"""

import hashlib
import io
import os
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import msgspec

from serving import manifest
from serving.catalog import Model
from serving.fetch import alone, free_disk
from serving.manifest import File, IntegrityError, Manifest

NAME = "inhouse-bundle.json"
_CHUNK = 1 << 20
_MAX_INDEX = 64 << 20


class BundleError(Exception):
    """A bundle can't be made or brought in as asked. The message says what to do."""


class Folder(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One model or adapter folder: where it goes below INHOUSE_HOME/models, and its manifest."""

    place: str
    manifest: Manifest


class Bundle(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The index of a bundle, first in it: every folder with every checksum, and the catalog's lines for the models."""

    format: int = 1
    folders: tuple[Folder, ...]
    models: tuple[dict[str, Any], ...]

    @property
    def digest(self) -> str:
        """Tells two sites on the telephone that they hold the same bundle."""
        return hashlib.sha256("".join(f"{f.place}\0{f.manifest.digest}\n" for f in self.folders).encode()).hexdigest()


@dataclass(frozen=True)
class _Source:
    place: str
    folder: Path
    manifest: Manifest


def create(models: Sequence[Model], out: Path, *, home: Path, catalog_folder: Path) -> Bundle:
    """Writes a bundle of fetched or local models: a tar when `out` ends in .tar, else a folder. Raises `BundleError`, `IntegrityError`."""
    if out.exists():
        raise BundleError(f"{out} is there already; name another place or delete it")
    sources: dict[str, _Source] = {}
    lines = [_line(model, sources, home, catalog_folder) for model in models]
    bundle = Bundle(folders=tuple(Folder(place=s.place, manifest=s.manifest) for s in sources.values()), models=tuple(lines))
    _check_room(out.parent, sum(s.manifest.bytes for s in sources.values()))
    draft = out.with_name(f".{out.name}.draft")
    try:
        _write(draft, bundle, list(sources.values()), tar=out.suffix == ".tar")
        draft.replace(out)
    finally:
        if draft.exists():
            shutil.rmtree(draft) if draft.is_dir() else draft.unlink()
    return bundle


def _line(model: Model, sources: dict[str, _Source], home: Path, catalog_folder: Path) -> dict[str, Any]:
    """The model's catalog line for the other site; local paths become places below its INHOUSE_HOME/models."""
    line: dict[str, Any] = {**_spoken(model), "price": _spoken(model.price)}
    place = _add(sources, model.folder(home, catalog_folder), model)
    if model.path is not None:
        line["path"] = place
    for adapter, written in zip(model.adapters, line.get("adapters", ()), strict=True):
        as_model = msgspec.structs.replace(model, name=adapter.name, repo=None)
        written["path"] = _add(sources, (catalog_folder / adapter.path).resolve(), as_model)
    return line


def _spoken(struct: msgspec.Struct) -> dict[str, Any]:
    """What was written in the catalog: everything that is not a default."""
    fields = msgspec.structs.fields(struct)
    return {field.name: msgspec.to_builtins(getattr(struct, field.name)) for field in fields
            if field.required or getattr(struct, field.name) not in (field.default, {}, ())}


def _add(sources: dict[str, _Source], folder: Path, model: Model) -> str:
    if not folder.is_dir():
        raise BundleError(f"{folder} is not there; `inhouse models fetch {model.name}` first" if model.repo else f"{folder} is not there")
    if model.repo is not None:
        if problems := manifest.problems(folder):
            raise IntegrityError(f"`{model.name}` is not sound: {'; '.join(problems[:3])}")
        found = manifest.read(folder)
        assert found is not None
        place = f"{model.repo.replace('/', '--')}/{model.revision}"
    else:
        names = [manifest.safe_name(name) for name in manifest.listed(folder)]
        if links := [name for name in names if (folder / name).is_symlink()]:
            raise BundleError(f"{folder / links[0]} is a link; a bundle holds only plain files: copy the file there")
        found = Manifest(license=model.license, files={name: manifest.hash_file(folder / name) for name in names})
        place = f"local--{model.name}/{found.digest[:40]}"
    sources[place] = _Source(place, folder, found)
    return place


def _write(draft: Path, bundle: Bundle, sources: list[_Source], *, tar: bool) -> None:
    index = msgspec.json.format(msgspec.json.encode(bundle), indent=1)
    if not tar:
        draft.mkdir(parents=True)
        (draft / NAME).write_bytes(index)
        for source in sources:
            for name in source.manifest.files:
                target = draft / source.place / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source.folder / name, target)
        return
    with tarfile.open(draft, "w", format=tarfile.PAX_FORMAT) as archive:
        entry = tarfile.TarInfo(NAME)
        entry.size = len(index)
        archive.addfile(entry, io.BytesIO(index))
        for source in sources:
            for name, file in source.manifest.files.items():
                entry = tarfile.TarInfo(f"{source.place}/{name}")
                entry.size = file.size
                with (source.folder / name).open("rb") as stream:
                    archive.addfile(entry, stream)


def import_(path: Path, home: Path) -> Bundle:
    """Brings a bundle's folders below `home`; nothing is visible there before every checksum of the bundle held.

    Raises `IntegrityError` naming each file that is wrong, missing or does not belong, `BundleError` when it is no bundle.
    """
    models = home / "models"
    models.mkdir(parents=True, exist_ok=True)
    with _members(path) as (index, members):
        bundle = _read_index(path, index)
        _check_room(models, sum(folder.manifest.bytes for folder in bundle.folders))
        staging = models / f".import-{os.getpid()}"
        shutil.rmtree(staging, ignore_errors=True)
        try:
            _unpack(bundle, members, staging)
            for folder in bundle.folders:
                manifest.write(staging / folder.place, folder.manifest)
            for folder in bundle.folders:
                _install(staging / folder.place, models / folder.place)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return bundle


def catalog_lines(bundle: Bundle, home: Path) -> list[dict[str, Any]]:
    """The lines for this site's models.yaml, local paths made absolute."""
    models = (home / "models").resolve()
    return [{**line, **({"path": str(models / line["path"])} if "path" in line else {}),
             **({"adapters": [{**a, "path": str(models / a["path"])} for a in line["adapters"]]} if "adapters" in line else {})}
            for line in bundle.models]


def _read_index(path: Path, index: bytes) -> Bundle:
    try:
        bundle = msgspec.json.decode(index, type=Bundle)
    except msgspec.DecodeError as error:
        raise BundleError(f"{path}: its {NAME} can't be read ({error}); copy the bundle again") from error
    for folder in bundle.folders:
        if len(PurePosixPath(manifest.safe_name(folder.place)).parts) != 2 or folder.place.startswith("."):
            raise IntegrityError(f"{path}: `{folder.place}` is not a place for a model; refused")
        for name in folder.manifest.files:
            manifest.safe_name(name)
    return bundle


def _unpack(bundle: Bundle, members: "Iterator[tuple[str, IO[bytes] | None]]", staging: Path) -> None:
    """Copies what the index lists, hashing on the way; refuses the rest."""
    wanted = {f"{folder.place}/{name}": file for folder in bundle.folders for name, file in folder.manifest.files.items()}
    wrong, there = [], set()
    for name, stream in members:
        if name not in wanted:
            raise IntegrityError(f"the bundle holds `{name}`, which its index does not list; refused")
        if stream is None:
            raise IntegrityError(f"the bundle holds `{name}` as a link or device; refused")
        there.add(name)
        if (found := _copy(stream, staging / name, wanted[name].size)) != wanted[name]:
            wrong.append(f"{name} ({'wrong size' if found.size != wanted[name].size else 'wrong sha256'})")
    wrong += [f"{name} (missing)" for name in wanted if name not in there]
    if wrong:
        raise IntegrityError(f"the bundle is damaged, nothing was imported: {'; '.join(wrong[:5])}"
                             f"{f' and {len(wrong) - 5} more' if len(wrong) > 5 else ''}; carry it over again")


def _copy(stream: IO[bytes], target: Path, most: int) -> File:
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    with target.open("xb") as out:
        while size <= most and (chunk := stream.read(_CHUNK)):
            digest.update(chunk)
            out.write(chunk)
            size += len(chunk)
        out.flush()
        os.fsync(out.fileno())
    return File(size, digest.hexdigest())


def _install(staged: Path, final: Path) -> None:
    """Moves a verified folder into place; an unfinished fetch of the same revision makes way."""
    with alone(final):
        if manifest.is_finished(final):
            return
        if final.exists():
            shutil.rmtree(final)
        staged.rename(final)
        manifest.sync_folder(final.parent)


@contextmanager
def _members(path: Path) -> "Iterator[tuple[bytes, Iterator[tuple[str, IO[bytes] | None]]]]":
    """The bundle's index and its files; None stands for anything that is not a plain file."""
    if path.is_dir():
        index = path / NAME
        if not index.is_file() or index.is_symlink():
            raise BundleError(f"{path} is not a bundle: it has no {NAME}")
        yield index.read_bytes(), _folder_members(path)
        return
    try:
        with tarfile.open(path, "r:") as archive:
            first = archive.next()
            stream = archive.extractfile(first) if first is not None and first.isreg() and first.name == NAME else None
            if first is None or stream is None or first.size > _MAX_INDEX:
                raise BundleError(f"{path} is not a bundle: it does not begin with {NAME}")
            yield stream.read(), _tar_members(archive)
    except FileNotFoundError as error:
        raise BundleError(f"{path}: no such file or folder") from error
    except tarfile.TarError as error:
        raise BundleError(f"{path} is not a whole tar ({error}); copy the bundle again") from error


def _folder_members(path: Path) -> "Iterator[tuple[str, IO[bytes] | None]]":
    for name in manifest.listed(path):
        if name == NAME:
            continue
        if (path / name).is_symlink() or not (path / name).is_file():
            yield name, None
            continue
        with (path / name).open("rb") as stream:
            yield name, stream


def _tar_members(archive: tarfile.TarFile) -> "Iterator[tuple[str, IO[bytes] | None]]":
    seen = {NAME}
    while (member := archive.next()) is not None:
        if member.isdir():
            continue  # a folder packed by hand lists its folders too
        if member.name in seen:
            raise IntegrityError(f"the bundle holds `{member.name}` twice; refused")
        seen.add(member.name)
        yield member.name, archive.extractfile(member) if member.isreg() else None


def _check_room(folder: Path, size: int) -> None:
    free = free_disk(next(parent for parent in (folder, *folder.resolve().parents) if parent.exists()))
    if size > free:
        raise BundleError(f"the models need {size / 2**30:.1f} GiB, {folder} has {free / 2**30:.1f} GiB free; free some, or go elsewhere")
