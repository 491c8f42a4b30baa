"""Changes keys of one task in the text of a `routes.yaml` and leaves every other byte as it is: comments, quotes, order, line ends.

The nodes' places come from the YAML parser. Whether the changed text says what was meant is for the caller to check, by reading it.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import yaml

_WIDTH = 120
_PLAIN = re.compile(r"[a-z][a-z0-9-]*")
_NOT_PLAIN = {"false", "no", "null", "off", "on", "true", "yes"}


class SpliceError(Exception):
    """The text is not laid out in a way that can be changed."""


class _Edit(NamedTuple):
    start: int
    end: int
    text: str


class Page:
    """A file's text and where its nodes stand. Raises `SpliceError` for what is no YAML mapping."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.newline = "\r\n" if "\r\n" in text else "\n"
        try:
            root = yaml.compose(text, Loader=yaml.SafeLoader)
            self._covered = [(token.start_mark.index, token.end_mark.index) for token in yaml.scan(text, Loader=yaml.SafeLoader)]
        except yaml.YAMLError as error:
            raise SpliceError(f"it is no YAML ({error})") from error
        if not isinstance(root, yaml.MappingNode):
            raise SpliceError("it has no keys")
        self._root = root

    def put(self, task: str, values: Mapping[str, Any]) -> str:
        """The text with these keys of the task set, the first of which it has already. Raises `SpliceError`."""
        node = self._task(task)
        keys = _keys(node)
        edits: list[_Edit] = []
        last = 0
        for name, value in values.items():
            if name in keys:
                edits += self._replaced(*keys[name], value)
                last = _end(keys[name][1])
            else:
                edits.append(self._added(node, last, name, value))
        text = self.text
        for edit in sorted(edits, reverse=True):
            text = text[: edit.start] + edit.text + text[edit.end :]
        return text

    def _task(self, name: str) -> yaml.MappingNode:
        tasks = _keys(self._root)["tasks"][1]
        for node in tasks.value if isinstance(tasks, yaml.SequenceNode) else ():
            if isinstance(node, yaml.MappingNode) and _keys(node)["name"][1].value == name:
                return node
        raise SpliceError(f"there is no task `{name}` in it")

    def _replaced(self, key: yaml.Node, node: yaml.Node, value: Any) -> Iterator[_Edit]:
        """Comments between a key and its value's end move above the key: the value that they stand in goes."""
        start, end = key.end_mark.index, _end(node)
        if end < start:
            raise SpliceError("an alias stands for what would be changed")
        blank = " " * key.start_mark.column
        if comments := self._comments(start, end):
            yield _Edit(key.start_mark.index, key.start_mark.index, "".join(f"{one}{self.newline}{blank}" for one in comments))
        yield _Edit(start, end, f": {self._wrapped(self._flow(value), blank)}")

    def _added(self, task: yaml.MappingNode, after: int, name: str, value: Any) -> _Edit:
        if task.flow_style:
            return _Edit(after, after, f", {self._flow({name: value})[1:-1]}")
        at = re.compile(r"\r?\n|\Z").search(self.text, after)
        assert at is not None, "a text has an end"
        return _Edit(at.start(), at.start(), f"{self.newline}{' ' * task.start_mark.column}{name}: {self._flow(value)}")

    def _comments(self, start: int, end: int) -> list[str]:
        found, at = [], start
        for first, last in [*self._covered, (end, end)]:
            if last > at:
                found += re.findall(r"#[^\r\n]*", self.text[at : max(at, min(first, end))])
                at = min(last, end)
        return [comment.rstrip() for comment in found]

    def _flow(self, value: Any) -> str:
        """A value in one line of YAML; of JSON where the whole file is in that style."""
        if isinstance(value, Mapping):
            return "{" + ", ".join(f"{self._flow(name)}: {self._flow(one)}" for name, one in value.items()) + "}"
        if isinstance(value, list | tuple):
            return "[" + ", ".join(map(self._flow, value)) + "]"
        if isinstance(value, float):
            digits = f"{value:.6f}".rstrip("0")  # YAML reads 1e-05 as a text
            return f"{digits}0" if digits.endswith(".") else digits
        if isinstance(value, str) and not self._root.flow_style and _is_plain(value):
            return value
        return json.dumps(value, ensure_ascii=False)

    def _wrapped(self, text: str, blank: str) -> str:
        lines = [""]
        for part in re.split(r"(?<=, )", text):
            if len(lines[-1]) + len(part) > _WIDTH:
                lines.append("")
            lines[-1] += part
        return f"{self.newline}{blank}    ".join(line.rstrip() for line in lines)


def _is_plain(text: str) -> bool:
    """Whether a text needs no quotes: names, and keys with underscores."""
    return bool(_PLAIN.fullmatch(text.replace("_", "-"))) and text not in _NOT_PLAIN


def _keys(node: yaml.MappingNode) -> dict[str, tuple[yaml.Node, yaml.Node]]:
    return {key.value: (key, value) for key, value in node.value}


def _end(node: yaml.Node) -> int:
    """Where a node's last character is; the parser's mark of a block is at the next thing after it."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    return int(node.end_mark.index)
