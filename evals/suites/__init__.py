"""Three small task suites (extraction, reasoning, chat): generated cases with held-out splits, and their scorers.

Each folder holds task.yaml, generator.py, cases.jsonl (held out, committed) and examples.yaml (prompts for a router's
classifier). `python -m evals.suites --help` generates and scores. Public benchmarks are not here.
"""
