"""Executors as the command line names them, without a cluster."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llava.errors import ConfigError
from lrm_ext.cli import app

RECORD = {
    "id": "a",
    "conversations": [
        {"from": "human", "value": "What is there?"},
        {"from": "gpt", "value": "A dog."},
    ],
}


def translate(corpus: Path, *options: str) -> None:
    command = ["translate", str(corpus), "--to", "hr", "--engine", "memory", *options]
    result = CliRunner().invoke(app, command)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception


def test_without_ray_it_is_said_how_to_get_it(make_corpus, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    corpus = make_corpus([RECORD])
    with pytest.raises(ConfigError, match=r"needs Ray: pip install 'lrm-llava\[ray\]'"):
        translate(corpus, "--executor", "ray")
    translate(corpus)  # one process needs none, and takes over what was begun


def test_options_that_do_not_fit(make_corpus):
    corpus = make_corpus([RECORD])
    with pytest.raises(ConfigError, match="unknown --executor 'spark'; choose from: process, ray"):
        translate(corpus, "--executor", "spark")
    with pytest.raises(ConfigError, match="are for --executor ray"):
        translate(corpus, "--num-workers", "2")
