"""What the controller builds: complete, checksummed, named by its content; shown without a package index."""

import hashlib
import importlib.util
import json
import tarfile
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "ansible" / "release.py"


@pytest.fixture(scope="module")
def release():
    """`ansible/release.py`, which is no package's module."""
    spec = importlib.util.spec_from_file_location("release", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_models_are_bundled_once_and_placed_for_the_nodes(release, tmp_path):
    """Every model of the shipped catalog gets a verified bundle and a line whose path is the nodes'; a second build makes none."""
    (tmp_path / "models").mkdir()
    catalog = FILE.parent.parent / "serving" / "models.yaml"
    first = list(release._models(tmp_path, catalog, tmp_path / "home"))
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "models").iterdir()}
    assert [model["name"] for model in first] == ["demo-extractor", "demo-generalist"]
    for model in first:
        assert model["line"]["path"] == f"/var/lib/inhouse/models/{model['places'][0]}" and model["line"]["engine"]["max_model_len"] == 1024
        with tarfile.open(model["tar"]) as archive:
            assert f"{model['places'][0]}/config.json" in archive.getnames()
    assert list(release._models(tmp_path, catalog, tmp_path / "home")) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "models").iterdir()} == made


def test_a_tar_carries_the_checksum_of_everything_in_it(release, tmp_path):
    """SHA256SUMS lists each file with its digest, and a tar that is there is not filled again."""
    (tmp_path / "out").mkdir()

    def fill(draft):
        (draft / "wheels").mkdir()
        (draft / "wheels" / "a.whl").write_bytes(b"wheel")

    told = release.packed(tmp_path / "out" / "x.tar", fill)
    with tarfile.open(told["tar"]) as archive:
        sums = archive.extractfile("SHA256SUMS").read().decode()
    assert sums == f"{hashlib.sha256(b'wheel').hexdigest()}  wheels/a.whl\n"
    assert release.packed(tmp_path / "out" / "x.tar", lambda _: pytest.fail("filled again")) == told
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["x.tar"]


def test_the_release_holds_the_rooms_and_nothing_of_the_tests(release):
    """What is installed on machines: code, catalog, policies, demo models."""
    names = {str(path.relative_to(release.ROOT)) for path in release.sources()}
    assert {"inhouse.py", "serving/cell.py", "routing/server.py", "serving/models.yaml", "routing/routes.yaml"} <= names
    assert not any(name.startswith(("tests", "ansible")) or "__pycache__" in name for name in names)


def test_what_a_cell_runs_is_told_from_the_rest(release):
    """The command and `serving`, with what it reads; neither the router nor the shipped catalog, models and documentation."""
    asked = ("inhouse.py", "serving/cell.py", "serving/engine_args.json", "routing/server.py", "serving/models.yaml", "README.md",
             "serving/demo/demo-extractor/config.json", "serving/README.md")
    assert [name for name in asked if release._is_of_cells(Path(name))] == ["inhouse.py", "serving/cell.py", "serving/engine_args.json"]


def test_what_is_no_bundle_is_refused(release, tmp_path):
    """A tar of something else under a bundle's name ends with what to do."""
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(FILE, "release.py")
    with pytest.raises(release.ReleaseError, match="delete it and build again"):
        release._index(tmp_path / "x.tar")
    assert json.dumps(release._placed({"name": "m", "path": "here"}, {"path": "local--m/1"})) == (
        '{"name": "m", "path": "/var/lib/inhouse/models/local--m/1"}')
