"""Builds what machines without internet install: a tar with every pinned wheel, a small one with the project, one per model.

Runs the project's own command for models and imports nothing of it. A part that is there already is not built again, so the same
inputs give the same release. Prints one JSON document that the playbooks read; signs nothing and copies nothing to nodes.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
_SOURCES = ("inhouse.py", "pyproject.toml", "README.md", "LICENSE", "serving", "routing", "evals")
_INDEX = "inhouse-bundle.json"
_HOME = "/var/lib/inhouse"


class ReleaseError(Exception):
    """A release can't be built; the message says what to do."""


def build(out: Path, *, requirements: Path, catalog: Path, home: Path, python: str) -> dict[str, Any]:
    """The environment, the release and the models, built under `out` where they are not there. Raises `ReleaseError`.

    `python` is the nodes' version (3.11): wheels are chosen for it. `home` is where fetched models lie here.
    """
    for folder in ("environments", "releases", "models"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    before = set(out.rglob("*.tar"))
    environment = _environment(out, requirements, python)
    told = {"environment": environment, "release": _release(out, environment["id"]), "models": list(_models(out, catalog, home))}
    return told | {"changed": set(out.rglob("*.tar")) != before}


def _environment(out: Path, requirements: Path, python: str) -> dict[str, Any]:
    """Wheels of every pin and of the installer, named by the pins."""
    pins = [line for line in requirements.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    name = hashlib.sha256("\n".join([python, *pins]).encode()).hexdigest()[:12]

    def fill(draft: Path) -> None:
        chosen = ["--only-binary=:all:", "--python-version", python, "--no-deps", "--dest", str(draft / "wheels")]
        pip("download", *chosen, "-r", str(requirements))
        pip("download", *chosen, "uv")
        (draft / "requirements.txt").write_bytes(requirements.read_bytes())

    return {"id": name, "python": python, **packed(out / "environments" / f"{name}.tar", fill)}


def _release(out: Path, environment: str) -> dict[str, Any]:
    """The project's wheel, named by its version and two digests over its environment and files: of what Ray runs, and of all. An upgrade
    leaves alone the cells whose release has the first one, `cell`, already.
    """
    part, whole = hashlib.sha256(environment.encode()), hashlib.sha256(environment.encode())
    for file in sources():
        entry = f"{file.relative_to(ROOT)}\0".encode() + file.read_bytes()
        whole.update(entry)
        if _is_of_cells(file.relative_to(ROOT)):
            part.update(entry)
    cell = part.hexdigest()[:10]
    name = f"{_version()}-{cell}-{whole.hexdigest()[:10]}"

    def fill(draft: Path) -> None:
        with tempfile.TemporaryDirectory() as copy:  # setuptools leaves folders beside what it builds, and reads old ones
            for file in sources():
                target = Path(copy) / file.relative_to(ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read_bytes())
            pip("wheel", "--no-deps", "--wheel-dir", str(draft / "wheels"), copy)

    return {"id": name, "cell": cell, **packed(out / "releases" / f"{name}.tar", fill)}


def _is_of_cells(file: Path) -> bool:
    """Whether a cell runs it: the command and the room `serving`, which imports no other. Models come by bundles and a catalog."""
    return file == Path("inhouse.py") or (file.parts[0] == "serving" and "demo" not in file.parts and file.suffix in (".py", ".json"))


def sources() -> list[Path]:
    """The project's files that are installed."""
    found = [path for name in _SOURCES for path in ([ROOT / name] if (ROOT / name).is_file() else (ROOT / name).rglob("*"))]
    return sorted(path for path in found if path.is_file() and "__pycache__" not in path.parts)


def _version() -> str:
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    return next(line.split('"')[1] for line in lines if line.startswith("version = "))


def packed(target: Path, fill: Callable[[Path], None]) -> dict[str, Any]:
    """A tar of what `fill` puts into a folder, with everything's SHA-256 beside it; kept where it is there."""
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".draft-") as folder:
            draft = Path(folder)
            fill(draft)
            listed = sorted(path for path in draft.rglob("*") if path.is_file())
            sums = "".join(f"{sha256(path)}  {path.relative_to(draft)}\n" for path in listed)
            (draft / "SHA256SUMS").write_text(sums, encoding="utf-8")
            partial = target.with_suffix(".partial")
            with tarfile.open(partial, "w", format=tarfile.PAX_FORMAT) as archive:
                for path in sorted(draft.rglob("*")):
                    archive.add(path, str(path.relative_to(draft)), recursive=False)
            partial.replace(target)
    return {"tar": str(target), "bytes": target.stat().st_size}


def pip(*arguments: str) -> None:
    """Runs pip. Raises `ReleaseError` with its first error."""
    said = subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *arguments], capture_output=True, text=True,
                          check=False)
    if said.returncode:
        errors = [line for line in said.stderr.splitlines() if line.startswith("ERROR")]
        raise ReleaseError(f"pip {arguments[0]}: {(errors or ['failed'])[0]}; this machine needs a package index, the nodes do not")


def _models(out: Path, catalog: Path, home: Path) -> Iterator[dict[str, Any]]:
    """A tar per model, made anew where the model's files changed, and its catalog line with paths as they are on the nodes."""
    rows = json.loads(_inhouse("models", "list", "--json", "--catalog", str(catalog), "--home", str(home)))
    lines = yaml.safe_load(catalog.read_text(encoding="utf-8"))["models"]
    for row, line in zip(rows, lines, strict=True):
        folders = [Path(row["folder"]), *(catalog.parent / adapter["path"] for adapter in line.get("adapters", ()))]
        target = out / "models" / f"{row['name']}-{_look(folders)}.tar"
        if not target.exists():
            _inhouse("models", "bundle", "create", str(target), row["name"], "--catalog", str(catalog), "--home", str(home))
        index = _index(target)
        yield {"name": row["name"], "tar": str(target), "bytes": target.stat().st_size,
               "places": [folder["place"] for folder in index["folders"]], "line": _placed(line, index["models"][0])}


def _look(folders: list[Path]) -> str:
    """A digest of names, sizes and times below a model's folders: cheap, and new whenever a file changed."""
    files = sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())
    seen = "".join(f"{path}\0{path.stat().st_size}\0{path.stat().st_mtime_ns}\n" for path in files)
    return hashlib.sha256(seen.encode()).hexdigest()[:12]


def _index(bundle: Path) -> dict[str, Any]:
    with tarfile.open(bundle, "r:") as archive:
        first = archive.next()
        stream = archive.extractfile(first) if first is not None and first.name == _INDEX else None
        if stream is None:
            raise ReleaseError(f"{bundle} is not a bundle of models; delete it and build again")
        return dict(json.load(stream))


def _placed(line: dict[str, Any], bundled: dict[str, Any]) -> dict[str, Any]:
    """A catalog line with the bundle's places for paths."""
    placed = {**line, **({"path": f"{_HOME}/models/{bundled['path']}"} if "path" in line else {})}
    if "adapters" in line:
        pairs = zip(line["adapters"], bundled["adapters"], strict=True)
        placed["adapters"] = [{**own, "path": f"{_HOME}/models/{there['path']}"} for own, there in pairs]
    return placed


def _inhouse(*arguments: str) -> str:
    said = subprocess.run([sys.executable, "-m", "inhouse", *arguments], capture_output=True, text=True, check=False, cwd=ROOT,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    if said.returncode:
        raise ReleaseError(said.stderr.strip().splitlines()[-1])
    return said.stdout


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What a build is made from."""
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "fleet")
    parser.add_argument("--requirements", type=Path, default=ROOT / "requirements" / "cpu.txt", help="cpu.txt or gpu.txt")
    parser.add_argument("--catalog", type=Path, default=ROOT / "serving" / "models.yaml")
    parser.add_argument("--home", type=Path, default=ROOT / ".inhouse", help="where `inhouse models fetch` put models")
    parser.add_argument("--python", default="3.11", help="the nodes' version of Python")


def main() -> None:
    """Arguments in, JSON out; what a user can cause ends as one line and exit code 1."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_arguments(parser)
    asked = parser.parse_args()
    try:
        told = build(asked.out.resolve(), requirements=asked.requirements, catalog=asked.catalog, home=asked.home, python=asked.python)
    except ReleaseError as error:
        sys.exit(f"release: {error}")
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
