"""YAML in, frozen structs or one `ConfigError` out, whatever the YAML."""

from pathlib import Path
from typing import Literal

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from serving.strict import ConfigError, Document, nearest


class Leg(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    length_cm: int
    wood: Literal["oak", "beech"] = "oak"


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    legs: tuple[Leg, ...] = ()
    extra: dict[str, str] = {}


def read(folder: Path, text: str) -> Table:
    path = folder / "table.yaml"
    path.write_text(text, encoding="utf-8")
    return Document(path).read(Table)


def test_a_right_file_becomes_a_struct(tmp_path: Path) -> None:
    """Aliases and merge keys are resolved."""
    text = "name: t\nlegs:\n- &leg {length_cm: 70}\n- *leg\n- {<<: *leg, wood: beech}\n"
    assert read(tmp_path, text) == Table("t", (Leg(70), Leg(70), Leg(70, "beech")))


@pytest.mark.parametrize(("text", "line", "message"), [
    ("name: t\nlegz: []\n", 2, "unknown key `legz`; did you mean `legs`?"),
    ("name: t\nlegs:\n- length_cm: 1\n- lenght_cm: 2\n", 4, "unknown key `lenght_cm`; did you mean `length_cm`?"),
    ("name: t\nqqq: 1\n", 2, "unknown key `qqq`; known here: extra, legs, name"),
    ("legs: []\n", 1, "`name` is missing here; add it"),
    ("name: t\nlegs:\n- {wood: oak}\n", 3, "`length_cm` is missing here; add it"),
    ("name: t\nlegs:\n- length_cm: long\n", 3, "expected `int`, got `str` (at `$.legs[0].length_cm`)"),
    ("name: t\nlegs:\n- length_cm: 1\n  wood: beach\n", 4, "`beach` is not a value of `wood`; did you mean `beech`?"),
    ("name: t\nextra:\n  1: x\n", 2, "expected `str`, got `int` (at `$.extra`)"),
    ("name: t\nname: u\n", 2, "`name` is written twice; keep one"),
    ("name: [\n", 2, "not valid YAML: did not find expected node content"),
    ("name: t\n\tlegs: []\n", 2, "not valid YAML: found a tab character that violates indentation"),
    ("", 1, "the file is empty"), ("# nothing\n", 1, "the file is empty"), ("~", 1, "the file is empty"),
    ("- a\n", 1, "expected `object`, got `array` (at `$`)"),
    ("name: t\nlegs: &a\n- *a\n", 2, "an alias refers to what it stands in"),
    ("name: !!python/name:os.system x\n", 1, "not valid YAML: could not determine a constructor for the tag"),
    ("name: 2020-13-45\n", 1, "a value is not what its tag or form promises"),
    ("? [a]\n: b\n", 1, "not valid YAML: found unhashable key"),
    ("a: 1\n---\nb: 1\n", 2, "not valid YAML: but found another document"),
    ("[" * 100_000, 1, "nested more than 50 levels deep"),
    ("x" * 1_000_001, 1, "1,000,001 characters; a file that a person edits has at most 1,000,000"),
])
def test_every_error_names_its_line(tmp_path: Path, text: str, line: int, message: str) -> None:
    """file:line, what is so, and the nearest known name."""
    with pytest.raises(ConfigError) as error:
        read(tmp_path, text)
    assert str(error.value).startswith(f"{tmp_path}/table.yaml:{line}: {message}")


def test_aliases_that_multiply_are_stopped(tmp_path: Path) -> None:
    """A few lines that would unfold into billions of values cost no memory."""
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    with pytest.raises(ConfigError, match="more than 50,000 values, aliases counted where they are used"):
        read(tmp_path, "\n".join(rows))


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    """Missing, a folder, not text."""
    with pytest.raises(ConfigError, match="no such file"):
        Document(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        Document(tmp_path)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        Document(tmp_path / "bytes")


def test_lines_of_unknown_places_are_their_parents(tmp_path: Path) -> None:
    """Keys with brackets and dots in them included."""
    path = tmp_path / "t.yaml"
    path.write_text("a:\n  b.c: 1\n  'd]': [1,\n   2]\n")
    document = Document(path)
    assert [document.line(at) for at in ("$.a.b.c", "$.a.d]", "$.a.d][1]", "$.a.d][9].x", "$.a.x]", "nonsense")] == [2, 3, 4, 3, 1, 1]


def test_nearest() -> None:
    """A typo gives the name, a stranger gives the few there are."""
    assert nearest("gpu", ["gpus", "cpus"]) == "; did you mean `gpus`?"
    assert nearest("zzz", ["b", "a"]) == "; known here: a, b"
    assert nearest("zzz", []) == nearest("zzz", map(str, range(99))) == ""


_YAML_BITS = st.sampled_from([
    "name", "legs", "length_cm", "extra", ": ", "- ", "\n", "  ", "[", "]", "{", "}", ",", "&a ", "*a", "<<", "!!int ", "!!set ",
    "!!binary ", "!!timestamp ", "!!bool ", "!!float ", "!!omap ", "!!null", "?", "|", ">", "'", '"', "#", "%", "---", "0x", "1e9",
    "2020-01-01", "~", "oak", "\t", "\0", "é", "🪑", "\ud7ff"])


@settings(max_examples=200, deadline=None)
@example("!!int ''")
@example("!!bool maybe")
@example("!!binary é")
@example("{[a]: b}")
@example("1" * 5000)
@given(st.one_of(st.text(), st.lists(_YAML_BITS).map("".join)))
def test_garbage_is_a_config_error_and_nothing_else(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    """Any text gives a struct or a `ConfigError`, never another exception."""
    path = tmp_path_factory.getbasetemp() / "garbage.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        Document(path).read(Table)
    except ConfigError as error:
        assert str(error).startswith(str(path))
