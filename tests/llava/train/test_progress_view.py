"""The terminal view: a bar with a table, or plain lines."""

import io
from types import SimpleNamespace

from rich.console import Console

from llava.train import metrics
from llava.train.metrics import ProgressCallback

ARGS = SimpleNamespace(train_batch_size=4, gradient_accumulation_steps=1, world_size=1)
LOGS = {
    "loss": 1.5,
    "tokens_per_second": 1234.0,
    "padding_share": 0.25,
    "loss/hr": 1.25,
    "accuracy/hr": 0.5,
    "tokens/hr": 4096.0,
    "loss/hr/mvqa": 1.0,
    "accuracy/hr/mvqa": 0.5,
    "tokens/hr/mvqa": 10.0,
    "eval_loss/hr": 2.5,
}


def shown(is_terminal: bool, monkeypatch, logs=LOGS) -> str:
    monkeypatch.setattr(metrics, "LINE_INTERVAL_S", 0.0)
    output = io.StringIO()
    console = Console(file=output, force_terminal=is_terminal, width=100)
    callback = ProgressCallback("fine-tuning", console)
    state = SimpleNamespace(is_world_process_zero=True, global_step=0, max_steps=10)
    callback.on_train_begin(ARGS, state, None)
    state.global_step = 1
    callback.on_log(ARGS, state, None, logs=logs)
    callback.on_step_end(ARGS, state, None)
    callback.on_train_end(ARGS, state, None)
    return output.getvalue()


def test_a_terminal_has_a_table_of_groups(monkeypatch):
    text = shown(True, monkeypatch)
    assert "1,234 tokens/s, padding 25%" in text
    (row,) = [line for line in text.splitlines() if line.startswith("hr")][-1:]
    assert row.split() == ["hr", "1.250", "50.0%", "4,096", "2.500"]
    assert "hr/mvqa" not in text


def test_elsewhere_there_are_plain_lines(monkeypatch):
    text = shown(False, monkeypatch)
    assert "\x1b" not in text
    assert "fine-tuning: step 1 of 10, loss 1.5000" in text
    assert "fine-tuning: loss of hr 1.250" in text


# 49 groups: the loss of g01 is 0.01, of g49 0.49
MANY = {f"loss/g{i:02}": i / 100 for i in range(1, 50)} | {
    f"tokens/g{i:02}": 100.0 * i for i in range(1, 50)
}


def test_of_many_groups_the_worst_and_the_mean_are_said(monkeypatch):
    text = shown(False, monkeypatch, MANY)
    assert (
        "loss of 49 groups: worst g49 0.490, g48 0.480, g47 0.470, g46 0.460, g45 0.450; "
        "mean 0.250; all in metrics.jsonl"
    ) in text
    lines = shown(True, monkeypatch, MANY).splitlines()
    rows = [line.split() for line in lines if line.startswith(("g", "mean"))][-16:]
    assert rows[0] == ["g49", "0.490", "4,900"] and rows[14] == ["g35", "0.350", "3,500"]
    assert rows[15] == ["mean", "of", "49", "0.250", "2,500"]
