"""A sample of several images goes the whole way: in, checked, translated, drawn, out again."""

from __future__ import annotations

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
from lrm_ext.corpus.store import OLD_ROW_SCHEMA, Corpus
from lrm_ext.instructions import get_instruction
from lrm_ext.languages import get_language
from lrm_ext.training.contrastive_loss import Renderings


def talk(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


RECORDS: list[dict[str, Any]] = [
    {"id": "front", "image": ["a.png", "b.png"],
     "conversations": talk("<image>\n<image>\nWhich of the images is red?", "The first one.")},
    {"id": "inside", "image": ["a.png", "b.png"],
     "conversations": talk("Is <image> as dark as <image>?", "No.", "Which one is red?", "One.")},
    {"id": "turns", "image": ["b.png", "a.png", "b.png"],
     "conversations": talk("What is this?\n<image>", "Blue.", "And <image> or <image>?", "Red.")},
    {"id": "single", "image": "a.png", "conversations": talk("<image>\nWhat is it?", "Red.")},
    {"id": "text", "conversations": talk("Hello?", "Hi.")},
]  # fmt: skip
RECORDS = [{**record, "source": "made"} for record in RECORDS]
CROATIAN = {
    "Which of the images is red?": "Koja je slika crvena?",
    "The first one.": "Prva.",
    "Is <image> as dark as <image>?": "Je li <image> tamna kao <image>?",
    "No.": "Ne.",
    "Which one is red?": "Koja je crvena?",
    "One.": "Jedna.",
    "What is this?": "Što je ovo?",
    "Blue.": "Plava.",
    "And <image> or <image>?": "A <image> ili <image>?",
    "Red.": "Crvena.",
    "What is it?": "Što je to?",
    "Hello?": "Halo?",
    "Hi.": "Bok.",
}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    Image.new("RGB", (8, 6), "red").save(tmp_path / "a.png")
    Image.new("RGB", (6, 8), "blue").save(tmp_path / "b.png")
    return tmp_path


def save(path: Path, records: list[dict[str, Any]]) -> Path:
    lines = (json.dumps(r, ensure_ascii=False, separators=(",", ":")) for r in records)
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
    return path


@pytest.fixture
def corpus(images: Path) -> Path:
    source = save(images / "made.json", RECORDS)
    lrm("corpus", "import", source, "--images", images, "--out", images / "c", "--verify-images")
    return images / "c"


def translate(corpus: Path, texts: dict[str, str], *more: str) -> Corpus:
    table = corpus.parent / "hr.tsv"
    table.write_text("".join(f"{en}\t{hr}\n" for en, hr in texts.items()), encoding="utf-8")
    lrm("translate", corpus, "--to", "hr", "--engine", "memory", "-o", f"table={table}", *more)
    return Corpus.open(corpus)


def test_what_comes_in_goes_out_byte_by_byte(corpus: Path) -> None:
    lrm("corpus", "export", corpus, "--out", corpus.parent / "back.json")
    assert (corpus.parent / "back.json").read_bytes() == (corpus.parent / "made.json").read_bytes()
    opened = Corpus.open(corpus)
    assert [path.name for path in opened.image_paths(2)] == ["b.png", "a.png", "b.png"]
    assert opened.row(1).image == ("a.png", "b.png") and opened.row(3).image == "a.png"
    said = lrm("corpus", "info", corpus)
    assert "2 images, 1 rows without one, 3 with several" in said
    assert "b.png, a.png, b.png" in lrm("corpus", "show", corpus, "--row", "2")
    assert "5 rows, 0 errors, 0 remarks" in lrm("corpus", "validate", corpus, "--verify-images")


def test_each_image_is_opened_and_named(corpus: Path) -> None:
    (corpus.parent / "b.png").write_bytes(b"no image")
    said = lrm("corpus", "validate", corpus, "--verify-images", code=1)
    assert "error 3 x an image that cannot be opened" in said and "row 2 (turns)" in said
    (corpus.parent / "b.png").unlink()
    source, out = corpus.parent / "made.json", corpus.parent / "d"
    with pytest.raises(DataError, match=r"'front'.*b\.png"):
        lrm("corpus", "import", source, "--images", corpus.parent, "--out", out, "--verify-images")


@pytest.mark.parametrize(
    ("record", "reason", "said"),
    [
        ({"image": ["a.png", "b.png"]}, "image_mismatch", "hold 1 <image>, expected 2"),
        ({"image": ["a.png"] * 201}, "too_many_images", "201 images, expected at most 200"),
        ({"image": ["a.png", "../b.png"], "conversations": talk("<image> <image>", "Ho")},
         "outside_root", "'../b.png' is outside"),
        ({"image": ["a.png", 7]}, "structure", "the image is int"),
        ({"image": ["a.png", "b.png"], "conversations": talk("<image>", "See <image>")},
         "image_mismatch", "stands in an answer"),
    ],
)  # fmt: skip
def test_a_wrong_number_or_place_is_named(
    images: Path, record: dict[str, Any], reason: str, said: str
) -> None:
    bad = {"id": "bad", "conversations": talk("<image>\nHi", "Ho"), **record}
    source = save(images / "made.json", [*RECORDS, bad])
    command = ("corpus", "import", source, "--images", images, "--out", images / "c")
    with pytest.raises(DataError, match=rf"made\.json:7, sample 'bad': .*{said}"):
        lrm(*command)
    assert f"dropped  {reason}" in lrm(*command, "--max-drop-rate", "0.2")
    assert len(Corpus.open(images / "c")) == len(RECORDS)
    assert "1 errors" in lrm("corpus", "validate", source, "--images", images, code=1)


def test_200_images_are_taken(images: Path) -> None:
    turns = talk("<image>" * 200, "Many.")
    source = save(
        images / "made.json", [{"id": 1, "image": ["a.png"] * 200, "conversations": turns}]
    )
    lrm("corpus", "import", source, "--images", images, "--out", images / "c")
    assert len(Corpus.open(images / "c").image_paths(0)) == 200


def test_a_corpus_from_before_opens(corpus: Path) -> None:
    """Shards without the column of several images are read as they are."""
    lrm("corpus", "export", corpus, "--out", corpus.parent / "back.json")
    shard = corpus / "rows" / "00000.arrow"
    with pa.memory_map(str(shard)) as file:
        whole = pa.ipc.open_file(file).read_all()
    single = whole.slice(3)
    table = single.select(OLD_ROW_SCHEMA.names)
    with pa.ipc.new_file(str(corpus / "new"), OLD_ROW_SCHEMA) as writer:
        writer.write_table(table)
    (corpus / "new").rename(shard)
    meta = corpus / "corpus.toml"
    meta.write_text(meta.read_text().replace("num_rows = 5", "num_rows = 2"))
    opened = Corpus.open(corpus)
    assert [row.image for row in opened.iter_rows()] == ["a.png", None]
    assert opened.row(0).id == "single" and opened.image_paths(1) == ()
    lrm("corpus", "export", corpus, "--out", corpus.parent / "old.json")
    assert json.loads((corpus.parent / "old.json").read_text()) == RECORDS[3:]
    assert "2 rows, 0 errors, 0 remarks" in lrm("corpus", "validate", corpus)


def test_a_table_with_embedded_images(images: Path) -> None:
    contents = [(images / name).read_bytes() for name in ("a.png", "b.png")]
    rows = [
        {"images": [{"bytes": content, "path": None} for content in contents],
         "texts": [{"user": "Which one?", "assistant": "Both."}]},
        {"images": [{"bytes": contents[1], "path": None}],
         "texts": [{"user": "Which one?", "assistant": "It."}]},
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), images / "made.parquet")
    source, out = images / "made.parquet", images / "c"
    lrm("corpus", "import", source, "--images", images, "--copy-images", "--out", out)
    opened = Corpus.open(out)
    assert opened.row(0).turns[0].text == "<image>\n<image>\nWhich one?"
    sides = [Image.open(io.BytesIO(p.read_bytes())).size for p in opened.image_paths(0)]
    assert sides == [(8, 6), (6, 8)]
    assert opened.row(1).turns[0].text == "<image>\nWhich one?"


def test_translated_images_keep_their_places(corpus: Path) -> None:
    opened = translate(corpus, CROATIAN)
    assert opened.statuses("hr") == {"ok": 5, "suspect": 0, "rejected": 0}
    said = [turn.text for turn in opened.turns("hr", 2) or ()]
    assert said == ["Što je ovo?\n<image>", "Plava.", "A <image> ili <image>?", "Crvena."]
    lrm("corpus", "export", corpus, "--lang", "hr", "--out", corpus.parent / "hr.json")
    (inside,) = (
        r for r in json.loads((corpus.parent / "hr.json").read_text()) if r["id"] == "inside"
    )
    assert inside["image"] == ["a.png", "b.png"]
    assert inside["conversations"][0]["value"] == "Je li <image> tamna kao <image>?"


def test_the_page_shows_all_images_of_a_row(corpus: Path) -> None:
    translate(corpus, CROATIAN)
    lrm("corpus", "report", corpus, "--out", corpus.parent / "report.html", "--pictures")
    page = (corpus.parent / "report.html").read_text(encoding="utf-8")
    shown = page.partition("row 2, turns, ")[2].partition('<div class="row">')[0]
    names = [part.partition('"')[0] for part in shown.split(' alt="')[1:]]
    assert names == ["b.png", "a.png", "b.png"]


def test_the_alignment_loss_takes_one_image_a_text(corpus: Path) -> None:
    with pytest.raises(ConfigError, match="has rows with several images: leave it out"):
        Renderings(Corpus.open(corpus), None)


@pytest.mark.parametrize("check", ["--check", "--no-check"])
@pytest.mark.parametrize(
    "texts",
    [
        {"Is <image> as dark as <image>?": "Je li <image> tamna?"},
        {"Is <image> as dark as <image>?": "Je li <image> <image> tamna kao <image>?"},
        {"Is <image> as dark as <image>?": "Je li <image> tamna?", "Which one is red?": "<image>?"},
    ],
    ids=["lost", "doubled", "moved to another turn"],
)
def test_an_image_out_of_place_is_rejected(corpus: Path, texts: dict[str, str], check: str) -> None:
    opened = translate(corpus, {**CROATIAN, **texts}, check)
    text = opened.text("hr", 1)
    assert text is not None and text.status == "rejected"
    assert "turn 1" in str(text.reason) and "expected 2" in str(text.reason)
    assert opened.statuses("hr")["ok"] == 4 and opened.turns("hr", 1) is None
    assert "0 errors" in lrm("corpus", "validate", corpus)


def test_instructions_leave_images_in_the_question(corpus: Path) -> None:
    opened = translate(corpus, CROATIAN)
    pivot, ask = get_instruction("epvqa"), get_language("hr").epvqa_instruction
    front, inside, turns = (
        [turn.text for turn in pivot.format(opened.row(i), opened.turns("hr", i), "hr").turns]
        for i in range(3)
    )
    assert front[0] == f"<image>\n<image>\nKoja je slika crvena?\n{ask}"
    assert front[1] == "English: Which of the images is red?\nOdgovor: Prva."
    assert inside[0] == f"Je li <image> tamna kao <image>?\n{ask}"
    assert inside[1] == "English: Is image 1 as dark as image 2?\nOdgovor: Ne."
    assert turns[0] == f"Što je ovo?\n{ask}\n<image>"
    assert turns[1] == "English: What is this?\nOdgovor: Plava."
    assert turns[3] == "English: And image 2 or image 3?\nOdgovor: Crvena."
