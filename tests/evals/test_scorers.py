"""Each scorer with answers that are right, and with answers that look right and are wrong."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals import scorers
from evals.case import Answer, Case
from evals.scorers import ScorerError, same
from evals.scoring import FACTORIES, score, scorer_of
from evals.suite import SUITES

ORDER = {"order": "AB-1", "quantity": 1, "total": 5.0, "due": None}
CALL = {"name": "f", "arguments": {"x": 1, "to": "Leeds"}}
SCHEMA = {
    "type": "object",
    "required": ["n"],
    "properties": {"n": {"type": "integer"}, "day": {"format": "date"}},
    "additionalProperties": False,
}
SQL = {"sql": "SELECT name FROM customers WHERE city = 'Leeds'", "database": "shop"}
SORTED = {"sql": "SELECT id FROM products ORDER BY price DESC, id LIMIT 3", "database": "shop"}
DATABASES = {"use": "sql", "databases": "databases"}


def fenced(text, kind=""):
    return f"```{kind}\n{text}\n```"


RIGHT = [
    ("exact", "Paris", "Paris"),
    ("exact", ["Paris", "Lutetia"], "Lutetia"),
    ("normalised", ["Nice to meet you, Ana!"], "nice to  meet\nyou, Ana!"),
    ({"use": "normalised", "strip": '"*. '}, "refund", ' **Refund**. "'),
    ({"use": "numeric", "after": "Answer:"}, "14", "12 + 7 = 19\n19 - 5 = 14\nAnswer: 14\n"),
    ({"use": "numeric", "relative": 0.01}, 1000, "1,009"),
    ({"use": "numeric", "tolerance": 0.5}, -3, "-3.4."),
    ({"use": "regex", "pattern": r"[A-Z]{2}-\d+"}, None, " AB-123\n"),
    ("regex", r"(yes|ja).*", "yes, it\nis"),
    ("json_equal", json.dumps(ORDER), '{"due":null,"total":5,"quantity":1.0,"order":"AB-1"}'),
    ({"use": "json_equal", "fenced": True}, ORDER, fenced(json.dumps(ORDER), "json")),
    ({"use": "json_schema", "schema": SCHEMA}, None, '{"n": 3, "day": "2026-02-28"}'),
    ("json_schema", SCHEMA, '{"n": 3}'),
    ("field_f1", ORDER, json.dumps(ORDER | {"total": 5})),
    ("tool_calls", [CALL], [CALL | {"arguments": {"to": "Leeds", "x": 1.0}}]),
    ("tool_calls", [CALL, {"name": "g", "arguments": {}}], [{"name": "g", "arguments": {}}, CALL]),
    ("tool_calls", [], []),
    (DATABASES, SQL, "select c.name from customers as c where c.city in ('Leeds');"),
    (DATABASES, SQL, fenced("SELECT name FROM customers WHERE city = 'Leeds' ORDER BY 1 DESC", "sql")),
]
LOOKS_RIGHT = [
    ("exact", "Paris", "Paris."),
    ("exact", "Paris", " Paris"),
    ("normalised", ["Nice to meet you, Ana!"], "Nice to meet you, Anna!"),
    ("normalised", ["Nice to meet you, Ana!"], "Nice to meet you, Ana! Bye."),
    ({"use": "normalised", "strip": ". "}, "refund", "It is refund."),
    ({"use": "numeric", "after": "Answer:"}, "14", "7 + 7 = 14\nAnswer: 15"),
    ({"use": "numeric", "after": "Answer:"}, "14", "Answer: 14\nAnswer: 15"),
    ({"use": "numeric", "after": "Answer:"}, "14", "Answer: 145"),
    ({"use": "numeric", "after": "Answer:"}, "14", "Answer: 14 or 15"),
    ({"use": "numeric", "after": "Answer:"}, "14", "14"),
    ({"use": "numeric", "after": "Answer:"}, "14", ""),
    ({"use": "numeric", "relative": 0.01}, 1000, "1,011"),
    ("numeric", 14, "14 apples and 15 pears"),
    ("numeric", 1000, "1,00"),
    ("numeric", 5, "9" * 400),
    ({"use": "regex", "pattern": r"[A-Z]{2}-\d+"}, None, "AB-123 or so"),
    ("json_equal", ORDER, json.dumps(ORDER | {"quantity": "1"})),
    ("json_equal", ORDER, json.dumps(ORDER | {"quantity": True})),
    ("json_equal", ORDER, json.dumps(ORDER | {"note": None})),
    ("json_equal", ORDER, json.dumps({key: value for key, value in ORDER.items() if key != "due"})),
    ("json_equal", ORDER, "Here it is: " + json.dumps(ORDER)),
    ("json_equal", ORDER, fenced(json.dumps(ORDER))),
    ("json_equal", {"a": 2}, '{"a": 1, "a": 2}'),
    ("json_equal", [], "[" * 100_000),
    ({"use": "json_schema", "schema": SCHEMA}, None, '{"n": 3, "day": "2026-02-30"}'),
    ({"use": "json_schema", "schema": SCHEMA}, None, '{"n": 3, "m": 1}'),
    ({"use": "json_schema", "schema": SCHEMA}, None, '{"n": NaN}'),
    ("field_f1", ORDER, "the order is AB-1"),
    ("tool_calls", [CALL], [CALL | {"arguments": {"x": "1", "to": "Leeds"}}]),
    ("tool_calls", [CALL], [CALL | {"arguments": {"x": 1}}]),
    ("tool_calls", [CALL], [CALL, CALL]),
    ("tool_calls", [CALL, CALL], [CALL, CALL | {"name": "g"}]),
    ("tool_calls", [CALL], "I have called f with x = 1 and to = Leeds."),
    ("tool_calls", [], [CALL]),
    ({"use": "tool_calls", "ordered": True}, [CALL, {"name": "g", "arguments": {}}], [{"name": "g", "arguments": {}}, CALL]),
    (DATABASES, SQL, "SELECT name FROM customers WHERE city = 'Leeds' LIMIT 5"),
    (DATABASES, SQL, "SELECT DISTINCT city FROM customers WHERE city = 'Leeds'"),
    (DATABASES, SQL, "SELECT name, city FROM customers WHERE city = 'Leeds'"),
    (DATABASES, SQL, "The statement is SELECT name FROM customers WHERE city = 'Leeds'"),
    (DATABASES, SQL, "SELECT name FROM customers WHERE city = 'Leeds'; DROP TABLE customers"),
    (DATABASES, SORTED, "SELECT id FROM (SELECT id, price FROM products ORDER BY price DESC, id LIMIT 3) ORDER BY price"),
]


def scored(spec, expected, said):
    spec = {"use": spec} if isinstance(spec, str) else spec
    case = Case("c", [], expected)
    calls = [{"name": call["name"], "arguments": json.dumps(call["arguments"])} for call in said] if isinstance(said, list) else []
    answer = Answer(case_id="c", text=said if isinstance(said, str) else "", tool_calls=calls)
    return score(scorer_of(spec, SUITES / "sql", [case]), case, answer)


@pytest.mark.parametrize(("spec", "expected", "said"), RIGHT)
def test_what_is_right_scores_one(spec, expected, said):
    """Differences that do not matter do not count."""
    assert scored(spec, expected, said).value == 1


@pytest.mark.parametrize(("spec", "expected", "said"), LOOKS_RIGHT)
def test_what_only_looks_right_is_wrong(spec, expected, said):
    """Each of these fools a careless scorer."""
    made = scored(spec, expected, said)
    assert made.value == 0 and made.reason


def test_every_scorer_has_both_kinds_of_cases():
    """No scorer is without an answer that looks right and is wrong."""
    for table in (RIGHT, LOOKS_RIGHT):
        assert {spec if isinstance(spec, str) else spec["use"] for spec, _, _ in table} == set(FACTORIES) - {"judge"}  # test_judge.py


def test_field_f1_counts_right_fields_and_not_the_unsaid():
    """Two of three said fields right and one made up where null was right: precision 2/4, recall 2/3. Nulls earn nothing."""
    made = scored("field_f1", ORDER, json.dumps({"order": "AB-1", "quantity": 1, "total": 6, "due": "soon"}))
    assert made.value == pytest.approx(4 / 7) and made.reason == "wrong: $.due, $.total"
    assert scored("field_f1", ORDER, '{"due": null}').value == 0
    assert scored("field_f1", {"due": None}, '{"due": null}').value == 1


def test_a_failed_request_is_unscored_and_not_wrong():
    """No scorer sees it; the report counts it as the failure that it is."""
    case = Case("c", [], "")
    assert score(scorers.exact(), case, Answer(case_id="c", error="cut: x")).value is None


def test_a_scorer_that_is_misused_says_how():
    """Unknown names and options are told with the nearest; a case without anything to compare with is refused before asking."""
    with pytest.raises(ScorerError, match="did you mean `numeric`"):
        scorer_of({"use": "numerik"}, SUITES, [])
    with pytest.raises(ScorerError, match="did you mean `relative`"):
        scorer_of({"use": "numeric", "relativ": 1}, SUITES, [])
    with pytest.raises(ScorerError, match="case c has none"):
        scorer_of({"use": "exact"}, SUITES, [Case("c", [], None)])
    with pytest.raises(ScorerError, match="databases"):
        scorer_of({"use": "sql"}, SUITES, [])
    with pytest.raises(ScorerError, match=r"no \.sql scripts"):
        scorer_of({"use": "sql", "databases": "nowhere"}, SUITES, [])


LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5)
JSON_VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3))


@given(JSON_VALUES, JSON_VALUES)
def test_equal_values_score_one_and_sameness_is_symmetric(one, two):
    """Whatever the JSON, an answer that is the expected value scores 1 under both JSON scorers, and order does not matter to `same`."""
    assert scored("json_equal", [one], json.dumps([one])).value == 1
    assert scored("field_f1", [one], json.dumps([one])).value == 1
    assert same(one, two) == same(two, one)


@given(st.text(max_size=60))
def test_no_text_breaks_a_scorer(text):
    """Anything that a model may say gets a score between 0 and 1."""
    for spec, expected in (("exact", "x"), ("normalised", "x"), ("numeric", 1), ("json_equal", {}), ("field_f1", {}), (DATABASES, SQL)):
        assert 0 <= scored(spec, expected, text).value <= 1
