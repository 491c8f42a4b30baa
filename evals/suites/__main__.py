"""The command that makes a suite's rows, or bare prompts for a router. Asking and scoring: `inhouse eval run`."""

import argparse
import sys
from pathlib import Path

from evals.suites.generate import SPLITS, TASKS, as_jsonl, prompts, rows, task

TRAINING_ROWS = 60000  # what the committed demo models were trained from


def _generate(asked: argparse.Namespace) -> None:
    if asked.prompts:
        text = "".join(prompt + "\n---\n" for prompt in prompts(asked.task, asked.n or 40, asked.seed or 7))
    else:
        n = asked.n or (task(asked.task).held_out if asked.split == "test" else TRAINING_ROWS)
        text = as_jsonl(rows(asked.task, asked.split, n, asked.seed))
    if asked.out is None:
        sys.stdout.write(text)
    else:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(text, encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """Reads the command line and does the one thing asked."""
    parser = argparse.ArgumentParser(prog="python -m evals.suites", description=__doc__)
    commands = parser.add_subparsers(required=True)
    generate = commands.add_parser("generate", help="write rows of one task as JSONL")
    generate.add_argument("--task", choices=TASKS, required=True)
    generate.add_argument("--split", choices=SPLITS, default="train")
    generate.add_argument("-n", type=int, help=f"how many rows; default {TRAINING_ROWS} train, 300 test")
    generate.add_argument("--seed", type=int, help="default: the task's own")
    generate.add_argument("--prompts", action="store_true", help="bare prompts of the training split, separated by ---")
    generate.add_argument("--out", type=Path, help="default: standard output")
    generate.set_defaults(run=_generate)
    asked = parser.parse_args(arguments)
    asked.run(asked)


if __name__ == "__main__":
    main()
