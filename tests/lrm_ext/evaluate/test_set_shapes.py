"""Each set that ships, read from made-up files of the shape that its owner publishes."""

import base64
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import official_files as files
import pytest
from huggingface_hub import constants
from typer.testing import CliRunner

from llava.errors import ConfigError, DataError
from lrm_ext.evaluate import commands
from lrm_ext.evaluate.cells import as_list, cell_text, is_absent, value_at
from lrm_ext.evaluate.importing import (
    download,
    import_benchmark,
    languages_of,
    open_questions,
    read_benchmark,
    revision_of,
)
from lrm_ext.evaluate.kind import gold_of
from lrm_ext.evaluate.mapping import download_patterns, find_mapping, set_names
from lrm_ext.evaluate.official import ImageStore, Source, image_folder
from lrm_ext.evaluate.reading import answer_words
from lrm_ext.evaluate.registry import get_benchmark, missing_images, read_description
from lrm_ext.languages import any_language, get_language, language_name
from lrm_ext.languages.tags import normalize_tag

NAN = float("nan")
REVISION = "0123456789abcdef0123456789abcdef01234567"
OTHERS_ARE_IN = {  # of `test_sets.py` and `test_text_only.py`
    "belebele", "mgsm", "mmmlu", "xstorycloze",
    "xgqa", "maxm", "marvl", "xm3600", "m3exam", "cvqa", "pangeabench-cvqa", "pangeabench-xm100",
}  # fmt: skip


def image(number, path=None):
    return {"bytes": files.picture(number), "path": path}


def base64_image(number):
    return base64.b64encode(files.picture(number)).decode()


@dataclass(frozen=True)
class Shape:
    """Files of a set and what is read from them: attributes of each question."""

    name: str
    lang: str
    files: dict
    read: list


def write(root, contents):
    for name, rows in contents.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(rows, bytes):
            path.write_bytes(rows)
        elif path.suffix == ".tsv":
            files.write_tsv(path, rows)
        elif path.suffix == ".jsonl":
            files.write_lines(path, rows)
        elif path.suffix == ".parquet":
            files.write_parquet(path, rows)
        elif path.suffix == ".zip":
            with zipfile.ZipFile(path, "w") as archive:
                for inner, content in rows.items():
                    archive.writestr(inner, content)
        else:
            path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return root


def m3exam(language, text, options, answer, images, hint=()):
    cells = {f"image_{n}": "None" for n in range(10)}
    cells |= {f"image_{n}": base64_image(number) for n, number in enumerate(images)}
    return {"language": language, "subject_category": "math", "question_text": text,
            "background_description": list(hint), "options": options, "answer_text": answer,
            **cells}  # fmt: skip


def mmmu(number, kind, options, answer, images, question="<image 1> 何ですか。"):
    cells = {f"image_{n}": None for n in range(1, 8)}
    cells |= {f"image_{n}": image(n) for n in images}
    return {"id": f"v{number}", "question": question, "question_type": kind, "options": options,
            "answer": answer, "subfield": "Art", **cells}  # fmt: skip


def exam(lang, answer, picture):
    return {"language": lang, "country": "Croatia", "level": "High School",
            "category_en": "Biology", "general_category_en": "Science", "image": picture,
            "image_type": "graph", "image_information": "essential", "question": "Što je na slici?",
            "options": ["stanica", "kost", "list", "krv"], "answer": answer}  # fmt: skip


def alm(number, language, kind, question, answer):
    return {"file_name": image(number), "ID": f"i{number}", "Language": language,
            "Category": "Food", "Question_Type": kind, "English_Question": "What is it?",
            "English_Answer": "bread", "Translated_Question": question,
            "Translated_Answer": answer, "Image_Url": "https://example.org"}  # fmt: skip


def dish(number, lang):
    return {"qa_id": number, "lang": lang, "image": image(number), "answer": "svíčková",
            "open_ended_prompt": "Co je to za jídlo?", "multi_choice_answer": 3,
            "multi_choice_prompt": "Co je to za jídlo?\n1. guláš\n2. sushi\n3. svíčková\n4. pho\n"
            "5. curry"}  # fmt: skip


def tsv(number, cell, **more):
    return {"index": number, "image": cell, "question": f"Bu ne {number}?", "hint": "nan",
            "A": "kedi", "B": "köpek", "C": "", "D": "", "answer": "B", "category": "animal",
            **more}  # fmt: skip


def turns(text, answer):
    return [{"from": "human", "value": text}, {"from": "gpt", "value": answer}]


VGR = {"sample_id": "s1", "topic": "food", "language": "sw", "hypothesis": "Kuna paka wawili.",
       "en_translation": "There are two cats."}  # fmt: skip
FIVE = {f"image_{n}": image(n) for n in range(1, 6)}
CHAT = {
    "capability": "art_explanation", "task": "painting", "instance_idx": 0, "input": "¿Qué ves?",
    "system_prompt": "Be brief.", "reference_answer": "Un cuadro.", "caption": "A painting",
    "score_rubric": {"criteria": "¿Es correcto?", "score1_description": "No."},
    "atomic_checklist": ["nombra el cuadro"], "background_knowledge": [],
    "image": "painting-0.png",
}  # fmt: skip

SHAPES = [
    Shape(
        "pangeabench-xgqa", "bn",
        {"data/bn-00000-of-00001.parquet": [
            {"image": image(1), "question": "এটা কি?", "answer": "dog"},
            {"image": image(1), "question": "এটা কি কুকুর?", "answer": "yes"}]},
        [{"question_id": "0", "answer_type": "text", "answer": "dog", "answer_lang": "en",
          "text": "এটা কি?\nAnswer the question using a single word or phrase in English."},
         {"question_id": "1", "answer_type": "yesno"}],
    ),
    Shape(
        "pangeabench-marvl", "sw",
        {"data/sw-00000-of-00001.parquet": [
            {"id": "sw-0", "image": image(1),
             "conversations": turns("<image>\nKuna paka. True or false?", "The answer is False.")},
            {"id": "sw-1", "image": image(2), "conversations": turns("<image>\nKweli?", "true")}]},
        [{"question_id": "sw-0", "answer": "no",
          "text": "Kuna paka. True or false?. Answer with the option directly."},
         {"question_id": "sw-1", "answer": "yes"}],
    ),
    Shape(
        "pangeabench-m3exam", "th",
        {"data/thai-00000-of-00001.parquet": [
            m3exam("thai", "(image)[image-7.png] อะไร?", ["(1) ก", "(2) ข"], "2", [1]),
            m3exam("thai", "(image)[a.png] กับ (image)[b.png]", ["ก", "ข", "ค"], "3", [1, 2],
                   ["อ่านนี้", "(image)[a.png]"]),
            m3exam("thai", "สิบรูป (image)[a.png]", ["A. ก", "B. ข"], "B", list(range(10)))]},
        [{"answer": "B", "options": ("ก", "ข"), "question": "อะไร?", "hint": ""},
         {"answer": "C", "options": ("ก", "ข", "ค"), "num_images": 3,
          "question": "<image> กับ <image>", "hint": "อ่านนี้\n<image>"},
         {"answer": "B", "num_images": 10, "question": "สิบรูป", "category": "math"}],
    ),
    Shape(
        "pangeabench-xmmmu", "ja",
        {"data/translated_MMMU_val_300_with_image_Japanese.parquet": [
            mmmu(1, "multiple-choice", "['赤\n色', '青', '黄', '白', '黒', '緑']", "F", [1, 3]),
            mmmu(2, "open", "[]", "['7', '七']", [1])]},
        [{"answer": "F", "num_images": 1, "options": ("赤\n色", "青", "黄", "白", "黒", "緑")},
         {"answer": "7", "answers": ("7", "七"), "answer_type": "text", "options": (),
          "text": "何ですか。\n{short_answer}"}],
    ),
    Shape(
        "jmmmu", "ja",
        {"Art/test-00000-of-00001.parquet": [
            mmmu(1, "multiple-choice", "['<image 1>', '<image 2>']", "B", [1, 2], "?")],
         "Music/test-00000-of-00001.parquet": [
             mmmu(2, "multiple-choice", "['琴', '笛']", "A", [1]),
             mmmu(3, "open", "[]", "琴", [1])]},
        [{"answer": "B", "num_images": 2, "options": ("<image>", "<image>")},
         {"answer": "A", "text": "何ですか。\nA. 琴\nB. 笛\n{option_letter}"},
         {"answer": "琴", "answer_type": "text", "category": "jmmmu"}],
    ),
    Shape(
        "pangeabench-maxm", "he",
        {"data/iw-00000-of-00001.parquet": [
            {"image": image(1), "image_id": "i1", "question": "מה זה?",
             "answers": ["כלב", "כלב חום"]},
            {"image": image(1), "image_id": "i1", "question": "איפה?", "answers": ["בגן"]}]},
        [{"answer": "כלב", "answers": ("כלב", "כלב חום"), "extra": {"image_id": "i1"}},
         {"answer": "בגן", "answers": ()}],
    ),
    Shape(
        "pangeabench-llava-bench", "ur",
        {"data/ur.parquet": [
            {"image": image(1), "question": "یہ کیا ہے؟", "category": "conv", "question_id": 0,
             "caption": "A dog.", "gpt_answer": "ایک کتا۔"}]},
        [{"question_id": "0", "text": "یہ کیا ہے؟", "answer": "ایک کتا۔", "category": "conv",
          "extra": {"caption": "A dog."}}],
    ),
    Shape(
        "xchat", "es", {"data/es.json": [CHAT], "data/images/painting-0.png": files.picture(1)},
        [{"question_id": "art_explanation-painting-0", "text": "¿Qué ves?",
          "answer": "Un cuadro.", "category": "art_explanation",
          "extra": {"task": "painting", "system_prompt": "Be brief.",
                    "score_rubric": CHAT["score_rubric"], "caption": "A painting",
                    "atomic_checklist": ["nombra el cuadro"]}}],
    ),
    Shape(
        "kaleidoscope", "hr",
        {"data/train-00000-of-00001.parquet": [
            exam("de", 1, "de/a.png"), exam("hr", 1, "hr/a.png"), exam("hr", 0, None)],
         "data.zip": {"final_data/hr/a.png": files.picture(1),
                      "final_data/de/a.png": files.picture(2)}},
        [{"question_id": "1", "answer": "B", "category": "Biology",
          "options": ("stanica", "kost", "list", "krv"),
          "extra": {"country": "Croatia", "level": "High School", "general_category": "Science",
                    "image_type": "graph", "image_information": "essential"}}],
    ),
    Shape(
        "mtvqa", "it",
        {"data/test-00000-of-00001.parquet": [
            {"id": "1", "lang": "IT", "image": image(1), "qa_pairs": str([
                {"question": "Cosa c'è\nscritto?", "answer": "L'ora"},
                {"question": "Quanto?", "answer": "7"}])},
            {"id": "2", "lang": "FR", "image": image(2),
             "qa_pairs": '[{"question": "Quoi ?", "answer": "Pain"}]'}]},
        [{"question_id": "1-0", "answer": "L'ora", "question": "Cosa c'è\nscritto?"},
         {"question_id": "1-1", "answer": "7", "text": "Quanto?\n{short_answer}"}],
    ),
    Shape(
        "mmmb", "tr",
        {"mmmb_tr.tsv": [tsv(1, "2"), tsv(2, base64_image(1)), tsv(3, "2", C="at", D="kuş")]},
        [{"question_id": "1", "options": ("kedi", "köpek"), "hint": "", "answer": "B"},
         {"question_id": "2"},
         {"question_id": "3", "options": ("kedi", "köpek", "at", "kuş")}],
    ),
    Shape(
        "mmbench-dev", "ar",
        {"mmbench/mmbench_dev_ar.tsv": [
            tsv(1, base64_image(1)), tsv(1000001, "1", A="köpek", B="kedi", answer="A")]},
        [{"question_id": "1", "group": "1"}, {"question_id": "1000001", "group": "1"}],
    ),
    Shape(
        "alm-bench", "am",
        {"data/test-00000-of-00001.parquet": [
            alm(1, "Amharic", "Multiple Choice Questions", "ምንድን ነው?\nA. ዳቦ\nB. ሩዝ", "A. ዳቦ"),
            alm(2, "Yoruba", "Short Questions", "Kí ni?", "búrẹ́dì"),
            alm(3, "Amharic", "Long Questions", "ምንድን ነው?", "ይህ ዳቦ ነው።")]},
        [{"question_id": "i1", "answer": "A. ዳቦ", "text": "ምንድን ነው?\nA. ዳቦ\nB. ሩዝ",
          "extra": {"question_type": "Multiple Choice Questions",
                    "english_question": "What is it?", "english_answer": "bread"}},
         {"question_id": "i3", "category": "Food"}],
    ),
    Shape(
        "worldcuisines", "cs",
        {"task1/test_small/0000.parquet": [dish(1, "cs"), dish(2, "yue"), dish(3, "nan")]},
        [{"question_id": "1", "answer": "C", "question": "Co je to za jídlo?",
          "options": ("guláš", "sushi", "svíčková", "pho", "curry")}],
    ),
    Shape(
        "worldcuisines-open", "id",
        {"hf_prompt/small_eval_task1/id_formal_small_eval_task1.jsonl": [
            {**dish(1, "id_formal"), "image": "a.jpg"}],
         "images/a.jpg": files.picture(1)},
        [{"question_id": "1", "answer": "svíčková", "text": "Co je to za jídlo?"}],
    ),
    Shape(
        "m5b-vgr", "sw",
        {"data/sw-00000-of-00001.parquet": [
            {**VGR, "image_a": image(1), "image_b": image(2), "label": True},
            {**VGR, "sample_id": "s2", "image_a": image(2), "image_b": image(3), "label": False}]},
        [{"question_id": "s1", "answer": "yes", "num_images": 2, "question": "Kuna paka wawili.",
          "text": 'Based on the two images, is it correct to say "Kuna paka wawili."? '
          "Yes or no? One word answer in English:",
          "extra": {"en_translation": "There are two cats."}},
         {"question_id": "s2", "answer": "no"}],
    ),
    Shape(
        "m5b-vlod", "sw", {"data/sw-00000-of-00001.parquet": [{**VGR, **FIVE, "label": 4}]},
        [{"question_id": "s1", "answer": "E", "options": ("1", "2", "3", "4", "5"),
          "num_images": 5, "category": "food"}],
    ),
    Shape(
        "xvnli", "ru",
        {"data/ru-00000-of-00001.parquet": [
            {"image": image(1), "caption": "A dog.", "hypothesis": "Собака спит.",
             "label": label, "caption_id": "1", "pair_id": f"1{label[0]}", "flikr30k_id": "1"}
            for label in ("entailment", "neutral", "contradiction")]},
        [{"answer": "yes", "answer_type": "yesno", "answer_lang": "en"},
         {"answer": "maybe", "answer_type": "text"}, {"answer": "no"}],
    ),
    Shape(
        "smpqa-ground", "id",
        {"smpqa/id_ground.json": [{"image": "a.png", "question": "Is 'hidangan' it?",
                                  "answer": "yes"}],
         "smpqa/images/a.png": files.picture(1)},
        [{"answer": "yes", "answer_type": "yesno", "answer_lang": "en", "text": "Is 'hidangan' it?"
          "\nAnswer the question using a single word or phrase."}],
    ),
    Shape(
        "smpqa-name", "zh",
        {"smpqa/zh_name.json": [{"image": "a.png", "question": "Which?", "answer": "花"}],
         "smpqa/images/a.png": files.picture(1)},
        [{"answer": "花", "answer_type": "text", "answer_lang": "",
          "text": "Which?\nAnswer the question using a single word or phrase."}],
    ),
    Shape(
        "ayavisionbench", "cs",
        {"ces_Latn/test-00000-of-00001.parquet": [
            {"image": [image(1)], "image_source": "x", "image_source_category": "captioning",
             "index": "7", "prompt": "Co je to?", "reference": "Pes.", "language": "Czech"},
            {"image": [image(1), image(2)], "image_source": "x", "language": "Czech", "index": "8",
             "image_source_category": "differences", "prompt": "Jaký je rozdíl?",
             "reference": "Barva."}]},
        [{"question_id": "7", "text": "Co je to?", "answer": "Pes.", "category": "captioning"},
         {"question_id": "8", "num_images": 2}],
    ),
    Shape(
        "m-wildvision", "fa",
        {"pes_Arab/test-00000-of-00001.parquet": [
            {"image": [image(1)], "question": "این چیست؟", "question_id": "q1",
             "language": "Persian", "index": "0"}]},
        [{"question_id": "q1", "answer": "", "text": "این چیست؟",
          "extra": {"language": "Persian"}}],
    ),
    Shape(
        "cc-ocr", "vi",
        {f"multi_lan_ocr/{name}/{name}_1.tsv": [
            {"index": 0, "image": base64_image(n), "image_name": "a.jpg", "answer": "Chào",
             "question": "Output the text.", "split": "multi_lan_ocr", "l2-category": name}]
         for n, name in enumerate(["Vietnamese", "Korean"])},
        [{"question_id": "0", "answer": "Chào", "text": "Output the text.",
          "category": "Vietnamese", "extra": {"image_name": "a.jpg"}}],
    ),
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_published_shape(tmp_path, shape):
    root = write(tmp_path / "set", shape.files)
    out = tmp_path / "out" / shape.name
    import_benchmark(shape.name, root, out, lang=shape.lang)
    benchmark = get_benchmark(shape.name, tmp_path / "out")
    items = benchmark.read(shape.lang)
    assert missing_images(benchmark, items) == []
    language = get_language(shape.lang)
    found = []
    for item, wanted in zip(items, shape.read, strict=True):
        keys = wanted.keys() - {"num_images"}
        found.append({key: getattr(item, key) for key in keys})
        if "num_images" in wanted:
            found[-1]["num_images"] = len(item.images)
    for wanted in shape.read:
        if "text" in wanted:
            for name in ("short_answer", "option_letter"):
                wanted["text"] = wanted["text"].replace(f"{{{name}}}", getattr(language, name))
    assert found == shape.read
    described = read_description(out)["files"][shape.lang]
    mapping = find_mapping(shape.name)
    assert described["set"] == shape.name and described.get("judge", "") == mapping.judge
    assert languages_of(shape.name, root, None) == languages_of(shape.name, root, ()) != ()
    assert shape.lang in languages_of(shape.name, root, None)


def test_every_set_has_its_shape_here():
    assert {shape.name for shape in SHAPES} | OTHERS_ARE_IN == set(set_names())
    listed = CliRunner().invoke(
        commands.app, ["benchmark", "list", "--json"], catch_exceptions=False
    )
    assert {row["name"] for row in json.loads(listed.output)} >= set(set_names())


def test_images_of_other_rows_are_the_same_file(tmp_path):
    shape = next(shape for shape in SHAPES if shape.name == "mmmb")
    root = write(tmp_path / "set", shape.files)
    questions = import_benchmark("mmmb", root, tmp_path / "out", lang="tr")
    assert len({item.image for item in questions.items}) == 1
    assert {item.image for item in questions.items} == {item.image_id for item in questions.items}
    write(root, {"mmmb_tr.tsv": [tsv(1, "7"), tsv(2, base64_image(1))]})
    with pytest.raises(DataError, match="question 1 takes the image of 7, which has none"):
        import_benchmark("mmmb", root, tmp_path / "again", lang="tr")


def test_a_judge_of_pairs_has_nothing_to_score_by(tmp_path):
    shape = next(shape for shape in SHAPES if shape.name == "m-wildvision")
    root = write(tmp_path / "set", shape.files)
    (item,) = import_benchmark("m-wildvision", root, tmp_path / "out", lang="fa").items
    with pytest.raises(DataError, match="kept back by the benchmark's owner"):
        gold_of(item, answer_words("fa"))


XGQA = {"image": image(1), "question": "Was?", "answer": "dog"}
BAD = {
    "a split that is missing": (
        "pangeabench-xgqa", "de", {"data/ru-00000-of-00001.parquet": [XGQA]},
        r"no questions in de; expected one of data/de-\*.parquet, de-\*.parquet \(the set is "
        r"neulab/PangeaBench-xgqa on the Hugging Face Hub\), found data"),
    "a language that the set has not": (
        "kaleidoscope", "cs", {}, r"is not in cs; it is in ar, bn, de, en, es, fa, fr, hi, hr"),
    "rows of other languages only": (
        "mtvqa", "de", {"data/test-0.parquet": [
            {"id": "1", "lang": "FR", "image": image(1), "qa_pairs": "[]"}]},
        r"no questions in de among 1 rows that fit .*; the columns are id, lang, image, qa_pairs"),
    "no image": (
        "pangeabench-xgqa", "de", {"data/de-0.parquet": [{**XGQA, "image": None}]},
        r"de-0.parquet: row 0: question 0: no image; expected one in image. Found: image, quest"),
    "an image without bytes": (
        "pangeabench-xgqa", "de",
        {"data/de-0.parquet": [XGQA, {**XGQA, "image": {"bytes": None, "path": None}}]},
        r"row 1: question 1: no image"),
    "the word None in all ten columns": (
        "pangeabench-m3exam", "en",
        {"data/english-0.parquet": [m3exam("english", "What?", ["A. x", "B. y"], "A", [])]},
        r"no image; expected one in image_\*"),
    "a question that is nan": (
        "pangeabench-xgqa", "de", {"data/de-0.parquet": [{**XGQA, "question": NAN}]},
        r"question is None; expected text"),
    "an id twice": (
        "m5b-vgr", "sw", {"data/sw-0.parquet": [
            {**VGR, "image_a": image(1), "image_b": image(2), "label": 1},
            {**VGR, "image_a": image(2), "image_b": image(2), "label": 0}]},
        r"sw-0.parquet: row 1: m5b-vgr: question s1 is there twice; the first is in .*row 0"),
    "other columns": (
        "m5b-vgr", "sw", {"data/sw-0.parquet": [{**VGR, "left": image(1), "label": 1}]},
        r"expected one in image_a, image_b. Found: .*left, label"),
    "an answer that the mapping does not know": (
        "xvnli", "ru", {"data/ru-0.parquet": [
            {"image": image(1), "hypothesis": "Да?", "label": "unclear"}]},
        r"label is 'unclear'; expected one of entailment, contradiction, neutral"),
    "an answer without what its pattern finds": (
        "pangeabench-marvl", "sw", {"data/sw-0.parquet": [
            {"id": "1", "image": image(1), "conversations": turns("Ni?", "perhaps")}]},
        r"conversations.1.value is 'perhaps'; expected one of yes, true, 1, no, false, 0"),
    "a conversation of one turn": (
        "pangeabench-marvl", "sw", {"data/sw-0.parquet": [
            {"id": "1", "image": image(1), "conversations": turns("Ni?", "true")[:1]}]},
        r"conversations.1.value is None"),
    "an index that is none": (
        "kaleidoscope", "hr",
        {"data/train-0.parquet": [exam("hr", 4, "a.png")],
         "data.zip": {"final_data/a.png": files.picture(1)}},
        r"answer is 4; expected one of 0, 1, 2, 3 \(are the answers kept back\?\)"),
    "an image that is not in the archive": (
        "kaleidoscope", "hr",
        {"data/train-0.parquet": [exam("hr", 0, "b.png")],
         "data.zip": {"final_data/a.png": files.picture(1)}},
        r"1 images of kaleidoscope are missing in .*data.zip/final_data.*b.png"),
    "an archive without the folder": (
        "kaleidoscope", "hr",
        {"data/train-0.parquet": [exam("hr", 0, "b.png")], "data.zip": {}},
        r"1 images of kaleidoscope are missing"),
    "questions that are no list": (
        "mtvqa", "it", {"data/test-0.parquet": [
            {"id": "1", "lang": "it", "image": image(1), "qa_pairs": "Cosa?"}]},
        r"row 0: the questions in qa_pairs are no list: 'Cosa\?'"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(tmp_path, name):
    benchmark, lang, contents, message = BAD[name]
    root = write(tmp_path / "set", contents)
    with pytest.raises(DataError, match=message):
        import_benchmark(benchmark, root, tmp_path / "out", lang=lang)
    assert not (tmp_path / "out" / f"{lang}.jsonl").exists()


def test_a_damaged_archive(tmp_path):
    (tmp_path / "data.zip").write_bytes(b"PK\3\4 cut off")
    with pytest.raises(DataError, match=r"data.zip: damaged, or no ZIP file"):
        image_folder(tmp_path / "data.zip" / "final_data")


def test_languages_are_told_by_files_or_by_a_column(tmp_path, caplog):
    rows = [exam(lang, 0, "a.png") for lang in ("hr", "ru", "xx")]
    root = write(tmp_path / "set", {"data/train-0.parquet": rows, "data.zip": {
        "final_data/a.png": files.picture(1)}})  # fmt: skip
    assert languages_of("kaleidoscope", root, None) == ("hr", "ru")
    assert "no language of kaleidoscope is xx" in caplog.text
    assert languages_of("kaleidoscope", root / "data" / "train-0.parquet", ()) == ("hr", "ru")
    vgr = {**VGR, "image_a": image(1), "image_b": image(2), "label": 1}
    root = write(tmp_path / "m5b", {f"data/{lang}-0.parquet": [vgr] for lang in ("ha", "sw")})
    assert languages_of("m5b-vgr", root, None) == ("ha", "sw")
    (item,) = read_benchmark("m5b-vgr", Source(root, "ha", ImageStore(None))).items
    assert (item.lang, item.answer) == ("ha", "yes") and "is it correct to say" in item.text
    assert "ha (Hausa) has no language file here: it is asked with the requests" in caplog.text
    # by the set's own names
    assert languages_of("mmmb", root, ["cn", "tr"]) == ("zh", "tr")
    assert languages_of("pangeabench-maxm", root, ["iw", "he"]) == ("he", "he")


def test_languages_and_registers_of_wide_sets(tmp_path):
    """Min Nan's code is also how pandas prints an empty cell."""
    codes = ["cs", "yue", "nan", "nan_spoken", "id_formal", "id_casual"]
    rows = [dish(number, code) for number, code in enumerate(codes)]
    root = write(tmp_path / "set", {"task1/test_small/0000.parquet": rows})
    found = languages_of("worldcuisines", root, None)
    assert found == ("cs", "id", "id-x-casual", "nan", "nan-x-spoken", "yue")
    for lang in found:
        (item,) = read_benchmark("worldcuisines", Source(root, lang, ImageStore(None))).items
        assert (item.lang, item.answer) == (lang, "C")
    names = [language_name(lang) for lang in found[2:]]
    assert names == ["Indonesian (casual)", "Min Nan Chinese", "Min Nan Chinese (spoken)",
                     "Cantonese"]  # fmt: skip
    rows = [alm(1, "Yoruba", "Short Questions", "Kí ni?", "búrẹ́dì"),
            alm(2, "Chinese (Traditional)", "Short Questions", "?", "麵包")]  # fmt: skip
    root = write(tmp_path / "alm", {"data/test-0.parquet": rows})
    assert languages_of("alm-bench", root, None) == ("yo", "zh-Hant")


def test_every_language_of_a_set_has_a_well_formed_code():
    for name in set_names():
        for lang in find_mapping(name).languages:
            assert normalize_tag(lang) == lang and any_language(lang).code == lang, (name, lang)


def test_a_snapshot_of_links_and_its_revision(tmp_path, monkeypatch):
    cache = tmp_path / "hub"
    repository = cache / "datasets--neulab--PangeaBench-xgqa"
    snapshot = repository / "snapshots" / REVISION
    write(repository / "blobs", {"0a1b.parquet": [XGQA]})
    (snapshot / "data").mkdir(parents=True)
    link = snapshot / "data" / "de-00000-of-00001.parquet"
    link.symlink_to(Path("../../../blobs/0a1b.parquet"))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(REVISION)

    def run(*arguments):
        arguments = ["benchmark", "import", "pangeabench-xgqa", *arguments]
        return CliRunner().invoke(commands.app, arguments, catch_exceptions=False)

    out = tmp_path / "out"
    assert "1 questions" in run(str(snapshot), "--lang", "de", "--out", str(out)).output
    assert read_description(out)["files"]["de"]["revision"] == REVISION
    assert open_questions("pangeabench-xgqa", out, "de").items[0].answer == "dog"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    run("neulab/PangeaBench-xgqa", "--hub", "--out", str(tmp_path / "hub-out"))
    assert read_description(tmp_path / "hub-out")["files"]["de"]["revision"] == REVISION
    with pytest.raises(ConfigError, match=r"owner/other cannot be had .* without --hub"):
        download("pangeabench-xgqa", "owner/other", None)
    with pytest.raises(ConfigError, match="--revision is for a data set on the Hub"):
        run(str(snapshot), "--revision", "main", "--out", str(out))
    assert revision_of(tmp_path) == revision_of(tmp_path / "snapshots" / "main") == ""


def test_only_the_files_of_the_languages_are_downloaded():
    mapping = find_mapping("kaleidoscope")
    patterns = download_patterns(mapping, ["hr"])
    assert {"data/train-*.parquet", "data.zip", "final_data/*"} <= set(patterns)
    patterns = download_patterns(find_mapping("pangeabench-xm100"), ["qu"])
    assert patterns[0] == "data/quz-*.parquet"
    with pytest.raises(DataError, match="is not in xx"):
        download_patterns(mapping, ["xx"])


def test_several_languages_on_the_command_line(tmp_path):
    rows = [exam(lang, 0, "a.png") for lang in ("hr", "de", "ru")]
    root = write(tmp_path / "set", {"data/train-0.parquet": rows, "data.zip": {
        "final_data/a.png": files.picture(1)}})  # fmt: skip
    arguments = ["benchmark", "import", "kaleidoscope", str(root), "--lang", "hr,ru", "--out"]
    CliRunner().invoke(commands.app, [*arguments, str(tmp_path / "out")], catch_exceptions=False)
    assert set(read_description(tmp_path / "out")["files"]) == {"hr", "ru"}


def test_a_prompt_of_ones_own(tmp_path):
    mapping = tmp_path / "mine.toml"
    mapping.write_text(
        'title = "Mine"\nkind = "answers"\nanswer_type = "letter"\nlanguages = { hr = "hr" }\n'
        '[files]\nquestions = ["hr.json"]\n[columns]\nimage = "image"\nquestion = "q"\n'
        'hint = "h"\noptions = ["=ne znam", "a", "b"]\nanswer = "answer"\n'
        '[prompt]\nany = "{hint}\\n{question} ({language})\\n{options}\\n{other}:"\n',
        encoding="utf-8",
    )
    row = {"image": base64_image(1), "q": "{hint}?", "h": "nan", "a": "pas", "b": "", "answer": 2}
    root = write(tmp_path / "set", {"hr.json": [row, {**row, "h": "Gle."}]})
    first, second = import_benchmark(str(mapping), root, tmp_path / "out", lang="hr").items
    assert first.text == "{hint}? (Croatian)\nA. ne znam\nB. pas\n{other}:"
    assert second.text == f"Gle.\n{first.text}" and second.answer == "B"


def test_cells():
    assert as_list('["a\\u00e9", "b"]', "x") == ["aé", "b"]
    assert as_list("[{'q': 'l\\'a:\nb', 'n': 1}]", "x", dict) == [{"q": "l'a:\nb", "n": 1}]
    assert as_list("array(['a' 'b'], dtype=object)", "x") == ["a", "b"]
    assert [cell_text(value) for value in (3.0, 2.5, NAN, None, " x ", ["a", 1])] == [
        "3", "2.5", "", "", "x", "a\n1"
    ]  # fmt: skip
    empty = (None, NAN, "", "None", "nan", b"", [], {}, {"bytes": None, "path": "None"})
    full = (b"x", "a.png", {"bytes": b"x", "path": None}, {"bytes": None, "path": "a"}, 0)
    assert all(map(is_absent, empty)) and not any(map(is_absent, full))
    row = {"a.b": 1, "a": {"b": 2, "c": [{"d": 3}]}, "n": NAN}
    paths = ("a.b", "a.c.0.d", "a.c.1.d", "n", "{a.b}-x", "{none}-x", "a.c.d")
    assert [value_at(row, path) for path in paths] == [1, 3, None, None, "1-x", None, None]
