"""Data sets as they are distributed, several in one corpus, pictures in and beside the files."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpus_cli import lrm
from PIL import Image

from llava.errors import ConfigError, DataError
from lrm_ext.corpus.formats import split_source
from lrm_ext.corpus.importing import ImportSource, import_corpus
from lrm_ext.corpus.store import Corpus, CorpusRow

SHORT = "Answer the question using a single word or phrase."


def said(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def save(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def rows_of(path: Path) -> list[CorpusRow]:
    corpus = Corpus.open(path)
    return [corpus.row(i) for i in range(len(corpus))]


# as in llava_v1_5_mix665k.json: ids of two types, several rounds, text only, fields of no meaning
MIX = [
    {"id": "000000033471", "image": "coco/train2017/000000033471.jpg",
     "conversations": said("<image>\nWhat are the colors of the bus?", "White and red.",
                           "Is it driving?", "It is parked.")},
    {"id": 3, "image": "gqa/images/2354786.jpg",
     "conversations": said(f"Is the sky dark?\n{SHORT}\n<image>", "Yes")},
    {"id": "wgByO4Y_0", "model": "",
     "conversations": said("Write a haiku.", "Old pond", "More", "No")},
    {"id": "ocr/1", "image": "ocr_vqa/images/1932225675.jpg",
     "conversations": said("<image>\nWho wrote it?\nReference OCR token: A, B", "A. Author")},
]  # fmt: skip
# as in share-captioner_coco_lcs_sam_1246k_1107.json
PT = [
    {"id": "sa_545504", "image": "sam/images/sa_545504.jpg",
     "conversations": said("<image>\nWhat do you see happening in this image?",
                           "In the heart of a park stands a statue of bronze. " * 16)},
]  # fmt: skip


def test_several_sources_in_one_corpus(tmp_path: Path) -> None:
    images = tmp_path / "data"
    mix = save(tmp_path / "llava_v1_5_mix665k.json", MIX)
    captions = save(tmp_path / "share-captioner.json", PT)
    chart = [{"imgname": "7.png", "query": "How many bars?", "label": "3"}]
    charts = save(images / "ChartQA" / "train_human.json", chart)
    table = images / "captions.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("caption", "image"), ('A "cat", asleep\nand a dog', "c.png")])
    out = tmp_path / "corpus"
    sources = (mix, f"sharegpt4v:{captions}", f"chartqa:{charts}", table)
    printed = lrm("corpus", "import", *sources, "--images", images, "--out", out)
    rows = rows_of(out)
    assert [(row.source, row.task, row.image) for row in rows] == [
        ("llava_v1_5_mix665k", None, "coco/train2017/000000033471.jpg"),
        ("llava_v1_5_mix665k", None, "gqa/images/2354786.jpg"),
        ("llava_v1_5_mix665k", None, None),
        ("llava_v1_5_mix665k", None, "ocr_vqa/images/1932225675.jpg"),
        ("sharegpt4v", None, "sam/images/sa_545504.jpg"),
        ("chartqa", "chart", "ChartQA/png/7.png"),
        ("captions", "caption", "c.png"),
    ]
    assert [len(row.turns) for row in rows] == [4, 2, 4, 2, 2, 2, 2]
    assert rows[1].id == "3" and rows[1].turns[0].text.endswith("<image>")
    assert rows[6].turns[1].text == 'A "cat", asleep\nand a dog'
    assert "llava_v1_5_mix665k" in printed and "7 rows, 0 of them stay English" in printed
    corpus = Corpus.open(out)
    image = out / corpus.image_root.relative_to(out) / "sam/images/sa_545504.jpg"
    assert [corpus.image_paths(i) for i in (2, 4)] == [(), (image,)]
    assert corpus.image_root.resolve() == images
    info = lrm("corpus", "info", out)
    assert "7 rows, 18 turns" in info and "6 images, 1 rows without one" in info


def test_one_bad_source_spoils_nothing_that_was_there(tmp_path: Path) -> None:
    good = save(tmp_path / "good.json", MIX)
    out = tmp_path / "corpus"
    lrm("corpus", "import", good, "--out", out)
    before = {path.name: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    bad = save(tmp_path / "bad.json", [{"id": "x", "conversations": []}])
    with pytest.raises(DataError, match=r"bad\.json:1, sample 'x'"):
        lrm("corpus", "import", good, bad, "--out", out, "--overwrite")
    with pytest.raises(DataError, match="exists already; .* replace it with --overwrite"):
        lrm("corpus", "import", good, "--out", out)
    assert {path.name: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert not list(tmp_path.glob("*.partial"))


def test_the_rate_of_bad_rows_is_for_each_source(tmp_path: Path) -> None:
    """Nine of ten rows of a small source vanish in no large one."""
    large = save(tmp_path / "large.json", [{**MIX[2], "id": str(i)} for i in range(200)])
    small = [{"id": str(i), "conversations": said("Hi", "Ho") if i == 0 else []} for i in range(10)]
    path = save(tmp_path / "small.json", small)
    command = ("corpus", "import", large, path, "--out", tmp_path / "corpus")
    with pytest.raises(DataError, match=r"9 of 10 samples \(90\.0%\)"):
        lrm(*command, "--max-drop-rate", "0.5")
    assert "dropped  structure" in lrm(*command, "--max-drop-rate", "0.95")
    assert len(rows_of(tmp_path / "corpus")) == 201


# --- columns ---


def picture(color: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(buffer, "PNG")
    return buffer.getvalue()


def chat(*texts: str, image: bool = False) -> list[dict[str, Any]]:
    turns = []
    for i, text in enumerate(texts):
        parts = [{"type": "image", "text": None}] if image and i == 0 else []
        parts.append({"type": "text", "text": text})
        turns.append({"role": ("user", "assistant")[i % 2], "content": parts})
    return turns


def test_messages_of_parts_and_pairs(tmp_path: Path) -> None:
    messages = [
        {"images": ["1.png"], "messages": chat("What is it?", "A cat.", image=True)},
        {"images": [], "messages": chat("Hi", "Ho")},
        {"images": ["1.png", "2.png"], "messages": chat("Which?", "Both.", image=True)},
    ]
    pq.write_table(pa.Table.from_pylist(messages), tmp_path / "chat.parquet")
    pairs = [
        {"user": "What is it?", "assistant": "A dog.", "source": "vqav2"},
        {"user": "Is it old?", "assistant": "No", "source": "vqav2"},
    ]
    pq.write_table(
        pa.Table.from_pylist([{"image": "3.png", "texts": pairs}, {"image": None, "texts": pairs}]),
        tmp_path / "pairs.parquet",
    )
    out = tmp_path / "corpus"
    command = ("corpus", "import", tmp_path / "chat.parquet", tmp_path / "pairs.parquet")
    with pytest.raises(DataError, match=r"row 2, sample 'chat-2': .* hold 1 <image>, expected 2"):
        lrm(*command, "--images", tmp_path, "--out", out)
    lrm(*command, "--images", tmp_path, "--out", out, "--max-drop-rate", "0.4")
    rows = rows_of(out)
    assert [(row.id, row.image, row.source) for row in rows] == [
        ("chat-0", "1.png", "chat"),
        ("chat-1", None, "chat"),
        ("pairs-0", "3.png", "vqav2"),
        ("pairs-1", None, "vqav2"),
    ]
    assert [turn.text for turn in rows[0].turns] == ["<image>\nWhat is it?", "A cat."]
    assert rows[2].turns[0].text == "<image>\nWhat is it?" and len(rows[2].turns) == 4
    assert rows[3].turns[0].text == "What is it?"


@pytest.mark.parametrize(
    "columns",
    [
        {"id": "1", "image": picture("red"), "conversations": said("<image>\nWhat?", "It.")},
        {"images": [picture("red")], "conversations": said("<image>\nWhat?", "It.")},
        {"image": picture("red"), "messages": chat("What?", "It.", image=True)},
        {"image": picture("red"), "conversations": [
            {"from": "user", "value": "<image>\nWhat?"}, {"from": "assistant", "value": "It."}]},
    ],
)  # fmt: skip
def test_pictures_as_plain_bytes(tmp_path: Path, columns: dict[str, Any]) -> None:
    pq.write_table(pa.Table.from_pylist([columns]), tmp_path / "a.parquet")
    command = ("corpus", "import", tmp_path / "a.parquet", "--images", tmp_path, "--copy-images")
    lrm(*command, "--out", tmp_path / "corpus")
    corpus = Corpus.open(tmp_path / "corpus")
    assert [turn.text for turn in corpus.row(0).turns] == ["<image>\nWhat?", "It."]
    (path,) = corpus.image_paths(0)
    assert path.read_bytes() == picture("red")


def test_videos_and_system_prompts_in_columns(tmp_path: Path) -> None:
    rows = [
        {"conversations": said("Hi", "Ho"), "system": None, "videos": ["1.mp4"]},
        {"conversations": said("Hi", "Ho"), "system": "Be brief.", "videos": None},
        {"conversations": said("Hi", "Ho"), "system": None, "videos": []},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    command = ("corpus", "import", tmp_path / "a.parquet", "--images", tmp_path)
    printed = lrm(*command, "--out", tmp_path / "corpus", "--max-drop-rate", "0.7")
    assert "dropped  video" in printed and "dropped  system_prompt" in printed
    assert "row 0, sample 'a-0'" in printed and len(rows_of(tmp_path / "corpus")) == 1


def test_a_folder_of_the_hub(tmp_path: Path) -> None:
    data = tmp_path / "hub" / "data"
    data.mkdir(parents=True)
    for name, question in (("train-00000-of-00002", "A"), ("train-00001-of-00002", "B")):
        table = pa.Table.from_pylist([{"conversations": said(question, "Ho")}])
        pq.write_table(table, data / f"{name}.parquet")
    command = ("corpus", "import", "--images", tmp_path)
    lrm(*command, f"parquet:{data.parent}", "--out", tmp_path / "both")
    assert [row.turns[0].text for row in rows_of(tmp_path / "both")] == ["A", "B"]
    pq.write_table(table, data / "test-00000-of-00001.parquet")
    with pytest.raises(DataError, match=r"the splits test, train; name one, such as .*test-\*"):
        lrm(*command, f"parquet:{data.parent}", "--out", tmp_path / "no")
    lrm(*command, data / "train-*.parquet", "--out", tmp_path / "train")
    assert len(rows_of(tmp_path / "train")) == 2


def embedded(tmp_path: Path) -> Path:
    rows = [
        {"id": "a", "image": {"bytes": picture("red"), "path": "r.png"}},
        {"id": "b", "image": {"bytes": picture("blue"), "path": None}},
        {"id": "c", "image": {"bytes": picture("red"), "path": None}},
        {"id": "d", "image": {"bytes": b"no picture", "path": None}},
        {"id": "e", "image": {"bytes": None, "path": "beside.png"}},
    ]
    for row in rows:
        row["conversations"] = said("<image>\nWhat?", "It.")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "e.parquet")
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8), "green").save(tmp_path / "images" / "beside.png")
    return tmp_path / "e.parquet"


def test_embedded_pictures_are_written_out_if_asked(tmp_path: Path) -> None:
    path, out = embedded(tmp_path), tmp_path / "corpus"
    command = ("corpus", "import", path, "--images", tmp_path / "images", "--out", out)
    with pytest.raises(DataError, match=r"row 0: the image is embedded.*--copy-images"):
        lrm(*command)
    with pytest.raises(DataError, match=r"row 3: .*cannot be read"):
        lrm(*command, "--copy-images")
    assert not out.exists()
    printed = lrm(*command, "--copy-images", "--max-drop-rate", "0.3")
    assert "broken_picture" in printed
    corpus = Corpus.open(out)
    assert corpus.image_root == out / "images"
    rows = rows_of(out)
    assert [row.id for row in rows] == ["a", "b", "c", "e"]
    colors = []
    for i in range(4):
        with Image.open(corpus.image_paths(i)[0]) as found:
            colors.append(found.convert("RGB").getpixel((0, 0)))
    assert colors == [(255, 0, 0), (0, 0, 255), (255, 0, 0), (0, 128, 0)]
    # the same picture once
    assert rows[0].image == rows[2].image
    files = [p for p in (out / "images").rglob("*") if p.is_file()]
    assert len(files) == 3 and not [p for p in files if p.suffix == ".partial"]
    lrm("corpus", "validate", out, "--verify-images")
    # the corpus can be moved
    out.rename(tmp_path / "moved")
    (tmp_path / "images" / "beside.png").unlink()
    lrm("corpus", "validate", tmp_path / "moved", "--verify-images")


def test_pictures_are_copied_only_if_asked(tmp_path: Path) -> None:
    for name in ("x/1.png", "2.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5, 5)).save(tmp_path / "images" / name)
    rows = [
        {"id": str(i), "image": name, "conversations": said("<image>\nWhat?", "It.")}
        for i, name in enumerate(("x/1.png", "2.png", "x/1.png"))
    ]
    path, out = save(tmp_path / "a.json", rows), tmp_path / "corpus"
    command = ("corpus", "import", path, "--images", tmp_path / "images", "--out", out)
    lrm(*command, "--verify-images")
    assert not (out / "images").exists()
    lrm(*command, "--copy-images", "--overwrite")
    found = {p.relative_to(out / "images").as_posix() for p in (out / "images").rglob("*.png")}
    assert found == {"x/1.png", "2.png"}
    (tmp_path / "images" / "2.png").unlink()
    with pytest.raises(DataError, match=r"sample '1': no such image"):
        lrm(*command, "--copy-images", "--overwrite")
    assert (out / "images" / "2.png").is_file()  # the corpus that was there still is


def test_a_hugging_face_dataset_with_pictures(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "texts": [{"user": datasets.Value("string"), "assistant": datasets.Value("string")}],
        }
    )
    rows = [
        {
            "image": Image.new("RGB", (6, 6), color),
            "texts": [{"user": "Color?", "assistant": color}],
        }
        for color in ("red", "blue")
    ]
    datasets.Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "ds")
    out = tmp_path / "corpus"
    lrm("corpus", "import", tmp_path / "ds", "--out", out, "--copy-images", "--source", "colors")
    corpus = Corpus.open(out)
    for i, row in enumerate(rows_of(out)):
        assert row.source == "colors" and row.turns[0].text == "<image>\nColor?"
        with Image.open(corpus.image_paths(i)[0]) as found:
            assert found.convert("RGB").getpixel((0, 0)) == [(255, 0, 0), (0, 0, 255)][i]
    both = datasets.DatasetDict({"train": datasets.Dataset.from_list([{"texts": []}])})
    both.save_to_disk(tmp_path / "splits")
    with pytest.raises(DataError, match="it holds splits; name one: train"):
        lrm("corpus", "import", f"hf:{tmp_path / 'splits'}", "--out", tmp_path / "c2")


def test_a_folder_of_parquet_files_in_order(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    for shard in range(3):
        rows = [{"conversations": said(f"Q{shard}{i}", "A")} for i in range(2)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "shards" / f"train-{shard}.parquet")
    source = ImportSource(*split_source(f"parquet:{tmp_path / 'shards'}"))
    import_corpus([source], tmp_path / "corpus", images=tmp_path)
    found = [(row.id, row.turns[0].text) for row in rows_of(tmp_path / "corpus")]
    assert found == [(f"train-{s}-{i}", f"Q{s}{i}") for s in range(3) for i in range(2)]
    (tmp_path / "shards" / "train-1.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"train-1\.parquet: damaged"):
        import_corpus([source], tmp_path / "corpus", images=tmp_path, overwrite=True)


def test_a_wrong_folder_of_pictures_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = ImportSource(*split_source(str(save(tmp_path / "a.json", MIX))))
    with pytest.raises(ConfigError, match=r"nowhere: no such folder.*--images"):
        import_corpus([source], tmp_path / "corpus", images=tmp_path / "nowhere")
    assert not (tmp_path / "corpus").exists()
    import_corpus([source], tmp_path / "corpus", images=tmp_path)
    assert "none of the first" in caplog.text and "is --images right" in caplog.text
