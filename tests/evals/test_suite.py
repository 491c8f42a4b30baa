"""Reading data sets: the shipped, a folder of one's own, JSONL, CSV and parquet; and what is refused."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evals.suite import SuiteError, read_cases, read_suite, shipped

ROWS = [{"id": "a", "prompt": "2 + 2?", "expected": "4", "slice": "s"}, {"id": "b", "prompt": "3, or\n4?", "expected": "3"}]


def test_the_shipped_suites_read_and_may_leave_the_premises():
    """Seven suites of 300 cases at least; generated data is declared not sensitive."""
    assert shipped() == ["chat", "extraction", "intent", "policy", "reasoning", "sql", "tools"]
    for name in shipped():
        suite = read_suite(name)
        assert len(suite.cases) >= 300 and not suite.sensitive and suite.scorer["use"]


def test_jsonl_csv_and_parquet_hold_the_same_cases(tmp_path):
    """One data set in three formats is the same cases, commas and line breaks included."""
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS) + "\n")
    (tmp_path / "own.csv").write_text('id,prompt,expected,slice\na,2 + 2?,4,s\nb,"3, or\n4?",3,\n', encoding="utf-8-sig")
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "own.parquet")
    read = [read_cases(tmp_path / f"own.{kind}") for kind in ("jsonl", "csv", "parquet")]
    assert read[0] == read[1] == read[2]
    assert [(case.id, case.expected, case.slice) for case in read[0]] == [("a", "4", "s"), ("b", "3", "")]
    assert read[0][1].messages == [{"role": "user", "content": "3, or\n4?"}]


def test_long_fields_and_whole_conversations_are_read(tmp_path):
    """A document of half a megabyte in a CSV field; messages in parquet, whose empty places are not sent as nulls."""
    (tmp_path / "own.csv").write_text(f"prompt,expected\n{'word ' * 100_000},x\n")
    assert len(read_cases(tmp_path / "own.csv")[0].messages[0]["content"]) == 500_000
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes", "name": "bot"}]
    pq.write_table(pa.Table.from_pylist([{"messages": messages, "expected": {"a": None}}]), tmp_path / "own.parquet")
    assert read_cases(tmp_path / "own.parquet")[0].messages == messages


def test_own_data_is_sensitive_unless_declared(tmp_path):
    """Nobody said that it may leave, so it may not."""
    file = tmp_path / "own.jsonl"
    file.write_text(json.dumps(ROWS[0]))
    assert read_suite(str(file), scorer="exact").sensitive
    assert not read_suite(str(file), scorer="exact", sensitive=False).sensitive


def test_another_byte_is_another_version(tmp_path):
    """The data's hash is of content: the same for a copy, another after any change, also of a database that answers run on."""
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "task.yaml").write_text("{name: own, scorer: exact}")
    (folder / "cases.jsonl").write_text(json.dumps(ROWS[0]))
    first = read_suite(str(folder)).data_sha256
    assert read_suite(str(folder)).data_sha256 == first
    (folder / "cases.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    second = read_suite(str(folder)).data_sha256
    (folder / "d-1.sql").write_text("CREATE TABLE t (a);")
    assert len({first, second, read_suite(str(folder)).data_sha256}) == 3


def test_the_prompt_goes_before_the_cases_and_has_its_own_hash(tmp_path):
    """`instruct` puts the task's prompt first, merged with a system message that a case has; --no-instruct leaves it out."""
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "task.yaml").write_text("{name: own, scorer: exact, prompt: Do it., instruct: true}")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "x"}]
    (folder / "cases.jsonl").write_text(json.dumps(ROWS[0]) + "\n" + json.dumps({"messages": messages, "expected": 1}))
    suite, bare = read_suite(str(folder)), read_suite(str(folder), instruct=False)
    assert [one["content"] for one in suite.messages(suite.cases[0])] == ["Do it.", "2 + 2?"]
    assert [one["content"] for one in suite.messages(suite.cases[1])] == ["Do it.\n\nBe brief.", "x"]
    assert bare.messages(bare.cases[1]) == messages
    assert suite.prompt_sha256 != bare.prompt_sha256 and suite.data_sha256 == bare.data_sha256


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.jsonl", '{"prompt": "x"}\n{"prompt"', "a.jsonl:2: not JSON"),
        ("a.jsonl", '{"prompt": "x", "id": 1}\n{"prompt": "y", "id": 1}', "row 2: the id `1` comes twice"),
        ("a.jsonl", '{"promt": "x"}', "row 1: needs `prompt`"),
        ("a.jsonl", '{"messages": ["x"]}', "row 1: needs `prompt`"),
        ("a.jsonl", "[1]", "row 1: a case is an object, not list"),
        ("a.jsonl", "\n", "there are no cases"),
        ("a.csv", "id,messages\n1,[nothing\n", "row 1: `messages` is not JSON"),
        ("a.txt", "x", "is .jsonl, .csv or .parquet"),
        ("a.parquet", "x", "a.parquet: "),
        ("a.jsonl", b"\xff\xfe", "a.jsonl: 'utf-8' codec"),
    ],
)
def test_a_data_set_that_cannot_be_asked_says_where(tmp_path, name, text, says):
    """File, row and what is wrong."""
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SuiteError) as caught:
        read_cases(tmp_path / name)
    assert says in str(caught.value)


def test_an_unknown_key_of_a_task_is_an_error(tmp_path):
    """A typo in task.yaml does not pass in silence."""
    (tmp_path / "task.yaml").write_text("{name: own, scorer: exact, instrukt: true}")
    (tmp_path / "cases.jsonl").write_text(json.dumps(ROWS[0]))
    with pytest.raises(SuiteError, match=r"instrukt.*A task has: name, scorer"):
        read_suite(str(tmp_path))
    with pytest.raises(SuiteError, match=r"no task\.yaml"):
        (tmp_path / "empty").mkdir()
        read_suite(str(tmp_path / "empty"))
