"""The classifier behind `auto`: the same numbers as scikit-learn's, thresholds that keep their promise, and the right to abstain."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.config import Auto, Candidate, Task
from routing.tasks import _fit, _threshold, features, fingerprint, load_or_train, train

WORDS = {
    "orders": (
        ["order", "send", "invoice", "deliver"],
        ["boxes", "paper", "screws", "chairs"],
        ["by friday", "to berlin", "for ann", "urgently"],
    ),
    "maths": (
        ["add", "what is", "compute", "multiply"],
        ["12 and 7", "3 times 4", "the sum", "half of 90"],
        ["please", "step by step", "now", "exactly"],
    ),
    "talk": (
        ["hello", "good morning", "tell me", "how are you"],
        ["a joke", "my friend", "something nice", "dear"],
        ["today", "thanks", "again", "soon"],
    ),
}


def tasks(n=3, examples=64):
    made = []
    for name, (a, b, c) in list(WORDS.items())[:n]:
        texts = [f"{x} {y} {z}" for x in a for y in b for z in c]
        made.append(Task(name=name, examples=tuple(texts[:examples]), candidates=(Candidate(model="m"),)))
    return made


@pytest.fixture(scope="module")
def classifier():
    """A classifier of three tasks."""
    return train(tasks(), "talk", Auto(confidence=0.8))


@pytest.mark.parametrize("n", [2, 3])
def test_the_dictionary_scorer_is_scikit_learns_model(n):
    """The shares equal predict_proba of the same pipeline to 1e-9, for two tasks (one row of weights) and for three."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    from routing.tasks import _classifier

    taught = tasks(n, examples=40)
    texts = [text for task in taught for text in task.examples]
    labels = [i for i, task in enumerate(taught) for _ in task.examples]
    vectorizer = TfidfVectorizer(analyzer=features, binary=True)
    model = LogisticRegression(C=20.0, max_iter=500).fit(vectorizer.fit_transform(texts), labels)
    ours = _classifier(_fit(texts, labels), taught, "talk")
    rng = random.Random(1)
    words = [word for text in texts for word in text.split()] + ["foreign", "Äpfel", "99"]
    for _ in range(200):
        text = " ".join(rng.choices(words, k=rng.randint(1, 12)))
        shares = ours.shares(text)
        wanted = model.predict_proba(vectorizer.transform([text]))[0]
        if shares is None:
            assert vectorizer.transform([text]).nnz == 0
        else:
            assert all(math.isclose(a, b, abs_tol=1e-9) for a, b in zip(shares, wanted, strict=True))


@given(strangers=st.lists(st.floats(0, 1), min_size=1, max_size=200), confidence=st.floats(0.5, 0.99))
def test_a_threshold_lets_in_no_more_strangers_than_promised(strangers, confidence):
    """At most a share of 1 - confidence of the calibration's strangers reach the threshold, and it is never under one half."""
    threshold = _threshold(strangers, confidence)
    assert 0.5 <= threshold <= 1
    taken = sum(share >= threshold for share in strangers if share < 1)
    assert taken <= (1 - confidence) * len(strangers) + 1e-9


def test_known_kinds_of_text_are_told_apart(classifier):
    """Texts like the examples go to their tasks, and say how sure that was."""
    assert classifier.may_serve
    assert classifier.task_of("please deliver paper boxes to berlin by friday")[0] == "orders"
    task, why = classifier.task_of("compute 3 times 4 step by step")
    assert task == "maths"
    assert why.startswith("auto: ")


@pytest.mark.parametrize("text", ["", " ", "\x00\x01", "日本語のテキスト", "Ωμέγα και άλφα", "🙂🙂", "zzzq wwwx vvvk", "\ud800"])
def test_foreign_text_goes_to_the_default(classifier, text):
    """Text without anything familiar abstains."""
    task, why = classifier.task_of(text)
    assert task == "talk"
    assert why.startswith("abstained") or len(text.split()) > 1


@given(text=st.text(max_size=300))
def test_any_text_has_a_task_and_a_reason_fit_for_a_header(text):
    """No text raises; the task is a known one and the reason is plain ASCII."""
    task, why = CLASSIFIER.task_of(text)
    assert task in WORDS
    assert why.isascii()
    assert why.isprintable()


CLASSIFIER = train(tasks(examples=12), "talk", Auto(confidence=0.8))


def test_examples_that_cannot_be_told_apart_do_not_serve():
    """Two tasks taught with the same texts stay below the floor, and `auto` is off."""
    texts = tasks(1)[0].examples[:20]
    rng = random.Random(0)
    mixed = [f"{text} {rng.choice('ab')}" for text in texts]
    same = [
        Task(name=name, examples=tuple(f"{t} {i}" for i, t in enumerate(mixed)), candidates=(Candidate(model="m"),))
        for name in ("one", "two")
    ]
    made = train(same, "one", Auto())
    assert not made.may_serve
    assert any(not report.passes for report in made.reports)


@pytest.mark.parametrize("few", [[], [0], [0, 9]])
def test_too_few_examples_do_not_serve(few):
    """Without at least two tasks of ten examples each there is nothing to learn, and everything is the default."""
    taught = [
        Task(name=f"t{i}", examples=tuple(f"text {j}" for j in range(n)), candidates=(Candidate(model="m"),)) for i, n in enumerate(few)
    ]
    made = train(taught, "chat", Auto())
    assert not made.may_serve
    assert made.task_of("anything")[0] == "chat"


def test_a_saved_classifier_is_used_until_something_changes(tmp_path):
    """The same examples load the saved file; another example, floor or default trains anew; a broken file does, too."""
    path = tmp_path / "run" / "classifier.json"
    taught = tasks(2, examples=12)
    first = load_or_train(path, taught, "orders", Auto())
    written = path.stat().st_mtime_ns
    assert load_or_train(path, taught, "orders", Auto()) == first
    assert path.stat().st_mtime_ns == written
    path.write_bytes(path.read_bytes()[:100])
    assert load_or_train(path, taught, "orders", Auto()) == first
    assert load_or_train(path, tasks(2, examples=13), "orders", Auto()).fingerprint != first.fingerprint
    assert [file.name for file in path.parent.iterdir()] == ["classifier.json"]


def test_the_fingerprint_covers_all_that_training_reads():
    """Examples, names, default and each floor change it; the order of the tasks does not."""
    taught = tasks(2, examples=12)
    base = fingerprint(taught, "orders", Auto())
    assert fingerprint(taught[::-1], "orders", Auto()) == base
    others = [
        fingerprint(tasks(2, examples=13), "orders", Auto()),
        fingerprint(taught, "maths", Auto()),
        fingerprint(taught[:1], "orders", Auto()),
        *(fingerprint(taught, "orders", Auto(**{key: 0.123})) for key in Auto.__struct_fields__),
    ]
    assert base not in others
    assert len(set(others)) == len(others)
