"""The cache and the weights that `fit` computes, against what vLLM itself reports for real engines on this CPU."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving.architecture import read_architecture
from serving.fit import cache_of
from serving.settings import GIB, Device, resolve
from serving.weights import local_headers, weights_per_gpu

pytestmark = pytest.mark.slow
PROBE = Path(__file__).with_name("engine_probe.py")
CASES = ("grouped heads", "one KV head, heads wider than hidden/heads", "every head its own KV, float32 on disk", "all layers slide",
         "five sliding to one global, uneven", "latent attention with experts", "three recurrent layers to one with attention")
DEVICE = Device(on_gpu=False, memory_bytes=16 * GIB)


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dict[str, Any]]]:
    """What the engines said, by case."""
    out = tmp_path_factory.mktemp("engines")
    done = subprocess.run([sys.executable, str(PROBE), str(out)], capture_output=True, text=True, timeout=900, check=False)
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"name"')]
    assert {answer["name"] for answer in answers} == set(CASES), done.stderr[-3000:]
    yield {answer["name"]: answer for answer in answers}


@pytest.mark.parametrize("case", CASES)
def test_tokens_blocks_and_weights_are_the_engines(reported: dict[str, dict[str, Any]], case: str) -> None:
    """Predicted KV tokens, blocks, concurrency and bytes of weights equal the engine's, to the byte."""
    engine = reported[case]
    assert "error" not in engine, engine["error"]
    folder = Path(engine["folder"])
    architecture = read_architecture(json.loads((folder / "config.json").read_text()))
    settings = resolve(engine["engine"], architecture, DEVICE, 0)
    in_flight = settings.in_flight if "max_num_batched_tokens" in engine["engine"] else engine["in_flight"]
    found = cache_of(architecture, settings).capacity(int(settings.kv_cache_memory_bytes or 0), settings.max_model_len, in_flight)
    assert (found.tokens, found.blocks, found.concurrency) == (engine["tokens"], engine["blocks"], engine["concurrency"])
    assert (settings.block_size, in_flight) == (engine["block_size"], engine["in_flight"])
    assert weights_per_gpu(local_headers(folder), architecture, settings) == engine["weights"]


@pytest.mark.parametrize("case", CASES)
def test_defaults_are_the_engines(reported: dict[str, dict[str, Any]], case: str) -> None:
    """Context length, sequences and batch that nobody wrote down are those of vLLM's API server."""
    engine = reported[case]
    architecture = read_architecture(json.loads((Path(engine["folder"]) / "config.json").read_text()))
    settings = resolve({}, architecture, DEVICE, 0)
    assert (settings.max_model_len, settings.max_num_seqs) == (engine["default_len"], engine["default_seqs"])
    if case != "latent attention with experts":  # its reference kernel on CPU can't split prompts, so the engine widens the batch
        assert settings.max_num_batched_tokens == engine["default_batch"]
