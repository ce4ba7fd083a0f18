"""Whatever file a package needs at run time is in the wheel: named under package-data. No logs."""

from __future__ import annotations

import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]


def _is_covered(path: str, patterns: list[str]) -> bool:
    # "**/" may stand for no folder at all
    return any(fnmatch(path, p) or fnmatch(path, p.replace("**/", "")) for p in patterns)


def test_all_data_files_are_package_data() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "llava", "lrm_ext"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a clone: git does not say which files are part of the project")
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = table["tool"]["setuptools"]["package-data"]
    files = [name.split("/", 1) for name in listed.stdout.splitlines()]
    data = [(package, path) for package, path in files if not path.endswith(".py")]
    assert len(data) > 40
    missing = [f"{package}/{path}" for package, path in data
               if not _is_covered(path, patterns[package])]  # fmt: skip
    assert not missing


def test_logs_are_no_part_of_the_repository() -> None:
    def git(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True)

    listed = git("ls-files", "*.log")
    if listed.returncode:
        pytest.skip("not a clone: git does not say which files are part of the project")
    assert not listed.stdout
    assert git("check-ignore", "controller.log", "model_worker_1.log.2026-01-01").returncode == 0
