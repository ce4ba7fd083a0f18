"""`lrm bench` runs scripts that write figures, and puts them into a document."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import tools.bench.__main__ as runner
from llava.errors import ConfigError, DataError
from tools.bench.__main__ import (
    Entry,
    Machine,
    Script,
    app,
    choose,
    find_scripts,
    run_script,
    section,
    write_section,
)

ENTRIES = [
    {"name": "fast", "ours": 3000.0, "peer": 1500.0, "ratio": 2.0, "unit": "rows/s", "equal": True},
    {"name": "alone", "ours": 0.5, "peer": None, "ratio": None, "unit": "s", "equal": None},
]
SCRIPT = """'''What it measures.'''
import sys, json
assert sys.argv[1] == "--json"
json.dump(FIGURES, open(sys.argv[2], "w"))
"""


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "bench"
    folder.mkdir()
    figures = f"FIGURES = json.loads({json.dumps(json.dumps(ENTRIES))})\n"
    (folder / "one.py").write_text(
        SCRIPT.replace("json.dump(FIG", figures + "json.dump(FIG"), encoding="utf-8"
    )
    (folder / "fails.py").write_text("'''Fails.'''  # --json\nraise SystemExit(3)\n")
    (folder / "other.py").write_text("'''No figures.'''\n")
    (folder / "_shared.py").write_text("'''--json'''\n")
    return folder


def test_the_project_has_benchmarks():
    names = {script.name for script in find_scripts()}
    assert {"corpus", "loss", "step", "resume", "gpu_step"} <= names
    assert all(script.title.endswith(".") for script in find_scripts())


def test_scripts_with_figures_are_found(folder):
    found = find_scripts(folder)
    assert [(script.name, script.title) for script in found] == [
        ("fails", "Fails."),
        ("one", "What it measures."),
    ]
    assert choose(found, ["one"]) == [found[1]]
    with pytest.raises(ConfigError, match="no benchmark two; choose from: fails, one"):
        choose(found, ["two"])


def test_a_script_runs(folder):
    fails, one = find_scripts(folder)
    assert run_script(one) == [Entry(**entry) for entry in ENTRIES]
    with pytest.raises(DataError, match="fails.py ended with exit code 3 and wrote no figures"):
        run_script(fails)


def test_figures_of_another_form_are_refused(folder):
    path = folder / "x.json"
    path.write_text('[{"name": "a"}]')
    with pytest.raises(DataError, match="expected a list of objects with name, ours"):
        runner.read_entries(path)


def test_a_section_names_command_machine_and_figures(tmp_path):
    script = Script("one", tmp_path / "one.py", "What it measures.")
    text = section(script, [Entry(**entry) for entry in ENTRIES], Machine(2, "a CPU", 24, ()))
    assert text.startswith("`python tools/bench/one.py` on 2 cores of a CPU, 24 GiB, no GPU; ")
    assert "| fast | 3,000 rows/s | 1,500 rows/s | 2 | yes |" in text
    assert "| alone | 0.5 s | - | - | - |" in text


def test_only_the_section_of_that_name_changes(tmp_path):
    path = tmp_path / "performance.md"
    path.write_text("# Speed\n\n<!-- bench a -->\nold\n<!-- end a -->\n\nWords.\n")
    write_section(path, "a", "new \\1")
    write_section(path, "b", "more")
    assert path.read_text() == (
        "# Speed\n\n<!-- bench a -->\nnew \\1\n<!-- end a -->\n\nWords.\n\n"
        "## b\n\n<!-- bench b -->\nmore\n<!-- end b -->\n"
    )


def test_the_command_writes_a_table(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(find_scripts, "__defaults__", (folder,))
    out = tmp_path / "docs" / "figures.md"
    result = CliRunner().invoke(app, ["one", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "one: 2 figures written" in result.output
    assert "| fast | 3,000 rows/s" in out.read_text()
    listed = CliRunner().invoke(app, ["--list"])
    assert "What it measures." in listed.output


def test_one_that_cannot_be_measured_does_not_stop_the_others(folder, tmp_path, monkeypatch):
    (folder / "asks.py").write_text(
        "'''Asks.\n\nUsage: x --json FILE\nNeeds: runs/none, from bash make.sh.\n'''\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(runner, "find_scripts", lambda: find_scripts(folder))
    out = tmp_path / "performance.md"
    result = CliRunner().invoke(app, ["--out", str(out)])
    assert "| fast | 3,000 rows/s" in out.read_text()
    assert isinstance(result.exception, DataError)
    message = str(result.exception)
    assert message.startswith("2 benchmarks were not measured:")
    assert "asks needs runs/none, which is missing: bash make.sh" in message
    assert "fails.py ended with exit code 3" in message
    listed = CliRunner().invoke(app, ["--list"])
    assert "needs runs/none" in listed.output


def test_lrm_runs_the_tool_of_the_clone_from_any_folder(tmp_path):
    command = [sys.executable, "-m", "lrm_ext.cli", "bench", "--list"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "packing" in done.stdout
    done = subprocess.run([*command[:-1], "nothing"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "no benchmark nothing; choose from" in done.stderr
    assert "Traceback" not in done.stderr
