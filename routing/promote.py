"""Gives a task to another model by changing `routes.yaml`, and puts back what was there. A running router takes the file by itself.

The file is replaced whole, by one rename, after it was read back and says what was meant and nothing else. Not here: the command.
"""

import datetime
import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from routing.config import SHIPPED, Candidate, ConfigError, Routes, Site, Task
from routing.evidence import Evidence, Paper
from routing.settings import Settings
from routing.splice import Page, SpliceError
from serving.catalog import nearest

_UNDONE = ".undone"


class PromoteError(Exception):
    """The route was left as it is. The message says why and what to do."""


class Change(NamedTuple):
    """What was done to which file, and where the file before it is kept."""

    task: str
    file: Path
    before: tuple[str, ...]
    after: tuple[str, ...]
    kept: Path


def check_paper(site: Site, paper: Paper, digests: dict[str, str], *, task: str, model: str) -> Evidence:
    """The evidence that lets a model take a task. Raises `PromoteError` where the document is of something else, or refuses."""
    found = _task(site, task)
    again = f"compare runs of {model} on {task}: inhouse eval run {task} --model {model}; inhouse eval compare INCUMBENT_RUN CANDIDATE_RUN"
    if paper.task != task:
        raise PromoteError(f"evidence {paper.id} is of the task `{paper.task}`, not `{task}`; {again}")
    if paper.candidate != model:
        raise PromoteError(f"evidence {paper.id} is for `{paper.candidate}`, not `{model}`; promote that one, or {again}")
    rivals = [one.model for one in found.candidates if one.weight and one.model != model] or [*found.fallbacks]
    if set(rivals) != {paper.incumbent} and not (_has(found, model) and paper.incumbent in rivals):
        raise PromoteError(f"evidence {paper.id} compares with `{paper.incumbent}`, but `{task}` is answered by "
                           f"{', '.join(rivals) or model}; {again}")  # fmt: skip
    if paper.verdict not in ("better", "not worse"):
        raise PromoteError(f"evidence {paper.id} says `{paper.verdict}`: only `better` and `not worse` promote. "
                           "More cases may tell (inhouse eval plan); a promotion without evidence needs --because")  # fmt: skip
    _check_digests(paper, digests, again)
    return paper.evidence()


def _check_digests(paper: Paper, digests: dict[str, str], again: str) -> None:
    for name, then in ((paper.candidate, paper.candidate_digest), (paper.incumbent, paper.incumbent_digest)):
        now = digests.get(name, "")
        if now and then and now != then:
            raise PromoteError(f"`{name}` has changed since evidence {paper.id}: its digest is {now}, the evidence is of {then}; {again}")
    if digests.get(paper.candidate) and not paper.candidate_digest:
        raise PromoteError(f"evidence {paper.id} has no digest of `{paper.candidate}`, so nothing says that it is about these weights; "
                           f"runs through this router have one: {again}")  # fmt: skip


def promote(settings: Settings, site: Site, *, task: str, model: str, evidence: Evidence | None) -> Change:
    """Makes `model` the task's only candidate; whoever it takes the task from becomes the first fallback. Raises `PromoteError`."""
    old = _task(site, task)
    if not site.serves(model):
        raise PromoteError(f"no model `{model}` in the catalog{nearest(model, site.names())}")
    others = dict.fromkeys([*(one.model for one in old.candidates), *old.fallbacks])
    fallbacks = tuple(name for name in others if name != model)
    new = msgspec.structs.replace(old, candidates=(Candidate(model=model, evidence=evidence),), fallbacks=fallbacks)
    if new == old:
        raise PromoteError(f"`{task}` is answered by `{model}` already, and nothing would change")
    with _held(settings) as file:
        before = file.read_bytes()
        after = Page(_text(file, before)).put(task, _plain(old, new)).encode()
        kept = _keep(settings.home, task, before, after)
        try:
            _replace(settings, file, after, _with(site.routes, new))
        except PromoteError:
            shutil.rmtree(kept)
            raise
    return Change(task, settings.routes, tuple(old.models()), tuple(new.models()), kept)


def rollback(settings: Settings, site: Site, task: str | None) -> Change:
    """Puts back what the last promotion (of a task) replaced: the whole file, or the task alone where the file was changed since.

    Raises `PromoteError`, also where the task itself was changed since.
    """
    with _held(settings) as file:
        kept = _last(settings.home, task)
        name = kept.name.partition("-")[2]
        before, after, now = ((kept / "before.yaml").read_bytes(), (kept / "after.yaml").read_bytes(), file.read_bytes())
        by_hand = f"put `{name}` back by hand; the file before the promotion is {kept / 'before.yaml'}"
        found = before if now in (before, after) else _reversed(before, after, now)
        if found is None:
            raise PromoteError(f"{settings.routes} was changed where the promotion had changed it; {by_hand}")
        old = _task(site, name)
        then = _read(before, by_hand)
        new = next((one for one in then.tasks if one.name == name), old)
        new = msgspec.structs.replace(old, candidates=new.candidates, fallbacks=new.fallbacks)
        _replace(settings, file, found, then if found == before else _with(site.routes, new))
        kept.rename(kept.with_name(kept.name + _UNDONE))
    return Change(name, settings.routes, tuple(old.models()), tuple(new.models()), kept.with_name(kept.name + _UNDONE))


def _task(site: Site, name: str) -> Task:
    if name not in site.tasks:
        raise PromoteError(f"no task `{name}`{nearest(name, site.tasks)}; `inhouse routes show` lists them")
    return site.tasks[name]


def _has(task: Task, model: str) -> bool:
    return [one.model for one in task.candidates if one.weight] == [model]


def _with(routes: Routes, new: Task) -> Routes:
    return msgspec.structs.replace(routes, tasks=tuple(new if one.name == new.name else one for one in routes.tasks))


def _plain(old: Task, new: Task) -> dict[str, Any]:
    (candidate,) = new.candidates
    entry: dict[str, Any] = {"model": candidate.model}
    if candidate.evidence is not None:
        entry["evidence"] = msgspec.to_builtins(candidate.evidence)
    changed: dict[str, Any] = {"candidates": [entry]}
    return changed | ({"fallbacks": [*new.fallbacks]} if new.fallbacks != old.fallbacks else {})


@contextmanager
def _held(settings: Settings) -> Iterator[Path]:
    """The file behind the setting while no other command changes it. Raises `PromoteError` where nobody should, or can."""
    file = settings.routes.resolve()
    if file == SHIPPED.resolve() and not (SHIPPED.parents[1] / ".git").exists():
        own = settings.home / "routes.yaml"
        raise PromoteError(f"{file} belongs to the installed package, and the next version would replace it. Take a copy of your own: "
                           f"cp {file} {own}; export INHOUSE_ROUTES={own}; inhouse down; inhouse up")  # fmt: skip
    folder = settings.home / "state" / "routes"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield file
    except SpliceError as error:
        raise PromoteError(f"{file} can't be changed by this command: {error}; "
                           "edit it by hand and check it: inhouse routes check") from error  # fmt: skip
    except OSError as error:
        raise PromoteError(f"{error.filename or file} can't be written: {error.strerror}; the file in force was left as it is") from error


def _text(file: Path, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise SpliceError(f"{file.name} is not in UTF-8") from error


def _replace(settings: Settings, file: Path, data: bytes, meant: Routes) -> None:
    """One rename, once the new file has been read as the router will read it."""
    draft = file.with_name(f".{file.name}.draft")
    try:
        draft.write_bytes(data)
        shutil.copymode(file, draft)
        if settings._replace(routes=draft).site().routes != meant:
            raise SpliceError("its layout (anchors, perhaps) would change more than this route")
        with draft.open("rb") as written:
            os.fsync(written.fileno())
        draft.replace(file)
    except ConfigError as error:
        raise PromoteError(f"the changed file would be wrong, so the one in force stays ({error}); edit it by hand") from error
    finally:
        draft.unlink(missing_ok=True)


def _keep(home: Path, task: str, before: bytes, after: bytes) -> Path:
    kept = home / "state" / "routes" / f"{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%S.%f}-{task}"
    kept.mkdir()
    (kept / "before.yaml").write_bytes(before)
    (kept / "after.yaml").write_bytes(after)
    return kept


def _last(home: Path, task: str | None) -> Path:
    folders = sorted(one for one in (home / "state" / "routes").iterdir() if one.is_dir() and not one.name.endswith(_UNDONE))
    mine: Sequence[Path] = [one for one in folders if task in (None, one.name.partition("-")[2])]
    if not mine:
        raise PromoteError(f"no promotion{f' of `{task}`' if task else ''} is left to roll back in {home / 'state' / 'routes'}")
    return mine[-1]


def _reversed(before: bytes, after: bytes, now: bytes) -> bytes | None:
    """`now` without the lines in which `after` differs from `before`; None where those are not in it, or more than once."""
    old, new = before.splitlines(keepends=True), after.splitlines(keepends=True)
    head = _in_common(old, new)
    tail = _in_common(old[head:][::-1], new[head:][::-1])
    gone, came = (b"".join(lines[head : len(lines) - tail]) for lines in (old, new))
    return now.replace(came, gone) if now.count(came) == 1 else None


def _in_common(some: list[bytes], others: list[bytes]) -> int:
    """How many lines are the same from the beginning."""
    return next((at for at, (one, other) in enumerate(zip(some, others, strict=False)) if one != other), min(len(some), len(others)))


def _read(data: bytes, by_hand: str) -> Routes:
    import yaml

    try:
        return msgspec.convert(yaml.load(data, Loader=yaml.CSafeLoader), Routes)
    except (yaml.YAMLError, msgspec.ValidationError) as error:
        raise PromoteError(f"what was there before is no routes.yaml of this version ({error}); {by_hand}") from error
