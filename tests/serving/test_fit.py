"""Sums against published figures and against what a person would say; test_fit_engine.py holds them against the engine."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from serving.architecture import Architecture, ArchitectureError, read_architecture
from serving.catalog import Model, Price
from serving.fit import Subject, assess, cache_of, fit, place, read_subject
from serving.machines import Node, parse_node, read_nodes, this_machine
from serving.settings import GIB, Device, Settings, resolve
from serving.strict import ConfigError
from serving.weights import Tensor, local_headers, weights_per_gpu

CONFIGS = Path(__file__).with_name("configs")
H100 = int(79.6 * GIB)


def config(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((CONFIGS / f"{name}.json").read_text())
    return loaded


def dense_tensors(c: dict[str, Any], dtype: str = "BF16") -> dict[str, Tensor]:
    """The safetensors headers of a Llama-shaped model, from its configuration."""
    h, ff, heads, kv = c["hidden_size"], c["intermediate_size"], c["num_attention_heads"], c["num_key_value_heads"]
    head = c.get("head_dim") or h // heads
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (c["vocab_size"], h), "model.norm.weight": (h,)}
    if not c["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (c["vocab_size"], h)
    for i in range(c["num_hidden_layers"]):
        at = f"model.layers.{i}"
        shapes |= {f"{at}.self_attn.q_proj.weight": (heads * head, h), f"{at}.self_attn.k_proj.weight": (kv * head, h),
                   f"{at}.self_attn.v_proj.weight": (kv * head, h), f"{at}.self_attn.o_proj.weight": (h, heads * head),
                   f"{at}.mlp.gate_proj.weight": (ff, h), f"{at}.mlp.up_proj.weight": (ff, h), f"{at}.mlp.down_proj.weight": (h, ff),
                   f"{at}.input_layernorm.weight": (h,), f"{at}.post_attention_layernorm.weight": (h,)}
    return {name: Tensor(dtype, shape) for name, shape in shapes.items()}


def model(name: str = "m", **changes: Any) -> Model:
    return Model(**{"name": name, "license": "Apache-2.0", "price": Price(usd_per_gpu_hour=1), "path": "nowhere", "gpus": 1, **changes})


def subject(config_name: str, **changes: Any) -> Subject:
    loaded = config(config_name)
    return Subject(model(config_name, **changes), read_architecture(loaded), dense_tensors(loaded))


def on_gpu(architecture: Architecture, gpus: int = 1, **engine: Any) -> Settings:
    return resolve(engine, architecture, Device(on_gpu=True, memory_bytes=H100, name="h100"), gpus)


@pytest.mark.parametrize(("name", "engine", "kib"), [
    ("llama-3.1-8b", {}, 128), ("qwen3-32b", {}, 256), ("llama-3.3-70b", {}, 320), ("deepseek-v3", {}, 68.625),
    ("deepseek-v3", {"kv_cache_dtype": "fp8_ds_mla"}, 39.08), ("llama-3.1-8b", {"kv_cache_dtype": "fp8"}, 64),
])
def test_cache_per_token_is_as_published(name: str, engine: dict[str, Any], kib: float) -> None:
    """KiB of cache per token on one GPU."""
    architecture = read_architecture(config(name))
    assert cache_of(architecture, on_gpu(architecture, **engine)).bytes_per_token / 1024 == pytest.approx(kib, rel=1e-3)


@pytest.mark.parametrize(("name", "gpus", "engine", "kv_gib", "tokens"), [
    ("llama-3.1-8b", 1, {}, 55.3, 452_000), ("qwen3-32b", 1, {}, 9.2, 37_800), ("qwen3-32b", 2, {}, 39.7, 325_000),
    ("llama-3.3-70b", 2, {}, 4.5, 29_700), ("llama-3.3-70b", 4, {}, 37.4, 490_000),
    ("llama-3.3-70b", 1, {"quantization": "fp8"}, 2.57, 8_400),  # 68.45e9 linear weights x 1 B + 2.10e9 embeddings x 2 B = 67.7 GiB
])
def test_what_is_left_on_an_h100_is_as_published(name: str, gpus: int, engine: dict[str, Any], kv_gib: float, tokens: int) -> None:
    """0.92 of 79.6 GiB, less the weights and 3 GiB for the rest, is what the cache gets."""
    architecture = read_architecture(config(name))
    settings = on_gpu(architecture, gpus, **engine)
    left = int(0.92 * H100) - weights_per_gpu(dense_tensors(config(name)), architecture, settings) - 3 * GIB
    assert left / GIB == pytest.approx(kv_gib, abs=0.06)
    found = cache_of(architecture, settings).capacity(left, settings.max_model_len, settings.in_flight)
    assert found.tokens == pytest.approx(tokens, rel=0.02)


def test_fp8_of_a_70b_counts_linear_weights_once_and_embeddings_twice() -> None:
    """On-line fp8 leaves the embedding and the output in 16 bits."""
    architecture, tensors = read_architecture(config("llama-3.3-70b")), dense_tensors(config("llama-3.3-70b"))
    embeddings = 2 * 128256 * 8192
    linear = sum(t.elements for name, t in tensors.items() if name.endswith("proj.weight"))
    norms = sum(t.elements for name, t in tensors.items() if "norm" in name)
    assert weights_per_gpu(tensors, architecture, on_gpu(architecture, quantization="fp8")) == linear + 2 * embeddings + 2 * norms


def test_kv_heads_are_replicated_beyond_their_number() -> None:
    """8 KV heads over 16 GPUs: each has one whole head, cache and projection alike."""
    architecture = read_architecture({**config("llama-3.1-8b"), "num_key_value_heads": 2})
    eight, four = on_gpu(architecture, 8), on_gpu(architecture, 4)
    assert cache_of(architecture, eight).bytes_per_token == cache_of(architecture, four).bytes_per_token == 32 * 2 * 128 * 2
    key = {"model.layers.0.self_attn.k_proj.weight": Tensor("BF16", (256, 4096))}
    assert weights_per_gpu(key, architecture, eight) == 256 * 4096 * 2 // 2


def test_latent_attention_is_replicated_over_gpus() -> None:
    """DeepSeek's cache does not shrink with tensor parallelism."""
    architecture = read_architecture(config("deepseek-v3"))
    assert cache_of(architecture, on_gpu(architecture, 8)).bytes_per_token == cache_of(architecture, on_gpu(architecture)).bytes_per_token


def test_draft_layers_and_tied_outputs_are_not_loaded() -> None:
    """DeepSeek's layer 61 is a draft head; a tied output has no weights of its own."""
    architecture = read_architecture(config("deepseek-v3"))
    names = {"model.layers.60.mlp.gate.weight": 8, "model.layers.61.mlp.gate.weight": 8, "model.layers.61.eh_proj.weight": 8}
    tensors = {name: Tensor("BF16", (n, 1)) for name, n in names.items()}
    assert weights_per_gpu(tensors, architecture, on_gpu(architecture)) == 16
    tied = read_architecture({**config("qwen3-32b"), "tie_word_embeddings": True})
    both = {"model.embed_tokens.weight": Tensor("BF16", (10, 4)), "lm_head.weight": Tensor("BF16", (10, 4))}
    assert weights_per_gpu(both, tied, on_gpu(tied)) == 80


def test_the_sentence_says_what_was_asked() -> None:
    """Fits on a node, with so many tokens, for so many full-length requests; counted on the unfavourable end."""
    answer = fit(subject("llama-3.1-8b", engine={"max_model_len": 8192}), Node(name="gpu1", gpus=1, gpu_memory_bytes=H100))
    assert answer.verdict == "fits" and answer.kv_tokens < answer.kv_tokens_at_best and not answer.exact
    assert answer.sentence == (f"llama-3.1-8b fits on gpu1 with {answer.kv_tokens:,} cached tokens = {answer.requests:.2f} "
                               "full-length requests at once (8,192 tokens each)")
    assert answer.requests == pytest.approx(answer.kv_tokens / 8192, rel=1e-3)


def test_a_fixed_cache_is_exact() -> None:
    """With `kv_cache_memory_bytes` the tokens are the engine's own."""
    answer = fit(subject("llama-3.1-8b", engine={"max_model_len": 8192, "kv_cache_memory_bytes": 8 * GIB}),
                 Node(name="gpu1", gpus=1, gpu_memory_bytes=H100))
    assert (answer.verdict, answer.exact, answer.kv_tokens, answer.kv_tokens_at_best) == ("fits", True, 65536, 65536)


@pytest.mark.parametrize(("name", "changes", "node", "reason", "helps"), [
    ("llama-3.3-70b", {"gpus": 4}, {"gpus": 2}, "needs 4 GPUs on one machine, gpu1 has 2", ()),
    ("llama-3.1-8b", {}, {"gpus": 0, "gpu_memory_bytes": 0}, "needs 1 GPU on one machine, gpu1 has 0", ()),
    ("llama-3.1-8b", {"gpu_type": "h100"}, {"gpu_type": "NVIDIA A100-SXM4-80GB"}, "asks for `gpu_type: h100`, gpu1 has NVIDIA A100", ()),
    ("qwen3-32b", {}, {}, "weights 61.0 GiB", ("`max_model_len: ", "`kv_cache_dtype: fp8`", "`quantization: fp8`")),
    ("llama-3.3-70b", {"gpus": 2, "engine": {"max_model_len": 65536}}, {"gpus": 4}, "weights 65.", ("`quantization: fp8`", "`gpus: 4`")),
    ("llama-3.3-70b", {"engine": {"max_model_len": 8192}}, {}, "weights 131.4 GiB", ()),
    ("llama-3.1-8b", {"engine": {"max_model_len": 8192, "kv_cache_memory_bytes": 2**29}}, {}, "`kv_cache_memory_bytes` is 512.0 MiB", ()),
    ("llama-3.1-8b", {"gpus": 3}, {"gpus": 4}, "32 attention heads can't be divided over 3 GPUs", ()),
])
def test_a_misfit_says_why_and_what_would_help(name: str, changes: dict[str, Any], node: dict[str, Any], reason: str,
                                               helps: tuple[str, ...]) -> None:
    """One sentence: the reason in numbers, and the smallest changes that make it fit."""
    answer = fit(subject(name, **changes), Node(**{"name": "gpu1", "gpus": 1, "gpu_memory_bytes": H100, **node}))
    assert answer.verdict in ("no", "tight") and reason in answer.reason
    for expected in helps:
        assert any(change.startswith(expected) for change in answer.changes), answer.changes


def test_every_proposed_change_makes_it_fit() -> None:
    """What the sentence proposes is tried before it is said."""
    asked = subject("qwen3-32b")
    node = Node(name="gpu1", gpus=4, gpu_memory_bytes=H100)
    proposed = fit(asked, node).changes
    assert len(proposed) >= 2
    for change in proposed:
        changes = dict(part.strip("`").split(": ") for part in change.split(" and "))
        engine = {key: int(value) if value.isdigit() else value for key, value in changes.items() if key != "gpus"}
        changed = msgspec.structs.replace(asked.model, engine=engine, gpus=int(changes.get("gpus", "1")))
        assert assess(Subject(changed, asked.architecture, asked.tensors), node).verdict == "fits", change


def test_placed_models_take_their_gpus_and_memory() -> None:
    """A second model finds what the first one left."""
    small = subject("llama-3.1-8b", engine={"max_model_len": 8192}, replicas=2)
    node = Node(name="gpu1", gpus=2, gpu_memory_bytes=H100, ram_bytes=64 * GIB)
    assert "2 of them taken" in fit(small, node, [small]).reason
    cpu = subject("llama-3.1-8b", gpus=0, engine={"max_model_len": 8192, "kv_cache_memory_bytes": 8 * GIB})
    assert fit(cpu, node).verdict == "fits"
    assert fit(cpu, node, [small, cpu]).verdict == "fits"
    assert fit(cpu, node, [cpu, cpu]).verdict == "no"


def test_a_cpu_engine_without_a_fixed_cache_asks_for_nearly_all_memory() -> None:
    """vLLM refuses to start on a CPU when 92% of the memory is not free; the change that helps is named."""
    greedy = subject("llama-3.1-8b", gpus=0, engine={"max_model_len": 8192})
    node = Node(name="box", ram_bytes=64 * GIB)
    fixed = subject("llama-3.1-8b", gpus=0, engine={"max_model_len": 8192, "kv_cache_memory_bytes": 4 * GIB})
    answer = fit(greedy, node, [fixed])
    assert answer.verdict == "no" and "92% of the machine's memory" in answer.reason
    assert answer.changes[0].startswith("`kv_cache_memory_bytes: ")


def test_encoders_keep_no_cache() -> None:
    """An embedding model is weights and activations."""
    bert = read_architecture({"model_type": "bert", "hidden_size": 384, "num_attention_heads": 12, "num_hidden_layers": 6,
                              "intermediate_size": 1536, "vocab_size": 30522, "max_position_embeddings": 512})
    answer = fit(Subject(model("embedder"), bert, {"w": Tensor("F32", (1000, 1000))}), Node(name="g", gpus=1, gpu_memory_bytes=8 * GIB))
    assert answer.verdict == "fits" and answer.sentence == "embedder fits on g"


@pytest.mark.parametrize(("wrong", "message"), [
    ({"model_type": "odd"}, "config.json has no `num_hidden_layers`; the architecture `odd` is not known here"),
    ({**config("llama-3.1-8b"), "compress_ratios": [4]}, "compresses its cache in a way that is not computed"),
])
def test_what_is_not_known_is_said(wrong: dict[str, Any], message: str) -> None:
    """No guess where the configuration gives no ground for one."""
    with pytest.raises(ArchitectureError, match=message):
        read_architecture({"hidden_size": 8, **wrong})


@pytest.mark.parametrize(("engine", "message"), [
    ({"kv_cache_dtype": "turboquant_k8v4"}, "is not computed here"), ({"max_model_len": "much"}, "`much` is not a number"),
    ({"pipeline_parallel_size": 2}, "not a multiple of `pipeline_parallel_size: 2`"),
    ({"kv_cache_dtype": "fp8_ds_mla"}, "latent attention"),
])
def test_engine_arguments_that_cannot_be_sized_are_named(engine: dict[str, Any], message: str) -> None:
    """A misfit with the reason, not a stack trace."""
    answer = fit(subject("llama-3.1-8b", engine=engine), Node(name="gpu1", gpus=1, gpu_memory_bytes=H100))
    assert answer.verdict == "no" and message in answer.reason


def test_lengths_are_written_as_the_engine_reads_them() -> None:
    """32k is 32,000 and 32K is 32,768."""
    architecture = read_architecture(config("llama-3.1-8b"))
    assert [on_gpu(architecture, max_model_len=text).max_model_len for text in ("32k", "32K", 8192, "auto")] == [32000, 32768, 8192, 131072]


def test_local_headers_are_read_from_every_file(tmp_path: Path) -> None:
    """Sharded models too; a file that is not safetensors is named."""
    for i in range(2):
        header = json.dumps({"__metadata__": {}, f"w{i}": {"dtype": "F16", "shape": [2, 2], "data_offsets": [0, 8]}}).encode()
        (tmp_path / f"model-{i}.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    assert {name: tensor.bytes for name, tensor in local_headers(tmp_path).items()} == {"w0": 8, "w1": 8}
    (tmp_path / "bad.safetensors").write_bytes(b"<html>")
    with pytest.raises(ArchitectureError, match=r"bad\.safetensors"):
        local_headers(tmp_path)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    """Local models must be there; hub models are asked for instead."""
    with pytest.raises(ArchitectureError, match=r"has no config\.json"):
        read_subject(model(), tmp_path, tmp_path, lambda _: ({}, {}))
    pinned = model(path=None, repo="a/b", revision="0" * 40)
    found = read_subject(pinned, tmp_path, tmp_path, lambda _: (config("qwen3-32b"), dense_tensors(config("qwen3-32b"))))
    assert found.architecture.kv_heads == 8


def test_machines_come_from_options_and_files(tmp_path: Path) -> None:
    """Sizes have units, mistakes name the nearest key."""
    expected = Node(name="g", gpus=4, gpu_memory_bytes=80 * GIB, gpu_type="h100", ram_bytes=512 * 10**9)
    assert parse_node("name=g,gpus=4,gpu_memory=80GiB,gpu_type=h100,ram=512GB") == expected
    (tmp_path / "nodes.yaml").write_text("nodes:\n- {name: g, gpus: 4, gpu_memory: 80GiB, gpu_type: h100, ram: 512GB}\n")
    assert read_nodes(tmp_path / "nodes.yaml") == [expected]
    for text, message in (("name=g,gpu_memry=1", "did you mean `gpu_memory`"), ("name=g,gpus=1", "needs both `gpus` and `gpu_memory`"),
                          ("name=g,ram=lots", "`lots` is not a size"), ("gpus=1", "required field `name`"), ("name=g,gpus=x", "Expected")):
        with pytest.raises(ConfigError, match=message):
            parse_node(text)
    (tmp_path / "nodes.yaml").write_text("nodes:\n- name: a\n- {name: b, ram: huge}\n")
    with pytest.raises(ConfigError, match=r"nodes\.yaml:3: `huge` is not a size"):
        read_nodes(tmp_path / "nodes.yaml")


def test_this_machine_is_read_without_a_driver(tmp_path: Path) -> None:
    """Memory from the kernel; GPUs when the driver's program answers."""
    assert this_machine("no-such-program").ram_bytes > 0
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho '81559, NVIDIA H100 80GB HBM3'\necho '81559, NVIDIA H100 80GB HBM3'\n")
    driver.chmod(0o755)
    found = this_machine(str(driver))
    assert (found.gpus, found.gpu_memory_bytes, found.gpu_type) == (2, 81559 * 2**20, "NVIDIA H100 80GB HBM3")


def test_together_every_replica_finds_its_place() -> None:
    """The largest first, on the first machine with room; what fits nowhere says why."""
    large = subject("llama-3.3-70b", gpus=4, engine={"max_model_len": 8192})
    small = subject("llama-3.1-8b", engine={"max_model_len": 8192}, replicas=3)
    nodes = [Node(name="a", gpus=4, gpu_memory_bytes=H100), Node(name="b", gpus=2, gpu_memory_bytes=H100)]
    answers = place([small, large], nodes)
    assert [(answer.model, answer.node, answer.verdict) for answer in answers] == [
        ("llama-3.1-8b", "b", "fits"), ("llama-3.1-8b", "b", "fits"), ("llama-3.1-8b", "a", "no"), ("llama-3.3-70b", "a", "fits")]
    assert "4 of them taken" in answers[2].reason
    assert [answer.verdict for answer in place([small], nodes[1:], [(small, "b")])] == ["no", "no", "no"]


def test_layers_that_share_a_cache_keep_their_weights() -> None:
    """Gemma 3n's last layers read earlier layers' caches but have weights of their own."""
    shared = read_architecture({**config("llama-3.1-8b"), "num_kv_shared_layers": 10})
    assert (shared.depth, len(shared.layers)) == (32, 22)
    last = {"model.layers.31.mlp.up_proj.weight": Tensor("BF16", (4, 4))}
    assert weights_per_gpu(last, shared, on_gpu(shared)) == 32


def test_what_is_not_counted_is_said() -> None:
    """A draft model takes memory that is not in the sum, so the sum is not called exact."""
    engine = {"max_model_len": 8192, "kv_cache_memory_bytes": 8 * GIB, "speculative_config": {"method": "ngram"}}
    answer = fit(subject("llama-3.1-8b", engine=engine), Node(name="gpu1", gpus=1, gpu_memory_bytes=H100))
    assert answer.verdict == "fits" and not answer.exact and answer.doubts == ("`speculative_config` is not counted",)
