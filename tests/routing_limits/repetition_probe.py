"""Asks a tiny random-weight model, which repeats itself, with and without detection; one JSON line on stdout.

Usage: python repetition_probe.py FOLDER. A process of its own, as vLLM keeps threads and memory.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_OMP_THREADS_BIND="nobind", VLLM_NO_USAGE_STATS="1", DO_NOT_TRACK="1",
                  HF_HUB_OFFLINE="1", VLLM_LOGGING_LEVEL="ERROR")  # fmt: skip
_MODEL = {"vocab_size": 256, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "hidden_size": 128, "intermediate_size": 256,
          "head_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
          "max_position_embeddings": 2048}  # fmt: skip
_BODY = {"model": "m", "prompt": "t5 t6 t7", "max_tokens": 1500, "temperature": 0.0, "ignore_eos": True}


def build(folder: Path) -> None:
    """A model with random weights and a word-per-token tokenizer."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **_MODEL)).to(torch.float32).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(256)}, unk_token="t2"))
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="t0", eos_token="t1", pad_token="t1", unk_token="t2").save_pretrained(folder)


def main(folder: Path) -> None:
    from vllm import LLM
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest

    from routing.repetition import with_detection

    build(folder)
    llm = LLM(model=str(folder), dtype="float32", enforce_eager=True, kv_cache_memory_bytes=16 * 2**20, max_num_seqs=4, max_model_len=2000,
              distributed_executor_backend="uni")  # fmt: skip
    plain = json.dumps(_BODY).encode()
    told: dict[str, Any] = {}
    for name, body in (("plain", plain), ("detected", with_detection("/v1/completions", plain))):
        request = CompletionRequest(**json.loads(body))
        answer = llm.generate(_BODY["prompt"], request.to_sampling_params(1500, {}), use_tqdm=False)[0].outputs[0]
        told[name] = {"finish": answer.finish_reason, "stop": answer.stop_reason, "tokens": len(answer.token_ids)}
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
