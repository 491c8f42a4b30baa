"""`inhouse models` as a person meets it: examples in the help, JSON for programs, one line when something is wrong."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from serving.cli import models

CATALOG = """\
models:
  - {name: tiny, license: MIT, path: tiny, price: {usd_per_gpu_hour: 1}, engine: {max_model_len: 512, kv_cache_memory_bytes: 1048576}}
  - {name: far, license: MIT, repo: acme/far, revision: 0123456789abcdef0123456789abcdef01234567, price: {usd_per_gpu_hour: 1}, gpus: 1}
"""
CONFIG = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
          "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 100, "max_position_embeddings": 512}


@pytest.fixture
def run(tmp_path: Path) -> object:
    """Runs a command on a catalog with one local and one remote model."""
    (tmp_path / "models.yaml").write_text(CATALOG)
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny/config.json").write_text(json.dumps(CONFIG))
    header = json.dumps({"model.embed_tokens.weight": {"dtype": "BF16", "shape": [100, 64], "data_offsets": [0, 12800]}}).encode()
    (tmp_path / "tiny/model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(12800))
    environment = {"INHOUSE_MODELS": str(tmp_path / "models.yaml"), "INHOUSE_HOME": str(tmp_path / "home"), "HF_ENDPOINT": "http://127.0.0.1:9"}
    return lambda *arguments: CliRunner(env=environment).invoke(models, arguments)


@pytest.mark.parametrize("command", [*models.commands, "bundle create", "bundle import"])
def test_every_command_shows_an_example(command: str) -> None:
    """`--help` of each ends with something to paste."""
    if command == "bundle":
        return
    shown = CliRunner().invoke(models, [*command.split(), "--help"])
    assert shown.exit_code == 0 and f"Example: inhouse models {command}" in " ".join(shown.output.split())


def test_list_tells_what_is_here(run) -> None:  # type: ignore[no-untyped-def]
    """The same as a table and as JSON."""
    rows = json.loads(run("list", "--json").stdout)
    assert [(row["name"], row["here"]) for row in rows] == [("tiny", True), ("far", False)]
    table = run("list").stdout.splitlines()
    assert table[1].split()[:6] == ["tiny", "tiny", "MIT", "0", "1", "yes"] and "acme/far@0123456789ab" in table[2]


def test_fit_answers_in_a_table_a_sentence_and_json(run) -> None:  # type: ignore[no-untyped-def]
    """256 tokens of 512 bytes in 128-token blocks is what one MiB holds: 2,048 tokens."""
    shown: Result = run("fit", "tiny", "--node", "name=box,ram=16GiB")
    assert shown.exit_code == 0
    sentence = "tiny fits on box with 2,048 cached tokens = 4.00 full-length requests at once (512 tokens each)"
    assert shown.stdout.splitlines()[-1] == sentence
    answer = json.loads(run("fit", "tiny", "--node", "name=box,ram=16GiB", "--json").stdout)[0]
    assert (answer["verdict"], answer["kv_tokens"], answer["kv_bytes_per_token"], answer["exact"]) == ("fits", 2048, 512, True)


def test_fit_counts_what_is_placed(run) -> None:  # type: ignore[no-untyped-def]
    """A machine full of other models, by name or everywhere."""
    full = run("fit", "tiny", "--node", "name=box,ram=3GiB", "--placed", "tiny@box", "--json")
    assert json.loads(full.stdout)[0]["verdict"] in ("no", "tight")
    assert "no machine `bix`; known here: box" in run("fit", "tiny", "--node", "name=box,ram=3GiB", "--placed", "tiny@bix").stderr


@pytest.mark.parametrize(("arguments", "message"), [
    (("fit", "tny"), "no model `tny` in the catalog; did you mean `tiny`?"),
    (("fit", "far", "--node", "name=g,gpus=1,gpu_memory=80GiB"), "can't reach the hub at http://127.0.0.1:9"),
    (("fit", "tiny", "--node", "nme=x"), "unknown key `nme`; did you mean `name`?"),
    (("fit", "tiny", "--nodes", "none.yaml"), "none.yaml: no such file"),
    (("list", "--catalog", "none.yaml"), "none.yaml: no such file"),
    (("search", "x"), "can't reach the hub at http://127.0.0.1:9"), (("fetch",), "can't reach the hub at http://127.0.0.1:9"),
    (("bundle", "create", "/proc/x.tar", "far"), "`inhouse models fetch far` first"),
    (("bundle", "import", "none.tar"), "none.tar: no such file or folder"), (("schema", "--out", "/proc/x"), "/proc/x"),
    (("verify",), "1 problems; delete the files named above and fetch again"),
])
def test_errors_are_one_line_on_stderr(run, arguments: tuple[str, ...], message: str) -> None:  # type: ignore[no-untyped-def]
    """Exit code 1, nothing on stdout, no stack trace."""
    done: Result = run(*arguments)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith("Error: ") and message in done.stderr.splitlines()[-1]


def test_a_bundle_goes_round_on_the_command_line(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """create, import, and the lines to paste; both sites see one digest."""
    made = run("bundle", "create", str(tmp_path / "b.tar"), "tiny")
    brought = run("bundle", "import", str(tmp_path / "b.tar"))
    digest = made.stdout.split("digest ")[1].strip()
    assert brought.exit_code == 0 and digest in brought.stderr and brought.stdout.startswith("models:\n- name: tiny\n")


def test_fetching_local_models_is_nothing_to_do(run) -> None:  # type: ignore[no-untyped-def]
    """It says where they are."""
    assert "tiny is a local folder" in run("fetch", "tiny").stdout


def test_the_command_loads_quickly() -> None:
    """Neither the hub's client nor rich nor vLLM is imported before a command needs them."""
    code = "import sys, serving.cli; print([m for m in ('huggingface_hub', 'rich', 'vllm', 'torch', 'ray', 'httpx2') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
