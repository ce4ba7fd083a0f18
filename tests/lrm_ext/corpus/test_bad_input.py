"""Data as it really comes: what is wrong is named or counted, what is only odd comes through whole.

Each case goes the way of a user: import, import with a rate, validate, translate, export.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from corpus_cli import lrm

from llava.data.records import iter_records
from llava.errors import DataError
from lrm_ext.corpus.store import Corpus

LONG = "A dog and a cat are asleep. " * 3600  # more than 100,000 characters
MARKS = "\u202bשלום\u202c and \u200fno\u200e\ufeff end"


def record(sample_id: str, question: str = "Hi", answer: str = "Ho", **more: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": sample_id, "conversations": turns, **more}


def turned(*roles: str) -> dict[str, Any]:
    return {"id": "bad", "conversations": [{"from": role, "value": "x"} for role in roles]}


def save(path: Path, records: list[Any]) -> Path:
    """JSON Lines in UTF-8, but for half characters, which can only be written as escapes."""
    lines = ""
    for entry in records:
        escaped = json.dumps(entry)
        is_half = escaped.endswith('\\ud83d"}]}')
        lines += (escaped if is_half else json.dumps(entry, ensure_ascii=False)) + "\n"
    path.write_bytes(lines.encode().replace(b"BYTE", b"caf\xe9"))
    return path


GOOD = [record(f"good {i}", f"What is {i}?", f"It is {i}.") for i in range(9)]
BAD = {
    "without turns": ({"id": "bad", "conversations": []}, "structure"),
    "turns that are no list": ({"id": "bad", "conversations": "Hi"}, "structure"),
    "no object": (["bad"], None),
    "question only": (turned("human"), "no_answer"),
    "system turn": (turned("system", "human", "gpt"), "unknown_role"),
    "role in capitals": (turned("Human", "GPT"), "unknown_role"),
    "two answers": (turned("human", "gpt", "gpt"), "turn_order"),
    "blank answer": (record("bad", "Hi", " \n\u3000"), "empty_turn"),
    "null answer": (record("bad", "Hi", None), "structure"),  # type: ignore[arg-type]
    "byte that is not UTF-8": (record("bad", "Hi", "BYTE"), "invalid_utf8"),
    "half of a character": (record("bad", "Hi", "\ud83d"), "half_character"),
    "placeholder without a picture": (record("bad", "<image>\nHi"), "image_mismatch"),
    "picture without a placeholder": (record("bad", image="1.png"), "image_mismatch"),
    "placeholder in the answer": (record("bad", "Hi", "<image>", image="1.png"), "image_mismatch"),
    "picture outside": (record("bad", "<image>\nHi", image="../1.png"), "outside_root"),
    "another language": (record("bad", lang="cs"), "other_language"),
    "video": (record("bad", video="1.mp4"), "video"),
    "videos": (record("bad", videos=["1.mp4"]), "video"),
    "place of a video": (record("bad", "<video>\nWhat?"), "video"),
    "sound": (record("bad", audios=["1.wav"]), "audio"),
    "system prompt": (record("bad", system="Be brief."), "system_prompt"),
    "two pictures": (record("bad", "<image>\nHi", image=["1.png", "2.png"]), "image_mismatch"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_record_is_named_and_can_be_counted(tmp_path: Path, case: str) -> None:
    bad, reason = BAD[case]
    path, out = save(tmp_path / "a.jsonl", [*GOOD[:4], bad, *GOOD[4:]]), tmp_path / "corpus"
    command = ("corpus", "import", path, "--images", tmp_path, "--out", out)
    with pytest.raises(DataError, match=rf"a\.jsonl:5{'' if reason is None else '.*bad'}"):
        lrm(*command)
    assert not out.exists()
    if reason is None:  # no JSON object: what follows cannot be trusted either
        return
    said = lrm(*command, "--max-drop-rate", "0.2")
    assert f"dropped  {reason}" in said and "a.jsonl:5" in said
    assert len(Corpus.open(out)) == 9
    found = lrm("corpus", "validate", path, code=1)
    assert "10 rows" not in found and "1 errors" in found and "a.jsonl:5" in found


ODD = {
    "duplicate ids": ([record("a", "Q1"), record("a", "Q2")], "an id that an earlier row has"),
    "one picture, two answers": (
        [record("a", "<image>\nWhat?", "A cat.", image="1.png"),
         record("b", "<image>\nWhat?", "A dog.", image="1.png")],
        "two rows with the same image and question",
    ),
    "one picture, two questions": (
        [record("a", "<image>\nWhat?", "A cat.", image="1.png"),
         record("b", "<image>\nWhere?", "Here.", image="1.png")],
        None,
    ),
    "a row twice": ([record("a"), record("b")], "a row with the image and text of an earlier one"),
    "right-to-left marks": ([record("a", "Say it.", MARKS)], "a right-to-left or left-to-right"),
    "100,000 characters": ([record("a", "Go on.", LONG)], "an answer of more than"),
    "a null character": ([record("a", "Hi", "a\0b")], "a control character"),
    "unusual scripts": ([record("नमस्ते", "สวัสดี", "👩‍👩‍👧 café")], None),
    "combining marks": ([record("a", "Hi", "e\u0301\u0328" * 40)], None),
}  # fmt: skip


@pytest.mark.parametrize("case", ODD)
def test_what_is_odd_comes_through_unchanged_and_is_remarked(tmp_path: Path, case: str) -> None:
    records, remark = ODD[case]
    path, out = save(tmp_path / "a.jsonl", records), tmp_path / "corpus"
    lrm("corpus", "import", path, "--images", tmp_path, "--out", out)
    said = lrm("corpus", "validate", out)
    assert f"{len(records)} rows, 0 errors, {0 if remark is None else 1} remarks" in said
    assert remark is None or remark in said
    back = tmp_path / "back.jsonl"
    lrm("corpus", "export", out, "--out", back)
    assert [raw for _, raw in iter_records(back)] == [{**raw, "source": "a"} for raw in records]
    lrm("corpus", "show", out)
    lrm("corpus", "report", out, "--out", tmp_path / "report.html")


@pytest.mark.parametrize("case", ["100,000 characters", "right-to-left marks", "duplicate ids"])
def test_what_is_odd_can_be_translated(tmp_path: Path, case: str) -> None:
    """No engine is right about it, but every row gets a status and a reason; none is lost."""
    records, _ = ODD[case]
    path, out = save(tmp_path / "a.jsonl", records), tmp_path / "corpus"
    lrm("corpus", "import", path, "--out", out)
    table = tmp_path / "hr.tsv"
    table.write_text("Q1\tP1\nQ2\tP2\nHo\tHej\n", encoding="utf-8")
    lrm("translate", out, "--to", "hr", "--engine", "memory", "--option", f"table={table}")
    corpus = Corpus.open(out)
    statuses = corpus.statuses("hr")
    assert sum(statuses.values()) == len(records)
    for i in range(len(records)):
        text = corpus.text("hr", i)
        assert text is not None and (text.status == "ok") is (text.reason is None)
    left = tmp_path / "hr.json"
    said = lrm("corpus", "export", out, "--lang", "hr", "--out", left)
    assert f"{statuses['ok']} records" in said
    said = lrm("corpus", "export", out, "--lang", "hr", "--out", left, "--with-english")
    assert f"{len(records)} records" in said
