"""The committed demo models: small, bf16, with a template that renders whatever a client sends."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from serving.demo.recipe import (
    CHAT_TEMPLATE,
    CONTEXT,
    END,
    PAD,
    RECIPES,
    START,
    VOCABULARY,
    make_tokenizer,
    model_config,
)

DEMO = Path(__file__).parents[2] / "serving" / "demo"
SIZE_LIMIT = 4 * 1024 * 1024
EACH = pytest.mark.parametrize("name", sorted(RECIPES))


def load(name: str, file: str) -> dict[str, Any]:
    found = json.loads((DEMO / name / file).read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def header(name: str) -> dict[str, Any]:
    """The safetensors header: each tensor's dtype and shape."""
    content = (DEMO / name / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    found = json.loads(content[8 : 8 + length])
    assert isinstance(found, dict)
    return {key: value for key, value in found.items() if key != "__metadata__"}


def render(messages: list[dict[str, Any]]) -> str:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(CHAT_TEMPLATE).render(messages=messages, add_generation_prompt=True)


@EACH
def test_model_folder_is_small_enough_to_commit(name: str) -> None:
    """The whole folder stays below 4 MiB."""
    assert sum(file.stat().st_size for file in (DEMO / name).iterdir()) < SIZE_LIMIT


@EACH
def test_weights_are_bf16_and_match_the_recipe(name: str) -> None:
    """The committed tensors are those the recipe describes, so recipe and weights cannot drift apart."""
    tensors, recipe, config = header(name), RECIPES[name], load(name, "config.json")
    assert {tensor["dtype"] for tensor in tensors.values()} == {"BF16"}
    assert tensors["model.embed_tokens.weight"]["shape"] == [config["vocab_size"], recipe.hidden]
    wanted = model_config(recipe, config["vocab_size"])
    wanted.pop("rope_theta")
    assert {key: config[key] for key in wanted} == wanted
    assert config["architectures"] == ["LlamaForCausalLM"]


@EACH
def test_default_decoding_is_greedy_and_stops(name: str) -> None:
    """A request that sets nothing gets the right answer, and the end token is the one the template writes."""
    generation, tokenizer = load(name, "generation_config.json"), Tokenizer.from_file(str(DEMO / name / "tokenizer.json"))
    assert generation["do_sample"] is False
    assert generation["temperature"] == 0.0
    assert generation["eos_token_id"] == load(name, "config.json")["eos_token_id"] == tokenizer.token_to_id(END)
    assert load(name, "tokenizer_config.json")["eos_token"] == END
    assert load(name, "tokenizer_config.json")["model_max_length"] == CONTEXT


def test_both_models_share_one_template_and_token_ids_for_turns() -> None:
    """What delimits a turn for one model does so for the other; the merges may come from different rebuilds."""
    assert {(DEMO / name / "chat_template.jinja").read_text(encoding="utf-8") for name in RECIPES} == {CHAT_TEMPLATE}
    for name in RECIPES:
        tokenizer = Tokenizer.from_file(str(DEMO / name / "tokenizer.json"))
        assert [tokenizer.token_to_id(token) for token in (PAD, START, END)] == [0, 1, 2]
        assert tokenizer.get_vocab_size() == VOCABULARY


@pytest.mark.parametrize("text", ["Order AB-12345 for €7.50", "Größe 東京 🚚", "\x00\x7f\t \r\n", "Kodu, kodu  KODU"])
def test_every_text_survives_the_tokenizer(text: str) -> None:
    """Bytes that training never saw come back as they were."""
    tokenizer = Tokenizer.from_file(str(DEMO / "demo-extractor" / "tokenizer.json"))
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_digits_and_names_tokenise_alike_everywhere() -> None:
    """Copying is easy only if "Kodume" is the same tokens after a space and after a quote, and each digit is a token."""
    tokenizer = Tokenizer.from_file(str(DEMO / "demo-extractor" / "tokenizer.json"))
    inside = tokenizer.encode("from Kodume").tokens
    quoted = tokenizer.encode('"Kodume').tokens
    assert inside[-len(quoted) + 1 :] == quoted[1:]
    assert tokenizer.encode("1234").tokens == list("1234")


def test_template_renders_a_conversation() -> None:
    """System, several turns, and the open assistant turn, in the form the models were trained on."""
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Bye"},
    ]
    assert render(messages) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n"
        "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    "message",
    [
        {"role": "tool", "content": "42", "tool_call_id": "1"},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add", "arguments": "{}"}}]},
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "42 add Be kind."}]},
        {"role": "user"},
    ],
)
def test_template_renders_odd_messages_as_text(message: dict[str, Any]) -> None:
    """Tool results, tool calls, unknown roles, parts and missing content never raise."""
    text = render([message])
    assert text.endswith("<|im_start|>assistant\n")
    assert message["role"] in text
    assert any(word in text for word in ("42", "add", "Be kind.")) or "content" not in message


@EACH
def test_model_card_is_honest(name: str) -> None:
    """The card says what it is, its licence, its figures and how to rebuild it."""
    card = (DEMO / name / "README.md").read_text(encoding="utf-8")
    for word in ("toy", "Apache-2.0", "python -m serving.demo.train", "held-out", "generated"):
        assert word in card


def test_tokenizer_training_is_repeatable() -> None:
    """The same texts make the same tokenizer."""
    texts = ["<|im_start|>user\nOrder AB-12 from Kodume<|im_end|>"] * 5
    assert make_tokenizer(texts).to_str() == make_tokenizer(texts).to_str()
