from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llava.errors import DataError
from lrm_ext.corpus.importing import import_llava
from lrm_ext.corpus.store import Corpus


def record(i: int, question: str = "Duck?", answer: str = "Yes", **extra: Any) -> dict[str, Any]:
    turns = [
        {"from": "human", "value": f"<image>\n{question}"},
        {"from": "gpt", "value": answer},
    ]
    return {"id": f"r{i}", "image": f"{i}.jpg", "conversations": turns, **extra}


def save(path: Path, records: list[Any], lines: bool = False) -> Path:
    if lines:
        path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))
    else:
        path.write_text(json.dumps(records, ensure_ascii=False, indent=1))
    return path


@pytest.mark.parametrize("lines", [True, False])
def test_english_alone(tmp_path: Path, lines: bool) -> None:
    records = [record(0, task="vqa"), record(1, source="gqa")]
    path = save(tmp_path / "a.json", records, lines)
    num_rows = import_llava(
        path,
        tmp_path / "corpus",
        source="unit",
        image_root="/pictures",
        is_translatable=lambda sample: sample.id != "r0",
    )
    corpus = Corpus.open(tmp_path / "corpus")
    assert num_rows == len(corpus) == 2
    assert corpus.languages == ("en",)
    assert [corpus.row(i).source for i in (0, 1)] == ["unit", "gqa"]
    assert [corpus.row(i).translatable for i in (0, 1)] == [False, True]
    assert corpus.row(0).task == "vqa"
    assert corpus.image_paths(1) == (Path("/pictures/1.jpg"),)
    assert corpus.turns("en", 0)[0].text == "<image>\nDuck?"  # type: ignore[index]


def test_with_translations(tmp_path: Path) -> None:
    english = save(tmp_path / "en.json", [record(i) for i in range(3)])
    czech = save(tmp_path / "cs.jsonl", [record(i, "Kachna?", "Ano") for i in range(3)], lines=True)
    import_llava(english, tmp_path / "corpus", translations={"cs": czech})
    corpus = Corpus.open(tmp_path / "corpus")
    assert corpus.statuses("cs")["ok"] == 3
    assert [turn.text for turn in corpus.turns("cs", 2) or ()] == ["<image>\nKachna?", "Ano"]


@pytest.mark.parametrize(
    ("czech", "message"),
    [
        ([record(0)], r"cs\.json: ends after 1 records"),
        ([record(0), record(2)], r"cs\.json:\d+: sample 'r2'.*translation of 'r1'"),
        ([record(0), record(1, lang="sk")], "lang is 'sk', expected 'cs'"),
        ([record(0), {"id": "r1", "image": "1.jpg", "conversations": []}], r"cs\.json:\d+.*'r1'"),
    ],
)
def test_translations_that_do_not_fit(tmp_path: Path, czech: list[Any], message: str) -> None:
    english = save(tmp_path / "en.json", [record(0), record(1)])
    other = save(tmp_path / "cs.json", czech)
    with pytest.raises(DataError, match=message):
        import_llava(english, tmp_path / "corpus", translations={"cs": other})
    assert not (tmp_path / "corpus").exists()
