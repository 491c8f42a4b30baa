"""Tells the task of a text that asks for `auto`: word and character n-grams, logistic regression, and the right to abstain.

Running needs a dictionary and nothing else; scikit-learn is only imported by `train`. The thresholds are split-conformal: at the
calibration's confidence c, a text that is not of a task is taken for it in at most 1 - c of the cases (exchangeable texts; Vovk et al.,
"Algorithmic Learning in a Random World", 2005). Texts unlike all examples abstain.
"""

import hashlib
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import msgspec

from routing.config import Auto, Task

_WORDS = re.compile(r"[^\W\d_]+|\d|[^\w\s]")
_LONGEST = 40  # words read: intent is told early, and a long prompt must not cost more
_FOLDS = 5
_MIN_EXAMPLES = 2 * _FOLDS
_VERSION = 2  # of `features`: a model trained on other features is trained anew


def features(text: str) -> set[str]:
    """The n-grams of a text: words and pairs of words, and character trigrams of the words. Digits count as one."""
    words = ["0" if word.isdigit() else word for word in _WORDS.findall(text[:400].lower())[:_LONGEST]]
    found = set(words)
    found.update(map(" ".join, pairwise(words)))
    line = " ".join(word for word in words if word.isalpha())[:160]
    found.update([f"~{line[i : i + 3]}" for i in range(len(line) - 2)])
    return found


class Report(msgspec.Struct, frozen=True):
    """How one task was told apart on examples that its model had not seen. `precision` counts what was accepted as this task."""

    task: str
    examples: int
    precision: float
    coverage: float
    threshold: float
    passes: bool


class Classifier(msgspec.Struct, frozen=True):
    """A trained classifier as plain data. `weights` maps a feature to its squared idf followed by its weight for each task."""

    fingerprint: str
    tasks: tuple[str, ...]
    default: str
    intercepts: tuple[float, ...]
    weights: dict[str, tuple[float, ...]]
    thresholds: tuple[float, ...]
    reports: tuple[Report, ...]

    @property
    def may_serve(self) -> bool:
        """Whether every task reached the floor on held-out examples."""
        return bool(self.reports) and all(report.passes for report in self.reports)

    def task_of(self, text: str) -> tuple[str, str]:
        """The task of a text and why: `auto` with the confidence, or `abstained` and the default task."""
        shares = self.shares(text)
        if shares is None:
            return self.default, "abstained: nothing familiar"
        best = max(range(len(shares)), key=shares.__getitem__)
        if shares[best] < self.thresholds[best]:
            return self.default, f"abstained: {self.tasks[best]} {shares[best]:.2f}"
        return self.tasks[best], f"auto: {shares[best]:.2f}"

    def shares(self, text: str) -> list[float] | None:
        """The probability of each task, or None where no feature of the text is known."""
        known = self.weights
        hits = [known[feature] for feature in features(text) if feature in known]
        if not hits:
            return None
        norm, *sums = map(sum, zip(*hits, strict=True))
        scale = 1 / math.sqrt(norm)
        exponents = [math.exp(total * scale + intercept) for total, intercept in zip(sums, self.intercepts, strict=True)]
        whole = sum(exponents)
        return [exponent / whole for exponent in exponents]


def fingerprint(tasks: Iterable[Task], default: str, auto: Auto) -> str:
    """Changes when anything that training depends on does."""
    told = msgspec.json.encode([_VERSION, default, auto, sorted((task.name, task.examples) for task in tasks)])
    return hashlib.sha256(told).hexdigest()


def train(tasks: Sequence[Task], default: str, auto: Auto) -> Classifier:
    """Trains on the tasks' examples and measures on held-out folds. Takes about a second; imports scikit-learn."""
    print_ = fingerprint(tasks, default, auto)
    taught = [task for task in tasks if task.examples]
    if len(taught) < 2 or any(len(set(task.examples)) < _MIN_EXAMPLES for task in taught):
        return Classifier(print_, (), default, (), {}, (), ())
    from sklearn.model_selection import StratifiedKFold

    texts = [text for task in taught for text in dict.fromkeys(task.examples)]
    labels = [i for i, task in enumerate(taught) for _ in dict.fromkeys(task.examples)]
    held_out: list[Sequence[float]] = [()] * len(texts)
    for learn, hold in StratifiedKFold(_FOLDS, shuffle=True, random_state=0).split(texts, labels):
        fold = _fit([texts[i] for i in learn], [labels[i] for i in learn])
        for i in hold:
            shares = _classifier(fold, taught, default).shares(texts[i])
            held_out[i] = shares if shares is not None else [0.0] * len(taught)
    thresholds = tuple(_threshold([s[c] for s, label in zip(held_out, labels, strict=True) if label != c], auto.confidence)
                       for c in range(len(taught)))  # fmt: skip
    reports = tuple(_report(task, c, held_out, labels, thresholds, auto, is_default=task.name == default) for c, task in enumerate(taught))
    whole = _classifier(_fit(texts, labels), taught, default)
    return msgspec.structs.replace(whole, fingerprint=print_, thresholds=thresholds, reports=reports)


_Fitted = tuple[dict[str, tuple[float, ...]], tuple[float, ...]]


def _fit(texts: Sequence[str], labels: Sequence[int]) -> _Fitted:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectorizer = TfidfVectorizer(analyzer=features, binary=True)
    model = LogisticRegression(C=20.0, max_iter=500).fit(vectorizer.fit_transform(texts), labels)
    coefficients, intercepts = model.coef_.tolist(), model.intercept_.tolist()
    if len(coefficients) == 1:  # scikit-learn keeps one row for two classes
        coefficients, intercepts = [[-w for w in coefficients[0]], coefficients[0]], [-intercepts[0], intercepts[0]]
        coefficients = [[w / 2 for w in row] for row in coefficients]
        intercepts = [value / 2 for value in intercepts]
    weights = {}
    for feature, column in vectorizer.vocabulary_.items():
        idf = float(vectorizer.idf_[column])
        weights[feature] = (idf * idf, *(row[column] * idf for row in coefficients))
    return weights, tuple(intercepts)


def _classifier(fitted: _Fitted, taught: Sequence[Task], default: str) -> Classifier:
    return Classifier("", tuple(task.name for task in taught), default, fitted[1], fitted[0], (1.0,) * len(taught), ())


def _threshold(strangers: Sequence[float], confidence: float) -> float:
    """The share that at most 1 - confidence of the strangers exceed: the split-conformal quantile, never under one half."""
    rank = math.ceil((len(strangers) + 1) * confidence)
    ordered = sorted(strangers)
    return max(0.5, math.nextafter(ordered[rank - 1], 1.0)) if rank <= len(ordered) else 1.0


def _report(
    task: Task, c: int, held_out: Sequence[Sequence[float]], labels: Sequence[int], thresholds: Sequence[float], auto: Auto, *,
    is_default: bool,
) -> Report:
    accepted = right = 0
    own = sum(label == c for label in labels)
    for shares, label in zip(held_out, labels, strict=True):
        best = max(range(len(shares)), key=shares.__getitem__)
        sure = shares[best] >= thresholds[best]
        if (best == c and sure) or (is_default and not sure):  # the default task also gets what abstained
            accepted += 1
            right += label == c
    precision = right / accepted if accepted else 0.0
    # An abstention costs the default task nothing, so its precision is not held against it.
    passes = (is_default or precision >= auto.min_precision) and right / own >= auto.min_coverage
    return Report(task.name, own, precision, right / own, thresholds[c], passes)


def load_or_train(path: Path, tasks: Sequence[Task], default: str, auto: Auto) -> Classifier:
    """The classifier saved at `path` if it was trained on just these examples; else a new one, saved there."""
    wanted = fingerprint(tasks, default, auto)
    try:
        saved = msgspec.json.decode(path.read_bytes(), type=Classifier)
        if saved.fingerprint == wanted:
            return saved
    except (OSError, msgspec.DecodeError):
        pass  # never trained, or a file cut short: train
    classifier = train(tasks, default, auto)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(f".{os.getpid()}.new")  # workers start at once and may all be training
    fresh.write_bytes(msgspec.json.encode(classifier))
    fresh.replace(path)
    return classifier


def report_lines(reports: Iterable[Report]) -> list[str]:
    """One line a task, for the start-up log."""
    return [f"auto: {r.task}: precision {r.precision:.2f}, coverage {r.coverage:.2f} on {r.examples} held-out examples"
            f"{'' if r.passes else '  BELOW THE FLOOR'}" for r in reports]  # fmt: skip


def as_table(classifier: Classifier) -> list[Mapping[str, object]]:
    """The reports as plain rows, for `/readyz` and `--json`."""
    return [msgspec.to_builtins(report) for report in classifier.reports]
