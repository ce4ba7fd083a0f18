import json

from llava.train.metrics import METRICS_FILE, read_metrics


def test_every_attempt_of_a_run_is_kept(flags, run_train, tmp_path):
    settings = {"output_dir": tmp_path, "save_steps": 2, "logging_steps": 1, "max_steps": 4}
    run_train(flags(**settings))
    path = tmp_path / METRICS_FILE
    whole = [(line["step"], line["loss"]) for line in read_metrics(path) if "loss" in line]
    assert [step for step, _ in whole] == [1, 2, 3, 4]

    # killed in step 4, while its line was written; the checkpoint after step 2 is the last
    lines = path.read_text().splitlines(keepends=True)
    third = next(i for i, line in enumerate(lines) if json.loads(line).get("step") == 3)
    path.write_text("".join(lines[: third + 1]) + '{"attempt": 1, "st')
    (tmp_path / "checkpoint-4").rename(tmp_path / "gone")
    run_train(flags(**settings))
    attempts = [(line["attempt"], line["step"]) for line in read_metrics(path) if "loss" in line]
    assert attempts == [(1, 1), (1, 2), (1, 3), (2, 3), (2, 4)]
    again = [line["loss"] for line in read_metrics(path) if "loss" in line]
    assert again == [loss for _, loss in [*whole[:3], *whole[2:]]]


def test_a_run_that_starts_over_begins_a_new_file(flags, run_train, tmp_path):
    settings = {"output_dir": tmp_path, "save_strategy": "no", "logging_steps": 1, "max_steps": 1}
    run_train(flags(**settings))
    run_train(flags(**settings))
    assert {line["attempt"] for line in read_metrics(tmp_path / METRICS_FILE)} == {1}
