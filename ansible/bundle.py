"""The air-gap bundle: one tar with wheels, the distribution's packages, models, playbooks, their checksums, and one signature over these.

`create` needs a package index and a mirror; `verify` and `read` need only ssh-keygen, which every controller has. What is not as the
signed list says is refused before any of it is used: altered, missing, too much, signed by another. Installs nothing.
"""

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import release
from release import ROOT, ReleaseError

SUMS, SIGNATURE, RELEASE = "SHA256SUMS", "SHA256SUMS.sig", "release.json"
_SIGNER, _NAMESPACE = "inhouse", "inhouse-bundle"
_PLACES = {"environment": "environments", "release": "releases", "model": "models"}
_PROJECT = ("ansible", "requirements", "serving", "routing", "evals", "inhouse.py", "pyproject.toml", "README.md", "LICENSE", "Makefile")
_CONTROLLER = ("ansible-core", "cffi", "cryptography", "jinja2", "markupsafe", "packaging", "pycparser", "pyyaml", "resolvelib")


def create(target: Path, built: dict[str, Any], *, signer: Path, packages: Path, controller: Path) -> None:
    """Writes the bundle of what `release.build` built, a tar of packages and one of the controller's wheels. Raises `ReleaseError`."""
    placed, files = _placed(built)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".draft-") as folder:
        draft = Path(folder)
        (draft / RELEASE).write_text(json.dumps(placed, indent=1) + "\n", encoding="utf-8")
        _project(draft / "project.tar")
        files |= {"packages.tar": packages, "controller.tar": controller, RELEASE: draft / RELEASE, "project.tar": draft / "project.tar"}
        sums = "".join(f"{release.sha256(file)}  {name}\n" for name, file in sorted(files.items()))
        (draft / SUMS).write_text(sums, encoding="utf-8")
        _keygen("sign", "-f", str(signer), str(draft / SUMS))
        partial = target.with_suffix(".partial")
        with tarfile.open(partial, "w", format=tarfile.PAX_FORMAT) as archive:
            for name, file in {SUMS: draft / SUMS, SIGNATURE: draft / SIGNATURE, **files}.items():
                archive.add(file, f"{target.stem}/{name}")
        partial.replace(target)


def _placed(built: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Path]]:
    """What was built, with places in the bundle instead of paths, and which file goes where."""
    files: dict[str, Path] = {}

    def place(part: dict[str, Any], kind: str) -> dict[str, Any]:
        name = f"{_PLACES[kind]}/{Path(part['tar']).name}"
        files[name] = Path(part["tar"])
        return {**part, "tar": name}

    return {"environment": place(built["environment"], "environment"), "release": place(built["release"], "release"),
            "models": [place(model, "model") for model in built["models"]], "changed": False}, files


def _project(target: Path) -> None:
    """The checkout without what is this site's own: its inventory and everything that was built."""
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as archive:
        for name in _PROJECT:
            for path in sorted([ROOT / name] if (ROOT / name).is_file() else (ROOT / name).rglob("*")):
                inside = path.relative_to(ROOT)
                if path.is_file() and "__pycache__" not in inside.parts and inside.parts[:3] != ("ansible", "inventory", "fleet"):
                    archive.add(path, f"inhouse/{inside}")


def packages(out: Path, names: list[str], sources: list[str]) -> Path:
    """A tar with the named packages and all they depend on, whatever a node has already, as a repository for apt. Raises `ReleaseError`.

    Needs apt-get and dpkg-deb, not root.
    """
    key = "\n".join([*sources, *sorted(names)])
    target = out / "packages" / f"{hashlib.sha256(key.encode()).hexdigest()[:12]}.tar"
    target.parent.mkdir(parents=True, exist_ok=True)

    def fill(draft: Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            for inner in ("lists/partial", "cache/archives/partial", "dpkg"):
                (root / inner).mkdir(parents=True)
            (root / "dpkg/status").touch()
            (root / "sources.list").write_text("\n".join([*sources, ""]), encoding="utf-8")
            settings = {"Dir::State::Lists": root / "lists", "Dir::State::status": root / "dpkg/status", "Dir::Cache": root / "cache",
                        "Dir::Etc::sourcelist": root / "sources.list", "Dir::Etc::sourceparts": "-", "Dir::Etc::preferencesparts": "-",
                        "APT::Architecture": "amd64", "APT::Install-Recommends": "false", "APT::Sandbox::User": "", "Dpkg::Use-Pty": "0",
                        "APT::Update::Error-Mode": "any"}
            options = [f"-o{name}={value}" for name, value in settings.items()]
            _run("apt-get", *options, "-qq", "update")
            _run("apt-get", *options, "-qq", "--yes", "--download-only", "install", *names)
            for file in sorted((root / "cache/archives").glob("*.deb")):
                file.rename(draft / file.name.replace("%3a", "-"))
        (draft / "Packages").write_text("\n".join(_stanzas(draft)), encoding="utf-8")

    return Path(release.packed(target, fill)["tar"])


def sources(suite: str, *, mirror: str, keyring: str) -> list[str]:
    """Lines for apt: of a mirror its suite, the suite's updates and, of Debian, security updates. Where no mirror is named, the places
    where this machine gets those of its own release; where no keyring is, its distribution's. Raises `ReleaseError` where it has none.
    """
    here = platform.freedesktop_os_release()
    keys = keyring or f"/usr/share/keyrings/{here['ID']}-archive-keyring.gpg"
    if mirror:
        parts, base = ("main universe" if "ubuntu" in mirror else "main"), mirror.rstrip("/")
        rows = [(base, suite, parts), (base, f"{suite}-updates", parts)]
        rows += [(f"{base}-security", f"{suite}-security", "main")] if base.endswith("/debian") else []
    else:
        own = here.get("VERSION_CODENAME", "")
        line = "$(REPO_URI) $(RELEASE) $(COMPONENT)"
        said = _run("apt-get", "indextargets", "--no-release-info", "--format", line, "Created-By: Packages")
        places = {f"{own}{part}": f"{suite}{part}" for part in ("", "-updates", "-security")}
        found = dict.fromkeys(tuple(line.split()) for line in said.splitlines())
        rows = [(uri, places[there], part) for uri, there, part in found if there in places and part in ("main", "universe")]
        if not rows:
            raise ReleaseError(f"apt on this machine has no source of its own release `{own}`: name a mirror of the machines' "
                               "distribution, -e bundle_mirror=http://mirror/debian or `bundle_mirror` in the inventory")
    return [f"deb [signed-by={keys}] {uri} {there} {parts}" for uri, there, parts in rows]


def _stanzas(folder: Path) -> Iterator[str]:
    """apt's index of a folder."""
    for file in sorted(folder.glob("*.deb")):
        control = _run("dpkg-deb", "--field", str(file))
        yield f"{control}Filename: ./{file.name}\nSize: {file.stat().st_size}\nSHA256: {release.sha256(file)}\n"


def controller(out: Path, python: str) -> Path:
    """A tar with the wheels of Ansible, pinned as in requirements/dev.txt, for a controller that has only Python and ssh."""
    lines = (ROOT / "requirements/dev.txt").read_text(encoding="utf-8").splitlines()
    lines += (ROOT / "requirements/cpu.txt").read_text(encoding="utf-8").splitlines()
    pins = sorted({line.split(";")[0].strip() for line in lines if line.split("==")[0] in _CONTROLLER})
    target = out / "controller" / f"{hashlib.sha256(' '.join([python, *pins]).encode()).hexdigest()[:12]}.tar"
    target.parent.mkdir(parents=True, exist_ok=True)

    def fill(draft: Path) -> None:
        release.pip("download", "--only-binary=:all:", "--python-version", python, "--no-deps", "--dest", str(draft), *pins)

    return Path(release.packed(target, fill)["tar"])


def verify(folder: Path, signers: Path) -> None:
    """An unpacked bundle is, file by file, what its signer signed. Raises `ReleaseError` that names the first offence."""
    listed = read_sums(folder, signers)
    there = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()}
    for name, path in sorted(there.items()):
        if name not in listed and name not in (SUMS, SIGNATURE):
            raise ReleaseError(f"{folder} holds `{name}`, which the signed list does not; refused: unpack the bundle again, elsewhere")
        if path.is_symlink() or not path.is_file():
            raise ReleaseError(f"{folder}/{name} is a link or device; refused: unpack the bundle again, elsewhere")
    for name, digest in listed.items():
        if name not in there:
            raise ReleaseError(f"{folder} lacks `{name}`; carry the bundle over again")
        if release.sha256(there[name]) != digest:
            raise ReleaseError(f"{folder}/{name} is not what was signed; carry the bundle over again")


def read_sums(folder: Path, signers: Path) -> dict[str, str]:
    """The signed list: digest by name. Raises `ReleaseError` where the signature is not by one of `signers`."""
    try:
        sums = (folder / SUMS).read_bytes()
    except OSError as error:
        raise ReleaseError(f"{folder} is no unpacked bundle: it has no {SUMS}; tar xf the bundle and name the folder") from error
    if not signers.is_file():
        raise ReleaseError(f"there is no file {signers} with the keys that you trust: name it with release_signers; "
                           "the one who made the bundle has it as bundle.signers")
    _keygen("verify", "-f", str(signers), "-I", _SIGNER, "-s", str(folder / SIGNATURE), said=sums)
    listed = dict(reversed(line.split("  ", 1)) for line in sums.decode().splitlines())
    for name in listed:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ReleaseError(f"`{name}` in {folder / SUMS} is no place in a bundle; refused")
    return listed


def read(folder: Path, signers: Path) -> dict[str, Any]:
    """What `release.build` would say, of an unpacked bundle that was verified: only the list and this file are looked at again."""
    listed = read_sums(folder, signers)
    if release.sha256(folder / RELEASE) != listed.get(RELEASE):
        raise ReleaseError(f"{folder / RELEASE} is not what was signed; carry the bundle over again")
    told = json.loads((folder / RELEASE).read_text(encoding="utf-8"))
    for part in (told["environment"], told["release"], *told["models"]):
        part["tar"] = str(folder / part["tar"])
    return {**told, "packages": str(folder / "packages.tar")}


def _keygen(verb: str, *arguments: str, said: bytes | None = None) -> None:
    done = subprocess.run(["ssh-keygen", "-Y", verb, "-n", _NAMESPACE, *arguments], input=said, capture_output=True, check=False,
                          stdin=None if said is not None else subprocess.DEVNULL, env={**os.environ, "SSH_ASKPASS_REQUIRE": "never"})
    if done.returncode:
        why = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines() or ["failed"]
        what = "the signature is not by a key that you trust; nothing was used" if verb == "verify" else "the list can't be signed"
        raise ReleaseError(f"{what}: ssh-keygen says: {why[-1]}")


def _run(*command: str) -> str:
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise ReleaseError(f"{command[0]} is not installed: make the bundle on Debian or Ubuntu") from error
    if said.returncode:
        raise ReleaseError(f"{command[0]}: {(said.stderr.strip().splitlines() or ['failed'])[-1]}")
    return said.stdout


def _create(asked: argparse.Namespace) -> dict[str, Any]:
    out = asked.out.resolve()
    built = release.build(out, requirements=asked.requirements, catalog=asked.catalog, home=asked.home, python=asked.python)
    debs = packages(out, asked.packages.split(), sources(asked.suite, mirror=asked.mirror, keyring=asked.keyring))
    target = out / f"inhouse-bundle-{built['release']['id']}.tar"
    if not asked.signer.exists():
        asked.signer.parent.mkdir(parents=True, exist_ok=True)
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "inhouse bundle", "-f", str(asked.signer))
    create(target, built, signer=asked.signer, packages=debs, controller=controller(out, asked.python))
    public = asked.signer.with_name(f"{asked.signer.name}.pub").read_text(encoding="utf-8")
    (out / "bundle.signers").write_text(f"{_SIGNER} {public}", encoding="utf-8")
    return {"bundle": str(target), "bytes": target.stat().st_size, "sha256": release.sha256(target), "signers": str(out / "bundle.signers")}


def main() -> None:
    """Arguments in, JSON out; what a user can cause ends as one line and exit code 1."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    making = verbs.add_parser("create", help="make a bundle")
    release.add_arguments(making)
    making.add_argument("--signer", type=Path, required=True, help="the private key that signs; made where it is not there")
    making.add_argument("--packages", required=True, help="names of the distribution's packages, with spaces between")
    making.add_argument("--mirror", default="", help="the nodes' distribution; where it is not named, this machine's own sources")
    making.add_argument("--suite", required=True)
    making.add_argument("--keyring", default="", help="the keys of that distribution; where they are not named, this machine's own")
    for verb, what in (("verify", "hold every file against the signed list"), ("read", "print what an unpacked bundle holds")):
        one = verbs.add_parser(verb, help=what)
        one.add_argument("folder", type=Path)
        one.add_argument("--signers", type=Path, required=True, help="ssh-keygen's allowed signers: the keys that you trust")
    asked = parser.parse_args()
    try:
        if asked.verb == "verify":
            verify(asked.folder.resolve(), asked.signers)
        told = _create(asked) if asked.verb == "create" else read(asked.folder.resolve(), asked.signers)
    except ReleaseError as error:
        sys.exit(f"bundle: {error}")
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
