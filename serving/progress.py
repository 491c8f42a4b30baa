"""What long work reports while it runs."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One step: `phase` is a word, `model` its model's name or empty, `detail` one line for a person, `seconds` since the work began."""

    phase: str
    detail: str
    seconds: float
    model: str = ""
