"""What `architecture` assumes where a config.json is silent is what transformers assumes; transformers is the judge."""

import json
import subprocess
import sys

import pytest

from serving.architecture import _DEFAULTS, _GLOBAL_EVERY, read_architecture

# What publishers do write out, so that the rest is left to the defaults.
_WRITTEN = ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
            "vocab_size", "max_position_embeddings", "use_sliding_window", "max_window_layers")
_KINDS = sorted({*_DEFAULTS, *_GLOBAL_EVERY, "llama", "qwen2", "phi3", "mixtral", "starcoder2"})
_ASK = """
import json, sys
from transformers import AutoConfig
print(json.dumps({kind: AutoConfig.for_model(kind).to_dict() for kind in sys.argv[1:]}))
"""


@pytest.fixture(scope="module")
def judged() -> dict[str, dict[str, object]]:
    """Each kind's configuration with every default written out."""
    done = subprocess.run([sys.executable, "-c", _ASK, *_KINDS], capture_output=True, text=True, check=True)
    loaded: dict[str, dict[str, object]] = json.loads(done.stdout.splitlines()[-1])
    return loaded


@pytest.mark.parametrize("kind", _KINDS)
def test_a_silent_config_means_what_transformers_means(judged: dict[str, dict[str, object]], kind: str) -> None:
    """Layer for layer: kind, heads, width and window are the same with and without the defaults written out."""
    full = judged[kind]
    silent = {key: full[key] for key in _WRITTEN if key in full}
    assert read_architecture(silent).layers == read_architecture(full).layers


def test_gemma_3_with_a_text_config_of_six_keys(judged: dict[str, dict[str, object]]) -> None:
    """The published 4B config leaves out even its heads."""
    text = {"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34, "sliding_window": 1024}
    found = read_architecture({"model_type": "gemma3", "text_config": text})
    full = judged["gemma3_text"]
    keys = ("num_attention_heads", "num_key_value_heads", "vocab_size")
    assert (found.query_heads, found.kv_heads, found.vocab) == tuple(full[key] for key in keys)
    assert [layer.kind for layer in found.layers].count("full") == 5 and {layer.window for layer in found.layers} == {1024, None}
