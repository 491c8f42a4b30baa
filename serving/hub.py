"""Questions to the model hub: what there is, which files a pinned model has, what its headers say. Downloads no weights; `fetch` does.

Reads the endpoint from HF_ENDPOINT and the token from HF_TOKEN or the hub's own store; sends no telemetry.
"""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from serving import manifest
from serving.catalog import Model
from serving.download import Remote
from serving.weights import DTYPE_BITS, Tensor

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_NEEDED = (".safetensors", ".json", ".jinja", ".txt", ".model", ".tiktoken")
_NEEDED_PREFIXES = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY", "README", "tokenizer.model")
# Copies of the same weights for other programs.
_FOREIGN_FOLDERS = {"original", "onnx", "openvino", "metal", "gguf", "coreml", ".git"}

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # the client reads it once, when any part of it is first imported


class HubError(Exception):
    """The hub can't be used as asked. The message says what to do."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A model on the hub. `weight_bytes` and `parameters` come from its safetensors headers; None where it has none."""

    repo: str
    revision: str
    license: str
    parameters: int | None
    weight_bytes: int | None
    downloads: int
    likes: int
    gated: bool
    last_modified: str


def endpoint() -> str:
    """The hub's address: HF_ENDPOINT or the public hub."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


def api() -> "HfApi":
    """The hub's client, imported here because it costs 0.3 s (2026-11), with telemetry and its own progress bars off."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars, logging  # type: ignore[attr-defined]  # public, not in __all__

    disable_progress_bars()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # its warnings would break the progress line
    return HfApi(endpoint=endpoint(), library_name="inhouse")


def _reach() -> None:
    """Fails at once where there is no hub: the client's own listing calls would try for half a minute."""
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]  # public, not in __all__

    get_session().head(endpoint(), timeout=10)


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Turns the client's exceptions into one line that says what to do."""
    import httpx2
    from huggingface_hub import errors

    try:
        yield
    except errors.OfflineModeIsEnabled as error:
        raise HubError("HF_HUB_OFFLINE is set, so the hub is not asked; unset it, or bring the model in a bundle") from error
    except errors.GatedRepoError as error:
        raise HubError(f"{what} is gated: accept its licence at {endpoint()}/{what} and set HF_TOKEN to a token of that account") from error
    except errors.RevisionNotFoundError as error:
        raise HubError(f"{what} has no such revision; `inhouse models search {what.partition('@')[0]}` prints the current one") from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(f"the hub at {endpoint()} has no model {what}, or hides it: check the name; HF_TOKEN for a private one") from error
    except errors.HfHubHTTPError as error:
        raise HubError(_explained(what, error.response.status_code, error.response.headers.get("retry-after"))) from error
    except errors.HFValidationError as error:
        raise HubError(f"`{what}` can't be a model's name on the hub; names look like `org/name`") from error
    except (errors.SafetensorsParsingError, errors.NotASafetensorsRepoError) as error:
        raise HubError(f"{what}: its safetensors headers can't be read: {error}") from error
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise HubError(f"can't reach the hub at {endpoint()} ({error or type(error).__name__}); set HF_ENDPOINT to a mirror, "
                       "or carry the model over with `inhouse models bundle`") from error


def _explained(what: str, status: int, retry_after: str | None) -> str:
    if status == 429:
        return (f"the hub asks to slow down (HTTP 429){f'; try again in {retry_after} s' if retry_after else ''}; "
                "a token in HF_TOKEN raises the limit")
    if status in (401, 403):
        return f"the hub refuses {what} (HTTP {status}): check that HF_TOKEN is valid and may read it"
    if status == 404:
        return f"the hub at {endpoint()} has no {what} (HTTP 404)"
    return f"the hub answers HTTP {status} for {what}; try again later"


def search(query: str, *, limit: int = 10) -> list[Found]:
    """Models matching the query, most downloaded first; a full name gives just that model. Raises `HubError`."""
    from huggingface_hub.errors import RepositoryNotFoundError

    fields: Any = ["cardData", "downloads", "gated", "lastModified", "likes", "safetensors", "sha", "tags"]
    hub = api()
    with translated(query):
        _reach()
        if query.count("/") == 1:
            try:
                return [_found(hub.model_info(query, expand=fields, timeout=30))]
            except RepositoryNotFoundError:
                pass  # not a full name after all
        return [_found(info) for info in hub.list_models(search=query, limit=limit, sort="downloads", expand=fields)]


def _found(info: Any) -> Found:
    counts: dict[str, int] = info.safetensors.parameters if info.safetensors else {}
    card = info.card_data or {}
    tagged = [tag.partition(":")[2] for tag in info.tags or () if tag.startswith("license:")]
    license_ = card.get("license_name") or card.get("license") or (tagged[0] if tagged else "none given")
    return Found(
        repo=info.id, revision=info.sha or "", license=", ".join(license_) if isinstance(license_, list) else str(license_),
        parameters=info.safetensors.total if info.safetensors else None,
        weight_bytes=sum(n * DTYPE_BITS.get(dtype, 16) // 8 for dtype, n in counts.items()) if counts else None,
        downloads=info.downloads or 0, likes=info.likes or 0, gated=bool(info.gated),
        last_modified=info.last_modified.date().isoformat() if info.last_modified else "")


def remote_files(model: Model) -> list[Remote]:
    """What the engine needs of a pinned model: weights as safetensors, configuration, tokenizer, licence. Raises `HubError`."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.hf_api import RepoFile

    what = f"{model.repo}@{str(model.revision)[:12]}"
    with translated(what):
        hub = api()
        _reach()
        tree = list(hub.list_repo_tree(str(model.repo), recursive=True, revision=model.revision))
    files = [
        Remote(manifest.safe_name(entry.path), hf_hub_url(str(model.repo), entry.path, revision=model.revision, endpoint=endpoint()),
               entry.size, entry.lfs.sha256 if entry.lfs else None, entry.blob_id)
        for entry in tree if isinstance(entry, RepoFile)
    ]
    needed = set(choose([file.name for file in files], code=bool(model.engine.get("trust_remote_code"))))
    if not any(name.endswith(".safetensors") for name in needed):
        raise HubError(f"{what} has no safetensors weights; pickled weights (.bin, .pt) can run code and are not fetched: choose another")
    return [file for file in files if file.name in needed]


def choose(names: list[str], *, code: bool = False) -> list[str]:
    """The files of a repository that vLLM reads; `code` adds Python files (for `trust_remote_code`)."""
    ours = [name for name in names if not _FOREIGN_FOLDERS & set(name.split("/")[:-1])]
    wanted = [name for name in ours
              if name.endswith(_NEEDED) or name.rpartition("/")[2].startswith(_NEEDED_PREFIXES) or (code and name.endswith(".py"))]
    if any(name.startswith("model") and name.endswith(".safetensors") for name in wanted):
        wanted = [name for name in wanted if not name.startswith("consolidated")]  # Mistral ships its weights twice
    return [name for name in wanted if not name.startswith(manifest.NAME)]


def describe(model: Model) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A pinned model's config.json and safetensors headers: a few hundred kilobytes, whatever the model's size. Raises `HubError`."""
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status  # type: ignore[attr-defined]

    hub, files = api(), {file.name: file for file in remote_files(model)}
    if "config.json" not in files:
        raise HubError(f"{model.repo} has no config.json, so its memory can't be computed")
    with translated(str(model.repo)):
        answer = get_session().get(files["config.json"].url, headers=build_hf_headers(library_name="inhouse"), timeout=30)
        hf_raise_for_status(answer)

        def header(name: str) -> dict[str, Tensor]:
            found = hub.parse_safetensors_file_metadata(str(model.repo), name, revision=model.revision, timeout=30)
            return {tensor: Tensor(info.dtype, tuple(info.shape)) for tensor, info in found.tensors.items()}

        with ThreadPoolExecutor(8) as pool:
            shards = list(pool.map(header, [name for name in files if name.endswith(".safetensors") and "/" not in name]))
    return json.loads(answer.content), {name: tensor for shard in shards for name, tensor in shard.items()}
