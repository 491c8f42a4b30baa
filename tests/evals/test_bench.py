"""The benchmark measures programs that work, and fails where one does not. Its peers take minutes and are not run here."""

import json

import pytest
from click.testing import CliRunner

import inhouse
from evals.bench import BenchError, Figure, Program, _figure, lines


def test_the_command_measures_two_models_and_the_cache():
    """Three programs run for real over the stand-in; each asked all rows and found every answer right."""
    made = CliRunner().invoke(inhouse.main, ["eval", "bench", "--rows", "100", "--peer-rows", "0", "--json"], catch_exceptions=False)
    figures = json.loads(made.stdout)
    assert [figure["rows"] for figure in figures] == [100, 100, 100]
    assert all(figure["cpu_s"] > 0 and figure["wall_s"] > 0 for figure in figures)


@pytest.mark.parametrize("command", ["exit 3", "echo 99 of 100 right"])
def test_a_program_that_fails_or_errs_is_no_figure(tmp_path, command):
    """Neither a crash nor a wrong answer becomes a time."""
    with pytest.raises(BenchError, match="planted"):
        _figure(Program("planted", lambda _file, _own: ["sh", "-c", command], "100 of 100"), 30, tmp_path)


def test_ratios_are_to_ours_over_the_same_rows():
    """A peer that takes ten times our time a row is said to."""
    text = "\n".join(lines([Figure("ours", 500, 2.0, 1.0, 1.0, 0.5), Figure("peer", 500, 8.0, 4.0, 10.0, 1.5)]))
    assert "peer: 4.0x our time, 4.0x our CPU, starts included; a row: 10.0x our time, 3.0x our CPU" in text
    lost = "\n".join(lines([Figure("ours", 500, 2.0, 1.0, 1.0, 0.5), Figure("peer", 500, 8.0, 4.0, -0.1, 1.5)]))
    assert "a row: lost in its start" in lost
