"""Models carried over by hand: what arrives is what left, or nothing arrives."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving import bundle as bundles
from serving import manifest
from serving.bundle import BundleError
from serving.catalog import Adapter, Model, Price, read_catalog
from serving.manifest import IntegrityError, Manifest

REVISION = "0123456789abcdef0123456789abcdef01234567"
PRICE = Price(usd_per_gpu_hour=1)
FETCHED = Model(name="fetched", license="MIT", price=PRICE, repo="acme/tiny", revision=REVISION, engine={"max_model_len": 512})
LEGAL = Adapter(name="legal", path="adapters/legal")
LOCAL = Model(name="local", license="Apache-2.0", price=PRICE, path="models/local", adapters=(LEGAL,))


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A connected site with a fetched model, a local one and an adapter."""
    at = tmp_path / "connected"
    for folder, files in (("home/models/acme--tiny/" + REVISION, {"config.json": b"{}", "model.safetensors": bytes(range(200))}),
                          ("catalog/models/local", {"config.json": b"{}", "model.safetensors": b"local", "1_Pooling/config.json": b"[]"}),
                          ("catalog/adapters/legal", {"adapter_config.json": b"{}"})):
        for name, content in files.items():
            (at / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (at / folder / name).write_bytes(content)
    fetched = at / "home/models/acme--tiny" / REVISION
    files = {name: manifest.hash_file(fetched / name) for name in manifest.listed(fetched)}
    manifest.write(fetched, Manifest(repo="acme/tiny", revision=REVISION, license="MIT", files=files))
    return at


def create(site: Path, out: Path, models: list[Model] | None = None) -> bundles.Bundle:
    return bundles.create(models or [FETCHED, LOCAL], out, home=site / "home", catalog_folder=site / "catalog")


@pytest.fixture(params=["usb/bundle", "usb/bundle.tar"])
def made(request: pytest.FixtureRequest, site: Path, tmp_path: Path) -> Path:
    """A bundle as a folder and as a tar."""
    out = tmp_path / str(request.param)
    out.parent.mkdir()
    create(site, out)
    return out


def test_what_arrives_is_what_left(site: Path, made: Path, tmp_path: Path) -> None:
    """Fetched models, local ones and adapters; the lines for models.yaml are a right catalog there."""
    home = tmp_path / "isolated"
    brought = bundles.import_(made, home)
    again = create(site, tmp_path / "again")
    assert brought.digest == again.digest
    arrived = FETCHED.folder(home, home)
    assert manifest.problems(arrived) == [] and (arrived / "model.safetensors").read_bytes() == bytes(range(200))
    (tmp_path / "models.yaml").write_text(yaml.safe_dump({"models": bundles.catalog_lines(brought, home)}))
    lines = bundles.catalog_lines(brought, home)
    assert "cpus" not in lines[0] and lines[0]["price"] == {"usd_per_gpu_hour": 1}, "defaults are not written out"
    fetched, local = read_catalog(tmp_path / "models.yaml").models
    assert fetched == FETCHED
    assert (local.folder(home, tmp_path) / "1_Pooling/config.json").read_bytes() == b"[]"
    assert manifest.problems(local.folder(home, tmp_path)) == []
    assert (Path(local.adapters[0].path) / "adapter_config.json").is_file()
    assert bundles.import_(made, home).digest == brought.digest, "a second import is harmless"


def _edit(made: Path, change: Callable[[dict[str, bytes]], None], extra: list[tarfile.TarInfo] | None = None) -> None:
    """Rewrites a bundle's files, in either form."""
    if made.is_dir():
        files = {path.relative_to(made).as_posix(): path.read_bytes() for path in made.rglob("*") if path.is_file()}
        for path in files:
            (made / path).unlink()
    else:
        with tarfile.open(made) as archive:
            files = {member.name: stream.read() for member in archive if (stream := archive.extractfile(member)) is not None}
    change(files)
    if made.is_dir():
        for name, content in files.items():
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            (made / name).write_bytes(content)
        return
    with tarfile.open(made, "w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        for entry in extra or []:
            archive.addfile(entry)


def _tamper(files: dict[str, bytes]) -> None:
    name = f"acme--tiny/{REVISION}/model.safetensors"
    files[name] = b"\x01" + files[name][1:]


def _shorten(files: dict[str, bytes]) -> None:
    files[f"acme--tiny/{REVISION}/model.safetensors"] = b"short"


def _lose(files: dict[str, bytes]) -> None:
    del files[f"acme--tiny/{REVISION}/config.json"]


def _add(files: dict[str, bytes]) -> None:
    files[f"acme--tiny/{REVISION}/evil.safetensors"] = b"x"


def _climb(files: dict[str, bytes]) -> None:
    index = json.loads(files[bundles.NAME])
    index["folders"][0]["manifest"]["files"]["../../../evil"] = {"size": 0, "sha256": "0" * 64}
    files[bundles.NAME] = json.dumps(index).encode()


def _misplace(files: dict[str, bytes]) -> None:
    index = json.loads(files[bundles.NAME])
    index["folders"][0]["place"] = "../evil/place"
    files[bundles.NAME] = json.dumps(index).encode()


def _garble(files: dict[str, bytes]) -> None:
    files[bundles.NAME] = b"{"


@pytest.mark.parametrize(("change", "message"), [
    (_tamper, r"nothing was imported: acme--tiny/0123\w+/model\.safetensors \(wrong sha256\); carry it over again"),
    (_shorten, r"model\.safetensors \(wrong size\)"), (_lose, r"config\.json \(missing\)"),
    (_add, r"holds `acme--tiny/0123\w+/evil\.safetensors`, which its index does not list; refused"),
    (_climb, "is not a file name inside a model folder; refused"), (_misplace, "is not a"), (_garble, "can't be read"),
])
def test_a_bundle_that_is_not_whole_brings_nothing(made: Path, tmp_path: Path, change: Callable[[dict[str, bytes]], None],
                                                   message: str) -> None:
    """Every kind of damage and of attack: named by file, and nothing becomes visible."""
    _edit(made, change)
    home = tmp_path / "isolated"
    with pytest.raises((IntegrityError, BundleError), match=message):
        bundles.import_(made, home)
    assert [path for path in home.rglob("*") if path.is_file()] == []
    assert not (tmp_path / "evil").exists() and not (home / "evil").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_a_tar_are_refused(site: Path, tmp_path: Path, kind: bytes) -> None:
    """Also under a name that the index lists."""
    made = tmp_path / "bundle.tar"
    create(site, made)
    link = tarfile.TarInfo(f"acme--tiny/{REVISION}/config.json")
    link.type, link.linkname = kind, "/etc/passwd"
    _edit(made, _lose, [link])
    with pytest.raises(IntegrityError, match="as a link or device; refused"):
        bundles.import_(made, tmp_path / "isolated")


def test_links_in_a_folder_are_refused(site: Path, tmp_path: Path) -> None:
    """A file that is a link, and a folder that is one."""
    made = tmp_path / "bundle"
    create(site, made)
    place = made / "acme--tiny" / REVISION
    (place / "config.json").unlink()
    (place / "config.json").symlink_to("/etc/hostname")
    with pytest.raises(IntegrityError, match="as a link or device; refused"):
        bundles.import_(made, tmp_path / "isolated")
    (made / "more").symlink_to("/etc")
    (place / "config.json").unlink()
    with pytest.raises(IntegrityError, match="does not list; refused"):
        bundles.import_(made, tmp_path / "isolated")


def test_a_file_twice_in_a_tar_is_refused(site: Path, tmp_path: Path) -> None:
    """The second one could differ from what was verified."""
    made = tmp_path / "bundle.tar"
    create(site, made)
    _edit(made, lambda files: None, [tarfile.TarInfo(f"acme--tiny/{REVISION}/config.json")])
    with pytest.raises(IntegrityError, match="twice; refused"):
        bundles.import_(made, tmp_path / "isolated")


def test_a_cut_tar_is_named(site: Path, tmp_path: Path) -> None:
    """A copy that stopped half-way."""
    made = tmp_path / "bundle.tar"
    create(site, made)
    made.write_bytes(made.read_bytes()[:3000])
    with pytest.raises((BundleError, IntegrityError), match=r"copy the bundle again|carry it over again"):
        bundles.import_(made, tmp_path / "isolated")


def test_what_is_no_bundle_is_said(tmp_path: Path) -> None:
    """A missing path, an empty folder, another file."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.tar").write_text("hello")
    for path, message in (("none.tar", "no such file"), ("empty", "is not a bundle"), ("text.tar", "is not a whole tar")):
        with pytest.raises(BundleError, match=message):
            bundles.import_(tmp_path / path, tmp_path / "home")


def test_a_model_that_is_not_sound_is_not_packed(site: Path, tmp_path: Path) -> None:
    """A changed file, an unfinished fetch, a link: found where it can still be mended; nothing half-written stays."""
    place = site / "home/models/acme--tiny" / REVISION
    (place / "config.json").write_text("[]")
    with pytest.raises(IntegrityError, match=r"`fetched` is not sound: .*config\.json"):
        create(site, tmp_path / "out.tar")
    (place / manifest.NAME).unlink()
    with pytest.raises(IntegrityError, match="not finished"):
        create(site, tmp_path / "out.tar")
    (site / "catalog/models/local/link").symlink_to("/etc/hostname")
    with pytest.raises(BundleError, match="is a link"):
        create(site, tmp_path / "out.tar", [LOCAL])
    assert [path.name for path in tmp_path.iterdir()] == ["connected"]


def test_nothing_is_overwritten(site: Path, tmp_path: Path) -> None:
    """An earlier bundle stays."""
    create(site, tmp_path / "out.tar")
    with pytest.raises(BundleError, match="is there already"):
        create(site, tmp_path / "out.tar")


def test_an_unfinished_fetch_makes_way(site: Path, made: Path, tmp_path: Path) -> None:
    """A folder without a manifest is replaced by the verified one."""
    home = tmp_path / "isolated"
    place = FETCHED.folder(home, home)
    place.mkdir(parents=True)
    (place / "half.safetensors").write_bytes(b"x")
    bundles.import_(made, home)
    assert manifest.problems(place) == []


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../up", "a/../../up", "a\\b", "a//b", "./a", "a\0b", "a/"])
def test_names_outside_a_folder_are_refused(name: str) -> None:
    """Whatever form they have."""
    with pytest.raises(IntegrityError):
        manifest.safe_name(name)


def test_ordinary_names_are_allowed() -> None:
    """Sub-folders and dots."""
    names: list[Any] = ["a", "a/b.c", ".hidden", "1_Pooling/config.json", "model-00001-of-00002.safetensors"]
    assert [manifest.safe_name(name) for name in names] == names
