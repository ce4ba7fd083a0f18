"""Every format comes in, every bad row is named or counted, and it all goes out again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from llava.data.records import iter_records
from llava.data.sample import DropPolicy, Sample, SampleError
from llava.errors import ConfigError, DataError
from lrm_ext.cli import app
from lrm_ext.corpus import columns
from lrm_ext.corpus.columns import batch_of, iter_row_batches
from lrm_ext.corpus.exporting import Exported, export_llava
from lrm_ext.corpus.formats import FORMATS, split_source
from lrm_ext.corpus.importing import ImportSource, Rules, import_corpus
from lrm_ext.corpus.store import ROW_SCHEMA, Corpus
from lrm_ext.corpus.validating import validate, validate_source


def talk(*texts: str, first: str = "human") -> list[dict[str, Any]]:
    roles = ["human", "gpt"] if first == "human" else ["gpt", "human"]
    return [{"from": roles[i % 2], "value": text} for i, text in enumerate(texts)]


def record(i: int, **extra: Any) -> dict[str, Any]:
    turns = talk(f"<image>\nQuestion {i}?", f"Answer {i}.")
    return {"id": f"r{i}", "image": f"{i}.png", "conversations": turns, **extra}


def save(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(entry) + "\n" for entry in content))
    else:
        path.write_text(json.dumps(content, ensure_ascii=False))
    return path


def load(tmp_path: Path, name: str, path: Path, **options: Any) -> Corpus:
    import_corpus(
        [ImportSource(FORMATS[name], path)], tmp_path / "corpus", images=tmp_path, overwrite=True,
        **options,
    )  # fmt: skip
    return Corpus.open(tmp_path / "corpus")


def questions(corpus: Corpus) -> list[tuple[str, str | None, str, str]]:
    rows = [corpus.row(i) for i in range(len(corpus))]
    return [(row.id, row.image, row.turns[0].text, row.turns[1].text) for row in rows]


SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."


# --- LLaVA's own JSON ---


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_llava_records(tmp_path: Path, name: str) -> None:
    text_only = {"id": 7, "conversations": talk("Hi", "Hello", "Bye", "Ciao"), "model": "x"}
    leading = {"id": "lead", "conversations": talk("I said", "What?", "This.", first="gpt")}
    path = save(tmp_path / name, [record(0), text_only, leading, record(1, source="gqa")])
    corpus = load(tmp_path, "llava", path)
    rows = [corpus.row(i) for i in range(len(corpus))]
    assert [row.id for row in rows] == ["r0", "7", "lead", "r1"]
    assert [row.image for row in rows] == ["0.png", None, None, "1.png"]
    assert [row.source for row in rows] == ["a", "a", "a", "gqa"]
    assert [len(row.turns) for row in rows] == [2, 4, 2, 2]
    assert rows[2].turns[0].text == "What?"
    assert corpus.image_paths(0)[0].parent.resolve() == tmp_path


words = st.text('ab\n<>,{}[]"\\ č只', max_size=6).map(lambda text: text + "x")
odd_records = st.one_of(
    st.builds(lambda i: record(i), st.integers(0, 99)),
    st.builds(
        lambda texts, first: {"id": "t", "conversations": talk(*texts, first=first)},
        st.lists(words, min_size=1, max_size=4),
        st.sampled_from(["human", "gpt"]),
    ),
    st.just({"conversations": talk("<image>", "no picture")}),
    st.just({"id": "e", "conversations": []}),
    st.just({"id": "l", "image": ["1.png"], "conversations": talk("<image>", "x")}),
    st.just({"id": "s", "conversations": talk("x", "   ")}),
    st.just({"id": "r", "conversations": [{"from": "system", "value": "x"}]}),
    st.just({"id": "h", "conversations": talk("x", "\ud800")}),
    st.just({"id": "BYTE", "conversations": talk("x", "y")}),
    st.just({"id": "b", "other": "BYTE", "conversations": talk("x", "y")}),
    st.just({"id": "u", "image": "a/../b", "conversations": talk("<image>", "y")}),
    st.just({"id": "w", "conversations": talk("x", "\u3000\u00a0")}),
    st.just({"id": "n", "conversations": talk("x<image", ">")}),
    st.just({"id": "long", "conversations": talk("x", "y" * 900)}),
    st.just({"id": "o", "lang": "cs", "conversations": talk("x", "y")}),
    st.just({"id": "v", "video": "1.mp4", "conversations": talk("x", "y")}),
    st.just({"id": "p", "conversations": talk("<video>\nx", "y")}),
    st.just({"id": "q", "conversations": talk("what is <video> for", "y")}),
    st.just({"id": "m", "system": "z", "conversations": talk("x", "y")}),
    st.just({"id": "f", "system": "", "videos": [], "conversations": talk("x", "y")}),
    st.just({"id": "d", "images": ["1.png", "2.png"], "conversations": talk("<image>", "x")}),
    st.just(
        {"id": "i", "image": ["1.png", "2.png"], "conversations": talk("<image> <image>", "x")}
    ),
    st.just({"id": "j", "image": ["1.png", "2.png"], "conversations": talk("<image>", "x")}),
    st.just({"id": "k", "image": ["1.png", ""], "conversations": talk("<image>", "x")}),
    st.just({"id": "z", "image": ["1.png", "../2"], "conversations": talk("<image><image>", "x")}),
    st.just(
        {
            "images": ["1.png"],
            "messages": [
                {"role": "user", "content": "<image>"},
                {"role": "assistant", "content": "x"},
            ],
        }
    ),
    st.just(
        {
            "id": "a",
            "conversations": [{"from": "user", "value": "x"}, {"from": "assistant", "value": "y"}],
        }
    ),
)


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    records=st.lists(odd_records, max_size=12),
    chunk=st.integers(64, 700),
    lines=st.booleans(),
    indent=st.sampled_from([None, 1]),
    ascii_only=st.booleans(),
)
def test_columns_give_what_single_samples_give(
    tmp_path: Path,
    records: list[Any],
    chunk: int,
    lines: bool,
    indent: int | None,
    ascii_only: bool,
) -> None:
    """However the file is cut: the same rows, and the same rows left out for the same reasons."""
    path = tmp_path / "a.json"
    if lines:
        text = "".join(json.dumps(r, ensure_ascii=ascii_only) + "\n" for r in records)
    else:
        text = json.dumps(records, indent=indent, ensure_ascii=ascii_only)
    path.write_bytes(text.encode("utf-8", "surrogatepass").replace(b"BYTE", b"caf\xe9"))
    expected, errors = [], []
    for where, raw in iter_records(path):
        try:
            sample = Sample.from_record(raw, where)
            columns.check_sample(sample, where, "en")
            expected.append(sample)
        except SampleError as error:
            errors.append(error.reason)
    policy = DropPolicy(0.99)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "CHUNK_BYTES", chunk)
        patch.setattr("llava.data.records._CHUNK_BYTES", chunk)
        batches = list(iter_row_batches(path, None, policy))
    found = [row for batch in batches for row in batch.to_pylist()]
    assert found == batch_of(expected).to_pylist()
    assert policy.report.num_dropped == len(errors)
    assert policy.report.num_read == len(records)
    reasons = [reason for reason, _ in policy.report.dropped.elements()]
    assert sorted(reasons) == sorted(errors)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"id": "x", "conversations": []}, r"a\.json:3, sample 'x'.*list of turns"),
        ({"id": "x", "conversations": talk("a")}, r"a\.json:3, sample 'x': there is no answer"),
        (
            {"id": "x", "conversations": talk("<image>", "b")},
            r"a\.json:3, sample 'x': turn 1 holds",
        ),
        (
            {"id": "x", "lang": "hr", "conversations": talk("a", "b")},
            r"lang is 'hr', expected 'en'",
        ),
        ({"id": "x", "conversations": talk("a", "\udc00")}, r"a\.json:3.*half of a character"),
    ],
)
def test_a_bad_record_is_named_or_counted(tmp_path: Path, bad: Any, message: str) -> None:
    path = tmp_path / "a.json"
    lines = ",\n".join(json.dumps(entry) for entry in (record(0), bad, *map(record, range(1, 9))))
    path.write_text(f"[\n{lines}\n]")
    with pytest.raises(DataError, match=message):
        load(tmp_path, "llava", path)
    assert not (tmp_path / "corpus").exists()
    assert len(load(tmp_path, "llava", path, max_drop_rate=0.2)) == 9
    with pytest.raises(DataError, match=r"1 of 10 samples \(10\.0%\).*cannot be used"):
        load(tmp_path, "llava", path, max_drop_rate=0.05)


def test_a_byte_that_is_not_utf8_spoils_one_record(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jsonl", [record(i) for i in range(20)])
    path.write_bytes(path.read_bytes().replace(b"Answer 4.", b"caf\xe9"))
    with pytest.raises(DataError, match=r"a\.jsonl:5, sample 'r4': turn 2 holds a byte.*0xE9 at 3"):
        load(tmp_path, "llava", path)
    assert len(load(tmp_path, "llava", path, max_drop_rate=0.1)) == 19


@pytest.mark.parametrize("text", ["", "[]", "  \n"])
def test_an_empty_file_is_no_corpus(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DataError, match="no rows were found"):
        load(tmp_path, "llava", path)


def test_a_file_cut_short_gives_no_corpus(tmp_path: Path) -> None:
    path = save(tmp_path / "a.json", [record(i) for i in range(50)])
    whole = path.read_text()
    for cut in (1, 2, 40):
        path.write_text(whole[:-cut])
        with pytest.raises(DataError, match=r"a\.json:1: (not valid JSON|the array does not end)"):
            load(tmp_path, "llava", path)
    with pytest.raises(DataError, match="no such file"):
        load(tmp_path, "llava", tmp_path / "none.json")
    assert not (tmp_path / "corpus").exists()


# --- other formats ---


def test_chartqa(tmp_path: Path) -> None:
    path = save(
        tmp_path / "ChartQA" / "train_human.json",
        [{"imgname": "7.png", "query": "How many bars?", "label": "3"}],
    )
    expected = ("train_human-0", "ChartQA/png/7.png", f"<image>\nHow many bars?\n{SHORT}", "3")
    assert questions(load(tmp_path, "chartqa", path)) == [expected]


def test_docvqa(tmp_path: Path) -> None:
    entry = {"questionId": 5, "question": "Date?", "image": "documents/a.png"}
    data = [{**entry, "answers": ["1 May", "May 1"]}, {**entry, "answers": []}]
    path = save(tmp_path / "train.json", {"data": data, "dataset_name": "docvqa"})
    corpus = load(tmp_path, "docvqa", path, max_drop_rate=0.5)
    assert questions(corpus) == [("5", "documents/a.png", f"<image>\nDate?\n{SHORT}", "1 May")]
    with pytest.raises(DataError, match=r"data\[1\]: 'answers\[0\]' is None, expected str"):
        load(tmp_path, "docvqa", path)


def test_dvqa(tmp_path: Path) -> None:
    raw = {"question_id": 1, "question": "Is it?", "answer": "yes", "image": "b.png", "x": []}
    corpus = load(tmp_path, "dvqa", save(tmp_path / "dvqa" / "qa.json", [raw]))
    assert questions(corpus) == [("1", "dvqa/images/b.png", f"<image>\nIs it?\n{SHORT}", "yes")]
    assert corpus.row(0).source == "dvqa" and corpus.row(0).task == "chart"


def test_ai2d(tmp_path: Path) -> None:
    entry = {"answerTexts": ["leaf", "root"], "correctAnswer": 1, "questionId": "0.png-0"}
    save(
        tmp_path / "ai2d" / "questions" / "0.png.json",
        {"imageName": "0.png", "questions": {"What is A?": entry}},
    )
    text = f"<image>\nWhat is A?\nA. leaf\nB. root\n{LETTER}"
    found = questions(load(tmp_path, "ai2d", tmp_path / "ai2d"))
    assert found == [("0.png-0", "ai2d/images/0.png", text, "B")]


def test_geoqa_stays_english(tmp_path: Path) -> None:
    raw = {"subject": "AB = 3, BC = ?", "choices": [1, 2.5], "label": 0, "image": "1.png"}
    corpus = load(tmp_path, "geoqa", save(tmp_path / "geo.json", [raw, {**raw, "label": 2}]),
                  max_drop_rate=0.5)  # fmt: skip
    text = f"<image>\nAB = 3, BC = ?\nA. 1\nB. 2.5\n{LETTER}"
    assert questions(corpus) == [("geo-0", "images/1.png", text, "A")]
    assert not corpus.row(0).translatable


@pytest.mark.parametrize("name", ["c.json", "c.jsonl", "c.tsv"])
def test_captions(tmp_path: Path, name: str) -> None:
    rows = [{"image": f"{i}.png", "caption": f"A cat, {i}."} for i in range(20)]
    path = tmp_path / name
    if name.endswith("tsv"):
        lines = ["caption\timage", *(f"{row['caption']}\t{row['image']}" for row in rows)]
        path.write_text("\n".join(lines))
    else:
        save(path, rows)
    found = questions(load(tmp_path, "captions", path))
    assert [(image, answer) for _, image, _, answer in found] == [
        (row["image"], row["caption"]) for row in rows
    ]
    assert len({question for _, _, question, _ in found}) > 3
    assert found == questions(load(tmp_path, "captions", path))


def test_captions_without_a_column(tmp_path: Path) -> None:
    (tmp_path / "c.tsv").write_text("image\ttext\n1.png\tx\n")
    with pytest.raises(DataError, match=r"c\.tsv:1: no column caption; found image, text"):
        load(tmp_path, "captions", tmp_path / "c.tsv")


def test_parquet_and_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [record(i) for i in range(3)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "ds")
    path = save(tmp_path / "a.json", rows)
    expected = questions(load(tmp_path, "llava", path))
    assert questions(load(tmp_path, "parquet", tmp_path / "a.parquet")) == expected
    assert split_source(str(tmp_path / "ds"))[0].name == "hf"
    assert questions(load(tmp_path, "hf", tmp_path / "ds")) == expected


def test_messages_and_embedded_pictures(tmp_path: Path) -> None:
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    rows = [
        {"id": 1, "messages": said, "image": None},
        {"id": 2, "messages": said, "image": {"bytes": b"x", "path": None}},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "m.parquet")
    with pytest.raises(DataError, match="the image is embedded"):
        load(tmp_path, "parquet", tmp_path / "m.parquet")
    corpus = load(tmp_path, "parquet", tmp_path / "m.parquet", max_drop_rate=0.5)
    assert questions(corpus) == [("1", None, "Hi", "Ho")]


def test_formats_are_chosen_by_name_or_ending(tmp_path: Path) -> None:
    assert split_source("chartqa:x/y.json") == (FORMATS["chartqa"], Path("x/y.json"))
    assert split_source("x/y.jsonl") == (FORMATS["llava"], Path("x/y.jsonl"))
    with pytest.raises(ConfigError, match="unknown format 'coco'; choose from: llava"):
        split_source("coco:x.json")
    with pytest.raises(ConfigError, match=r"cannot be told from the ending '.txt'"):
        split_source("x.txt")


def test_pictures_must_lie_below_the_root(tmp_path: Path) -> None:
    path = save(tmp_path / "a" / "q.json", [{"imgname": "7.png", "query": "q", "label": "3"}])
    (tmp_path / "b").mkdir()
    with pytest.raises(ConfigError, match=r"png, which is not below --images"):
        import_corpus(
            [ImportSource(FORMATS["chartqa"], path)], tmp_path / "corpus", images=tmp_path / "b"
        )


# --- pictures, rules, the way back ---


def test_pictures_are_read_through_links(tmp_path: Path) -> None:
    """LLaVA's data folder is filled by links; a snapshot of the Hub consists of them."""
    blobs, data = tmp_path / "blobs", tmp_path / "data"
    for folder in (blobs / "charts", data / "ChartQA"):
        folder.mkdir(parents=True)
    for name in ("0", "charts/1.png"):
        Image.new("RGB", (4, 4)).save(blobs / name, "PNG")
    (data / "0.png").symlink_to("../blobs/0")
    (data / "charts").symlink_to(blobs / "charts")
    (data / "ChartQA" / "png").symlink_to(blobs / "charts")
    rows = [record(0), {**record(1), "image": "charts/1.png"}]
    sources = [
        ImportSource(FORMATS["llava"], save(tmp_path / "a.json", rows)),
        ImportSource(
            FORMATS["chartqa"],
            save(data / "ChartQA" / "c.json", [{"imgname": "1.png", "query": "q", "label": "3"}]),
        ),
    ]
    for option in ("verify_images", "copy_images"):
        out = tmp_path / option
        options: dict[str, Any] = {option: True}
        import_corpus(sources, out, images=data, **options)
        corpus = Corpus.open(out)
        names = [corpus.row(i).image for i in range(3)]
        assert names == ["0.png", "charts/1.png", "ChartQA/png/1.png"]
        assert validate(corpus, verify_images=True).num_errors == 0
    assert not (tmp_path / "copy_images" / "images" / "0.png").is_symlink()


@pytest.mark.parametrize("option", ["verify_images", "copy_images"])
def test_damage_of_any_format_is_counted(
    tmp_path: Path, damaged_image: bytes, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(4):
        Image.new("L", (2001, 1000) if i == 3 else (9, 9)).save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_bytes(damaged_image)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)  # an error from twice that
    path = save(tmp_path / "a.json", [record(i) for i in range(4)])
    source, out = ImportSource(FORMATS["llava"], path), tmp_path / "corpus"
    options: dict[str, Any] = {option: True}
    result = import_corpus([source], out, images=tmp_path, max_drop_rate=0.6, **options)
    reasons = {reason: count for (reason, _), count in result.reports[path].dropped.items()}
    assert reasons == {"broken_picture": 1, "too_many_pixels": 1}
    assert [row[0] for row in questions(Corpus.open(out))] == ["r0", "r2"]
    found = validate_source(source, tmp_path, verify_images=True)
    assert found.counts == {"broken_picture": 1, "too_many_pixels": 1}


def test_pictures_are_opened_on_request(tmp_path: Path) -> None:
    for i in (0, 2):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{i}.png")
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:40])
    rows = [record(0), record(1), record(2), {"id": "t", "conversations": talk("a", "b")}]
    path = save(tmp_path / "a.json", rows)
    with pytest.raises(DataError, match=r"sample 'r1': no such image"):
        load(tmp_path, "llava", path, verify_images=True)
    save(path, [*rows, {**record(3), "image": "../3.png"}])
    with pytest.raises(DataError, match=r"'\.\./3.png' is outside the image folder"):
        load(tmp_path, "llava", path)
    result = import_corpus(
        [ImportSource(FORMATS["llava"], path)],
        tmp_path / "corpus",
        images=tmp_path,
        max_drop_rate=0.6,
        verify_images=True,
    )
    report = result.reports[path]
    reasons = {reason: count for (reason, _), count in report.dropped.items()}
    assert reasons == {"missing_picture": 1, "broken_picture": 1, "outside_root": 1}
    assert report.num_read == 5 and sum(result.rows.values()) == 2
    assert [row[0] for row in questions(Corpus.open(tmp_path / "corpus"))] == ["r0", "t"]


@pytest.mark.parametrize(
    ("question", "stays"),
    [
        ("What is 3 + 4 = ?", True),
        ("Compute the sum of 3 and 4.", True),
        (r"Simplify \frac{1}{2}", True),
        ("In triangle ABC, what is x?", True),
        ("∠A equals what?", True),
        ("How many people are in the picture?", False),
        ("What color is the triangle?", False),
        ("What is the number on the bus?", False),
        ("Is the area to the left of the car empty?", False),
        ("What do the man and a dog do in 2012?", False),
    ],
)
def test_rules_of_what_stays_english(question: str, stays: bool) -> None:
    rules = Rules.load()
    turns = Sample.from_record({"id": "a", "conversations": talk(question, "42")}, "here")
    found = rules.apply(batch_of([turns])).to_pylist()[0]["translatable"]
    assert found is not stays
    assert rules.num_english == stays and bool(rules.examples) is stays


def test_rules_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    path.write_text('[[rules]]\nname = "poems"\nfield = "answer"\npattern = "(?i)rhyme"\n')
    rules = Rules.load(path)
    samples = [
        Sample.from_record({"id": str(i), "conversations": talk(*texts)}, "here")
        for i, texts in enumerate([("a", "b", "c", "A Rhyme"), ("rhyme?", "no"), ("x", "rhyme")])
    ]
    marked = rules.apply(batch_of(samples))
    assert marked.column("translatable").to_pylist() == [False, True, False]
    assert marked.schema == ROW_SCHEMA and rules.caught == {"poems": 2}
    assert rules.apply(batch_of(samples).slice(1)).column("translatable").to_pylist() == [
        True,
        False,
    ]
    path.write_text('[[rules]]\nname = "x"\nfield = "image"\npattern = "("\n')
    with pytest.raises(ConfigError, match="field: .*'image'; choose from: source, task"):
        Rules.load(path)
    path.write_text('[[rules]]\nname = "x"\nfield = "task"\npattern = "("\n')
    with pytest.raises(ConfigError, match=r"rules\[0\]: pattern '\(' is not usable"):
        Rules.load(path)


@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_the_way_back_is_exact(tmp_path: Path, ending: str) -> None:
    rows = [record(0, source="gqa", task="vqa"), record(1, source="s")]
    told = [
        {**turn, "supervised": False} if i == 1 else turn for i, turn in enumerate(talk(*"abcd"))
    ]
    rows.append({"id": "t", "conversations": told, "source": "s"})
    corpus = load(tmp_path, "llava", save(tmp_path / "a.json", rows))
    out = tmp_path / f"out.{ending}"
    assert export_llava(corpus, "en", out) == Exported(num_records=3)
    assert [raw for _, raw in iter_records(out)] == rows
    assert not list(tmp_path.glob("*.partial"))


def test_exporting_a_translation(tmp_path: Path) -> None:
    from lrm_ext.corpus.importing import import_llava

    english = save(tmp_path / "en.json", [record(0), record(1)])
    czech = [{**record(i), "conversations": talk("<image>\nOtázka?", "Ano.")} for i in range(2)]
    import_llava(english, tmp_path / "c", translations={"cs": save(tmp_path / "cs.json", czech)})
    runner = CliRunner()
    out = tmp_path / "{lang}.jsonl"
    command = ["corpus", "export", str(tmp_path / "c"), "--lang", "all", "--out", str(out)]
    assert runner.invoke(app, command).exit_code == 0
    found = [raw for _, raw in iter_records(tmp_path / "cs.jsonl")]
    assert found == [{**raw, "lang": "cs"} for raw in czech]
    with pytest.raises(ConfigError, match="there is no text in 'hr'; it has: en, cs"):
        export_llava(Corpus.open(tmp_path / "c"), "hr", tmp_path / "x.json")
    with pytest.raises(ConfigError, match="the ending is '.txt'"):
        export_llava(Corpus.open(tmp_path / "c"), "en", tmp_path / "x.txt")


def test_commands(tmp_path: Path) -> None:
    runner = CliRunner()
    geometry = record(1)
    geometry["conversations"][0]["value"] = "<image>\nCalculate 3 times 4."
    path = save(tmp_path / "a.json", [record(0), geometry])
    out = str(tmp_path / "corpus")
    command = ["corpus", "import", str(path), "--out", out, "--images", str(tmp_path), "--explain"]
    said = runner.invoke(app, command).output
    assert "2 rows, 1 of them stay English" in said and "1  computation asked for" in said
    assert "2 rows, 4 turns" in runner.invoke(app, ["corpus", "info", out]).output
    assert "Calculate 3" in runner.invoke(app, ["corpus", "show", out, "--row", "-1"]).output
    assert "chartqa" in runner.invoke(app, ["corpus", "import", "--formats"]).output
    same = runner.invoke(app, ["corpus", "diff", out, out])
    assert same.exit_code == 0 and "0 rows differ" in same.output
    save(path, [record(0), record(2)])
    runner.invoke(app, [*command[:4], str(tmp_path / "other"), *command[5:]])
    other = runner.invoke(app, ["corpus", "diff", out, str(tmp_path / "other")])
    assert other.exit_code == 1 and "1 rows differ: row 1" in other.output
