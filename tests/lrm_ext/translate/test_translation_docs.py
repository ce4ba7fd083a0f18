"""The examples of docs/translation.md run, and give what the page shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fake_chat import NoLedger

from lrm_ext.translate.engines.base import EngineSpec, TextSegment, engine_names, parse_options

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "translation.md").read_text(encoding="utf-8")


@pytest.mark.skipif(
    not Path("/usr/share/apertium/modes/eng-hbs_HR.mode").is_file(),
    reason="Apertium or its pairs are not installed",
)
def test_the_example_gives_what_the_page_shows(tmp_path: Path) -> None:
    example = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)[0]
    program = tmp_path / "lrm"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m lrm_ext.cli "$@"\n')
    program.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "100",
    }
    done = subprocess.run(
        ["bash", "-euc", example],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    shown = re.search(r"`es.json` then has.*?```\n(.*?)```", PAGE, re.DOTALL)
    assert shown is not None
    texts = (tmp_path / "es.json").read_text(encoding="utf-8").replace("\\n", "\n")
    for line in shown[1].splitlines():
        assert line.replace('"', '\\"') in texts
    assert re.search(r"language\s+│ 2 ", done.stdout)


def test_the_engine_of_one_s_own_works() -> None:
    (code,) = (c for c in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "SPEC" in c)
    names: dict[str, object] = {"__name__": "shout"}
    exec(
        compile(code, "docs/translation.md", "exec", dont_inherit=True), names
    )  # our own text, a fixed file
    spec = names["SPEC"]
    assert isinstance(spec, EngineSpec)
    engine = spec.build(parse_options(spec, {"mark": "?"}), "en", "hr", NoLedger())
    (reply,) = engine.translate([TextSegment("a dog")])
    assert reply.outcomes[0].text == "A DOG?"


def test_every_engine_is_in_the_table() -> None:
    for name in engine_names():
        assert f"\n| `{name}`" in PAGE
