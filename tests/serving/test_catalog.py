"""models.yaml: what is right is frozen data, what is wrong names its line and what to write instead."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from serving import catalog
from serving.catalog import SHIPPED, json_schema, read_catalog
from serving.strict import ConfigError

REVISION = "0123456789abcdef0123456789abcdef01234567"
GOOD = f"""\
models:
  - name: big
    license: MIT
    repo: acme/big
    revision: {REVISION}
    price: {{usd_per_gpu_hour: 2.5}}
    gpus: 2
    engine: {{max_model_len: 8192, max_num_seqs: 64}}
    adapters: [{{name: big-legal, path: adapters/legal}}]
  - name: small
    license: MIT
    path: small
    price: {{usd_per_million_input_tokens: 0.1, usd_per_million_output_tokens: 0.3}}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "models.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_good_file_is_frozen_data(tmp_path: Path) -> None:
    """Defaults are filled in, folders are where fetch and replica look."""
    path = write(tmp_path, GOOD)
    big, small = read_catalog(path).models
    assert (big.gpus, big.ongoing_limit, small.ongoing_limit, small.upgrade) == (2, 72, 264, "surge")
    assert big.folder(Path("/home"), tmp_path) == Path(f"/home/models/acme--big/{REVISION}")
    assert small.folder(Path("/home"), tmp_path) == (tmp_path / "small").resolve()
    assert read_catalog(path).named("small") is not None


@pytest.mark.parametrize(("old", "new", "line", "message"), [
    ("license: MIT\n    repo", "lisense: MIT\n    repo", 3, "unknown key `lisense`; did you mean `license`?"),
    ("    price: {usd_per_gpu_hour: 2.5}\n", "", 2, "`price` is missing here; add it"),
    ("usd_per_gpu_hour: 2.5", "usd_per_gpu_huor: 2.5", 6, "unknown key `usd_per_gpu_huor`; did you mean `usd_per_gpu_hour`?"),
    ("{usd_per_gpu_hour: 2.5}", "{}", 6, "the price of `big` is either `usd_per_gpu_hour` or both"),
    ("{usd_per_gpu_hour: 2.5}", "{usd_per_gpu_hour: 2, usd_per_million_input_tokens: 1}", 6, "the price of `big` is either"),
    (", usd_per_million_output_tokens: 0.3", "", 13, "the price of `small` is either `usd_per_gpu_hour` or both"),
    ("usd_per_gpu_hour: 2.5", "usd_per_gpu_hour: -1", 6, "the price of `big` must be between 0 and 1,000,000 dollars"),
    ("usd_per_gpu_hour: 2.5", "usd_per_gpu_hour: .nan", 6, "the price of `big` must be between 0 and 1,000,000 dollars"),
    (f"revision: {REVISION}", "revision: main", 5,
     "`big` is not pinned: `revision` must be a full 40-digit commit hash; `inhouse models search acme/big`"),
    (f"    revision: {REVISION}\n", "", 2, "`big` is not pinned"),
    ("path: small", f"path: small\n    revision: {REVISION}", 13, "`revision` goes with `repo`"),
    ("    path: small\n", "", 10, "`small` needs exactly one of `path`"),
    ("path: small", "path: small\n    repo: a/b", 10, "`small` needs exactly one of `path`"),
    ("name: big\n", "name: Big Model\n", 2, "`Big Model` can't be a model's name"),
    ("name: big-legal", "name: small", 10, "the name `small` is taken by the model on line 2"),
    ("name: small\n", "name: big\n", 10, "the name `big` is taken by the model on line 2"),
    ("gpus: 2", "gpus: -1", 7, "`gpus` must be at least 0, not -1"),
    ("gpus: 2", "gpus: two", 7, "expected `int`, got `str`"),
    ("gpus: 2", "replicas: 0", 7, "`replicas` must be at least 1, not 0"),
    ("gpus: 2", "cpus: 0", 7, "`cpus` must be above 0, not 0"),
    ("gpus: 2", "max_ongoing_requests: 0", 7, "`max_ongoing_requests` must be at least 1, not 0"),
    ("gpus: 2", "upgrade: surg", 7, "`surg` is not a value of `upgrade`; did you mean `surge`?"),
    ("max_model_len", "max_model_length", 8, "the engine has no argument `max_model_length`; did you mean `max_model_len`?"),
    ("max_num_seqs: 64", "max_num_seqs: many", 8, "`max_num_seqs` must be a whole number of at least 1, not `many`"),
    ("max_num_seqs: 64", "tensor_parallel_size: 2", 8, "`tensor_parallel_size` is set by inhouse from `gpus`; write it there"),
    ("max_num_seqs: 64", "lora_modules: []", 8, "`lora_modules` is set by inhouse from `adapters`"),
    ("adapters: [{name: big-legal,", "adapters: [{nam: big-legal,", 9, "unknown key `nam`; did you mean `name`?"),
])
def test_every_mistake_names_its_line_and_its_cure(tmp_path: Path, old: str, new: str, line: int, message: str) -> None:
    """One mistake at a time in a good file."""
    assert old in GOOD
    path = write(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(ConfigError) as error:
        read_catalog(path)
    assert str(error.value).startswith(f"{path}:{line}: {message}")


def test_no_models_is_an_error(tmp_path: Path) -> None:
    """An empty catalog can't be meant."""
    with pytest.raises(ConfigError, match="no models; add one under `models:`"):
        read_catalog(write(tmp_path, "models: []\n"))


def test_an_unknown_name_gets_the_nearest(tmp_path: Path) -> None:
    """On the command line too."""
    with pytest.raises(ConfigError, match="no model `smal` in the catalog; did you mean `small`"):
        read_catalog(write(tmp_path, GOOD)).named("smal")


def test_the_shipped_catalog_is_right() -> None:
    """What every new user starts from."""
    assert read_catalog().models and read_catalog(SHIPPED).named("demo-extractor").gpus == 0


def test_the_schema_in_the_repository_is_the_codes() -> None:
    """`inhouse models schema --out serving/models.schema.json` after a change of the structs or of the engine's arguments."""
    assert json.loads(SHIPPED.with_name("models.schema.json").read_text(encoding="utf-8")) == json.loads(json.dumps(json_schema()))


def test_the_schema_knows_the_engines_arguments() -> None:
    """Editors complete them, and do not offer those that inhouse sets itself."""
    names = json_schema()["$defs"]["Model"]["properties"]["engine"]["propertyNames"]["enum"]
    assert "max_model_len" in names and "tensor_parallel_size" not in names
    assert catalog.engine_argument_names() > {"max_model_len", "tensor_parallel_size"}


_KEYS = ["name", "license", "repo", "revision", "path", "price", "engine", "adapters", "gpus", "cpus", "replicas", "upgrade", "nonsense"]
_ANY_KEY = st.one_of(st.sampled_from(_KEYS), st.text(max_size=5), st.integers())
_LEAVES: Any = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.just(REVISION))
_VALUES: Any = st.recursive(_LEAVES, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_ANY_KEY, inner, max_size=4)),
                            max_leaves=12)


@settings(max_examples=200, deadline=None)
@given(st.fixed_dictionaries({"models": st.lists(st.dictionaries(st.sampled_from(_KEYS), _VALUES, max_size=9), max_size=3)}))
def test_any_shape_of_data_is_a_catalog_or_a_config_error(tmp_path_factory: pytest.TempPathFactory, data: dict[str, Any]) -> None:
    """Wrong types in every place are found by the reader, not by a caller later."""
    path = tmp_path_factory.getbasetemp() / "shape.yaml"
    path.write_text(yaml.safe_dump(data, allow_unicode=True), encoding="utf-8")
    try:
        read_catalog(path)
    except ConfigError as error:
        assert str(error).startswith(str(path))
