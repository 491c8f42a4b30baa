"""The law of the rooms, held over the syntax trees: who may import whom, what stays lazy, and what nobody writes.

Each check is a function from sources to offences, so that each is also shown able to find one.
"""

import ast
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = {  # a room, and the modules of other rooms that it may import
    "serving": (),
    "routing": ("serving.catalog",),
    "evals": (),
    "notebooks": ("evals", "serving.catalog", "serving.fit"),
    "inhouse": ("serving", "routing", "evals"),
}
ENGINES = ("ray", "vllm")
ENGINE_FILES = {"serving/replica.py", "serving/engine.py", "serving/engine_args.py", "serving/head.py"}
EAGER_ENGINE_FILE = "serving/replica.py"  # runs inside Ray only
TRACKING_FILE = "evals/tracking.py"
ENTRIES = ("inhouse", "serving.cli", "routing.server", "routing.cli", "evals.cli")  # what a person waits for
DOOR = "routing/upstream.py"
SOCKETS = (
    "socket",
    "ssl",
    "httptools",
    "http.client",
    "urllib.request",
    "urllib3",
    "httpx",
    "requests",
    "aiohttp",
    "pyreqwest",
    "openai",
    "anthropic",
    "telnetlib",
)
SOCKET_CALLS = {
    "create_connection",
    "open_connection",
    "create_unix_connection",
    "open_unix_connection",
    "sock_connect",
    "start_tls",
    "create_datagram_endpoint",
}

Sources = dict[str, ast.Module]


class Import(NamedTuple):
    """One imported module. `lazy` says that it is imported inside a function."""

    file: str
    line: int
    module: str
    lazy: bool
    level: int


@cache
def sources() -> Sources:
    """All Python files of the rooms, parsed."""
    files = [ROOT / "inhouse.py", *(file for room in ROOMS for file in (ROOT / room).rglob("*.py"))]
    return {str(file.relative_to(ROOT)): ast.parse(file.read_text(encoding="utf-8")) for file in files}


def parsed(**files: str) -> Sources:
    """Planted sources: `routing__x="..."` is the file routing/x.py."""
    return {name.replace("__", "/") + ".py": ast.parse(text) for name, text in files.items()}


def module_of(file: str) -> str:
    """The module name of a file."""
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def is_of(module: str, owners: tuple[str, ...]) -> bool:
    """Whether a module is one of `owners` or lies inside one."""
    return any(module == owner or module.startswith(f"{owner}.") for owner in owners)


def imports(all_sources: Sources) -> Iterator[Import]:
    """Every import; `from a import b` counts as `a.b` where that is a module of ours, else as `a`."""
    ours = {module_of(file) for file in all_sources}

    def walk(file: str, node: ast.AST, *, lazy: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(file, child.lineno, alias.name, lazy, 0) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                for name in (f"{child.module}.{alias.name}" for alias in child.names):
                    yield Import(file, child.lineno, name if name in ours else str(child.module), lazy, child.level)
            yield from walk(file, child, lazy=lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))

    for file, tree in all_sources.items():
        yield from walk(file, tree, lazy=False)


Graph = dict[str, set[str]]


def graph(all_sources: Sources, *, lazy: bool) -> Graph:
    """What each module imports, with what it imports lazily or without."""
    found: Graph = {}
    for one in imports(all_sources):
        if lazy or not one.lazy:
            found.setdefault(module_of(one.file), set()).add(one.module)
    return found


def closure(after: Graph, entries: Iterable[str]) -> set[str]:
    """The modules that come in with `entries`."""
    seen: set[str] = set()
    todo = list(entries)
    while todo:
        module = todo.pop()
        if module not in seen:
            seen.add(module)
            todo.extend(after.get(module, ()))
    return seen


def crossings(all_sources: Sources) -> list[str]:
    """Imports from one room into another that the table does not list."""
    return [
        f"{one.file}:{one.line}: {one.module}"
        for one in imports(all_sources)
        if (room := module_of(one.file).split(".")[0]) in ROOMS
        and (there := one.module.split(".")[0]) in ROOMS
        and there != room
        and not is_of(one.module, ROOMS[room])
    ]


def eager_front_door(all_sources: Sources) -> list[str]:
    """Rooms that the command imports before it knows which one is wanted."""
    return [
        f"{one.file}:{one.line}: {one.module}"
        for one in imports(all_sources)
        if one.file == "inhouse.py" and not one.lazy and is_of(one.module, ("serving", "routing", "evals"))
    ]


def engines_out_of_place(all_sources: Sources) -> list[str]:
    """Imports of ray or vllm in other files than the deploy files, or at a module's top."""
    return [
        f"{one.file}:{one.line}: {one.module}"
        for one in imports(all_sources)
        if is_of(one.module, ENGINES) and (one.file not in ENGINE_FILES or not (one.lazy or one.file == EAGER_ENGINE_FILE))
    ]


def slow_entries(all_sources: Sources) -> list[str]:
    """Heavy modules that come in with an entry point before anything is asked of it."""
    heavy = (*ENGINES, "mlflow", "torch", "transformers", "sklearn", "pandas", "jupyterlab", "huggingface_hub")
    return sorted(module for module in closure(graph(all_sources, lazy=False), ENTRIES) if is_of(module, heavy))


def tracking_out_of_place(all_sources: Sources) -> list[str]:
    """Imports of mlflow outside the tracking file."""
    return [f"{one.file}:{one.line}" for one in imports(all_sources) if is_of(one.module, ("mlflow",)) and one.file != TRACKING_FILE]


def other_doors(all_sources: Sources) -> list[str]:
    """What could open a socket in the router's process, outside the one file that may."""
    loaded = closure(graph(all_sources, lazy=True), ("routing.server",))
    inside = {file for file in all_sources if module_of(file) in loaded} - {DOOR}
    found = [f"{one.file}:{one.line}: {one.module}" for one in imports(all_sources) if one.file in inside and is_of(one.module, SOCKETS)]
    return found + [
        f"{file}:{node.lineno}: {node.attr}"
        for file in sorted(inside)
        for node in ast.walk(all_sources[file])
        if isinstance(node, ast.Attribute) and node.attr in SOCKET_CALLS
    ]


def cycles(all_sources: Sources) -> list[str]:
    """Modules that import themselves by way of others, lazily or not."""
    after = graph(all_sources, lazy=True)
    return sorted(module for module, others in after.items() if module in closure(after, others))


def relative(all_sources: Sources) -> list[str]:
    """Relative imports: a file's imports should read the same wherever it is moved."""
    return [f"{one.file}:{one.line}" for one in imports(all_sources) if one.level]


def globals_used(all_sources: Sources) -> list[str]:
    """`global` statements."""
    return [f"{file}:{node.lineno}" for file, tree in all_sources.items() for node in ast.walk(tree) if isinstance(node, ast.Global)]


def swallowed(all_sources: Sources) -> list[str]:
    """Errors of any kind that vanish: a bare `except:`, a broad one that only passes, `suppress(Exception)`."""
    broad = ("Exception", "BaseException")

    def names(node: ast.expr | None) -> list[str]:
        return [part.id for part in ast.walk(node) if isinstance(part, ast.Name)] if node else list(broad)

    def is_silent(node: ast.ExceptHandler) -> bool:
        return all(
            isinstance(step, ast.Pass | ast.Continue) or (isinstance(step, ast.Expr) and isinstance(step.value, ast.Constant))
            for step in node.body
        )

    found = []
    for file, tree in all_sources.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler):
                bad = node.type is None or (is_silent(node) and any(name in broad for name in names(node.type)))
            else:
                bad = (
                    isinstance(node, ast.Call)
                    and getattr(node.func, "attr", getattr(node.func, "id", "")) == "suppress"
                    and any(name in broad for argument in node.args for name in names(argument))
                )
            if bad:
                found.append(f"{file}:{node.lineno}")
    return found


PLANTED: list[tuple[Callable[[Sources], list[str]], dict[str, str]]] = [
    (crossings, {"serving__x": "import routing.keys"}),
    (crossings, {"routing__x": "from serving.fit import fits"}),
    (crossings, {"routing__x": "from serving import fit", "serving__fit": ""}),
    (crossings, {"evals__x": "def f():\n    from serving.catalog import Model"}),
    (crossings, {"evals__suites__x": "import routing"}),
    (eager_front_door, {"inhouse": "from routing import cli"}),
    (engines_out_of_place, {"serving__fit": "def f():\n    import ray"}),
    (engines_out_of_place, {"serving__head": "import ray.serve"}),
    (engines_out_of_place, {"routing__x": "from vllm import LLM"}),
    (slow_entries, {"routing__server": "from routing import tasks", "routing__tasks": "import sklearn.svm"}),
    (slow_entries, {"serving__cli": "import serving.replica", "serving__replica": "from ray import serve"}),
    (tracking_out_of_place, {"evals__report": "def f():\n    import mlflow"}),
    (other_doors, {"routing__server": "import routing.x", "routing__x": "import socket"}),
    (other_doors, {"routing__server": "def f():\n    from routing import x", "routing__x": "from urllib.request import urlopen"}),
    (other_doors, {"routing__server": "async def f(loop):\n    await loop.create_connection(None)"}),
    (cycles, {"routing__a": "import routing.b", "routing__b": "def f():\n    from routing import a"}),
    (relative, {"routing__a": "from . import b"}),
    (relative, {"routing__a": "from ..serving import b"}),
    (globals_used, {"routing__a": "def f():\n    global x\n    x = 1"}),
    (swallowed, {"routing__a": "try:\n    f()\nexcept:\n    raise"}),
    (swallowed, {"routing__a": "try:\n    f()\nexcept Exception:\n    pass"}),
    (swallowed, {"routing__a": "try:\n    f()\nexcept (OSError, BaseException):\n    '''why'''"}),
    (swallowed, {"routing__a": "import contextlib\nwith contextlib.suppress(Exception):\n    f()"}),
]
LAW = list(dict.fromkeys(check for check, _ in PLANTED))


@pytest.mark.parametrize("check", LAW, ids=lambda check: check.__name__)
def test_the_law_holds(check):
    """No file of the rooms breaks this rule."""
    assert check(sources()) == []


@pytest.mark.parametrize(("check", "files"), PLANTED, ids=lambda value: getattr(value, "__name__", None))
def test_each_check_can_fail(check, files):
    """A planted offence is found, so that the law is no empty one."""
    assert check(parsed(**files))


def test_lawful_sources_are_let_be():
    """What the table allows is no offence to any check."""
    lawful = parsed(
        routing__server="from routing.upstream import Pool\nfrom serving.catalog import read_catalog",
        routing__upstream="import ssl\nasync def f(loop):\n    await loop.create_connection(None)",
        serving__catalog="import yaml",
        serving__replica="from ray import serve",
        serving__cli="def f():\n    from serving.head import start",
        serving__head="def f():\n    import ray",
        evals__tracking="def f():\n    import mlflow",
        notebooks__a="import evals.stats\nfrom serving.fit import fits",
        inhouse="def f():\n    from routing import cli\ntry:\n    f()\nexcept Exception as error:\n    print(error)",
    )
    assert [check(lawful) for check in LAW] == [[]] * len(LAW)


def test_every_file_is_looked_at():
    """The law reads the rooms' files, this many at least: a moved folder must not empty it."""
    files = sources()
    assert {"inhouse.py", "routing/router.py", "serving/catalog.py"} <= set(files)
    assert len(files) > 30
