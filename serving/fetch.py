"""Fills a model's folder from the hub: pinned revision only, resumable, verified file by file, manifest last.

Which files are needed is `hub`'s knowledge, the bytes of one file are `download`'s.
"""

import errno
import fcntl
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

from serving import manifest
from serving.catalog import Model
from serving.download import Remote, download
from serving.hub import HubError, remote_files, translated
from serving.manifest import File, Manifest

Progress = Callable[[int, int], None]  # bytes there, bytes in all


def free_disk(folder: Path) -> int:
    """Bytes free on the disk of a folder."""
    return shutil.disk_usage(folder).free


def fetch(model: Model, home: Path, *, progress: Progress = lambda _there, _all: None, free_bytes: Callable[[Path], int] = free_disk,
          workers: int = 4) -> Manifest:
    """Brings a pinned model to `model.folder(home, ...)`, continuing what an interrupted fetch left; does nothing when it is there.

    Raises `HubError` (offline, gated, disk full, another fetch at work) or `IntegrityError` (wrong bytes). There is no manifest then.
    """
    if model.repo is None or model.revision is None or len(model.revision) != 40:
        raise HubError(f"`{model.name}` has no `repo` with a full 40-digit `revision`; only pinned models are fetched")
    folder = model.folder(home, home)
    if manifest.is_finished(folder) and (done := manifest.read(folder)) is not None:
        return done
    parts = folder / manifest.PARTS
    parts.mkdir(parents=True, exist_ok=True)
    with alone(folder):
        (folder / manifest.NAME).unlink(missing_ok=True)  # what it promised is not there any more
        files = remote_files(model)
        size = sum(file.size for file in files)
        _check_room(folder, size - _bytes_in(folder), free_bytes(folder), model.repo)
        with translated(model.repo):
            written = _fetch_all(files, folder, workers, lambda: progress(min(_bytes_in(folder), size), size))
        shutil.rmtree(parts)
        for name in set(manifest.listed(folder)) - written.keys():
            (folder / name).unlink()  # left by an earlier attempt with other files; the engine would load it
        result = Manifest(repo=model.repo, revision=model.revision, license=model.license, files=dict(sorted(written.items())))
        manifest.write(folder, result)
    progress(size, size)
    return result


def _check_room(folder: Path, missing: int, free: int, repo: str) -> None:
    if missing > free:
        raise HubError(f"{repo} needs {missing / 2**30:.1f} GiB more, {folder} has {free / 2**30:.1f} GiB free; "
                       "free some, or choose another place with INHOUSE_HOME")


def _fetch_all(files: list[Remote], folder: Path, workers: int, tick: Callable[[], None]) -> dict[str, File]:
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # public, not in __all__

    headers, stop = build_hf_headers(library_name="inhouse"), threading.Event()
    with ThreadPoolExecutor(workers, thread_name_prefix="fetch") as pool:
        jobs = {pool.submit(download, file, folder, folder / manifest.PARTS, headers, stop): file.name for file in files}
        try:
            _watch(set(jobs), tick)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise HubError(f"the disk under {folder} is full; free some space and fetch again, it continues there") from error
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
    return {name: job.result() for job, name in jobs.items()}


def _watch(waiting: set[Future[File]], tick: Callable[[], None]) -> None:
    while waiting:
        done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_EXCEPTION)
        tick()
        for job in done:
            job.result()


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One writer per model folder at a time. The lock dies with its process, also after kill -9."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise HubError(f"another fetch or import is at work on {folder}; wait for it") from error
        yield


def _bytes_in(folder: Path) -> int:
    sizes = 0
    for at, _, names in os.walk(folder):
        for name in names:
            try:
                sizes += (Path(at) / name).stat().st_size
            except FileNotFoundError:  # renamed from part to whole between the two calls
                continue
    return sizes
