import json

import pytest

from lrm_ext.report.evaluation import read_stage, training_stages
from lrm_ext.report.render import log_ticks, loss_curve


def write_state(folder, losses, step=None, **summary):
    folder.mkdir(parents=True)
    history = [{"step": i, "loss": loss} for i, loss in enumerate(losses, 1)]
    history += [{"step": len(losses), **summary}] if summary else []
    state = {"global_step": step or len(losses), "log_history": history}
    (folder / "trainer_state.json").write_text(json.dumps(state))


def test_stages_of_the_quickstart(tmp_path):
    write_state(tmp_path / "mini-pretrain", [4.0, 2.0], train_runtime=60.0)
    write_state(tmp_path / "mini", [2.0, 1.0, 0.5], train_samples_per_second=100.0)
    first, second = training_stages(tmp_path / "mini")
    assert (first.name, first.runtime_s, first.samples_per_s) == ("Pre-training", 60.0, None)
    assert (second.steps, second.losses) == ((1, 2, 3), (2.0, 1.0, 0.5))


def test_the_newest_checkpoint_is_read(tmp_path):
    write_state(tmp_path / "mini" / "checkpoint-9", [3.0, 2.0])
    write_state(tmp_path / "mini" / "checkpoint-10", [3.0, 1.0])
    stage = read_stage("x", tmp_path / "mini")
    assert stage is not None and stage.losses == (3.0, 1.0)


@pytest.mark.parametrize("content", ["{", "[]", '{"log_history": [{"loss": 1}]}'])
def test_a_broken_file_is_left_out_and_logged(tmp_path, caplog, content):
    (tmp_path / "trainer_state.json").write_text(content)
    assert read_stage("x", tmp_path) is None
    assert "left out of the report" in caplog.text


def test_no_file_and_too_few_points_give_nothing(tmp_path):
    assert training_stages(tmp_path / "mini") == ()
    write_state(tmp_path / "one", [2.0])
    assert read_stage("x", tmp_path / "one") is None


def test_curve_says_its_ends_and_is_thinned_out():
    svg = loss_curve(range(1, 1001), [1000 / step for step in range(1, 1001)], "Stage")
    assert "Stage: loss from" in svg and "at 1,000" in svg
    assert svg.split('points="')[1].split('"')[0].count(",") == 200


def test_log_ticks():
    assert log_ticks(0.3, 6) == pytest.approx([0.5, 1, 2, 5])
    assert log_ticks(9, 12) == pytest.approx([10])


def test_a_flat_curve_can_be_drawn():
    assert "polyline" in loss_curve([1, 2], [1.0, 1.0], "Stage")
