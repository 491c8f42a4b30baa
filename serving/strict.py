"""Reads a YAML file into frozen msgspec structs and names the line of whatever is wrong with it.

Does not know what the structs mean: claims about values (a model exists, a revision is pinned) are their owners' business.
"""

import difflib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

T = TypeVar("T")
_MAX_CHARACTERS = 1_000_000
_MAX_DEPTH = 50
_MAX_VALUES = 50_000
# What PyYAML's constructors let through for values such as `2020-13-45`, `!!int ""`, `!!bool maybe`.
_BAD_SCALARS = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError)


class ConfigError(Exception):
    """A file a person edits is wrong. The message says `file:line`, what is so and what to do."""


class Document:
    """One YAML file: its plain data and the line on which each of its values stands."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: dict[str, int] = {}
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise ConfigError(f"{path}: no such file") from error
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: cannot be read: {error}") from error
        self._check_size(text)
        try:
            node = yaml.compose(text, Loader=yaml.CSafeLoader)
            if node is not None:
                self._walk(node, "$", ())
            self.data: Any = yaml.load(text, Loader=yaml.CSafeLoader)
        except yaml.YAMLError as error:
            raise self._not_yaml(error) from error
        except _BAD_SCALARS as error:
            raise ConfigError(f"{path}:1: a value is not what its tag or form promises: {error}") from error
        if self.data is None:
            raise ConfigError(f"{path}:1: the file is empty")

    def _not_yaml(self, error: yaml.YAMLError) -> ConfigError:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        return ConfigError(f"{self.path}:{mark.line + 1 if mark else 1}: not valid YAML: {problem}")

    def _check_size(self, text: str) -> None:
        """Depth is looked at in the parser's events, because its recursive composer takes the process down at 100,000 brackets."""
        if len(text) > _MAX_CHARACTERS:
            raise ConfigError(f"{self.path}:1: {len(text):,} characters; a file that a person edits has at most {_MAX_CHARACTERS:,}")
        depth = 0
        try:
            for event in yaml.parse(text, Loader=yaml.CSafeLoader):
                depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
                if depth > _MAX_DEPTH:
                    line = event.start_mark.line + 1 if event.start_mark else 1
                    raise ConfigError(f"{self.path}:{line}: nested more than {_MAX_DEPTH} levels deep")
        except yaml.YAMLError as error:
            raise self._not_yaml(error) from error

    def _walk(self, node: yaml.Node, at: str, above: tuple[int, ...]) -> None:
        line = node.start_mark.line + 1
        if id(node) in above:
            raise ConfigError(f"{self.path}:{line}: an alias refers to what it stands in")
        if len(self._lines) > _MAX_VALUES:
            raise ConfigError(f"{self.path}:{line}: more than {_MAX_VALUES:,} values, aliases counted where they are used")
        self._lines.setdefault(at, line)
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                name = str(key.value)
                line = key.start_mark.line + 1
                if name in seen:
                    raise ConfigError(f"{self.path}:{line}: `{name}` is written twice; keep one")
                seen.add(name)
                self._lines[f"{at}.{name}"] = line
                self._walk(value, f"{at}.{name}", (*above, id(node)))
        elif isinstance(node, yaml.SequenceNode):
            for i, value in enumerate(node.value):
                self._walk(value, f"{at}[{i}]", (*above, id(node)))

    def line(self, at: str) -> int:
        """The line of the value at a path such as `$.models[0].engine`, or of its nearest known parent."""
        while at not in self._lines and at:
            at = at[:max(at.rfind("."), at.rfind("["), 0)]
        return self._lines.get(at, 1)

    def error(self, at: str, message: str) -> ConfigError:
        """A `ConfigError` that names this file and the line of `at`."""
        return ConfigError(f"{self.path}:{self.line(at)}: {message}")

    def read(self, kind: type[T]) -> T:
        """The document as `kind`. Raises `ConfigError` for an unknown key (with the nearest known name), a missing one or a wrong type."""
        try:
            return msgspec.convert(self.data, kind)
        except msgspec.ValidationError as error:
            raise self._explained(str(error), kind) from error

    def _explained(self, text: str, kind: type) -> ConfigError:
        message, _, where = text.partition(" - at `")
        at = where.removeprefix("key` in `").rstrip("`") or "$"
        if unknown := re.match(r"Object contains unknown field `(.*)`", message):
            name = unknown.group(1)
            return self.error(f"{at}.{name}", f"unknown key `{name}`{nearest(name, _field_names(kind, at))}")
        if missing := re.match(r"Object missing required field `(.*)`", message):
            return self.error(at, f"`{missing.group(1)}` is missing here; add it")
        if wrong := re.match(r"Invalid enum value '(.*)'", message):
            value, key = wrong.group(1), at.rpartition(".")[2]
            return self.error(at, f"`{value}` is not a value of `{key}`{nearest(value, _choices(kind, at))}")
        return self.error(at, f"{message[0].lower()}{message[1:]} (at `{at}`)")


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message: the nearest known name, or all of them where there are few."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean `{close[0]}`?"
    return f"; known here: {', '.join(known)}" if 0 < len(known) <= 20 else ""


def _field_names(kind: type, at: str) -> list[str]:
    """The keys allowed at a path inside `kind`, found by walking the struct's types."""
    return [field.encode_name for one in _structs_at(kind, at) for field in msgspec.structs.fields(one)]


def _choices(kind: type, at: str) -> list[str]:
    """The values allowed for the key at a path inside `kind`, where they are listed."""
    parent, _, key = at.rpartition(".")
    fields = [field for one in _structs_at(kind, parent) for field in msgspec.structs.fields(one) if field.encode_name == key]
    return [str(value) for field in fields for value in getattr(field.type, "__args__", ())]


def _structs_at(kind: type, at: str) -> list[type]:
    found: list[type] = [kind]
    for step in re.findall(r"\.([^.\[\]]+)|(\[[^\]]*\])", at.removeprefix("$")):
        found = [inner for one in found for inner in _inside(one, step[0])]
    return found


def _inside(kind: type, name: str) -> Iterator[type]:
    for field in msgspec.structs.fields(kind) if name else ():
        if field.encode_name == name:
            yield from _structs(field.type)
    if not name:
        yield kind  # a step into a list: `_structs` has already unwrapped it


def _structs(annotation: Any) -> Iterator[type]:
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _structs(argument)
