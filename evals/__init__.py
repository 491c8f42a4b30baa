"""The evals room: is ours good enough for this task, and what does it cost? Imports nothing from serving or routing."""
