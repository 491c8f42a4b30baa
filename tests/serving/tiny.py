"""Tiny models that a real engine loads in a second: random weights, a byte-level tokenizer; and a LoRA adapter for them."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

# The CPU engine has no attention for heads narrower than 32: it starts, then dies of the first request.
HIDDEN, HEADS, KV_HEADS, INNER, LAYERS = 128, 4, 2, 128, 2


def write_model(folder: Path, seed: int = 0) -> Path:
    """A Llama of 0.3M parameters that answers any text with some text."""
    folder.mkdir(parents=True)
    vocabulary = {symbol: i for i, symbol in enumerate(["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    _json(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast", bos_token="<s>", eos_token="</s>",
          chat_template=template)
    _json(folder / "config.json", architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=HIDDEN, intermediate_size=INNER,
          num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, head_dim=HIDDEN // HEADS,
          max_position_embeddings=2048, vocab_size=len(vocabulary), rms_norm_eps=1e-5, rope_theta=10000.0, hidden_act="silu",
          bos_token_id=0, eos_token_id=1, tie_word_embeddings=True, torch_dtype="bfloat16")
    save_file(_weights(np.random.default_rng(seed), len(vocabulary)), folder / "model.safetensors")
    return folder


def write_adapter(folder: Path, seed: int = 1) -> Path:
    """A LoRA adapter of rank 8 that changes every answer of a `write_model` model."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    tensors = {}
    for layer in range(LAYERS):
        for name, width in (("q_proj", HIDDEN), ("v_proj", HIDDEN // HEADS * KV_HEADS)):
            at = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{at}.lora_A.weight"] = random.normal(0, 1, (8, HIDDEN)).astype(np.float32)
            tensors[f"{at}.lora_B.weight"] = random.normal(0, 1, (width, 8)).astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    _json(folder / "adapter_config.json", peft_type="LORA", task_type="CAUSAL_LM", r=8, lora_alpha=64, lora_dropout=0.0, bias="none",
          target_modules=["q_proj", "v_proj"], base_model_name_or_path="tiny")
    return folder


def _weights(random: np.random.Generator, vocabulary: int) -> dict[str, np.ndarray]:
    def matrix(rows: int, columns: int) -> np.ndarray:
        return random.normal(0, 0.1, (rows, columns)).astype(np.float32)

    ones = np.ones(HIDDEN, np.float32)
    tensors = {"model.embed_tokens.weight": matrix(vocabulary, HIDDEN), "model.norm.weight": ones}
    kv = HIDDEN // HEADS * KV_HEADS
    shapes = {"self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (kv, HIDDEN), "self_attn.v_proj": (kv, HIDDEN),
              "self_attn.o_proj": (HIDDEN, HIDDEN), "mlp.gate_proj": (INNER, HIDDEN), "mlp.up_proj": (INNER, HIDDEN),
              "mlp.down_proj": (HIDDEN, INNER)}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        tensors |= {f"{at}.{name}.weight": matrix(*shape) for name, shape in shapes.items()}
        tensors |= {f"{at}.input_layernorm.weight": ones.copy(), f"{at}.post_attention_layernorm.weight": ones.copy()}
    return tensors


def _json(path: Path, **content: object) -> None:
    path.write_text(json.dumps(content))
