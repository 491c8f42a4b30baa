"""What the demo models are made of: their sizes and data mix, the shared tokenizer, the chat template.

The training loop is train.py; the data comes from JSONL files that this room did not make.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY = 768
CONTEXT = 1024
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
# No loop over content parts: vLLM then joins the text parts before the template sees them.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% elif message['content'] %}{{ message['content'] | tojson }}{% endif %}"
    "{% if message['tool_calls'] is defined and message['tool_calls'] %}{{ message['tool_calls'] | tojson }}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Recipe:
    """One model: sizes, how often each task's rows are drawn, and for how many steps."""

    hidden: int
    layers: int
    inner: int
    steps: int
    shares: dict[str, float]
    seed: int
    rows_a_step: int = 48
    head: int = 32


RECIPES = {
    "demo-extractor": Recipe(hidden=160, layers=3, inner=384, steps=800, shares={"extraction": 1.0}, seed=1),
    "demo-generalist": Recipe(
        hidden=160,
        layers=4,
        inner=448,
        steps=1500,
        shares={"reasoning": 0.55, "chat": 0.33, "extraction": 0.12},
        seed=2,
        rows_a_step=64,
    ),
}


def make_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Byte-level BPE: every byte has a token, every digit is its own, and a name reads the same with or without a space.

    The last is why a space before a capital is a token of its own: copying "Kodu" from a sentence into JSON is then the
    same tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Split(Regex(r" (?=\p{Lu})"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def model_config(recipe: Recipe, vocabulary: int) -> dict[str, Any]:
    """The arguments of a LlamaConfig."""
    heads = recipe.hidden // recipe.head
    return {
        "vocab_size": vocabulary,
        "hidden_size": recipe.hidden,
        "intermediate_size": recipe.inner,
        "num_hidden_layers": recipe.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": recipe.head,
        "max_position_embeddings": CONTEXT,
        "pad_token_id": 0,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "tie_word_embeddings": True,
        "rope_theta": 10000.0,
    }


def turns(row: dict[str, Any]) -> Iterable[tuple[str, bool]]:
    """A training row as pieces of text, each with whether the model learns to write it."""
    for message in [*row["messages"], {"role": "assistant", "content": row["completion"]}]:
        learned = message["role"] == "assistant"
        yield f"{START}{message['role']}\n", False
        yield f"{message['content']}{END}", learned
        yield "\n", False


def write_settings(folder: Path, tokenizer: Tokenizer) -> None:
    """Writes the tokenizer files and a generation_config.json that makes greedy decoding the server's default."""
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": END,
        "pad_token": PAD,
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
    }
    generation = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0, "do_sample": False, "temperature": 0.0}
    for name, content in (("tokenizer_config.json", settings), ("generation_config.json", generation)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
