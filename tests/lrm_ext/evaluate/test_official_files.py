"""Reading the official distributions, whole and damaged."""

import base64
import json
from dataclasses import replace

import official_files as files
import pytest

from llava.errors import ConfigError, DataError
from lrm_ext.evaluate.importing import import_benchmark, open_questions, read_benchmark
from lrm_ext.evaluate.items import Item
from lrm_ext.evaluate.kinds import get_kind
from lrm_ext.evaluate.official import ImageStore, Source
from lrm_ext.evaluate.registry import get_benchmark, missing_images
from lrm_ext.evaluate.scoring import score_file
from lrm_ext.languages import get_language

SHORT = "\nAnswer the question using a single word or phrase."


def read(name, path, lang="en", **options):
    return read_benchmark(name, Source(path, lang, ImageStore(None), **options)).items


def same(items):
    """What must be equal however the questions came."""
    return [(i.question_id, i.text, i.answer, i.category, i.options, i.group) for i in items]


def test_mme_in_all_shapes(tmp_path):
    folder = read("mme", files.mme_folder(tmp_path / "mme"))
    assert [item.question_id for item in folder] == [
        "color/000001#0", "color/000001#1", "posters/tt01#0", "posters/tt01#1",
    ]  # fmt: skip
    assert folder[1].text == "Is the car blue?" + SHORT, "two blanks before the instruction"
    assert folder[2].image == "posters/images/tt01.jpg"
    bundle = read("mme", files.mme_bundle(tmp_path / "bundle"))
    assert same(bundle) == same(sorted(folder, key=lambda item: item.question_id))
    assert bundle[0].source_id == bundle[1].source_id == "color/000001.jpg"
    for name in ("mme.parquet", "mme.tsv"):
        assert same(read("mme", files.mme_table(tmp_path / name))) == same(folder)


def test_pope_in_all_shapes(tmp_path):
    folder = read("pope", files.pope_folder(tmp_path / "pope"))
    assert len(folder) == 6 and folder[0].question_id == "random/1"
    assert folder[1].question == "Is there an owl in the image?", "the misspelling is mended"
    bundle = read("pope", files.pope_bundle(tmp_path / "bundle"))
    assert {(i.question_id, i.answer) for i in bundle} == {
        (i.question_id, i.answer) for i in folder
    }
    assert {item.source_id for item in bundle} >= {"10000001", "20000002", "1"}
    parquet = read("pope", files.pope_parquet(tmp_path / "pope.parquet"))
    assert same(parquet) == same(folder)
    shared = read("pope", files.pope_tsv(tmp_path / "pope.tsv"))
    assert [item.question_id for item in shared] == ["random/0", "popular/0", "random/1"]


def test_seed_bench_in_all_shapes(tmp_path):
    folder = read("seed_bench", files.seed_folder(tmp_path / "seed"))
    assert [item.category for item in folder] == ["1 Scene Understanding", "4 Instance Location"]
    assert folder[0].text == (
        "How many?\nA. one\nB. two\nC. three\nD. four\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert same(read("seed", files.seed_bundle(tmp_path / "bundle"))) == same(folder)
    for shape in (files.seed_parquet(tmp_path / "s.parquet"), files.seed_tsv(tmp_path / "s.tsv")):
        found = read("seed_bench", shape)
        assert [(i.question_id, i.answer) for i in found] == [("101", "B"), ("102", "D")]


def test_mmbench_in_all_shapes(tmp_path):
    rows = read("mmbench", files.mmbench_tsv(tmp_path / "mmbench_dev_20230712.tsv"))
    assert [item.group for item in rows] == ["7", "8", "7", "8", "7"]
    assert rows[0].options == ("cat", "dog", "None of these")
    assert rows[2].image == rows[0].image != "", "the picture of another row"
    assert rows[1].text == (
        "Look closely.\nIs it big?\nA. yes\nB. no\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert rows[0].supercategory == "coarse_perception"
    for index in (int, str):
        found = read(
            "mmbench", files.mmbench_parquet(tmp_path / f"{index.__name__}.parquet", index)
        )
        assert same(found) == same(rows)


def add_bom(folder):
    """Save all texts as Notepad does."""
    for path in folder.rglob("*"):
        if path.suffix in (".json", ".jsonl", ".tsv", ".txt"):
            path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())


@pytest.mark.parametrize(
    ("name", "make"),
    [("mme", files.mme_folder), ("mme", files.mme_bundle), ("pope", files.pope_folder),
     ("pope", files.pope_bundle), ("seed", files.seed_bundle), ("seed", files.seed_tsv),
     ("mmbench", files.mmbench_tsv)],
)  # fmt: skip
def test_byte_order_marks_in_official_files(tmp_path, name, make):
    path = tmp_path / ("files.tsv" if "tsv" in make.__name__ else "files")
    path = make(path)
    items = read(name, path)
    add_bom(tmp_path)
    assert read(name, path) == items


def test_byte_order_marks_in_a_folder_and_in_answers(tmp_path):
    out = tmp_path / "out" / "mmbench"
    items = import_benchmark("mmbench", files.mmbench_tsv(tmp_path / "m.tsv"), out, lang="cs").items
    rows = [{"question_id": i.question_id, "text": i.answer, "lang": "cs"} for i in items]
    answers = files.write_lines(tmp_path / "answers.jsonl", rows)
    add_bom(tmp_path)
    assert tuple(get_benchmark("mmbench", tmp_path / "out").read("cs")) == items
    report = score_file("mmbench", answers, data=out)
    assert (report.headline, report.lang) == (100, "cs"), "the first line says the language"


def test_a_json_file_in_utf_16_is_an_error(tmp_path):
    folder = files.pope_folder(tmp_path / "pope")
    path = folder / "coco_pope_random.json"
    path.write_text(path.read_text(encoding="utf-8"), encoding="utf-16")
    with pytest.raises(DataError, match="random.json:1: not UTF-8"):
        read("pope", folder)


def test_an_option_that_reads_none(tmp_path, caplog):
    rows = files.mmbench_rows()
    for row in rows:
        for letter in "ABC":
            row[letter] = "None" if row[letter] == "None of these" else row[letter]
    # last place: an absent cell ends the options, so only the other rotations have all of them
    turned = rows[:1] + rows[2:3] + [{**rows[4], "A": "cat", "B": "dog", "C": "", "answer": "B"}]
    found = read("mmbench", files.write_tsv(tmp_path / "a.tsv", turned))
    assert [len(item.options) for item in found] == [2, 3, 2]
    found = read("mmbench", files.write_tsv(tmp_path / "b.tsv", [
        {**rows[0], "A": "None", "B": "dog", "C": "nan", "answer": "B"},
        {**rows[2], "A": "dog", "B": "cat", "C": "", "answer": "A"},
    ]))  # fmt: skip
    assert found[0].options == ("None", "dog") and "option that reads None" in caplog.text


def six_options(**changes):
    row = {**files.mmbench_rows()[0], "hint": "", "answer": "F"}
    row |= dict(zip("ABCDEF", ("cat", "dog", "hen", "cow", "pig", "none of these"), strict=True))
    return {**row, **changes}


def test_mmbench_with_six_options(tmp_path):
    path = files.write_tsv(tmp_path / "m.tsv", [six_options()])
    (item,) = read("mmbench", path)
    assert item.text.endswith(
        "\nE. pig\nF. none of these\n"
        "Answer with the option's letter from the given choices directly."
    )
    for text, modes in (("F", "vlmevalkit local"), ("None of these", "vlmevalkit local lmms-eval")):
        for mode in modes.split():
            answers = files.write_lines(tmp_path / "a.jsonl", [{"question_id": 7, "text": text}])
            assert score_file("mmbench", answers, data=path, mode=mode).headline == 100


def test_options_after_an_empty_one_are_counted(tmp_path, caplog):
    path = files.write_tsv(tmp_path / "m.tsv", [six_options(E="", answer="A")])
    (item,) = read("mmbench", path)
    assert len(item.options) == 4
    assert "1 rows have options after an empty one; they are left out, as LLaVA" in caplog.text


@pytest.mark.parametrize("lang", ["cs", "zh"])
def test_prompts_are_in_the_language_of_the_questions(tmp_path, lang):
    language = get_language(lang)
    (item, *_) = read("pope", files.pope_folder(tmp_path / "pope"), lang)
    assert item.text.endswith("\n" + language.short_answer)
    (item, *_) = read("mmbench", files.mmbench_tsv(tmp_path / "m.tsv"), lang)
    assert item.text.endswith("\n" + language.option_letter)


def test_mme_strips_the_instruction_of_its_language(tmp_path):
    folder = files.mme_folder(tmp_path / "mme")
    path = folder / "color" / "000001.txt"
    path.write_text("Je auto červené? Odpovězte ano, nebo ne.\tYes\nJe modré?\tNo\n", "utf-8")
    items = read("mme", folder, "cs")
    assert [item.question for item in items[:2]] == ["Je auto červené?", "Je modré?"]


def test_import_and_ask(tmp_path):
    source = files.mmbench_tsv(tmp_path / "mmbench_dev.tsv")
    out = tmp_path / "benchmarks" / "mmbench"
    questions = import_benchmark("mmbench", source, out)
    benchmark = get_benchmark("mmbench", tmp_path / "benchmarks")
    assert benchmark.kind == "mmbench" and benchmark.versions["en"] == questions.version
    assert questions.version.startswith("mmbench_dev-5-")
    items = benchmark.read("en")
    assert tuple(items) == questions.items and missing_images(benchmark, items) == []
    assert len(list((out / "images").iterdir())) == 1, "one picture, named by its content"
    import_benchmark("mmbench", source, out, lang="cs")
    assert get_benchmark("mmbench", out).languages() == ("cs", "en")
    assert open_questions("mmbench", out, "cs").english == questions.items
    assert not list(tmp_path.rglob("*.partial"))


def test_the_question_alone(tmp_path):
    source, out = files.mmbench_tsv(tmp_path / "m.tsv"), tmp_path / "out"
    items = import_benchmark("mmbench", source, out, style="question").items
    assert [item.text for item in items[:2]] == ["What is it?", "Look closely.\nIs it big?"]
    assert get_benchmark("mmbench", out).prompt == "question"
    with pytest.raises(DataError, match="asked in style question, not llava"):
        import_benchmark("mmbench", source, out, lang="cs")
    with pytest.raises(ConfigError, match="expected one of llava, question"):
        import_benchmark("mmbench", source, out, style="chat")


def test_pictures_beside_the_files_stay_there(tmp_path):
    import_benchmark("mme", files.mme_folder(tmp_path / "release"), tmp_path / "out")
    benchmark = get_benchmark("mme", tmp_path / "out")
    assert missing_images(benchmark, benchmark.read("en")) == []
    assert not (tmp_path / "out" / "images").exists()


def test_other_questions_do_not_join_a_folder(tmp_path):
    out = tmp_path / "out"
    import_benchmark("mme", files.mme_folder(tmp_path / "mme"), out)
    with pytest.raises(DataError, match="holds mme, not pope"):
        import_benchmark("pope", files.pope_folder(tmp_path / "pope"), out)
    less = files.mme_folder(tmp_path / "less")
    (less / "color" / "000001.txt").unlink()
    (less / "color" / "000002.txt").write_text("A?\tYes\nB?\tNo\n")
    (less / "color" / "000002.jpg").write_bytes(files.picture(1))
    with pytest.raises(DataError, match="the questions in cs are not those in en"):
        import_benchmark("mme", less, out, lang="cs", images=less)


def change(row, **changes):
    return {**row, **changes}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda rows: [*rows, change(rows[0], index=7 + 3 * 10**6)], "rotations 0, 1, 2, 3"),
        (lambda rows: [*rows, rows[0]], "question 7 is there twice"),
        (lambda rows: [change(rows[0], answer="A"), *rows[1:]], "expect different texts: cat, dog"),
        (
            lambda rows: [change(rows[0], answer="D"), *rows[1:]],
            "question 7: the answer is 'D'; expected one of A, B, C",
        ),
        (
            lambda rows: [change(rows[0], A="", B=""), *rows[1:]],
            "question 7: 0 options; expected 2 to",
        ),
        (lambda rows: [change(rows[0], index="x"), *rows[1:]], "index is 'x'"),
        (
            lambda rows: [change(rows[0], image="99"), *rows[1:]],
            "image of row 99, which has none",
        ),
        (lambda rows: [change(rows[0], image="!" * 90), *rows[1:]], "nor base64"),
        (lambda rows: [change(rows[0], image=""), *rows[1:]], "no image"),
    ],
)
def test_damaged_mmbench(tmp_path, edit, message):
    path = files.write_tsv(tmp_path / "m.tsv", edit(files.mmbench_rows()))
    with pytest.raises(DataError, match=message):
        read("mmbench", path)


def test_two_equal_options_are_counted(tmp_path, caplog):
    rows = files.mmbench_rows()
    rows[1], rows[3] = change(rows[1], A="no", B="no"), change(rows[3], A="no", B="no")
    read("mmbench", files.write_tsv(tmp_path / "m.tsv", rows))
    assert "1 questions have two options with the same text" in caplog.text


def test_hidden_letters_can_be_asked_but_not_scored(tmp_path):
    rows = [change(row, answer="") for row in files.mmbench_rows()]
    path = files.write_tsv(tmp_path / "test.tsv", rows)
    questions = import_benchmark("mmbench", path, tmp_path / "out")
    assert get_benchmark("mmbench", tmp_path / "out").read("en")[0].answer == ""
    answers = files.write_lines(
        tmp_path / "a.jsonl",
        [{"question_id": i.question_id, "text": "A"} for i in questions.items],
    )
    with pytest.raises(DataError, match="kept back by the benchmark's owner"):
        score_file("mmbench", answers, data=tmp_path / "out")


def test_damaged_mme(tmp_path):
    folder = files.mme_folder(tmp_path / "a")
    (folder / "color" / "000001.jpg").unlink()
    with pytest.raises(DataError, match=r"1 images are missing: .*color/000001"):
        read("mme", folder)
    folder = files.mme_folder(tmp_path / "b")
    (folder / "color" / "000001.txt").write_text("one?\tYes\n")
    with pytest.raises(DataError, match="expected two lines"):
        read("mme", folder)
    (folder / "color" / "000001.txt").write_text("one?\tYes\ntwo?\tYes\n")
    with pytest.raises(
        DataError, match="image color/000001 has 2 questions, which expect yes, yes"
    ):
        read("mme", folder)
    (folder / "color" / "000001.txt").write_text("one?\tYes\ntwo?\tMaybe\n")
    with pytest.raises(DataError, match="color/000001#1 .*answer 'Maybe' is neither yes nor no"):
        read("mme", folder)
    with pytest.raises(DataError, match="none of MME's folders"):
        read("mme", tmp_path)
    path = files.mme_bundle(tmp_path / "c")
    text = path.read_text().replace("Is the car red?", "Is the car green?")
    path.write_text(text)
    with pytest.raises(DataError, match="has no question .*color/000001', 'Is the car green"):
        read("mme", path)


def test_damaged_pope(tmp_path):
    path = files.pope_bundle(tmp_path / "a")
    labels = tmp_path / "a" / "coco" / "coco_pope_random.json"
    extra = {"question_id": 3, "image": "COCO_val2014_01.jpg", "text": "More?", "label": "no"}
    labels.write_text(labels.read_text() + json.dumps(extra) + "\n")
    with pytest.raises(DataError, match="3 labels in random, but 2 questions"):
        read("pope", path)
    labels.write_text(labels.read_text().replace('"label": "no"', '"label": "perhaps"'))
    with pytest.raises(DataError, match="question random/2 .*'perhaps' is neither"):
        read("pope", labels)
    labels.write_text("".join(2 * [json.dumps({**extra, "question_id": n}) + "\n" for n in (1, 2)]))
    with pytest.raises(DataError, match="question random/1 is there twice|asked twice in their"):
        read("pope", labels)
    with pytest.raises(DataError, match=r"no coco_pope_<category>\.json"):
        read("pope", tmp_path)


@pytest.mark.parametrize(
    ("name", "make", "lost", "message"),
    [
        ("pope", files.pope_bundle, "popular", "2 labels in popular, but 0 questions"),
        ("seed_bench", files.seed_bundle, "Where", "1 labels in 4 Instance .* but 0 questions"),
    ],
)
def test_a_category_that_llavas_file_lacks_is_an_error(tmp_path, name, make, lost, message):
    path = make(tmp_path / "a")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if lost not in line))
    with pytest.raises(DataError, match=message):
        read(name, path)


def test_llavas_file_may_ask_a_part_of_mme(tmp_path):
    path = files.mme_bundle(tmp_path / "a")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[2:]))
    assert {item.category for item in read("mme", path)} == {"posters"}


def test_pope_refuses_questions_that_are_asked_twice_but_not_those_of_a_translation(tmp_path):
    rows = [{"index": n, "image": base64.b64encode(files.picture(1)).decode(), "answer": "no",
             "question": "Je tu gauč?", "category": "random"} for n in range(2)]  # fmt: skip
    path = files.write_tsv(tmp_path / "pope.tsv", rows)
    with pytest.raises(DataError, match="1 questions are asked twice in their category"):
        read("pope", path)
    item = Item(
        "random/1", "a.jpg", "Je tu gauč?", "random", "no", "cs", "yesno", question="Je tu gauč?"
    )
    assert get_kind("pope").check([item, replace(item, question_id="random/2")]) == 0


def test_damaged_seed_bench(tmp_path):
    folder = files.seed_folder(tmp_path / "a")
    path = folder / "SEED-Bench.json"
    good = path.read_text()
    path.write_text(good.replace('"question_type_id": 4', '"question_type_id": 77'))
    with pytest.raises(DataError, match="unknown question_type_id 77; known: 1 Scene"):
        read("seed_bench", folder)
    path.write_text(good.replace('"answer": "B"', '"answer": "E"'))
    with pytest.raises(DataError, match="question 101: the answer is 'E'; expected one of"):
        read("seed_bench", folder)
    path.write_text(good.replace('"data_type": "image"', '"data_type": "sound"'))
    with pytest.raises(DataError, match="data_type is 'sound'; expected image or video"):
        read("seed_bench", folder)


def test_other_input_that_is_wrong(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        read("mme", tmp_path / "nowhere")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="damaged, or not a Parquet file"):
        read("mmbench", tmp_path / "bad.parquet")
    (tmp_path / "x.tsv").write_text("index\tquestion\n1\n")
    with pytest.raises(DataError, match=r"x\.tsv:2: 1 cells, but the header names 2"):
        read("mmbench", tmp_path / "x.tsv")
    with pytest.raises(
        ConfigError,
        match="unknown benchmark mme; .*: `lrm benchmark import mme",
    ):
        get_benchmark("mme")
    (tmp_path / "benchmark.json").write_text("{}")
    with pytest.raises(DataError, match="kind is missing or wrong"):
        get_benchmark("mme", tmp_path)
