from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llava.conversation import conv_templates
from llava.data.records import (
    RecordIndex,
    RecordReader,
    decode_record,
    iter_records,
    scan_records,
)
from llava.data.sample import Sample, SampleError
from llava.data.tokenize import render
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
    found = [
        (each.line, each.content if isinstance(each.content, SampleError) else each.load())
        for each in scan_records(path)
    ]
    assert [line for line, value in found if isinstance(value, SampleError)] == [2, 3, 4, 6]
    assert [value for _, value in found if isinstance(value, dict)] == [{"a": 1}, {"a": 3}]


def test_a_byte_that_is_not_utf8_spoils_one_record_of_a_scan(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "BYTE"}]
    text = json.dumps([{"conversations": turns}, {"id": "a"}])
    (tmp_path / "a.json").write_bytes(text.encode().replace(b"BYTE", b"caf\xe9"))
    first, second = scan_records(tmp_path / "a.json")
    assert second.load() == {"id": "a"}
    with pytest.raises(SampleError, match=r"turn 2 holds a byte that is not UTF-8 \(0xE9 at 3\)"):
        Sample.from_record(first.load(), "a.json:1")
    turns[1]["value"] = "half \ud83d"
    with pytest.raises(SampleError, match="turn 2 holds half of a character"):
        Sample.from_record({"conversations": turns}, "a.json:1")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf16_is_named_in_training(tmp_path: Path, encoding: str) -> None:
    path, mark = tmp_path / "a.json", "" if encoding == "utf-16" else "\ufeff"
    path.write_text(mark + "[{}]", encoding=encoding)
    with pytest.raises(DataError, match="UTF-16, expected UTF-8"):
        list(scan_records(path))


TEXTS = ("Hi", "", " ", "\u3000", "<image>\nWhat?", "<image> or <image>", "x < y", "<video>", "<b>")
TURN = st.fixed_dictionaries(
    {"from": st.sampled_from(["human", "gpt"]), "value": st.sampled_from(TEXTS)}
)
RECORD = st.fixed_dictionaries(
    {"conversations": st.lists(TURN, max_size=3)},
    optional={
        "id": st.sampled_from(["a", 7, None]),
        "image": st.sampled_from(["a.png", "", None, ["a.png"]]),
        "system": st.sampled_from(["", "Be brief."]),
        "lang": st.sampled_from(["hr", 3]),
    },
)


@settings(max_examples=400, deadline=None)
@given(RECORD)
def test_a_plain_record_is_a_sample(record: dict[str, Any]) -> None:
    try:
        found = decode_record(json.dumps(record).encode())
    except msgspec.ValidationError:
        return
    if found.is_plain():
        sample = Sample.from_record(record, "a.json:1")
        assert len(sample.turns) == len(found.turns) and sample.image == found.image
        render(sample.turns, conv_templates["v1"])


def test_what_llava_writes_is_plain() -> None:
    turns = [{"from": "human", "value": "<image>\nx < y?"}, {"from": "gpt", "value": "<b>"}]
    record = {"id": 1, "image": "a.png", "conversations": turns, "model": "x", "system": ""}
    assert decode_record(json.dumps(record).encode()).is_plain()
    assert not decode_record(json.dumps({**record, "image": None}).encode()).is_plain()


@pytest.mark.parametrize("lines", [True, False])
def test_chunks_of_llavas_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: bool
) -> None:
    monkeypatch.setattr("llava.data.records._CHUNK_BYTES", 500)
    turns = [{"from": "human", "value": "},\n{"}, {"from": "gpt", "value": "\u010d"}]
    records = [{"id": str(i), "conversations": turns, "note": "BYTE"} for i in range(20)]
    path = save(tmp_path / "a.json", records, lines)
    path.write_bytes(path.read_bytes().replace(b"BYTE", b"\xe9"))  # where nothing is read
    index, entries = RecordIndex(path), list(scan_records(path))
    for number, entry in enumerate(entries):
        index.add(entry, has_image=number % 2 == 1)
    assert sum(entry.record is not None for entry in entries) >= 15
    assert [record["id"] for record in index] == [str(i) for i in range(20)]
    assert index[3] == {**records[3], "note": "\udce9"}
    size = 1 if lines else len(json.dumps(records[0], indent=1).splitlines())
    assert [entry.line for entry in entries] == [i * size + (1 if lines else 2) for i in range(20)]
    assert [index.has_image(i) for i in range(4)] == [False, True, False, True]
