"""Builds tiny random-weight models and asks the real engine for its cache; run as a program, one JSON line per model on stdout.

Usage: python engine_probe.py FOLDER. One process for all engines, because importing vLLM costs more than starting them.
"""

import gc
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_OMP_THREADS_BIND="nobind", VLLM_NO_USAGE_STATS="1", DO_NOT_TRACK="1",
                  HF_HUB_OFFLINE="1", VLLM_LOGGING_LEVEL="ERROR")

_TOKENS = {"vocab_size": 256, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
_COMMON = {**_TOKENS, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "max_position_embeddings": 4096}
_ENGINE = {"dtype": "bfloat16", "enforce_eager": True, "kv_cache_memory_bytes": 16 * 2**20, "max_num_seqs": 8}
# name: (model type, configuration, engine arguments)
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "grouped heads": ("llama", {**_COMMON, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64}, {"max_model_len": 1000}),
    "one KV head, heads wider than hidden/heads": (
        "qwen3", {**_COMMON, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 64}, {"max_model_len": 2048}),
    "every head its own KV, float32 on disk": (
        "opt", {**_TOKENS, "hidden_size": 128, "ffn_dim": 256, "num_hidden_layers": 3, "max_position_embeddings": 2048,
                "num_attention_heads": 4, "word_embed_proj_dim": 128}, {}),
    "all layers slide": (
        "mistral", {**_COMMON, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "sliding_window": 512},
        {"max_num_batched_tokens": 512}),
    "five sliding to one global, uneven": (
        "gemma3_text", {**_COMMON, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 64, "sliding_window": 256,
                        "num_hidden_layers": 15}, {"max_num_batched_tokens": 640}),
    "latent attention with experts": (
        "deepseek_v3", {**_COMMON, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4, "moe_intermediate_size": 64,
                        "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
                        "first_k_dense_replace": 1, "kv_lora_rank": 512, "q_lora_rank": 96, "qk_rope_head_dim": 64,
                        "qk_nope_head_dim": 128, "v_head_dim": 128, "topk_method": "noaux_tc"}, {"max_model_len": 4000}),
    "three recurrent layers to one with attention": (
        "qwen3_next", {**_COMMON, "num_hidden_layers": 8, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
                       "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 32, "linear_value_head_dim": 32,
                       "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "shared_expert_intermediate_size": 64},
        {"max_num_batched_tokens": 512}),
}
_loaded_bytes: list[int] = []


def build(folder: Path, kind: str, config: dict[str, Any], *, narrow: bool) -> None:
    """A model with random weights and a word-per-token tokenizer, as its publisher would save it."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **config))
    model.to(torch.bfloat16 if narrow else torch.float32).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(256)}, unk_token="t2"))
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="t0", eos_token="t1", pad_token="t1", unk_token="t2").save_pretrained(folder)


def register_counting_loader() -> None:
    """The engine's own loader, which also notes how many bytes of weights it filled (CPU kernels repack them afterwards)."""
    from vllm.model_executor.model_loader import register_model_loader
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    @register_model_loader("counting")
    class CountingLoader(DefaultModelLoader):  # type: ignore[misc]
        def __init__(self, load_config: Any) -> None:
            load_config.load_format = "safetensors"
            super().__init__(load_config)

        def load_weights(self, model: Any, model_config: Any) -> None:
            super().load_weights(model, model_config)
            sizes = {tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in model.parameters()}
            _loaded_bytes[:] = [sum(sizes.values())]


def ask(folder: Path, engine: dict[str, Any]) -> dict[str, Any]:
    """Starts the engine and reads what it reports."""
    from vllm import LLM
    from vllm.engine.arg_utils import EngineArgs
    from vllm.usage.usage_lib import UsageContext

    llm = LLM(model=str(folder), distributed_executor_backend="uni", load_format="counting", **_ENGINE, **engine)
    config = llm.llm_engine.vllm_config
    cache = config.cache_config
    answer = {"tokens": cache.kv_cache_size_tokens, "blocks": cache.num_gpu_blocks, "concurrency": cache.kv_cache_max_concurrency,
              "block_size": cache.block_size, "weights": _loaded_bytes[0], "in_flight": config.max_in_flight_tokens}
    del llm
    gc.collect()
    served = EngineArgs(model=str(folder)).create_engine_config(UsageContext.OPENAI_API_SERVER)
    return {**answer, "default_len": served.model_config.max_model_len, "default_seqs": served.scheduler_config.max_num_seqs,
            "default_batch": served.scheduler_config.max_num_batched_tokens}


def main(out: Path) -> None:
    register_counting_loader()
    for name, (kind, config, engine) in CASES.items():
        folder = out / name.replace(" ", "-").replace("/", "-")
        try:
            build(folder, kind, config, narrow=kind != "opt")
            answer = ask(folder, engine)
        except Exception:  # reported per model, so that one failure does not hide the others
            answer = {"error": traceback.format_exc()[-2000:]}
        print(json.dumps({"name": name, "folder": str(folder), "engine": {**_ENGINE, **engine}, **answer}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
