"""Runs `lrm` in this process, for tests of `lrm corpus`."""

from pathlib import Path

from typer.testing import CliRunner

from lrm_ext.cli import app


def lrm(*arguments: str | Path, code: int = 0) -> str:
    """Returns what a command prints; its exit code has to be `code`."""
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output
