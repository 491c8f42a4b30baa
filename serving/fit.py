"""Does a model fit a machine, with how many cached tokens, and if not: what is the smallest change that makes it fit?

Reads config.json and safetensors headers only. Weights and cache are computed exactly; activations, CUDA's context and graphs are a
range, so the answer counts on the high end and shows both.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import msgspec

from serving.architecture import Architecture, ArchitectureError, read_architecture
from serving.catalog import Model
from serving.kv import Cache, plan_cache
from serving.machines import Node
from serving.settings import GIB, Device, Settings, resolve
from serving.weights import Tensor, Tensors, local_headers, weights_per_gpu

_NOT_COUNTED = ("speculative_config", "cpu_offload_gb", "decode_context_parallel_size", "enable_expert_parallel", "hf_overrides")
Described = tuple[dict[str, Any], dict[str, Tensor]]


@dataclass(frozen=True)
class Subject:
    """A model with what its files say."""

    model: Model
    architecture: Architecture
    tensors: Tensors


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The answer for one model on one machine. Bytes and tokens are per GPU of a replica; `low` and `high` bound what is not exact."""

    model: str
    node: str
    verdict: Literal["fits", "tight", "no"]
    reason: str = ""
    changes: tuple[str, ...] = ()
    max_model_len: int = 0
    memory_bytes: int = 0
    weights_bytes: int = 0
    other_low_bytes: int = 0
    other_high_bytes: int = 0
    kv_bytes_per_token: int = 0
    kv_low_bytes: int = 0
    kv_high_bytes: int = 0
    kv_tokens: int = 0
    kv_tokens_at_best: int = 0
    requests: float = 0
    exact: bool = False
    doubts: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """The answer as a person would say it."""
        if self.verdict == "fits":
            cached = (f" with {self.kv_tokens:,} cached tokens = {self.requests:.2f} full-length requests at once "
                      f"({self.max_model_len:,} tokens each)")
            return f"{self.model} fits on {self.node}{'' if math.isinf(self.requests) else cached}"
        change = f"; what would help: {', or '.join(self.changes)}" if self.changes else ""
        return f"{self.model} {'may not' if self.verdict == 'tight' else 'does not'} fit on {self.node}: {self.reason}{change}"


def read_subject(model: Model, home: Path, catalog_folder: Path, describe: Callable[[Model], Described]) -> Subject:
    """What is known of a model: from its folder when it is there, else by `describe` (the hub). Raises `ArchitectureError`."""
    folder = model.folder(home, catalog_folder)
    if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
        try:
            config, tensors = json.loads((folder / "config.json").read_text(encoding="utf-8")), local_headers(folder)
        except ValueError as error:
            raise ArchitectureError(f"{folder / 'config.json'} is not JSON: {error}") from error
    elif model.path is not None:
        raise ArchitectureError(f"{folder} has no config.json and *.safetensors; `{model.name}` can't be served from there")
    else:
        config, tensors = describe(model)
    return Subject(model, read_architecture(config), tensors)


def fit(subject: Subject, node: Node, placed: Sequence[Subject] = ()) -> Fit:
    """Whether one replica of the model fits beside what is already placed, and what would make it fit."""
    answer = assess(subject, node, placed)
    if answer.verdict == "fits":
        return answer
    return replace(answer, changes=tuple(_changes(subject, node, placed, answer)))


def assess(subject: Subject, node: Node, placed: Sequence[Subject] = ()) -> Fit:
    """The sums for one model on one machine as it stands."""
    model = subject.model
    device = device_of(model, node)
    doubts = (*subject.architecture.doubts, *(f"`{key}` is not counted" for key in _NOT_COUNTED if key in model.engine))
    blank = Fit(model=model.name, node=node.name, verdict="no", doubts=doubts)
    if reason := _misplaced(model, node, sum(other.model.gpus * other.model.replicas for other in placed)):
        return replace(blank, reason=reason)
    try:
        settings = resolve(model.engine, subject.architecture, device, model.gpus)
    except ArchitectureError as error:
        return replace(blank, reason=str(error))
    free = device.memory_bytes - (0 if device.on_gpu else sum(_ram(other, node) for other in placed))
    return _sum_up(subject, settings, device, free, blank)


def place(subjects: Sequence[Subject], nodes: Sequence[Node], placed: Sequence[tuple[Subject, str]] = ()) -> list[Fit]:
    """Every replica of every model on the first machine where it fits beside the others, the largest first.

    The answers are in the order of the models asked; a replica that fits nowhere has its best try, with what would help.
    `placed` names what is there already, with its machine.
    """
    there = {node.name: [subject for subject, at in placed if at in ("", node.name)] for node in nodes}
    answers: dict[int, list[Fit]] = {}
    sizes = [(s.model.gpus, sum(tensor.bytes for tensor in s.tensors.values())) for s in subjects]
    for i in sorted(range(len(subjects)), key=lambda i: sizes[i], reverse=True):
        one = replace(subjects[i], model=msgspec.structs.replace(subjects[i].model, replicas=1))
        for _ in range(subjects[i].model.replicas):
            tried = [assess(one, node, there[node.name]) for node in nodes]
            found = next((answer for answer in tried if answer.verdict == "fits"), None)
            if found is not None:
                there[found.node].append(one)
            answers.setdefault(i, []).append(found or _nearest_miss([fit(one, node, there[node.name]) for node in nodes]))
    return [answer for i in range(len(subjects)) for answer in answers[i]]


def _nearest_miss(answers: Sequence[Fit]) -> Fit:
    """The machine where the fewest changes would do."""
    return min(answers, key=lambda answer: (not answer.changes, answer.changes[0].count(" and ") if answer.changes else 0))


def device_of(model: Model, node: Node) -> Device:
    """What a worker of this model gets on that machine."""
    if model.gpus:
        return Device(on_gpu=True, memory_bytes=node.gpu_memory_bytes, name=node.gpu_type or "")
    return Device(on_gpu=False, memory_bytes=node.ram_bytes)


def cache_of(architecture: Architecture, settings: Settings) -> Cache:
    """The KV cache on one GPU of the replica."""
    layers = architecture.layers[:math.ceil(len(architecture.layers) / settings.pipeline_parallel)]
    hybrid = any(layer.kind != "state" for layer in layers)
    return plan_cache(layers, tensor_parallel=settings.tensor_parallel, element_bytes=settings.kv_element_bytes, block=settings.block_size,
                      states=2 if hybrid and settings.prefix_caching else 1)


def other_bytes(architecture: Architecture, settings: Settings) -> tuple[int, int]:
    """Peak activations and what the runtime itself takes, as (low, high).

    High activations = batched tokens x (8 x hidden + 2 x intermediate / TP) x 2 B + sequences x vocabulary x 4 B, low is half of it:
    a rule of thumb, not a measurement. CUDA context and libraries 0.5 to 1 GiB, NCCL 0.3 to 1 GiB with TP, CUDA graphs
    0.3 to 1.2 GiB unless eager. On CPU the process itself: 0.7 to 1.6 GiB (vLLM 0.32 with torch, resident, 2026-11).
    """
    a = architecture
    rows = settings.max_num_batched_tokens * (8 * a.hidden + 2 * a.intermediate // settings.tensor_parallel) * 2
    activations = rows + settings.max_num_seqs * a.vocab * 4
    low, high = (0.5, 1.0) if settings.on_gpu else (0.7, 1.6)
    if settings.tensor_parallel > 1:
        low, high = low + 0.3, high + 1.0
    if not settings.eager:
        low, high = low + 0.3, high + 1.2
    return int(activations / 2 + low * GIB), int(activations + high * GIB)


def _misplaced(model: Model, node: Node, gpus_taken: int) -> str:
    if model.gpus and model.gpu_type and node.gpu_type and model.gpu_type.lower() not in node.gpu_type.lower():
        return f"it asks for `gpu_type: {model.gpu_type}`, {node.name} has {node.gpu_type}"
    if model.gpus > node.gpus - gpus_taken:
        taken = f", {gpus_taken} of them taken" if gpus_taken else ""
        return f"it needs {model.gpus} GPU{'s' if model.gpus > 1 else ''} on one machine, {node.name} has {node.gpus}{taken}"
    return ""


def _ram(subject: Subject, node: Node) -> int:
    """What a placed model takes of the machine's memory; next to nothing counts for one on GPUs."""
    if subject.model.gpus:
        return 0
    settings = resolve(subject.model.engine, subject.architecture, device_of(subject.model, node), 0)
    if settings.kv_cache_memory_bytes is None:
        one = int(settings.gpu_memory_utilization * node.ram_bytes)
    else:
        weights = weights_per_gpu(subject.tensors, subject.architecture, settings)
        one = weights + settings.kv_cache_memory_bytes + other_bytes(subject.architecture, settings)[1]
    return one * subject.model.replicas


def _sum_up(subject: Subject, settings: Settings, device: Device, free: int, blank: Fit) -> Fit:
    cache, weights = cache_of(subject.architecture, settings), weights_per_gpu(subject.tensors, subject.architecture, settings)
    low, high = other_bytes(subject.architecture, settings)
    fixed, length, in_flight = settings.kv_cache_memory_bytes, settings.max_model_len, settings.in_flight
    budget = min(free, int(device.memory_bytes * (1 if fixed is not None else settings.gpu_memory_utilization)))
    rooms = (budget - weights - high, budget - weights - low)  # for the cache: surely, at best
    kv = rooms if fixed is None else (fixed, fixed)
    needed = cache.needed(length, in_flight)
    surely, at_best = cache.capacity(kv[0], length, in_flight), cache.capacity(kv[1], length, in_flight)
    answer = replace(
        blank, max_model_len=length, memory_bytes=device.memory_bytes, weights_bytes=weights, other_low_bytes=low, other_high_bytes=high,
        kv_bytes_per_token=cache.bytes_per_token, kv_low_bytes=max(kv[0], 0), kv_high_bytes=max(kv[1], 0), kv_tokens=surely.tokens,
        kv_tokens_at_best=at_best.tokens, requests=surely.concurrency, exact=fixed is not None and not blank.doubts)
    wanted = needed if fixed is None else max(fixed, needed)
    greedy = math.ceil(device.memory_bytes * settings.gpu_memory_utilization)
    if not settings.on_gpu and fixed is None and free < greedy:
        return replace(answer, reason=f"without `kv_cache_memory_bytes` the engine asks for {settings.gpu_memory_utilization:.0%} of the "
                                      f"machine's memory at its start, {gib(greedy)}; {gib(free)} are not spoken for")
    where = "GPU" if settings.on_gpu else "machine"
    if fixed is not None and needed > fixed:
        return replace(answer, reason=f"`kv_cache_memory_bytes` is {gib(fixed)}, one request of {length:,} tokens needs {gib(needed)}")
    if wanted <= rooms[0]:
        return replace(answer, verdict="fits")
    parts = (f"weights {gib(weights)}, runtime and activations {gib(low)} to {gib(high)}, one request of {length:,} tokens {gib(needed)}"
             if fixed is None else f"weights {gib(weights)}, runtime and activations {gib(low)} to {gib(high)}, cache {gib(fixed)}")
    return replace(answer, verdict="tight" if wanted <= rooms[1] else "no", reason=f"per {where} {parts}, of {gib(max(budget, 0))} to use")


def gib(size: int) -> str:
    """A size for people."""
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / 2**20:.1f} MiB"


def _changes(subject: Subject, node: Node, placed: Sequence[Subject], answer: Fit) -> Iterator[str]:
    """Every single change that makes it fit, smallest first; pairs and more only where none does alone."""
    for steps in _ladder(subject, node, sum(other.model.gpus * other.model.replicas for other in placed)):
        found = []
        for changes in steps:
            changed = replace(subject, model=_changed(subject.model, changes))
            if assess(changed, node, placed).verdict == "fits":
                found.append(" and ".join(f"`{key}: {value}`" for key, value in changes.items()))
            elif length := _shorter(changed, node, placed, answer.max_model_len):
                found.append(" and ".join(f"`{key}: {value}`" for key, value in {**changes, "max_model_len": length}.items()))
        if found:
            yield from found[:3]
            return


def _ladder(subject: Subject, node: Node, gpus_taken: int) -> Iterator[list[dict[str, Any]]]:
    """Groups of changes to try, each group a bigger step than the one before. An empty change stands for a shorter context alone."""
    model, plain = subject.model, subject.architecture.quantization is None and "quantization" not in subject.model.engine
    if not model.gpus:
        yield [{}] if "kv_cache_memory_bytes" in model.engine else [{"kv_cache_memory_bytes": _four_requests(subject, node)}]
        return
    wide_cache = model.engine.get("kv_cache_dtype", "auto") == "auto" and not subject.architecture.kv_is_fp8
    cache = [{"kv_cache_dtype": "fp8"}] if wide_cache else []
    weights = [{"quantization": "fp8"}] if plain else []
    wider = [{"gpus": n} for n in _doublings(model.gpus, node.gpus - gpus_taken)]
    yield [{}, *cache, *weights, *wider[:1]]
    yield [{**a, **b} for a, b in pairwise([*cache, *weights])]
    yield [*wider[1:], *({**a, **b} for a in weights for b in wider)]


def _four_requests(subject: Subject, node: Node) -> int:
    """A cache for four full-length requests, in whole MiB."""
    settings = resolve(subject.model.engine, subject.architecture, device_of(subject.model, node), 0)
    cache = cache_of(subject.architecture, settings)
    return math.ceil(4 * cache.needed(settings.max_model_len, settings.in_flight) / 2**20) * 2**20


def _doublings(gpus: int, most: int) -> list[int]:
    return [gpus * 2**i for i in range(1, 6) if gpus * 2**i <= most]


def _changed(model: Model, changes: dict[str, Any]) -> Model:
    engine = {**model.engine, **{key: value for key, value in changes.items() if key != "gpus"}}
    return msgspec.structs.replace(model, engine=engine, gpus=changes.get("gpus", model.gpus))


def _shorter(subject: Subject, node: Node, placed: Sequence[Subject], wanted: int) -> int | None:
    """The longest context that fits, in steps of 256 tokens and at least a quarter of what was wanted; None if there is none."""
    tried = assess(subject, node, placed)
    if not tried.kv_low_bytes or not tried.max_model_len:
        return None
    settings = resolve(subject.model.engine, subject.architecture, device_of(subject.model, node), subject.model.gpus)
    length = cache_of(subject.architecture, settings).longest(tried.kv_low_bytes, wanted, settings.in_flight) // 256 * 256
    shorter = replace(subject, model=_changed(subject.model, {"max_model_len": length}))
    return length if max(wanted // 4, 256) <= length < wanted and assess(shorter, node, placed).verdict == "fits" else None
