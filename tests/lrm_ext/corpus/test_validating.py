"""What is wrong with a corpus is found, and what only looks odd is told apart from it."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from llava.data.sample import Turn
from llava.errors import DataError
from lrm_ext.cli import app
from lrm_ext.corpus.layout import META_FILE, CorpusRow, Text
from lrm_ext.corpus.store import Corpus, CorpusWriter
from lrm_ext.corpus.validating import ERRORS, REMARKS, validate


def row(sample_id: str = "a", image: str | None = "1.png", *texts: str) -> CorpusRow:
    texts = texts or ("<image>\nWhat?", "A cat.")
    turns = tuple(Turn(("human", "gpt")[i % 2], text) for i, text in enumerate(texts))
    return CorpusRow(sample_id, image, "s", None, True, turns)


def build(tmp_path: Path, *rows: CorpusRow, text: Text | None = None) -> Corpus:
    (tmp_path / "images").mkdir(exist_ok=True)
    with CorpusWriter(tmp_path / "c", ["cs"], image_root="../images", overwrite=True) as writer:
        for one in rows:
            writer.append(one, {"cs": text} if text else {})
    return Corpus.open(tmp_path / "c")


GOOD = (row("a"), row("b", None, "Hi", "Ho"), row("c", "2.png"))


def test_a_good_corpus(tmp_path: Path) -> None:
    corpus = build(tmp_path, *GOOD)
    for name in ("1.png", "2.png"):
        Image.new("RGB", (3, 3)).save(tmp_path / "images" / name)
    findings = validate(corpus, with_pictures=True)
    assert findings.num_rows == 3 and not findings.counts
    result = CliRunner().invoke(app, ["corpus", "validate", str(corpus.path), "--images"])
    assert result.exit_code == 0 and "0 errors, 0 remarks" in result.output


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        (CorpusRow("x", None, None, None, True, ()), "no turns"),
        (CorpusRow("x", None, None, None, True, (Turn("gpt", "a"), Turn("gpt", "b"))), "roles"),
        (row("x", None, "Hi", " "), "empty turn"),
        (row("x", None, "<image>\nHi", "Ho"), "placeholder"),
        (row("x", "1.png", "Hi", "Ho"), "placeholder"),
        (row("x", "1.png", "Hi", "<image>"), "placeholder"),
        (row("x", "../1.png"), "outside"),
        (row("x", "/1.png"), "outside"),
        (row("x", "none.png"), "missing picture"),
        (row("x", "bad.png"), "broken picture"),
        (row("a", "2.png"), "duplicate id"),
        (row("x", "1.png", "<image>\nWhat?", "A dog."), "same picture, same question"),
        (row("x", None, "Hi", "Ho\u200f"), "direction mark"),
        (row("x", None, "Hi", "Ho\x07"), "control character"),
        (row("x", None, "Hi", "caf\ufffd"), "control character"),
        (row("x", None, "Hi", "a" * 100_000), "long answer"),
        (row("x", None, "Hi", "Ho", "And?"), "ends with a question"),
    ],
)
def test_each_finding(tmp_path: Path, bad: CorpusRow, kind: str) -> None:
    corpus = build(tmp_path, *GOOD, bad)
    for name in ("1.png", "2.png"):
        Image.new("RGB", (3, 3)).save(tmp_path / "images" / name)
    (tmp_path / "images" / "bad.png").write_bytes(b"no picture")
    findings = validate(corpus, with_pictures=True)
    assert findings.counts == {kind: 1} and len(findings.examples[kind]) == 1
    assert findings.num_errors == (kind in ERRORS)
    command = ["corpus", "validate", str(corpus.path), "--images"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == (kind in ERRORS)
    assert {**ERRORS, **REMARKS}[kind] in " ".join(result.output.split())


def test_texts_are_looked_at_too(tmp_path: Path) -> None:
    text = Text((Turn("human", "<image>\nCo?"), Turn("gpt", "Kočka\u202e")))
    corpus = build(tmp_path, row("a"), text=text)
    assert validate(corpus).counts == {"direction mark": 1}
    path = corpus.path / META_FILE
    path.write_text(path.read_text().replace("ok = 1", "ok = 0"))
    findings = validate(Corpus.open(corpus.path))
    assert findings.counts == {"direction mark": 1, "wrong count": 1}
    assert "cs: stated" in findings.examples["wrong count"][0]


def test_a_damaged_corpus_is_an_error(tmp_path: Path) -> None:
    corpus = build(tmp_path, *GOOD)
    shard = corpus.path / "rows" / "00000.arrow"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(DataError, match="truncated or not an Arrow file"):
        validate(Corpus.open(corpus.path))
