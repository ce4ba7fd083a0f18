import json

import pytest
from typer.testing import CliRunner

from llava.errors import DataError
from llava.train.metrics import METRICS_FILE
from lrm_ext.cli import app
from lrm_ext.report.training import Attempt, largest_difference, plot_runs, read_attempts


@pytest.fixture
def run(tmp_path):
    """A run that was killed in step 3 and went on from step 1."""
    lines = [
        {"attempt": 1, "step": 0},
        *({"attempt": 1, "step": step, "loss": 4.0 - step} for step in (1, 2, 3)),
        {"attempt": 2, "step": 1},
        {"attempt": 2, "step": 2, "loss": 2.5},
        {"attempt": 2, "step": 3, "loss": 1.0},
        {"attempt": 2, "step": 3, "train_runtime": 9.0},
    ]
    folder = tmp_path / "a run"
    folder.mkdir()
    (folder / METRICS_FILE).write_text("\n".join(map(json.dumps, lines)))
    return folder


def test_attempts_are_told_apart(run):
    first, second = read_attempts(run)
    assert first == Attempt(0, (1, 2, 3), (3.0, 2.0, 1.0))
    assert second == Attempt(1, (2, 3), (2.5, 1.0))
    assert largest_difference([first, second]) == (2, 0.5)
    assert largest_difference([first]) == (0, 0.0)


def test_the_plot_shows_where_a_run_went_on(run, tmp_path):
    plot_runs([run], tmp_path / "new" / "loss.svg", smooth=2)
    text = (tmp_path / "new" / "loss.svg").read_text()
    for label in ("a run goes on from a checkpoint", "mean of 2 steps", "optimizer step"):
        assert f"<!-- {label}" in text or label in text


def test_there_is_a_panel_for_every_language_and_instruction(run, tmp_path):
    more = {"attempt": 2, "step": 3, "loss/hr": 1.0, "loss/hr/mvqa": 1.0, "loss/mvqa": 2.0}
    validated = {"attempt": 2, "step": 3, "eval_loss": 1.0, "eval_loss/zh": 1.5}
    with (run / METRICS_FILE).open("a") as file:
        file.write("".join("\n" + json.dumps(line) for line in (more, validated)))
    plot_runs([run, run], tmp_path / "loss.svg")
    text = (tmp_path / "loss.svg").read_text()
    for label in ("a run, validation", "Croatian", "Chinese", "instruction mvqa"):
        assert f"<!-- {label}" in text
    assert "German" not in text and "hr/mvqa" not in text


def test_the_command_says_how_far_attempts_disagree(run, tmp_path):
    result = CliRunner().invoke(app, ["plot-run", str(run), "--out", str(tmp_path / "a.png")])
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert "2 attempts, 2 steps made again, loss differs by at most 0.5" in said
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(DataError, match="no loss found in metrics.jsonl"):
        read_attempts(tmp_path)
