from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llava.errors import DataError
from lrm_ext.corpus import json_records
from lrm_ext.corpus.importing import import_llava
from lrm_ext.corpus.json_records import RecordReader, iter_records
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
    assert corpus.image_path(1) == Path("/pictures/1.jpg")
    assert corpus.turns("en", 0)[0].text == "<image>\nDuck?"  # type: ignore[index]


def test_with_translations(tmp_path: Path) -> None:
    english = save(tmp_path / "en.json", [record(i) for i in range(3)])
    czech = save(tmp_path / "cs.jsonl", [record(i, "Kachna?", "Ano") for i in range(3)], lines=True)
    import_llava(english, tmp_path / "corpus", translations={"cs": czech})
    corpus = Corpus.open(tmp_path / "corpus")
    assert corpus.num_texts("cs") == 3
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


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)

objects = st.dictionaries(st.text(), values, max_size=3)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(records=st.lists(objects, max_size=4), chunk=st.integers(1, 40), lines=st.booleans())
def test_any_json_comes_back_however_it_is_cut(
    tmp_path: Path, records: list[Any], chunk: int, lines: bool
) -> None:
    path = tmp_path / "a.json"
    save(path, records, lines)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_records, "_CHUNK_BYTES", chunk)
        assert [value for _, value in iter_records(path)] == records


def test_lines_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[\n {"a": "x\\ny"},\n\n {"b":\n 2}, {}\n]\n')
    assert [where.rsplit(":")[-1] for where, _ in iter_records(path)] == ["2", "4", "5"]


@pytest.mark.parametrize("chunk", [3, 1 << 20])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[\n{"a": 1},\n{"a": }]', r"a\.json:3: not valid JSON"),
        ('[\n{"a": 1}\n{"a": 2}]', r"a\.json:3: expected ','"),
        ('[\n{"a": 1},\n', r"a\.json:3: expected an object .*the end of the file"),
        ('[\n{"a": 1}\n', r"a\.json:3: the array does not end"),
        ('{"a": 1}\n{"a": "', r"a\.json:2: not valid JSON"),
        ('{"a": 1}\nnope\n', r"a\.json:2: expected an object .*'n'"),
        ("[1, 2]", r"a\.json:1: expected an object .*'1'"),
        ("[{}] 2", r"a\.json:1: .*after the array"),
        ("{}\n]", r"a\.json:2: expected an object .*'\]'"),
    ],
)
def test_broken_json_is_placed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str, chunk: int
) -> None:
    monkeypatch.setattr(json_records, "_CHUNK_BYTES", chunk)
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        list(iter_records(path))


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        list(iter_records(tmp_path / "none.json"))
    path = tmp_path / "a.json"
    path.write_text("[{}]", encoding="utf-16")
    with pytest.raises(DataError, match="UTF-16, expected UTF-8"):
        list(iter_records(path))


@pytest.mark.parametrize("chunk", [1, 3, 1 << 20])
def test_where_a_reader_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(json_records, "_CHUNK_BYTES", chunk)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": "\xc4\x8d"}\n{"a": "caf\xe9"}\n\n{"a": "\xe5\x8f"}')
    reader, found = RecordReader(path), []
    reader.begin()
    while (read := reader.read()) is not None:
        found.append((read[1]["a"], reader.line, reader.offset))
    assert found == [("\u010d", 1, 14), ("caf\udce9", 2, 28), ("\udce5\udc8f", 4, 41)]
