"""The shipped task suites: generated cases; the demo models learned from the training split of extraction, reasoning and chat.

Each folder holds task.yaml, generator.py, cases.jsonl (held out, committed) and examples.yaml (prompts for a router's
classifier). `python -m evals.suites --help` makes them again. Public benchmarks are not here.
"""
