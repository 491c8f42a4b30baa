"""The engine arguments that decide memory, with vLLM 0.32's defaults for the device (`EngineArgs.get_batch_defaults`).

Knows nothing of nodes or budgets; `fit` does the sums.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from serving.architecture import Architecture, ArchitectureError

GIB = 2**30
ELEMENT_BYTES = {"float32": 4, "float": 4, "float16": 2, "half": 2, "bfloat16": 2}


@dataclass(frozen=True, kw_only=True)
class Device:
    """What a worker runs on: a GPU, or the machine's memory when `on_gpu` is false."""

    on_gpu: bool
    memory_bytes: int
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One replica's engine, all defaults resolved. `kv_cache_memory_bytes` None means: what is left."""

    on_gpu: bool
    tensor_parallel: int
    pipeline_parallel: int
    max_model_len: int
    dtype_bytes: int
    quantization: str | None
    kv_element_bytes: float
    gpu_memory_utilization: float
    kv_cache_memory_bytes: int | None
    max_num_batched_tokens: int
    max_num_seqs: int
    block_size: int
    eager: bool
    prefix_caching: bool

    @property
    def in_flight(self) -> int:
        """Tokens scheduled but not settled: batches at once x batch size. GPUs schedule one batch ahead (`max_concurrent_batches`)."""
        return (self.pipeline_parallel + self.on_gpu) * self.max_num_batched_tokens

    def with_length(self, length: int) -> "Settings":
        return replace(self, max_model_len=length)


def resolve(engine: Mapping[str, Any], architecture: Architecture, device: Device, gpus: int) -> Settings:
    """The settings of a catalog model's `engine` on a device. Raises `ArchitectureError` for what can't start there."""
    pipeline = int(engine.get("pipeline_parallel_size", 1))
    workers = max(gpus, 1)
    if workers % pipeline:
        raise ArchitectureError(f"`gpus: {workers}` is not a multiple of `pipeline_parallel_size: {pipeline}`")
    tensor = workers // pipeline
    _check_division(architecture, tensor)
    wanted = engine.get("max_model_len")
    length = architecture.max_length if wanted in (None, -1, "auto") else _count(wanted)
    batch, sequences = _batch_defaults(device, workers)
    sequences = _count(engine.get("max_num_seqs", sequences))
    tokens = _count(engine["max_num_batched_tokens"]) if "max_num_batched_tokens" in engine else min(batch, sequences * length)
    fixed = engine.get("kv_cache_memory_bytes")
    return Settings(
        on_gpu=device.on_gpu, tensor_parallel=tensor, pipeline_parallel=pipeline, max_model_len=length,
        dtype_bytes=_dtype_bytes(engine, architecture), quantization=engine.get("quantization"),
        kv_element_bytes=_kv_element_bytes(engine, architecture), gpu_memory_utilization=float(engine.get("gpu_memory_utilization", 0.92)),
        kv_cache_memory_bytes=_count(fixed) if fixed is not None else None, max_num_batched_tokens=tokens, max_num_seqs=sequences,
        block_size=int(engine.get("block_size") or _block(architecture, device)),
        eager=bool(engine.get("enforce_eager")) or not device.on_gpu, prefix_caching=engine.get("enable_prefix_caching") is not False)


def _check_division(architecture: Architecture, tensor: int) -> None:
    if architecture.query_heads % tensor:
        raise ArchitectureError(f"its {architecture.query_heads} attention heads can't be divided over {tensor} GPUs")
    if architecture.kv_heads and architecture.kv_heads % tensor and tensor % architecture.kv_heads:
        raise ArchitectureError(f"its {architecture.kv_heads} KV heads can't be divided over {tensor} GPUs")


def _batch_defaults(device: Device, workers: int) -> tuple[int, int]:
    """(max_num_batched_tokens, max_num_seqs) of vLLM's API server."""
    if not device.on_gpu:
        return 2048 * workers, 128 * workers
    if device.memory_bytes >= 160 * GIB:
        return 16384, 1024
    if device.memory_bytes >= 70 * GIB and "a100" not in device.name.lower():
        return 8192, 1024
    return 2048, 256


def _block(architecture: Architecture, device: Device) -> int:
    latent = any(layer.kind == "latent" for layer in architecture.layers)
    return 16 if device.on_gpu or latent else 128


def _dtype_bytes(engine: Mapping[str, Any], architecture: Architecture) -> int:
    """vLLM loads float32 checkpoints in 16 bits unless told otherwise (`_resolve_auto_dtype`)."""
    given = str(engine.get("dtype", "auto"))
    return ELEMENT_BYTES.get(given, 2) if given != "auto" else 2


def _kv_element_bytes(engine: Mapping[str, Any], architecture: Architecture) -> float:
    given = str(engine.get("kv_cache_dtype", "auto"))
    if given == "auto":
        return 1 if architecture.kv_is_fp8 else _dtype_bytes(engine, architecture)
    if given in ELEMENT_BYTES:
        return ELEMENT_BYTES[given]
    if given in ("fp8_ds_mla", "nvfp4_ds_mla"):  # opaque bytes per token and layer (`MLAAttention.get_kv_cache_spec`)
        width = max((layer.width for layer in architecture.layers if layer.kind == "latent"), default=0)
        if not width:
            raise ArchitectureError(f"`kv_cache_dtype: {given}` is for latent attention, which this model does not have")
        return (656 if given == "fp8_ds_mla" else 352) / width
    if given in ("fp8", "fp8_e4m3", "fp8_e5m2", "fp8_inc"):
        return 1
    raise ArchitectureError(f"the size of a `kv_cache_dtype: {given}` cache is not computed here; use `auto` or `fp8`, "
                            "or set `kv_cache_memory_bytes` and read the engine's log")


def _count(value: Any) -> int:
    """vLLM's human-readable integers: 32k = 32,000 and 32K = 32,768."""
    text = str(value).strip()
    scale = {"k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30}.get(text[-1:], 1)
    try:
        return int(float(text[:-1] if scale > 1 else text) * scale)
    except ValueError as error:
        raise ArchitectureError(f"`{value}` is not a number the engine takes; write 8192 or 8k") from error
