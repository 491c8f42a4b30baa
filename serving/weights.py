"""Bytes of weights on each GPU, from safetensors headers alone: no torch, no download.

Reads local headers itself; the hub's come through `hub.headers`.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from serving.architecture import Architecture, ArchitectureError
from serving.settings import Settings

DTYPE_BITS = {"F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16,
              "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I8": 8, "U8": 8, "BOOL": 8, "F6_E3M2": 6, "F6_E2M3": 6, "F4": 4}
# What engines make of 16-bit linear weights while loading them.
ONLINE_BYTES = {"fp8": 1.0, "fp8_per_tensor": 1.0, "fp8_per_block": 1.0, "bitsandbytes": 0.5}
_MAX_HEADER = 100_000_000

_EMBEDDING = re.compile(r"(embed_tokens|wte|word_embeddings|lm_head|embed_out|tok_embeddings|output)\.weight$")
_OUTPUT = re.compile(r"(^|\.)lm_head\.weight$")
_KEY_VALUE = re.compile(r"\.(k_proj|v_proj|key|value)\.")
_FUSED_QKV = re.compile(r"\.(qkv_proj|query_key_value|c_attn|W_pack)\.")
# Every GPU has these whole: down-projections to latent vectors, routers, learned positions.
_WHOLE = re.compile(r"\.(q_a_proj|kv_a_proj_with_mqa|fused_qkv_a_proj|gate|router|shared_expert_gate)\.|"
                    r"(embed_positions|wpe|position_embeddings)\.weight$")
_DRAFT = re.compile(r"(^|\.)(mtp|eh_proj|enorm|hnorm|shared_head)(\.|_|$)")
_KEPT_WIDE = re.compile(r"(e_score_correction_bias|A_log)$")  # float32 in the engine whatever the checkpoint says
_BUFFER = re.compile(r"(inv_freq|masked_bias|attn\.bias)$")


@dataclass(frozen=True)
class Tensor:
    """One line of a safetensors header."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.elements * DTYPE_BITS.get(self.dtype, 16) // 8


Tensors = Mapping[str, Tensor]


def local_headers(folder: Path) -> dict[str, Tensor]:
    """The tensors of every *.safetensors in a folder, as the engine loads them all. Raises `ArchitectureError`."""
    tensors: dict[str, Tensor] = {}
    files = sorted(path for path in folder.glob("*.safetensors") if not path.name.startswith("consolidated"))
    for path in files or sorted(folder.glob("consolidated*.safetensors")):
        tensors |= _header(path)
    if not tensors:
        raise ArchitectureError(f"{folder} has no *.safetensors files")
    return tensors


def _header(path: Path) -> dict[str, Tensor]:
    """8 bytes of little-endian length, then that much JSON (the safetensors format)."""
    try:
        with path.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            if not 2 <= size <= _MAX_HEADER:
                raise ArchitectureError(f"{path} is not a safetensors file: its header would be {size} bytes")
            header = json.loads(stream.read(size))
        return {name: Tensor(entry["dtype"], tuple(entry["shape"])) for name, entry in header.items() if name != "__metadata__"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArchitectureError(f"{path} can't be read as safetensors ({error}); fetch it again") from error


def weights_per_gpu(tensors: Tensors, architecture: Architecture, settings: Settings) -> int:
    """Bytes of weights on the fullest GPU of a replica.

    Linear layers and embeddings are divided by the tensor parallel size, norms and routers replicated, K and V projections divided by
    min(TP, KV heads) at most; the output embedding counts once where it is tied. Checkpoints that are not quantised are cast to
    the engine's dtype, or quantised while loading when it is told so (`quantization: fp8`: one byte per linear weight).
    """
    plain = architecture.quantization is None
    online = ONLINE_BYTES.get(settings.quantization or "") if plain else None
    cast = settings.dtype_bytes if plain else None
    total = sum(_size(name, tensor, cast, online) / _parts(name, tensor, architecture, settings.tensor_parallel)
                for name, tensor in kept(tensors, architecture).items())
    return math.ceil(total / settings.pipeline_parallel)


def kept(tensors: Tensors, architecture: Architecture) -> dict[str, Tensor]:
    """The tensors that the engine loads: no draft heads, no buffers, no second copy of a tied embedding."""
    def is_loaded(name: str) -> bool:
        spare = _DRAFT.search(name) or _BUFFER.search(name) or (architecture.tied and _OUTPUT.search(name))
        return not spare and not _beyond(name, architecture.depth)

    return {name: tensor for name, tensor in tensors.items() if is_loaded(name)}


def _beyond(name: str, depth: int) -> bool:
    """DeepSeek-V3 numbers its prediction layers after the last decoder layer."""
    found = re.match(r"model\.layers\.(\d+)\.", name)
    return found is not None and int(found.group(1)) >= depth


def _is_linear(name: str, tensor: Tensor) -> bool:
    return len(tensor.shape) >= 2 and not _EMBEDDING.search(name) and not _WHOLE.search(name) and "norm" not in name


def _size(name: str, tensor: Tensor, cast: int | None, online: float | None) -> float:
    if cast is None or tensor.dtype not in ("F32", "F16", "BF16"):
        return tensor.bytes
    if _KEPT_WIDE.search(name):
        return tensor.elements * 4
    return tensor.elements * (online if online is not None and _is_linear(name, tensor) else cast)


def _parts(name: str, tensor: Tensor, architecture: Architecture, tensor_parallel: int) -> float:
    """Into how many GPUs' shares a tensor goes; 1 is replicated."""
    if len(tensor.shape) < 2 or "norm" in name or _WHOLE.search(name):
        return 1
    if _KEY_VALUE.search(name) and architecture.kv_heads:
        return min(tensor_parallel, architecture.kv_heads)
    if _FUSED_QKV.search(name) and architecture.kv_heads < tensor_parallel:
        heads, kv = architecture.query_heads, architecture.kv_heads
        return (heads + 2 * kv) / (heads / tensor_parallel + 2)
    return tensor_parallel


def parameters(tensors: Iterable[Tensor]) -> int:
    """The number of stored elements."""
    return sum(tensor.elements for tensor in tensors)
