"""What a model's `config.json` says about its cache: one `Layer` per decoder layer. Imports neither torch nor transformers.

Keys that a config leaves out have the defaults of transformers' config class for that `model_type`; a test holds the two together.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Config = Mapping[str, Any]

# Written only where config.json files on the hub really leave them out.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma": {"head_dim": 256},
    "gemma2": {"head_dim": 256, "sliding_window": 4096},
    "gemma3_text": {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "sliding_window": 4096, "num_hidden_layers": 26,
                    "vocab_size": 262208, "max_position_embeddings": 131072},
    "gemma3n_text": {"head_dim": 256, "sliding_window": 512, "num_kv_shared_layers": 15},
    "gemma4_text": {"head_dim": 256, "sliding_window": 512},
    "gpt_oss": {"head_dim": 64, "sliding_window": 128},
    "mistral": {"num_key_value_heads": 8, "sliding_window": 4096},
    "qwen3": {"head_dim": 128},
    "cohere2": {"sliding_window": 4096},
    "olmo3": {"sliding_window": 4096},
    "exaone4": {"sliding_window": 4096},
}
# Every n-th layer is global and the others slide, where `layer_types` is not written out.
_GLOBAL_EVERY = {"gemma2": 2, "gpt_oss": 2, "cohere2": 4, "olmo3": 4, "exaone4": 4, "gemma3n_text": 5, "gemma3_text": 6, "gemma4_text": 6}
# vLLM's ModelArchConfigConvertorBase.is_deepseek_mla (transformers_utils/model_arch_config_convertor.py, 0.32).
_MLA = {"axk1", "deepseek_v2", "deepseek_v3", "deepseek_v32", "deepseek_mtp", "glm_moe_dsa", "glm4_moe_lite", "kimi_k2", "kimi_linear",
        "longcat_flash", "pangu_ultra_moe", "bailing_hybrid"}
_ENCODERS = {"bert", "roberta", "xlm-roberta", "modernbert", "nomic_bert", "distilbert", "gte", "new"}
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
_HIDDEN = ("hidden_size", "n_embd", "d_model", "word_embed_proj_dim")
_LENGTH_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length", "max_sequence_length", "seq_len")
# vLLM multiplies the length by `factor` for every kind but these (`_get_and_verify_max_len`, config/model.py).
_ROPE_ALREADY_SCALED = {"su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling", "mrope"}


class ArchitectureError(Exception):
    """The configuration is not one whose memory can be computed. The message says why."""


@dataclass(frozen=True)
class Layer:
    """What one layer keeps for a sequence: `width` elements per token and KV head pair, or a fixed state.

    `heads` KV heads of `width` elements each (K and V together); latent attention has one head. `window` for sliding layers.
    `state` is the number of state elements of a recurrent layer, whatever the sequence's length.
    """

    kind: Literal["full", "latent", "sliding", "state"]
    heads: int = 0
    width: int = 0
    window: int | None = None
    state: int = 0


@dataclass(frozen=True)
class Architecture:
    """A model as far as memory is concerned: `depth` decoder layers, of which `layers` have a cache or state of their own.

    `doubts` name what the computation does not cover exactly.
    """

    model_type: str
    depth: int
    layers: tuple[Layer, ...]
    hidden: int
    intermediate: int
    vocab: int
    query_heads: int
    kv_heads: int
    max_length: int
    dtype: str
    tied: bool
    quantization: str | None
    kv_is_fp8: bool
    doubts: tuple[str, ...]


def text_config(config: Config) -> Config:
    """The language model's part of a multimodal configuration."""
    for key in ("text_config", "llm_config", "language_config"):
        if isinstance(config.get(key), Mapping):
            return {"tie_word_embeddings": config.get("tie_word_embeddings"), **config[key]}
    if isinstance(thinker := config.get("thinker_config"), Mapping):
        return text_config(thinker)
    return config


def read_architecture(config: Config) -> Architecture:
    """The architecture behind a config.json. Raises `ArchitectureError` when what is needed is not there."""
    text = text_config(config)
    kind = str(text.get("model_type", config.get("model_type", "")))
    text = {**_DEFAULTS.get(kind, {}), **text}
    heads, hidden = _number(text, *_HEADS, default=0), _number(text, *_HIDDEN)
    quantization = text.get("quantization_config") or config.get("quantization_config") or config.get("compression_config") or {}
    layers, doubts = _layers(kind, text)
    return Architecture(
        model_type=kind, depth=_depth(text), layers=layers, hidden=hidden,
        intermediate=_number(text, "intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", default=4 * hidden),
        vocab=_number(text, "vocab_size", default=0), query_heads=heads, kv_heads=_kv_heads(kind, text, heads),
        max_length=_max_length(kind, text),
        dtype=str(text.get("torch_dtype") or text.get("dtype") or config.get("torch_dtype") or config.get("dtype") or "bfloat16"),
        tied=_tied(kind, text, config),
        quantization=_quant_method(quantization), kv_is_fp8=_kv_is_fp8(quantization), doubts=tuple(doubts))


def _number(text: Config, *names: str, default: int | None = None) -> int:
    for name in names:
        if isinstance(value := text.get(name), int | float) and not isinstance(value, bool):
            return int(value)
    if default is None:
        raise ArchitectureError(f"config.json has no `{names[0]}`; the architecture `{text.get('model_type')}` is not known here")
    return default


def _kv_heads(kind: str, text: Config, heads: int) -> int:
    """Names and order of vLLM's `get_total_num_kv_heads`."""
    if kind in ("falcon", "gpt_bigcode") and text.get("multi_query") and not text.get("new_decoder_architecture"):
        return 1
    if isinstance(attention := text.get("attn_config"), Mapping) and "kv_n_heads" in attention:
        return int(attention["kv_n_heads"])
    return _number(text, "n_head_kv", "num_kv_heads", "num_key_value_heads", "multi_query_group_num", "num_attention_groups", default=heads)


def _layers(kind: str, text: Config) -> tuple[tuple[Layer, ...], list[str]]:
    count = _depth(text)
    doubts: list[str] = []
    if kind in _ENCODERS:
        return (), ["an encoder keeps no KV cache; its memory is weights and activations"]
    if "compress_ratios" in text:
        raise ArchitectureError(f"`{kind}` compresses its cache in a way that is not computed here; set `kv_cache_memory_bytes` and try it")
    if text.get("index_topk"):
        doubts.append("the sparse attention's index cache is not counted")
    if text.get("encoder_layers") or text.get("is_encoder_decoder"):
        doubts.append("cross-attention to the encoder is not counted")
    names = _layer_types(kind, text, count)
    layers = [_layer(kind, {**text, **_override(kind, text, i, name)}, name) for i, name in enumerate(names)]
    if any(layer.state for layer in layers):
        doubts.append("recurrent layers: the state's size is an estimate")
    # Layers that read an earlier layer's cache have none of their own (Gemma 3n, Gemma 4).
    return tuple(layers[:count - _number(text, "num_kv_shared_layers", default=0)]), doubts


def _depth(text: Config) -> int:
    return _number(text, "num_hidden_layers", "n_layer", "n_layers", "num_layers")


def _override(kind: str, text: Config, layer: int, name: str) -> Config:
    """What is different for one layer: transformers' `per_layer_config`, or Gemma 4's older keys for its global layers."""
    if isinstance(each := text.get("per_layer_config"), Mapping):
        return next((dict(changes) for index, changes in each.items() if int(index) == layer), {})  # keys are "05" or "5"
    if kind != "gemma4_text" or name != "full_attention":
        return {}
    heads = text.get("num_global_key_value_heads") if text.get("attention_k_eq_v") else None
    return {"head_dim": text.get("global_head_dim", 512), **({"num_key_value_heads": heads} if heads else {})}


def _head_dim(kind: str, text: Config, heads: int) -> int:
    if kind == "minicpm3":  # expands its latent vectors before caching them
        return _number(text, "qk_nope_head_dim") + _number(text, "qk_rope_head_dim")
    given = _number(text, "head_dim", "hidden_size_per_head", "attention_head_dim", "kv_channels", default=0)
    return given or _number(text, *_HIDDEN) // max(heads, 1)


def _layer_types(kind: str, text: Config, count: int) -> list[str]:
    """One word per layer: the config's own `layer_types`, or the rule of its model type."""
    if (given := text.get("layer_types")) is not None:
        return [str(name) for name in given][:count]
    if pattern := text.get("hybrid_override_pattern"):  # Nemotron-H: M mamba, * attention, - feed-forward
        return [{"M": "mamba", "*": "full_attention"}.get(mark, "none") for mark in pattern]
    if kind in ("mamba", "mamba2", "falcon_mamba"):
        return ["mamba"] * count
    if (period := text.get("full_attention_interval")) is not None:  # Qwen3-Next
        return ["linear_attention" if (i + 1) % period else "full_attention" for i in range(count)]
    if (period := text.get("attn_layer_period")) is not None:  # Jamba
        return ["full_attention" if i % period == text.get("attn_layer_offset", 0) else "mamba" for i in range(count)]
    return ["sliding_attention" if slides else "full_attention" for slides in _sliding(kind, text, count)]


def _sliding(kind: str, text: Config, count: int) -> list[bool]:
    """Which layers look at a window only, where the config gives a rule instead of a list."""
    if text.get("sliding_window") is None:
        return [False] * count
    if "use_sliding_window" in text or kind.startswith(("qwen2", "qwen3")):
        return [bool(text.get("use_sliding_window")) and i >= text.get("max_window_layers", 28) for i in range(count)]
    period = text.get("sliding_window_pattern") or _GLOBAL_EVERY.get(kind)
    if isinstance(period, str):  # EXAONE 4: "LLLG"
        slides = [period[i % len(period)] != "G" for i in range(count)]
    else:
        slides = [period is None or (i + 1) % period != 0 for i in range(count)]
    return [*slides[:-1], False] if kind in ("gemma4_text", "exaone4") else slides


def _layer(kind: str, text: Config, name: str) -> Layer:
    if name in ("none", "mlp", "moe"):
        return Layer("state")
    if "attention" not in name or name == "linear_attention":
        return Layer("state", state=_state(text))
    if kind in _MLA and text.get("kv_lora_rank"):
        return Layer("latent", 1, _number(text, "kv_lora_rank") + _number(text, "qk_rope_head_dim"))
    heads = _number(text, *_HEADS, default=0)
    size = _kv_heads(kind, text, heads), 2 * _head_dim(kind, text, heads)
    if name == "sliding_attention":
        return Layer("sliding", *size, window=_number(text, "sliding_window"))
    return Layer("full", *size)  # chunked attention too: vLLM keeps those layers whole unless told otherwise


def _state(text: Config) -> int:
    """Elements of a recurrent layer's state: vLLM's MambaStateShapeCalculator (model_executor/layers/mamba/mamba_utils.py)."""
    if "linear_num_value_heads" in text:  # gated delta net
        k = _number(text, "linear_num_key_heads") * _number(text, "linear_key_head_dim")
        v = _number(text, "linear_num_value_heads") * _number(text, "linear_value_head_dim")
        return (2 * k + v) * (_number(text, "linear_conv_kernel_dim") - 1) + v * _number(text, "linear_key_head_dim")
    size = _number(text, "ssm_state_size", "mamba_d_state", "state_size", "mamba_state_dim", default=16)
    conv = _number(text, "conv_kernel", "mamba_d_conv", default=4) - 1
    heads = _number(text, "mamba_num_heads", "mamba_n_heads", "num_heads", default=0)
    head = _number(text, "mamba_head_dim", "mamba_d_head", "head_dim", default=0)
    inner = heads * head or _number(text, "hidden_size") * _number(text, "mamba_expand", "expand", default=2)
    groups = _number(text, "n_groups", "mamba_n_groups", default=0)
    return (inner + 2 * groups * size) * conv + inner * size


def _max_length(kind: str, text: Config) -> int:
    """The longest context, as vLLM derives it (`_get_and_verify_max_len`); 2048 where the config is silent."""
    lengths = [int(text[key]) for key in _LENGTH_KEYS if isinstance(text.get(key), int)]
    if not lengths:
        return 2048
    rope = text.get("rope_scaling") or text.get("rope_parameters") or {}
    name = rope.get("rope_type") or rope.get("type")
    if name == "longrope":
        return int(text.get("original_max_position_embeddings", min(lengths)))
    scales = name is not None and name not in _ROPE_ALREADY_SCALED and "gemma3" not in kind
    return int(min(lengths) * (rope.get("factor") or 1.0)) if scales else min(lengths)


def _tied(kind: str, text: Config, config: Config) -> bool:
    given = text.get("tie_word_embeddings")
    if given is None:
        given = config.get("tie_word_embeddings")
    return bool(given) if given is not None else kind.startswith(("gemma", "cohere"))


def _quant_method(quantization: Config) -> str | None:
    name = quantization.get("quant_method") or (quantization.get("producer") or {}).get("name")
    return str(name).lower() if name else None


def _kv_is_fp8(quantization: Config) -> bool:
    """Checkpoints that bring FP8 scales for the cache make vLLM's `auto` choose FP8."""
    scheme = quantization.get("kv_cache_scheme") or {}
    return scheme.get("num_bits") == 8 or str(quantization.get("kv_cache_quant_algo", "")).upper() == "FP8"
