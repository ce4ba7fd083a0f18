"""`lrm benchmark translate` may be killed: the same command goes on, with the same bytes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_chat import ChatService

from lrm_ext.evaluate.items import Item
from lrm_ext.evaluate.registry import write_folder

NUM_QUESTIONS = 40


def command(source: Path, out: Path, url: str) -> list[str]:
    options = [f"base_url={url}", "model=m", "segments_per_request=1", "concurrency=1"]
    return [
        sys.executable, "-m", "lrm_ext.cli", "benchmark", "translate", str(source), "--to", "cs",
        "--engine", "openai", "--out", str(out), "--no-check",
        *(part for option in options for part in ("-o", option)),
    ]  # fmt: skip


@pytest.mark.slow
def test_a_killed_translation_goes_on_with_the_same_bytes(
    tmp_path: Path, serve: Callable[[ChatService], ChatService]
) -> None:
    items = tuple(
        Item(f"q{n}", "a.png", f"Is number {n} here?", "c", "Yes", "en", "yesno")
        for n in range(NUM_QUESTIONS)
    )
    source = tmp_path / "source"
    write_folder(source, "answers", "en", items, tmp_path, tmp_path / "x")
    table = {item.text: f"Je tu číslo {number}?" for number, item in enumerate(items)}
    whole = serve(ChatService(table))
    subprocess.run(command(source, tmp_path / "a" / "out", whole.url), check=True)
    cut = serve(ChatService(table))
    cut.wait_s = 0.1
    with subprocess.Popen(command(source, tmp_path / "b" / "out", cut.url)) as process:
        deadline = time.monotonic() + 60
        while len(cut.answered) < NUM_QUESTIONS // 4 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "b" / "out" / "cs.jsonl").exists()
    before = len(cut.answered)
    assert before < NUM_QUESTIONS
    subprocess.run(command(source, tmp_path / "b" / "out", cut.url), check=True)
    # what was under way when it was killed is asked again, and nothing else
    assert sum(cut.answered.values()) <= NUM_QUESTIONS + 2
    for name in ("cs.jsonl", "en.jsonl", "benchmark.json", "translation/cs.jsonl"):
        there = (tmp_path / "b" / "out" / name).read_bytes()
        assert there == (tmp_path / "a" / "out" / name).read_bytes(), name
