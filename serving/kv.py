"""How many tokens a KV cache of so many bytes holds, by the arithmetic of vLLM's block pool. Pure: numbers in, numbers out.

Follows vllm/v1/core/kv_cache_utils.py and kv_cache_interface.py of 0.32 (`get_kv_cache_groups`, `get_kv_cache_capacity`);
tests/serving/test_fit_engine.py compares it with the engine itself.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from serving.architecture import Layer

GPU_BLOCK = 16
CPU_BLOCK = 128  # vllm/platforms/cpu.py; latent attention's reference kernel on CPU takes 16


@dataclass(frozen=True)
class Group:
    """Layers that share one block table: `layers` of them, each with pages of `page` bytes, each page with `block` tokens."""

    layers: int
    page: int
    block: int
    window: int | None = None
    states: int = 0

    def blocks(self, length: int, in_flight: int) -> int:
        """Blocks that one sequence of that length holds at most.

        Full: ceil(length / block). Sliding: ceil(min(window - 1 + in flight, length) / block) + 1, as the window may begin
        inside a block (`SlidingWindowSpec.max_admission_blocks_per_request`). A recurrent state is one block, two with prefix caching.
        """
        if self.states:
            return self.states
        if self.window is None:
            return math.ceil(length / self.block)
        return math.ceil(min(self.window - 1 + in_flight, length) / self.block) + 1


@dataclass(frozen=True)
class Capacity:
    """What the engine logs at its start: cached tokens, and how many requests of full length fit at once."""

    blocks: int
    tokens: int
    concurrency: float


@dataclass(frozen=True)
class Cache:
    """The cache of a model on one GPU of its tensor-parallel group: `pages` are per layer, in bytes per token."""

    groups: tuple[Group, ...]
    bytes_per_token: int
    state_bytes: int

    @property
    def block_bytes(self) -> int:
        """Bytes of one block over all layers of the widest group: the pool's unit."""
        return max((group.layers * group.page for group in self.groups), default=0)

    def blocks(self, length: int, in_flight: int) -> int:
        """Blocks for one request of full length; every group draws from the same pool."""
        return sum(group.blocks(length, in_flight) for group in self.groups)

    def needed(self, length: int, in_flight: int) -> int:
        """Bytes without which the engine refuses to start: one request of full length and the pool's null block."""
        return (self.blocks(length, in_flight) + 1) * self.block_bytes if self.groups else 0

    def capacity(self, size: int, length: int, in_flight: int) -> Capacity:
        """Tokens = floor(blocks / blocks per request x length), blocks = floor(size / block): vLLM's `get_kv_cache_capacity`."""
        if not self.groups:
            return Capacity(0, 0, math.inf)
        blocks = max(size, 0) // self.block_bytes
        concurrency = blocks / self.blocks(length, in_flight)
        return Capacity(blocks, int(concurrency * length), concurrency)

    def longest(self, size: int, length: int, in_flight: int) -> int:
        """The longest request that still fits, at most `length`; 0 when none does (vLLM's `estimate_max_model_len`)."""
        low, high = 0, length
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.needed(middle, in_flight) <= size else (low, middle - 1)
        return low


def plan_cache(layers: Sequence[Layer], *, tensor_parallel: int, element_bytes: float, block: int, states: int = 1) -> Cache:
    """Lays the layers out as vLLM does.

    Bytes per token and GPU = sum over layers of max(1, KV heads // TP) x (K width + V width) x element size (`AttentionSpec`);
    latent attention is replicated over TP; recurrent state is split over TP and counted with 2 bytes an element.
    `states` is how many states a sequence keeps: two with prefix caching (vLLM's mamba_cache_mode `align`).
    """
    pages: list[tuple[int, int | None, int]] = []  # bytes per token (or of the state), window, states kept
    for layer in layers:
        if layer.kind == "state":
            if layer.state:
                pages.append((layer.state * 2 // tensor_parallel, None, states))
        else:
            heads = 1 if layer.kind == "latent" else max(1, layer.heads // tensor_parallel)
            pages.append((int(heads * layer.width * element_bytes), layer.window, 0))
    per_token = sum(size for size, _, kept in pages if not kept)
    return Cache(tuple(_groups(pages, block)), per_token, sum(size for size, _, kept in pages if kept))


def _groups(pages: list[tuple[int, int | None, int]], block: int) -> list[Group]:
    if not pages:
        return []
    if len({(window, kept) for _, window, kept in pages}) == 1:  # one kind of layer: one group, pages may differ in size
        _, window, kept = pages[0]
        total = sum(size for size, _, _ in pages)
        return [Group(1, total if kept else total * block, block, window, kept)]
    return _split(_even(pages, block))


def _even(pages: list[tuple[int, int | None, int]], block: int) -> list[Group]:
    """One `Group` per layer, all with pages of one size (`unify_kv_cache_spec_page_size`, `_align_hybrid_block_size`)."""
    widest = max((size for size, _, kept in pages if not kept), default=0)
    states = max((size for size, _, kept in pages if kept), default=0)
    if widest:
        block = max(block, block * math.ceil(states / (block * widest)))  # attention pages grow until a state fits into one
    page = max(widest * block, states)
    even = []
    for size, window, kept in pages:
        whole = not kept and page % (size * block) == 0
        even.append(Group(1, page, block * (page // (size * block)) if whole else block, window, kept))
    return even


def _split(layers: list[Group]) -> list[Group]:
    """Equal numbers of layers per group, padding the last (`_get_kv_cache_groups_uniform_page_size`)."""
    counts: dict[Group, int] = {}
    for layer in layers:
        counts[layer] = counts.get(layer, 0) + 1
    least, most = min(counts.values()), max(counts.values())
    size = most if most < least * 1.5 else least
    return [Group(size, kind.page, kind.block, kind.window, kind.states) for kind, n in counts.items() for _ in range(math.ceil(n / size))]
