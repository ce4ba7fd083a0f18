from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llava.data.records import RecordIndex, RecordReader, iter_records, scan_records
from llava.data.sample import Sample, SampleError
from llava.errors import DataError


def save(path: Path, records: list[Any], lines: bool = False) -> Path:
    if lines:
        path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))
    else:
        path.write_text(json.dumps(records, ensure_ascii=False, indent=1))
    return path


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
        patch.setattr("llava.data.records._CHUNK_BYTES", chunk)
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
    monkeypatch.setattr("llava.data.records._CHUNK_BYTES", chunk)
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        list(iter_records(path))


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        list(iter_records(tmp_path / "none.json"))
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        list(scan_records(tmp_path))
    path = tmp_path / "a.json"
    path.write_text("[{}]", encoding="utf-16")
    with pytest.raises(DataError, match="UTF-16, expected UTF-8"):
        list(iter_records(path))


@pytest.mark.parametrize("chunk", [1, 3, 1 << 20])
def test_where_a_reader_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr("llava.data.records._CHUNK_BYTES", chunk)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": "\xc4\x8d"}\n{"a": "caf\xe9"}\n\n{"a": "\xe5\x8f"}')
    reader, found = RecordReader(path), []
    reader.begin()
    while (read := reader.read()) is not None:
        found.append((read[1]["a"], reader.line, reader.offset))
    assert found == [("\u010d", 1, 14), ("caf\udce9", 2, 28), ("\udce5\udc8f", 4, 41)]


@pytest.mark.parametrize("lines", [True, False])
@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_a_scan_tells_where_records_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, lines: bool
) -> None:
    monkeypatch.setattr("llava.data.records._CHUNK_BYTES", chunk)
    path, objects = tmp_path / "a.json", [{"a": "\u010d"}, {}, {"b": [1, {"c": "}\n"}]}]
    save(path, objects, lines)
    index = RecordIndex(path)
    for entry in scan_records(path):
        index.add(entry, has_image=False)
    assert list(index) == objects
    assert index.where(0) == f"{path}:{1 if lines else 2}"


@pytest.mark.parametrize("chunk", [3, 1 << 20])
def test_a_broken_line_does_not_end_a_scan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr("llava.data.records._CHUNK_BYTES", chunk)
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\nnope\n{"a": \n[2]\n{"a": 3}\n{"a": "')
    found = [(entry.line, entry.value) for entry in scan_records(path)]
    assert [line for line, value in found if isinstance(value, SampleError)] == [2, 3, 4, 6]
    assert [value for _, value in found if isinstance(value, dict)] == [{"a": 1}, {"a": 3}]


def test_a_byte_that_is_not_utf8_spoils_one_record_of_a_scan(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "BYTE"}]
    text = json.dumps([{"conversations": turns}, {"id": "a"}])
    (tmp_path / "a.json").write_bytes(text.encode().replace(b"BYTE", b"caf\xe9"))
    first, second = scan_records(tmp_path / "a.json")
    assert second.value == {"id": "a"}
    with pytest.raises(SampleError, match=r"turn 2 holds a byte that is not UTF-8 \(0xE9 at 3\)"):
        Sample.from_record(first.value, "a.json:1")
    turns[1]["value"] = "half \ud83d"
    with pytest.raises(SampleError, match="turn 2 holds half of a character"):
        Sample.from_record({"conversations": turns}, "a.json:1")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf16_is_named_in_training(tmp_path: Path, encoding: str) -> None:
    path, mark = tmp_path / "a.json", "" if encoding == "utf-16" else "\ufeff"
    path.write_text(mark + "[{}]", encoding=encoding)
    with pytest.raises(DataError, match="UTF-16, expected UTF-8"):
        list(scan_records(path))
