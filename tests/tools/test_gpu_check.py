"""The GPU check: a step that fails, hangs or lacks something stops no other."""

import json
import sys
import time
from pathlib import Path

import pytest

from tools.gpu import check
from tools.gpu.check import STEPS, exit_status, main, run_step

WRITES = (
    "import json, sys; print('working'); "
    "json.dump({'state': 'ok', 'reason': '', 'figures': {'loss': 2.5}}, open(sys.argv[1], 'w'))"
)


def python(code, *arguments):
    return [sys.executable, "-c", code, *arguments]


def test_a_step_gives_what_it_wrote(tmp_path):
    found = run_step("one", python(WRITES, str(tmp_path / "one.json")), tmp_path, 60)
    assert 0 <= found.pop("seconds") < 60
    assert found == {"step": "one", "state": "ok", "reason": "", "figures": {"loss": 2.5}}
    assert (tmp_path / "one.log").read_text() == "working\n"


def test_a_step_that_dies_has_failed_with_its_last_line(tmp_path):
    (tmp_path / "one.json").write_text("{}")  # of an earlier run
    found = run_step("one", python("raise ValueError('no such kernel')"), tmp_path, 60)
    assert found["state"] == "failed"
    assert found["reason"].startswith("exit code 1: ValueError: no such kernel (see ")


def test_a_step_that_hangs_is_ended_with_what_it_started(tmp_path):
    code = (
        "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', "
        "'import time; time.sleep(60)']); open(sys.argv[1], 'w').write(str(p.pid)); time.sleep(60)"
    )
    found = run_step("one", python(code, str(tmp_path / "pid")), tmp_path, 2)
    assert found["state"] == "failed" and found["reason"].startswith("not finished after 2 s")
    state = Path("/proc", (tmp_path / "pid").read_text(), "stat")
    deadline = time.monotonic() + 20  # a killed process ends when it runs next
    while state.exists() and state.read_text().split()[2] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("states", "status"),
    [
        (["ok", "ok"], 0),
        (["ok", "skipped: left out"], 0),
        (["ok", "skipped: not installed: peft"], 3),
        (["failed: x", "skipped: not installed: peft"], 1),
    ],
)
def test_the_exit_status(states, status):
    pairs = [state.partition(": ") for state in states]
    assert exit_status([{"state": state, "reason": reason} for state, _, reason in pairs]) == status


def test_the_command_runs_all_that_is_asked_for(tmp_path, monkeypatch, capsys):
    seen = []

    def run(name, command, out, limit_s):
        seen.append((name, limit_s, command[-1]))
        state, reason = ("failed", "no") if name == "liger" else ("ok", "")
        return {"step": name, "state": state, "reason": reason, "seconds": 1.0, "figures": {"a": 1}}

    monkeypatch.setattr(check, "run_step", run)
    out = tmp_path / "out"
    asked = ["--dry-run", "--out", str(out), "--only", "attention", "liger", "vllm", "serving"]
    assert main([*asked, "--skip", "serving"]) == 1
    assert seen == [("attention", 120, "--dry-run"), ("liger", 120, "--dry-run"),
                    ("vllm", 210, "--dry-run")]  # fmt: skip
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(STEPS)
    states = {line["step"]: line["state"] for line in lines}
    assert states["liger"] == "failed" and states["vllm"] == "ok"
    assert states["serving"] == states["versions"] == "skipped"
    assert all(line["replaced"] for line in lines)
    table = capsys.readouterr().out
    assert "replaced: vLLM for CPUs" in table


def test_all_steps_together_have_ten_minutes():
    assert sum(step.limit_s for step in STEPS.values()) <= 600


def test_every_step_can_be_run():
    from tools.gpu.steps import RUNS

    assert list(RUNS) == list(STEPS)
