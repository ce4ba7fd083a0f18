import json

import pytest

from llava.errors import ConfigError, DataError
from lrm_ext.evaluate.items import limit_items, read_items
from lrm_ext.evaluate.registry import get_benchmark, missing_images


def record(**changes):
    base = {
        "question_id": "naming-0001",
        "image": "a.png",
        "text": "Što je na slici?",
        "category": "naming",
        "answer": "mačka",
        "lang": "hr",
        "answer_type": "text",
    }
    return {**base, **changes}


def write(path, records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


def test_reads_questions(tmp_path):
    (item,) = read_items(write(tmp_path / "hr.jsonl", [record(further=1)]), "hr")
    assert (item.question_id, item.answer, item.answer_type) == ("naming-0001", "mačka", "text")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (record(answer_type="bool"), r"answer_type: .*yesno\|text.*found 'bool'"),
        (record(answer=" "), "answer is ' '"),
        (record(text=3), "text: .*found 3"),
        ({k: v for k, v in record().items() if k != "image"}, "missing key `image`"),
        (record(lang="cs"), "lang is cs, expected hr"),
        (record(), "has this id already"),
        (record(text="<image> or <image>?"), "2 <image> in the text, but 1 in `image`"),
        (record(image=["a.png", "b.png"], text="<image>?"), "1 <image> in the text, but 2"),
        (record(image=["a.png"] * 201), "201 images; expected at most 200"),
    ],
)
def test_errors_name_file_line_and_question(tmp_path, bad, message):
    path = write(tmp_path / "hr.jsonl", [record(), {**bad, "question_id": "naming-0001"}])
    with pytest.raises(DataError, match=message) as caught:
        read_items(path, "hr")
    assert f"{path}:2: question naming-0001" in str(caught.value)


def test_broken_json_names_its_line(tmp_path):
    path = write(tmp_path / "hr.jsonl", [record()])
    path.write_text(path.read_text() + '{"question_id"\n')
    with pytest.raises(DataError, match=r"hr\.jsonl:2: not JSON"):
        read_items(path, "hr")


def test_limit_takes_whole_images_and_the_same_in_every_language():
    def items(lang):
        return [
            _item(f"q{i}", f"{i // 2}.png", lang, category="first" if i < 10 else "second")
            for i in range(20)
        ]

    chosen = limit_items(items("hr"), 5)
    assert len(chosen) == 6
    images = [item.image for item in chosen]
    assert all(images.count(image) == 2 for image in images)
    assert [i.question_id for i in chosen] == [i.question_id for i in limit_items(items("cs"), 5)]
    assert limit_items(items("hr"), None) == limit_items(items("hr"), 50) == items("hr")


def _item(question_id, image, lang, category):
    from lrm_ext.evaluate.items import Item

    return Item(question_id, image, "?", category, "x", lang, "text")


def test_registry(tmp_path):
    with pytest.raises(ConfigError, match="unknown benchmark mnist; choose from scenes"):
        get_benchmark("mnist")
    with pytest.raises(ConfigError, match="no benchmark folder"):
        get_benchmark("mine", tmp_path / "nowhere")
    write(tmp_path / "hr.jsonl", [record(), record(question_id="2", image="b.png")])
    (tmp_path / "a.png").touch()
    benchmark = get_benchmark("mine", tmp_path)
    assert benchmark.languages() == ("hr",)
    assert missing_images(benchmark, benchmark.read("hr")) == ["b.png"]
    with pytest.raises(DataError, match=r"no en\.jsonl .* it has hr"):
        benchmark.read("en")


@pytest.mark.parametrize("split", ["test", "val"])
def test_the_built_in_benchmark_is_read_and_its_pictures_are_found(tmp_path, monkeypatch, split):
    from lrm_ext.emoji import unpack as emoji
    from lrm_ext.evaluate.kind import gold_of
    from lrm_ext.evaluate.reading import answer_words
    from lrm_ext.languages.registry import PAPER_LANGUAGES

    monkeypatch.setattr(emoji, "ensure_unpacked", lambda: emoji.unpack(tmp_path / "c", limit=4))
    benchmark = get_benchmark("scenes" if split == "test" else "scenes-val")
    ids = set()
    for lang in PAPER_LANGUAGES:
        items = benchmark.read(lang)
        assert missing_images(benchmark, items) == []
        golds = {gold_of(i, answer_words(lang)) for i in items if i.answer_type == "yesno"}
        assert golds == {"yes", "no"}
        ids.add(tuple((item.question_id, item.image) for item in items))
    assert len(ids) == 1, "the same questions on the same pictures in every language"
