"""The README and the command's help name everything there is: commands, settings, answer headers, paths."""

import json
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import inhouse
from routing.request import ENDPOINTS
from routing.settings import Settings

ROOT = Path(inhouse.__file__).parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands(group=inhouse.main, words=()):
    """Every command of the tree with the words that call it."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield (*words, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*words, name))


ALL = [pytest.param(words, command, id=" ".join(words)) for words, command in commands()]


@pytest.mark.parametrize(("words", "command"), ALL)
def test_every_command_is_in_the_readme(words, command):
    """Each command's last word stands in the README's table of commands."""
    if isinstance(command, click.Group):
        return
    last = " ".join(words[-2:] if len(words) > 2 else words[-1:])
    assert re.search(rf"`(inhouse )?({words[0]} )?{re.escape(last)}`", README), f"document `inhouse {' '.join(words)}` in README.md"


@pytest.mark.parametrize(("words", "command"), ALL)
def test_every_command_helps_with_an_example(words, command):
    """Each command that does something has help that ends with an example that calls it."""
    if not isinstance(command, click.Group):
        shown = CliRunner().invoke(inhouse.main, [*words, "--help"])
        assert shown.exit_code == 0
        assert "Example" in shown.output and f"inhouse {' '.join(words)}" in " ".join(shown.output.split())


def test_every_setting_header_and_path_is_in_the_readme():
    """What a user can set, read or ask is documented."""
    for name in Settings._fields:
        assert f"`INHOUSE_{name.upper()}`" in README
    source = "".join((ROOT / "routing" / name).read_text(encoding="utf-8") for name in ("forward.py", "labels.py", "router.py"))
    headers = set(re.findall(r'["\\n](inhouse-[a-z-]+)(?:: |")', source))
    assert len(headers) == 10
    assert {name for name in headers if f"`{name}`" not in README} == set()
    for path in ENDPOINTS:
        assert path in README or any(word in path for word in ("render", "batch", "count_tokens")), f"document {path}"


def test_no_setting_is_read_that_is_not_documented():
    """Every INHOUSE_ name in the source is in the README."""
    marks = {"INHOUSE_NODE", "INHOUSE_BENCH_TAG"}  # of processes, for finding them again; nobody sets them
    names = set()
    for room in ("serving", "routing", "evals"):
        for file in (ROOT / room).rglob("*.py"):
            names |= set(re.findall(r"\bINHOUSE_[A-Z_]+\b", file.read_text(encoding="utf-8")))
    assert {name for name in names - marks if f"`{name}`" not in README} == set()


def test_help_imports_no_engine():
    """`inhouse --help` loads neither ray, vllm, torch, mlflow nor scikit-learn."""
    ask = "from click.testing import CliRunner; CliRunner().invoke(inhouse.main, ['--help'])"
    code = f"import sys, inhouse\n{ask}\nprint(list(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"ray", "vllm", "torch", "mlflow", "sklearn", "huggingface_hub"} & set(re.findall(r"'([a-z_]+)'", loaded))


def test_keys_are_made_listed_and_revoked_by_the_command(tmp_path):
    """A key is printed once, listed without itself, and gone after revoke; wrong input is one line."""
    run = CliRunner().invoke
    home = ["--home", str(tmp_path)]
    key = run(inhouse.main, ["keys", "create", "team", "--task", "chat", "--expires", "30d", *home]).output.strip()
    rows = json.loads(run(inhouse.main, ["keys", "list", "--json", *home]).output)
    assert [row["caller"] for row in rows] == ["team"] and key not in json.dumps(rows)
    assert run(inhouse.main, ["keys", "revoke", rows[0]["id"], *home]).exit_code == 0
    again = run(inhouse.main, ["keys", "revoke", rows[0]["id"], *home])
    assert again.exit_code == 1 and again.output.startswith("Error: no key in force")
    assert run(inhouse.main, ["keys", "create", "team", "--expires", "soon", *home]).exit_code == 2


def test_check_names_the_line_of_what_is_wrong(tmp_path):
    """`inhouse check` accepts the shipped files and names file and line of a broken one."""
    assert CliRunner().invoke(inhouse.main, ["check", "--home", str(tmp_path)]).output.startswith("ok: ")
    broken = tmp_path / "routes.yaml"
    broken.write_text("default_task: chat\ntasks:\n  - name: chat\n    candidate: []\n")
    result = CliRunner().invoke(inhouse.main, ["check", "--home", str(tmp_path)], env={"INHOUSE_ROUTES": str(broken)})
    assert result.exit_code == 1
    assert f"{broken}:4: unknown key `candidate`; did you mean `candidates`?" in result.output
