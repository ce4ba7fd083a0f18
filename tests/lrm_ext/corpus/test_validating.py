"""What is wrong with a corpus is found, and what only looks odd is told apart from it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from llava.data.sample import Turn
from llava.errors import DataError
from lrm_ext.cli import app
from lrm_ext.corpus.formats import FORMATS
from lrm_ext.corpus.importing import ImportSource
from lrm_ext.corpus.store import META_FILE, Corpus, CorpusRow, CorpusText
from lrm_ext.corpus.validating import ERRORS, REMARKS, validate, validate_source
from lrm_ext.corpus.writer import CorpusWriter


def row(sample_id: str = "a", image: str | None = "1.png", *texts: str) -> CorpusRow:
    texts = texts or ("<image>\nWhat?", "A cat.")
    turns = tuple(Turn(("human", "gpt")[i % 2], text) for i, text in enumerate(texts))
    return CorpusRow(sample_id, image, "s", None, True, turns)


def build(tmp_path: Path, *rows: CorpusRow, text: CorpusText | None = None) -> Corpus:
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
    findings = validate(corpus, verify_images=True)
    assert findings.num_rows == 3 and not findings.counts
    result = CliRunner().invoke(app, ["corpus", "validate", str(corpus.path), "--verify-images"])
    assert result.exit_code == 0 and "0 errors, 0 remarks" in result.output


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        (CorpusRow("x", None, None, None, True, ()), "no turns"),
        (
            CorpusRow("x", None, None, None, True, (Turn("gpt", "a"), Turn("gpt", "b"))),
            "turn_order",
        ),
        (
            CorpusRow("x", None, None, None, True, (Turn("human", "a"), Turn("bot", "b"))),
            "unknown_role",
        ),
        (row("x", None, "Hi", " "), "empty_turn"),
        (row("x", None, "<image>\nHi", "Ho"), "image_mismatch"),
        (row("x", "1.png", "Hi", "Ho"), "image_mismatch"),
        (row("x", "1.png", "Hi", "<image>"), "image_mismatch"),
        (row("x", "../1.png"), "outside_root"),
        (row("x", "/1.png"), "outside_root"),
        (row("x", "none.png"), "missing_picture"),
        (row("x", "bad.png"), "broken_picture"),
        (row("a", "2.png", "<image>\nWhere?", "Here."), "duplicate id"),
        (row("x", "1.png"), "repeated row"),
        (row("x", "1.png", "<image>\nWhat?", "A dog."), "same image, same question"),
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
    findings = validate(corpus, verify_images=True)
    assert findings.counts == {kind: 1} and len(findings.examples[kind]) == 1
    assert findings.num_errors == (kind in ERRORS)
    command = ["corpus", "validate", str(corpus.path), "--verify-images"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == (kind in ERRORS)
    assert {**ERRORS, **REMARKS}[kind] in " ".join(result.output.split())


def test_texts_are_looked_at_too(tmp_path: Path) -> None:
    text = CorpusText((Turn("human", "<image>\nCo?"), Turn("gpt", "Kočka\u202e")))
    corpus = build(tmp_path, row("a"), text=text)
    assert validate(corpus).counts == {"direction mark": 1}
    path = corpus.path / META_FILE
    path.write_text(path.read_text().replace("ok = 1", "ok = 0"))
    findings = validate(Corpus.open(corpus.path))
    assert findings.counts == {"direction mark": 1, "wrong count": 1}
    assert "cs: corpus.toml has {'ok': 0" in findings.examples["wrong count"][0]
    (corpus.path / "text" / "cs" / "usable.u32").write_bytes(b"\1\0\0\0")
    assert validate(Corpus.open(corpus.path)).counts["wrong count"] == 2


@pytest.mark.parametrize(
    "text",
    [
        CorpusText((Turn("human", "Co?"), Turn("gpt", "Kočka"))),
        CorpusText((Turn("human", "<image>\nCo?"), Turn("human", "Kočka"))),
        CorpusText((Turn("human", "<image>\nCo?"),)),
    ],
)
def test_a_text_of_another_shape(
    tmp_path: Path, text: CorpusText, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = CorpusText((Turn("human", "<image>\nCo?"), Turn("gpt", "Pes")))
    monkeypatch.setattr(CorpusWriter, "_check_text", lambda *_: None)  # which would refuse it
    with CorpusWriter(tmp_path / "c", ["cs", "hr"]) as writer:
        for i in range(3):
            writer.append(row(str(i), f"{i}.png"), {"cs": text if i == 1 else right, "hr": right})
        writer.append(row("3", "3.png"), {"cs": replace(text, status="rejected")})
    findings = validate(Corpus.open(tmp_path / "c"))
    assert findings.counts == {"shape": 1} and findings.examples["shape"] == ["row 1 (1), cs"]


def test_pairs_are_named_in_order(tmp_path: Path) -> None:
    images = [f"{i % 4}.png" for i in range(12)]
    corpus = build(tmp_path, *(row(str(i % 9), image) for i, image in enumerate(images)))
    findings = validate(corpus)
    assert findings.counts == {"duplicate id": 3, "repeated row": 8}
    assert findings.examples["duplicate id"] == [f"rows {i} and {i + 9} ({i})" for i in range(3)]
    assert findings.examples["repeated row"] == [
        f"rows {i} and {i + 4} ({i}, {i + 4})" for i in range(5)
    ]


def test_a_data_set_before_it_is_imported(tmp_path: Path) -> None:
    def said(role: str, text: str) -> dict[str, str]:
        return {"from": role, "value": text}

    hello = [said("human", "Hi"), said("gpt", "Ho")]
    records = [
        {"id": "a", "conversations": hello},
        {"id": "b", "conversations": []},
        {"id": "c", "conversations": [said("system", "Hi"), said("gpt", "Ho")]},
        {"id": "d", "conversations": [said("human", "Hi"), said("gpt", "BYTE")]},
        {"id": "a", "conversations": [said("human", "Hi"), said("gpt", "x" * 100_000)]},
    ]
    path = tmp_path / "a.jsonl"
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    path.write_bytes(lines.replace(b"BYTE", b"caf\xe9"))
    findings = validate_source(ImportSource(FORMATS["llava"], path), tmp_path)
    assert findings.counts == {
        "structure": 1, "unknown_role": 1, "invalid_utf8": 1, "duplicate id": 1, "long answer": 1,
    }  # fmt: skip
    assert findings.num_rows == 2 and findings.num_errors == 3
    assert findings.examples["unknown_role"][0].startswith(f"{path}:3, sample 'c': turn 1 is from")
    result = CliRunner().invoke(app, ["corpus", "validate", str(path)])
    assert result.exit_code == 1 and "3 errors, 2 remarks" in result.output
    assert f"{path}:4, sample 'd'" in result.output


def test_a_damaged_corpus_is_an_error(tmp_path: Path) -> None:
    corpus = build(tmp_path, *GOOD)
    shard = corpus.path / "rows" / "00000.arrow"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(DataError, match="truncated or not an Arrow file"):
        validate(Corpus.open(corpus.path))
