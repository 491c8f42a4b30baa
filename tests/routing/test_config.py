"""`routes.yaml`: what is taken, and what is refused with its line."""

import json

import pytest

from routing.config import ConfigError, Routes, json_schema, read_site
from serving.catalog import read_catalog

MODELS = """models:
  - {name: alpha, path: ., license: x, price: {usd_per_gpu_hour: 1}, adapters: [{name: alpha-de, path: .}]}
  - {name: beta, path: ., license: x, price: {usd_per_gpu_hour: 1}}
"""
GOOD = """default_task: chat
tasks:
  - name: chat
    examples: ["hello"]
    candidates:
      - {model: alpha, weight: 3}
      - {model: beta}
    fallbacks: [alpha-de]
cells:
  - name: here
    url: http://127.0.0.1:8100
limits:
  json_depth: 64
auto:
  confidence: 0.9
"""


@pytest.fixture
def site(tmp_path):
    """Reads a site from two texts."""

    def read(routes, models=MODELS):
        (tmp_path / "models.yaml").write_text(models)
        (tmp_path / "routes.yaml").write_text(routes)
        return read_site(tmp_path / "routes.yaml", read_catalog(tmp_path / "models.yaml"))

    return read


def test_a_good_file_is_read(site):
    """Candidates, weights, fallbacks and adapters arrive as written, the rest by default."""
    read = site(GOOD)
    assert [(c.model, c.weight) for c in read.tasks["chat"].candidates] == [("alpha", 3.0), ("beta", 1.0)]
    assert read.serves("alpha-de")
    assert not read.serves("gamma")
    assert read.models["alpha-de"].name == "alpha"
    assert read.routes.limits.body_bytes == 16 << 20


WRONG = [
    ("default_task: chat", "default_task: chatt", 1, "did you mean `chat`"),
    ("  - name: chat", "  - name: auto", 3, "can't name a task"),
    ("  - name: chat", '  - name: "a/b"', 3, "can't name a task"),
    ("  - name: chat", '  - name: ""', 3, "can't name a task"),
    ("  - name: chat", '  - name: "a\\nb"', 3, "can't name a task"),
    ("  - name: chat", '  - name: "tâche"', 3, "can't name a task"),
    ('    examples: ["hello"]', '    example: ["hello"]', 4, "did you mean `examples`"),
    ('    examples: ["hello"]', '    examples: [" "]', 4, "an example is empty"),
    ('    examples: ["hello"]', "    examples: [7]", 4, "expected `str`"),
    ("{model: alpha, weight: 3}", "{model: alfa, weight: 3}", 6, "did you mean `alpha`"),
    ("{model: alpha, weight: 3}", "{model: alpha, weight: -1}", 6, "weights must"),
    ("{model: alpha, weight: 3}", "{model: alpha, weight: .nan}", 6, "weights must"),
    ("{model: alpha, weight: 3}", "{model: alpha, weight: .inf}", 6, "weights must"),
    ("{model: alpha, weight: 3}", "{model: alpha, wait: 3}", 6, "did you mean `weight`"),
    ("{model: alpha, weight: 3}", "{weight: 3}", 6, "`model` is missing"),
    ("fallbacks: [alpha-de]", "fallbacks: [alpha-fr]", 8, "no model `alpha-fr`"),
    ("url: http://127.0.0.1:8100", "url: 127.0.0.1:8100", 11, "is not an http"),
    ("url: http://127.0.0.1:8100", "url: http://", 11, "is not an http"),
    ("url: http://127.0.0.1:8100", "url: http://127.0.0.1:99999", 11, "is not an http"),
    ("url: http://127.0.0.1:8100", 'url: "http://a b/x"', 11, "is not an http"),
    ("url: http://127.0.0.1:8100", "url: http://me:secret@host/", 11, "is not an http"),
    ("    url: http://127.0.0.1:8100", "    url: http://a\n  - name: here\n    url: http://b", 12, "is there twice"),
    ("json_depth: 64", "json_depth: 0", 13, "above 0"),
    ("json_depth: 64", "first_byte_timeout_s: .nan", 13, "above 0"),
    ("json_depth: 64", "header_timeout_s: .inf", 13, "above 0"),
    ("json_depth: 64", "json_dept: 64", 13, "did you mean `json_depth`"),
    ("json_depth: 64", "json_depth: many", 13, "expected `int`"),
    ("confidence: 0.9", "confidence: 1.5", 15, "between 0 and 1"),
    ("confidence: 0.9", "confidence: .nan", 15, "between 0 and 1"),
    ("auto:\n", "model_limits: [{model: alpha, each_caller: [60cals/minute]}]\nauto:\n", 14, "is not a budget"),
    ("auto:\n", "model_limits: [{model: alfa, each_caller: [60calls/minute]}]\nauto:\n", 14, "is no model"),
    ("auto:\n", "limits:\n", 14, "written twice"),
    ("auto:\n", "auto: [\n", 15, "not valid YAML"),
]


@pytest.mark.parametrize(("good", "bad", "line", "says"), WRONG)
def test_a_wrong_file_is_refused_with_its_line(site, good, bad, line, says):
    """Each mistake names the file, about the line it is on, and what to do."""
    assert good in GOOD
    with pytest.raises(ConfigError) as refused:
        site(GOOD.replace(good, bad, 1))
    message = str(refused.value)
    assert says in message
    named = int(message.split("routes.yaml:")[1].split(":", maxsplit=1)[0])
    assert abs(named - line) <= 1


@pytest.mark.parametrize(
    "text", ["", "[]", "7", "default_task: a\ntasks: []\n", "default_task: a\ntasks: [{name: a, candidates: []}]\n", "\x00"]
)
def test_what_is_no_routes_file_is_refused(site, text):
    """An empty, scalar or taskless file is a configuration error, never another exception."""
    with pytest.raises(ConfigError):
        site(text)


def test_a_missing_file_is_said_so(tmp_path):
    """The path that does not exist is named."""
    with pytest.raises(ConfigError, match="no such file"):
        read_site(tmp_path / "none.yaml", read_catalog())


def test_the_shipped_files_are_good():
    """The embedded default passes its own checks."""
    from routing.config import SHIPPED

    assert read_site(SHIPPED, read_catalog()).tasks


def test_the_schema_knows_every_key():
    """The JSON schema for editors names the same keys as the reader."""
    schema = json.loads(json.dumps(json_schema()))
    routes = schema["$defs"]["Routes"]["properties"]
    assert set(routes) == set(Routes.__struct_fields__)
