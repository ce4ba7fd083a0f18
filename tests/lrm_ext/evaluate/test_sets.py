"""Further sets by their mapping files, on made-up files of the same shape."""

import base64
import json
import shutil

import official_files as files
import pytest
from PIL import Image
from typer.testing import CliRunner

from llava.errors import ConfigError, DataError
from lrm_ext.evaluate import commands
from lrm_ext.evaluate.importing import import_benchmark, languages_of
from lrm_ext.evaluate.mapping import SETS_DIR, load_mapping, set_names
from lrm_ext.evaluate.registry import get_benchmark, missing_images, read_description
from lrm_ext.evaluate.scoring import score_file
from lrm_ext.languages import get_language, list_languages
from lrm_ext.languages.tags import normalize_tag
from lrm_ext.report.evaluation import known_benchmarks


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


def write_pictures(folder, names, size=(8, 8)):
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (60 * number % 256, 0, 0)).save(path)


@pytest.fixture
def imported(tmp_path):
    """Import a set and read one language back."""

    def run(name, source, lang, **options):
        out = tmp_path / "out" / name
        import_benchmark(name, source, out, lang=lang, **options)
        benchmark = get_benchmark(name, tmp_path / "out")
        items = benchmark.read(lang)
        assert missing_images(benchmark, items) == []
        return benchmark, items

    return run


def score(tmp_path, name, items, texts, lang, **options):
    rows = [
        {"question_id": item.question_id, "text": text, "lang": lang}
        for item, text in zip(items, texts, strict=True)
    ]
    path = files.write_lines(tmp_path / "answers.jsonl", rows)
    return score_file(name, path, data=tmp_path / "out" / name, **options)


def test_every_mapping_can_be_read_and_names_known_languages():
    assert {"xgqa", "maxm", "marvl", "xm3600", "mmmb", "m3exam", "cvqa"} <= set(set_names())
    assert any(name.startswith("pangeabench") for name in set_names())
    for name in set_names():
        mapping = load_mapping(SETS_DIR / f"{name}.toml")
        assert all(normalize_tag(code) == code for code in mapping.languages)
        assert mapping.answer_type != "caption" or set(mapping.languages) <= set(list_languages())
        assert mapping.licence and mapping.about
    assert {row["name"] for row in known_benchmarks()} >= {"mme", "xgqa", "mini-pope", "scenes"}


def test_xgqa_is_asked_in_one_language_and_answered_in_english(tmp_path, imported):
    questions = {
        "11": {"imageId": "n1", "question": "Ist das ein Hund?", "answer": "yes",
               "types": {"structural": "verify"}},
        "12": {"imageId": "n1", "question": "Was ist das?", "answer": "dog",
               "types": {"structural": "query"}},
    }  # fmt: skip
    write_json(tmp_path / "x" / "zero_shot" / "testdev_balanced_questions_de.json", questions)
    write_pictures(tmp_path / "elsewhere", ["n1.jpg"])
    (tmp_path / "x" / "images").mkdir()
    (tmp_path / "x" / "images" / "n1.jpg").symlink_to(tmp_path / "elsewhere" / "n1.jpg")
    _, items = imported("xgqa", tmp_path / "x", "de")
    german = get_language("de")
    assert items[1].text == f"Was ist das?\n{german.answer_in['en']}\n{german.short_answer}"
    assert [i.answer_type for i in items] == ["yesno", "text"] and items[0].category == "verify"
    report = score(tmp_path, "xgqa", items, ["Ja.", "Dog"], "de")
    assert report.headline == 100
    assert (report.fidelity["in_language"], report.fidelity["decided"]) == (1, 2), "expected in en"


def test_a_file_of_answers_has_one_prompt_style(tmp_path):
    """Yes/no questions among free ones are not of another; the question alone is."""
    rows = [
        {"question_id": str(n), "text": text, "gold": text, "prompt_id": f"llava/{kind}/en"}
        for n, (text, kind) in enumerate([("Yes", "yesno"), ("dog", "text"), ("cat", "text")])
    ]
    report = score_file("xgqa", files.write_lines(tmp_path / "a.jsonl", rows))
    assert (report.headline, report.prompt_id) == (100, "llava/*/en")
    rows[2]["prompt_id"] = "question/text/en"
    with pytest.raises(DataError, match="several values of prompt_id"):
        score_file("xgqa", files.write_lines(tmp_path / "b.jsonl", rows))


def test_maxm_has_several_accepted_answers(tmp_path, imported):
    content = {
        "dataset": "maxm", "split": "fr",
        "annotations": [
            {"image_id": "i1", "image_url": "http://x", "qa_pairs": [
                {"question_id": "q1", "question": "Quelle couleur ?", "answers": ["Bleu"],
                 "processed_answers": ["bleu", "bleue"]},
                {"question_id": "q2", "question": "Est-ce un chat ?", "answers": ["oui"],
                 "processed_answers": ["oui"]}]},
        ],
    }  # fmt: skip
    write_json(tmp_path / "m" / "maxm_v1_fr.json", content)
    write_pictures(tmp_path / "m" / "images", ["i1.jpg"])
    _, items = imported("maxm", tmp_path / "m", "fr")
    assert items[0].answers == ("bleu", "bleue")
    report = score(tmp_path, "maxm", items, ["Bleue.", "oui"], "fr")
    assert report.headline == 100 and report.fidelity["share"] == 1
    assert score(tmp_path, "maxm", items, ["rouge", "oui"], "fr").headline == 50


def test_marvl_shows_two_pictures_as_one(tmp_path, imported):
    rows = [
        {"concept": "39-Panda", "language": "zh", "caption": "左图有熊猫。", "left_img": "a.jpg",
         "right_img": "b.jpg", "label": True, "id": "zh-0"},
        {"concept": "39-Panda", "language": "zh", "caption": "右图没有熊猫。", "left_img": "b.jpg",
         "right_img": "a.jpg", "label": False, "id": "zh-1"},
    ]  # fmt: skip
    files.write_lines(tmp_path / "r" / "marvl-zh.jsonl", rows)
    write_pictures(tmp_path / "r" / "zh" / "images" / "39-Panda", ["a.jpg", "b.jpg"], (10, 6))
    benchmark, items = imported("marvl", tmp_path / "r", "zh")
    assert [item.answer for item in items] == ["yes", "no"]
    assert "左图有熊猫" in items[0].question and items[0].question != "左图有熊猫。"
    with Image.open(benchmark.image_path(items[0].image)) as picture:
        assert picture.size == (28, 6)
    assert items[0].image != items[1].image
    assert score(tmp_path, "marvl", items, ["是", "不是"], "zh").headline == 100


def test_xm3600_scores_captions_and_their_language(tmp_path, imported):
    pytest.importorskip("sacrebleu")
    rows = [
        {"image/key": "k1", "image/locale": "cs",
         "cs": {"caption": ["Pes běží po louce.", "Hnědý pes na trávě."]},
         "en": {"caption": ["A dog runs across a meadow."]}},
    ]  # fmt: skip
    files.write_lines(tmp_path / "c" / "captions.jsonl", rows)
    write_pictures(tmp_path / "c" / "images", ["k1.jpg"])
    _, items = imported("xm3600", tmp_path / "c", "cs")
    assert items[0].text == get_language("cs").fixed_prompts["caption"]
    assert items[0].answer_type == "caption" and len(items[0].answers) == 2
    same = score(tmp_path, "xm3600", items, ["Pes běží po louce."], "cs")
    assert same.headline == pytest.approx(100) and same.fidelity["share"] == 1
    english = score(tmp_path, "xm3600", items, ["A dog runs across a meadow."], "cs")
    assert english.headline < 30 and english.fidelity["share"] == 0
    assert english.counts["answer_lang"] == {"en": 1}
    assert score(tmp_path, "xm3600", items, [""], "cs").headline == 0


def test_mmmb(tmp_path, imported):
    rows = [
        {"index": 1, "question": "Что это?", "A": "кот", "B": "пес", "C": "", "D": "",
         "answer": "B", "image": base64.b64encode(files.picture(1)).decode(), "hint": "",
         "category": "animal"},
    ]  # fmt: skip
    source = files.write_tsv(tmp_path / "mmmb_ru.tsv", rows)
    _, items = imported("mmmb", source, "ru")
    assert items[0].options == ("кот", "пес")
    assert score(tmp_path, "mmmb", items, ["Ответ: В"], "ru").headline == 100


def test_m3exam_finds_pictures_in_texts_and_labels_of_options(tmp_path, imported):
    rows = [
        {"question_text": "(image)[image-1.png]\n\nWhat is shown?", "background_description": [],
         "answer_text": "2", "options": ["(1) a cell", "(2) a bone"], "need_image": "yes",
         "language": "english", "subject_category": "natural-science"},
        {"question_text": "No picture", "background_description": [], "answer_text": "1",
         "options": ["(1) a", "(2) b"], "need_image": "no", "subject_category": "x"},
        {"question_text": "Compare (image)[image-1.png] and (image)[image-2.png].",
         "background_description": ["Read this.", "And this."], "answer_text": "1",
         "options": ["(1) equal", "(2) not"], "need_image": "yes", "subject_category": "math"},
    ]  # fmt: skip
    root = tmp_path / "exam"
    write_json(root / "multimodal-questions" / "english-questions-image.json", rows)
    pictures = root / "multimodal-questions" / "images-english"
    write_pictures(pictures, ["image-1.png", "image-2.png"])
    _, items = imported("m3exam", root, "en")
    assert [item.answer for item in items] == ["B", "A"], "text-only questions are left out"
    assert items[0].options == ("a cell", "a bone")
    assert items[1].hint == "Read this.\nAnd this." and items[1].text.startswith("Read this.\n")
    (pictures / "image-2.png").unlink()
    with pytest.raises(DataError, match=r"1 images of m3exam are missing .*image-2\.png"):
        import_benchmark("m3exam", root, tmp_path / "again", lang="en")


@pytest.mark.parametrize("name", ["cvqa", "pangeabench-cvqa"])
def test_cvqa_takes_each_language_and_english_of_all(tmp_path, imported, name):
    rows = [
        {"ID": str(number), "Subset": f"('{language}', '{country}')", "Question": f"q{number}",
         "Translated Question": f"t{number}", "Options": ["x", "y", "z", "w"],
         "Translated Options": ["1", "2", "3", "4"], "Label": number, "Category": "food",
         "image": {"bytes": files.picture(number), "path": None}}
        for number, (language, country) in enumerate(
            [("Spanish", "Chile"), ("Russian", "Russia"), ("Spanish", "Mexico")])
    ]  # fmt: skip
    root = tmp_path / "cvqa"
    root.mkdir()
    files.write_parquet(root / "test-00000-of-00001.parquet", rows)
    _, items = imported(name, root, "es")
    assert [(item.question_id, item.answer) for item in items] == [("0", "A"), ("2", "C")]
    _, english = imported(name, root, "en")
    assert [item.question for item in english] == ["t0", "t1", "t2"]
    assert english[0].options == ("1", "2", "3", "4")
    rows[0]["Label"] = -1
    files.write_parquet(root / "test-00000-of-00001.parquet", rows)
    with pytest.raises(DataError, match="Label is -1; expected one of 0, 1, 2, 3"):
        import_benchmark(name, root, tmp_path / "hidden", lang="es")


def test_pangeabench(tmp_path, imported):
    image = {"bytes": files.picture(1), "path": None}
    root = tmp_path / "p" / "data"
    root.mkdir(parents=True)
    files.write_parquet(
        root / "hr-00000-of-00001.parquet", [{"image": image, "image_id": "1", "caption": "Pas."}]
    )
    _, items = imported("pangeabench-xm100", tmp_path / "p", "hr")
    assert items[0].answer == "Pas." and items[0].answer_type == "caption"
    assert items[0].text == ("Provide a one-sentence caption for the provided image in Croatian.")
    assert languages_of("pangeabench-xm100", tmp_path / "p", None) == ("hr",)
    rows = [{"image": image, "question": "Ce este?", "answers": ["pom", "un pom"],
             "image_id": "i1", "language": "ro"}]  # fmt: skip
    files.write_parquet(root / "ro-00000-of-00001.parquet", rows)
    _, items = imported("pangeabench-maxm", tmp_path / "p", "ro")
    assert score(tmp_path, "pangeabench-maxm", items, ["Un pom"], "ro").headline == 100
    rows = [
        {"id": "v1", "question": "Quel ?", "options": "['un', 'deux']", "answer": "B",
         "question_type": "multiple-choice", "subfield": "Math", "image_1": image,
         "image_2": image},
        {"id": "v2", "question": "Combien ?", "options": "[]", "answer": "7",
         "question_type": "open", "subfield": "Math", "image_1": image, "image_2": None},
    ]  # fmt: skip
    files.write_parquet(root / "fr-00000-of-00001.parquet", rows)
    _, items = imported("pangeabench-xmmmu", tmp_path / "p", "fr")
    assert [(item.question_id, item.options) for item in items] == [
        ("v1", ("un", "deux")), ("v2", ())
    ]  # fmt: skip


def xmmmu(options, answer, question="<image 1> Que voit-on ?", num_images=1):
    image = {"bytes": files.picture(1), "path": None}
    row = {"id": "v1", "question": question, "options": options, "answer": answer,
           "question_type": "multiple-choice", "subfield": "Art"}  # fmt: skip
    images = {f"image_{n}": image if n <= num_images else None for n in range(1, 8)}
    return {**row, **images}


def test_nine_options(tmp_path, imported):
    """MMMU has up to nine; the answers F and I occur."""
    root = tmp_path / "p" / "data"
    root.mkdir(parents=True)
    options = [f"bête {n}" for n in range(9)]
    files.write_parquet(root / "fr-0.parquet", [xmmmu(str(options), "I")])
    _, (item,) = imported("pangeabench-xmmmu", tmp_path / "p", "fr")
    assert item.text == "\n".join(
        ["Que voit-on ?", *(f"{letter}. bête {n}" for n, letter in enumerate("ABCDEFGHI")),
         get_language("fr").option_letter]
    )  # fmt: skip
    for text, right in (("I", 100), ("(I)", 100), ("bête 8", 100), ("La réponse est I.", 100),
                        ("F", 0), ("J", 0), ("H ou I", 0)):  # fmt: skip
        report = score(tmp_path, "pangeabench-xmmmu", [item], [text], "fr")
        assert report.headline == right, text


@pytest.mark.parametrize(
    "options",
    [
        "['un chat\nnoir', 'un chien']",
        "['un chat\nnoir' 'un chien']",  # NumPy
        "array(['un chat\\nnoir', 'un chien'], dtype=object)",
        "[\"un chat\nnoir\",\n 'un chien']",
    ],
)
def test_line_ends_in_and_between_options(tmp_path, imported, options):
    (tmp_path / "p").mkdir()
    files.write_parquet(tmp_path / "p" / "fr-0.parquet", [xmmmu(options, "B")])
    _, (item,) = imported("pangeabench-xmmmu", tmp_path / "p", "fr")
    assert item.options == ("un chat\nnoir", "un chien")


@pytest.mark.parametrize("options", ["['a' 'b' ...]", "['a', 'b'", "{'a': 'b'}", "['a', None]"])
def test_options_that_are_no_list(tmp_path, options):
    (tmp_path / "p").mkdir()
    files.write_parquet(tmp_path / "p" / "fr-0.parquet", [xmmmu(options, "A")])
    with pytest.raises(DataError, match="the options are no list"):
        import_benchmark("pangeabench-xmmmu", tmp_path / "p", tmp_path / "out", lang="fr")


@pytest.mark.parametrize(
    ("question", "num_images", "asked"),
    [
        ("<image 1> Que voit-on ?", 1, "Que voit-on ?"),
        ("Que voit-on ?\n<image 1>", 1, "Que voit-on ?"),
        ("Dans <image 1>, que voit-on ?", 1, "Dans, que voit-on ?"),
        ("<image> Que voit-on ?", 1, "Que voit-on ?"),
        ("Est-ce <image 1> ou <image 2> ?", 2, "Est-ce <image 1> ou <image 2> ?"),
    ],
)
def test_marks_of_pictures_in_a_question(tmp_path, imported, question, num_images, asked):
    """One picture stands before the text, without a mark; of several, the numbers stay."""
    (tmp_path / "p").mkdir()
    row = xmmmu("['<image 1>', 'rien']", "A", question, num_images)
    files.write_parquet(tmp_path / "p" / "fr-0.parquet", [row])
    _, (item,) = imported("pangeabench-xmmmu", tmp_path / "p", "fr")
    assert (item.question, item.options) == (asked, ("<image 1>", "rien"))


def test_an_option_after_an_empty_one_is_not_lost(tmp_path):
    row = {"index": 1, "question": "?", "A": "x", "B": "", "C": "y", "D": "", "answer": "A",
           "image": base64.b64encode(files.picture(1)).decode(), "category": "c"}  # fmt: skip
    (tmp_path / "m").mkdir()
    files.write_tsv(tmp_path / "m" / "mmmb_en.tsv", [row])
    with pytest.raises(DataError, match="an option is empty, but not the ones after it"):
        import_benchmark("mmmb", tmp_path / "m" / "mmmb_en.tsv", tmp_path / "out", lang="en")


def test_a_mapping_of_ones_own_and_the_command_line(tmp_path):
    mapping = tmp_path / "mine.toml"
    mapping.write_text(
        'title = "Mine"\nkind = "answers"\nanswer_type = "text"\nlanguages = { hr = "hr" }\n'
        '[files]\nquestions = ["{lang}.csv"]\nimages = ["pics"]\n'
        '[columns]\nimage = "file"\nquestion = "pitanje"\nanswer = "odgovor"\n',
        encoding="utf-8",
    )
    write_pictures(tmp_path / "data" / "pics", ["a.png"])
    (tmp_path / "data" / "hr.csv").write_text("file,pitanje,odgovor\na.png,Što je?,pas\n", "utf-8")

    def run(*arguments):
        return CliRunner().invoke(commands.app, ["benchmark", *arguments], catch_exceptions=False)

    out = tmp_path / "out" / "mine"
    result = run("import", str(mapping), str(tmp_path / "data"), "--out", str(out))
    assert "1 questions about 1 images in hr" in " ".join(result.output.split())
    answers = files.write_lines(
        tmp_path / "a.jsonl", [{"question_id": "0", "text": "Pas!", "lang": "hr"}]
    )
    result = run(
        "score", str(mapping), "--predictions", str(answers), "--data", str(out), "--json",
        "--scores", str(tmp_path / "scores.jsonl"),
    )  # fmt: skip
    content = json.loads(result.output)
    assert content["headline"] == 100 and content["interval"]["method"] == "wilson"
    assert json.loads((tmp_path / "scores.jsonl").read_text())["correct"] is True
    assert "cvqa" in run("list").output
    shutil.rmtree(tmp_path / "data" / "pics")
    with pytest.raises(DataError, match="image"):
        run("import", str(mapping), str(tmp_path / "data"), "--out", str(tmp_path / "o"))
    mapping.write_text(mapping.read_text() + 'colour = "x"\n')
    load_mapping.cache_clear()
    with pytest.raises(ConfigError, match="columns: unknown key `colour`"):
        run("import", str(mapping), str(tmp_path / "data"), "--out", str(out))


def test_further_columns_and_rules_go_into_the_folder(tmp_path, imported):
    mapping = tmp_path / "mine.toml"
    mapping.write_text(
        'title = "Mine"\nkind = "answers"\nanswer_type = "text"\nlanguages = { hr = "hr" }\n'
        'judge = "xchat"\nofficial = "substring"\n[files]\nquestions = ["{lang}.jsonl"]\n'
        '[columns]\nimage = "image"\nquestion = "q"\nanswer = "a"\n'
        '[columns.extra]\nrubric = "score_rubric"\ncriteria = "score_rubric.criteria"\n',
        encoding="utf-8",
    )
    rubric = {"criteria": "Točno?", "score1_description": "ne"}
    image = base64.b64encode(files.picture(1)).decode()
    rows = [{"image": image, "q": "Što je?", "a": "Pas.", "score_rubric": rubric}]
    files.write_lines(tmp_path / "hr.jsonl", rows)
    out = tmp_path / "out" / "mine"
    import_benchmark(str(mapping), tmp_path, out, lang="hr")
    (item,) = get_benchmark("mine", tmp_path / "out").read("hr")
    assert item.extra == {"rubric": rubric, "criteria": "Točno?"}
    described = read_description(out)["files"]["hr"]
    assert {key: described[key] for key in ("set", "official", "judge")} == {
        "set": "mine", "official": "substring", "judge": "xchat"
    }  # fmt: skip
    mapping.write_text(mapping.read_text().replace("xchat", "me"))
    load_mapping.cache_clear()
    with pytest.raises(ConfigError, match="judge"):
        load_mapping(mapping)


def test_what_is_not_there(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no questions in fr; expected one of maxm_v1_fr"):
        import_benchmark("maxm", tmp_path / "empty", tmp_path / "out", lang="fr")
    with pytest.raises(DataError, match="MaXM is not in cs; it is in en, fr, he, hi, ro, th, zh"):
        import_benchmark("maxm", tmp_path / "empty", tmp_path / "out", lang="cs")
    with pytest.raises(DataError, match="no questions of MaXM in it"):
        languages_of("maxm", tmp_path / "empty", None)
