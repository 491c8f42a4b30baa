"""Digests of models: what tells weights apart from others of the same name."""

import os

from serving import manifest
from serving.catalog import Adapter, Model, Price
from serving.identity import digest_of


def made(**more):
    """A catalog entry."""
    return Model(**({"name": "one", "license": "x", "price": Price(usd_per_gpu_hour=1)} | more))


def test_a_digest_follows_what_the_engine_loads_and_nothing_else(tmp_path):
    """Other weights or configuration are another digest; notes, copies and later times are not; no files are none."""
    assert digest_of(tmp_path / "missing") == digest_of(tmp_path) == ""
    one, copy = tmp_path / "one", tmp_path / "copy"
    for folder in (one, copy):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"weights")
    first = digest_of(one)
    (one / "README.md").write_text("notes")
    os.utime(one / "config.json", (1, 1))
    assert len(first) == 64 and digest_of(one) == digest_of(copy) == first
    (one / "model.safetensors").write_bytes(b"weightz")
    os.utime(one / "model.safetensors", (2, 2))
    assert digest_of(one) != first
    (copy / "config.json").write_text("{ }")
    assert digest_of(copy) not in (first, digest_of(one))


def test_a_large_file_is_told_by_its_size_and_samples(tmp_path):
    """Of more than 64 MiB the first and last bytes and the size count."""
    file, seen = tmp_path / "model.safetensors", []
    for nth, (size, place) in enumerate([(65 << 20, 0), (65 << 20, (65 << 20) - 1), ((65 << 20) + 1, 0)]):
        with file.open("wb") as out:
            out.truncate(size)
            out.seek(place)
            out.write(b"x")
        os.utime(file, (nth, nth))
        seen.append(digest_of(tmp_path))
    assert len(set(seen)) == 3 and "" not in seen


def test_a_manifest_and_a_pinned_commit_are_digests_already(tmp_path):
    """A folder with a manifest has its digest, a damaged one none, a hub model its commit also where its files are elsewhere."""
    (tmp_path / "m").mkdir()
    kept = manifest.Manifest(license="x", files={"a.safetensors": manifest.File(1, "0" * 64)})
    manifest.write(tmp_path / "m", kept)
    assert made(path="m").digests(tmp_path, tmp_path) == {"one": kept.digest}
    (tmp_path / "m" / manifest.NAME).write_text("{")
    assert made(path="m").digests(tmp_path, tmp_path) == {"one": ""}
    assert made(repo="a/b", revision="c" * 40).digests(tmp_path, tmp_path) == {"one": "c" * 40}


def test_an_adapters_digest_is_of_it_and_its_model(tmp_path):
    """The same adapter on other weights is another; one whose files are missing has none."""
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "adapter_model.safetensors").write_bytes(b"delta")
    adapters = (Adapter(name="tuned", path="tuned"), Adapter(name="gone", path="gone"))
    on = [made(repo="a/b", revision=digit * 40, adapters=adapters).digests(tmp_path, tmp_path) for digit in "ab"]
    assert on[0]["tuned"] != on[1]["tuned"] and on[0]["gone"] == "" and len(on[0]["tuned"]) == 64
