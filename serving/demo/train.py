"""Trains the demo models from JSONL rows: python -m serving.demo.train --data DIR. One core, half an hour to an hour each.

DIR holds extraction.jsonl, reasoning.jsonl and chat.jsonl with messages and completion. The schedule counts steps and
every draw is seeded, so the same machine makes the same weights again; another CPU may round differently.
"""

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from serving.demo.recipe import RECIPES, Recipe, make_tokenizer, model_config, turns, write_settings

TASKS = ("extraction", "reasoning", "chat")
TOKENIZER_ROWS = 6000  # of each task
IGNORED = -100
MICRO_BATCHES = 4  # rows of a step are sorted by length and cut into these, so that little is padding
WARMUP_STEPS = 60
MUON_RATE, ADAM_RATE = 0.02, 0.004
ATTENTION = "eager"  # 13 ms against 33 ms for a forward and backward of torch's flash kernel on a CPU (2026-11-22)
Row = dict[str, Any]
Encoded = tuple[list[int], list[int]]


def read_rows(data: Path, task: str) -> list[Row]:
    """One task's training rows. Raises SystemExit with the command to run when they are missing."""
    file = data / f"{task}.jsonl"
    if not file.exists():
        raise SystemExit(f"{file} is missing. Make it: python -m evals.suites generate --task {task} --out {file}")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def encode(tokenizer: Tokenizer, row: Row) -> Encoded:
    """Token ids, and the same ids as labels where the model learns to write them."""
    ids: list[int] = []
    labels: list[int] = []
    for text, learned in turns(row):
        piece = tokenizer.encode(text).ids
        ids += piece
        labels += piece if learned else [IGNORED] * len(piece)
    return ids, labels


def draw(rows: dict[str, list[Row]], recipe: Recipe, tokenizer: Tokenizer) -> Iterator[list[Encoded]]:
    """Batches for ever. Each task's rows are shuffled and used up before any is used again."""
    rng = random.Random(recipe.seed)  # noqa: S311  # repeatable on purpose
    queues: dict[str, list[Row]] = {task: [] for task in recipe.shares}
    while True:
        batch = []
        for task in rng.choices(list(recipe.shares), list(recipe.shares.values()), k=recipe.rows_a_step):
            if not queues[task]:
                queues[task] = rng.sample(rows[task], len(rows[task]))
            batch.append(encode(tokenizer, queues[task].pop()))
        yield sorted(batch, key=lambda encoded: len(encoded[0]))


def backward(model: LlamaForCausalLM, batch: list[Encoded]) -> float:
    """Adds the gradient of the mean loss per learned token of a batch; returns that loss."""
    learned = sum(label != IGNORED for _, labels in batch for label in labels)
    size, total = math.ceil(len(batch) / MICRO_BATCHES), 0.0
    for start in range(0, len(batch), size):
        part = batch[start : start + size]
        width = max(len(ids) for ids, _ in part)
        tokens = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in part])
        labels = torch.tensor([wanted + [IGNORED] * (width - len(wanted)) for _, wanted in part])[:, 1:]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = model.model(input_ids=tokens).last_hidden_state[:, :-1]
            logits = model.lm_head(hidden[labels != IGNORED])
        loss = torch.nn.functional.cross_entropy(logits.float(), labels[labels != IGNORED], reduction="sum") / learned
        loss.backward()
        total += loss.item()
    return total


def make_optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers; AdamW for embeddings and norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=MUON_RATE, weight_decay=0.02, momentum=0.95),
        torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def rate(step: int, steps: int) -> float:
    """Share of the peak learning rate: a linear warm-up, then a cosine to 1 %."""
    return min(1.0, (step + 1) / WARMUP_STEPS) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def train(recipe: Recipe, rows: dict[str, list[Row]], tokenizer: Tokenizer) -> LlamaForCausalLM:
    """A trained model in float32. Prints step, loss and the time left."""
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(**model_config(recipe, tokenizer.get_vocab_size()), attn_implementation=ATTENTION)
    model = LlamaForCausalLM(config)
    optimizers = make_optimizers(model)
    peaks = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    batches, started = draw(rows, recipe, tokenizer), time.monotonic()
    for step in range(recipe.steps):
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * rate(step, recipe.steps)
        loss = backward(model, next(batches))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if step % 25 == 0 or step == recipe.steps - 1:
            spent = time.monotonic() - started
            left = spent / (step + 1) * (recipe.steps - step - 1)
            print(f"step {step + 1}/{recipe.steps}  loss {loss:.4f}  {spent:.0f} s spent, {left:.0f} s left", flush=True)
    return model


def build(name: str, data: Path, out: Path) -> None:
    """Trains one model and writes its folder; README.md there is written by hand and stays."""
    recipe, rows = RECIPES[name], {task: read_rows(data, task) for task in TASKS}
    texts = ("".join(text for text, _ in turns(row)) for task in TASKS for row in rows[task][:TOKENIZER_ROWS])
    tokenizer = make_tokenizer(texts)
    model = train(recipe, rows, tokenizer)
    folder = out / name
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # save_pretrained leaves 0600; a server may run as somebody else
    write_settings(folder, tokenizer)
    print(f"{name}: {sum(p.numel() for p in model.parameters()):,} parameters in {folder}")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m serving.demo.train", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with extraction.jsonl, reasoning.jsonl, chat.jsonl")
    parser.add_argument("--model", choices=sorted(RECIPES), action="append", help="only this one; default both")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="where the model folders go")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for name in asked.model or sorted(RECIPES):
        build(name, asked.data, asked.out)


if __name__ == "__main__":
    main()
