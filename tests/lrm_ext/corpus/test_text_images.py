"""`lrm corpus text-images`: apart by sentence and font, resumable, and what it refuses."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from corpus_cli import lrm

from llava.errors import ConfigError, DataError
from lrm_ext.corpus import text_images
from lrm_ext.corpus.store import Corpus
from lrm_ext.corpus.text_images import make_text_images, plan_languages, read_sentences
from lrm_ext.corpus.validating import validate
from lrm_ext.languages.registry import (
    DATA_DIR,
    FOLDER_VARIABLE,
    get_language,
    load_language,
    reload_languages,
)
from lrm_ext.mixture.spec import MixtureSpec

WORDS = {
    "hr": ["Mačka", "Kuća", "Žaba", "sjedi", "spava", "čeka", "vani", "ovdje"],
    "ru": ["Кошка", "Дом", "Ёж", "сидит", "спит", "ждёт", "здесь", "там"],
}
TEXTS = {
    lang: [f"{a} {b} {c}." for a in w[:3] for b in w[3:6] for c in w[6:]]
    for lang, w in WORDS.items()
}


pytestmark = pytest.mark.usefixtures("matplotlibs_fonts")


@pytest.fixture
def sentences(tmp_path):
    path = tmp_path / "sentences.tsv"
    lines = [f"{lang}\t{text}" for lang, texts in TEXTS.items() for text in texts]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def contents(root):
    return {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_corpus_and_benchmark(tmp_path, sentences):
    root = tmp_path / "out"
    plans = make_text_images(root, ["hr", "ru"], 60, source=sentences)
    corpus = Corpus.open(root / "train")
    assert (len(corpus), corpus.languages) == (60, ("en", "hr", "ru"))
    assert validate(corpus, verify_images=True).counts == {}
    trained, answers = set(), []
    for index in range(60):
        row = corpus.row(index)
        lang = row.id[:2]
        assert [corpus.text(code, index) is None for code in ("hr", "ru")] == [
            lang == "ru", lang == "hr",
        ]  # fmt: skip
        question, answer = (turn.text for turn in corpus.turns(lang, index))
        english = [turn.text for turn in row.turns]
        if row.task == "reading":
            text = answer
            assert question == f"<image>\n{get_language(lang).reading.what}"
            assert english == ["<image>\nWhat is written in the picture?", text]
            assert text in TEXTS[lang]
            trained.add(text)
        else:  # of the same image as the row before
            assert row.image == corpus.row(index - 1).image
            language = get_language(lang)
            is_there = text in question
            assert answer == (language.yes if is_there else language.no)
            assert english[1] == ("Yes" if is_there else "No")
            assert question.endswith("\n" + language.short_answer)
            answers.append(is_there)
    assert answers.count(True) == 16 and len(answers) == 30
    asked = {}
    for lang in ("hr", "ru"):
        lines = (root / "reading" / f"{lang}.jsonl").read_text(encoding="utf-8").splitlines()
        items = [json.loads(line) for line in lines]
        asked[lang] = [item["question_id"] for item in items]
        assert {item["answer"] for item in items if item["category"] == "reading"} <= {
            *TEXTS[lang]
        } - trained
        assert all((root / "reading" / item["image"]).is_file() for item in items)
        assert [item["answer_type"] for item in items] == ["text", "yesno"] * 2
    assert len(asked["hr"]) == len(asked["ru"]) and set(asked["hr"]).isdisjoint(asked["ru"])
    spec = MixtureSpec.from_toml(root / "mixture.toml")
    assert set(spec.languages) == {"hr", "ru"} and set(spec.instructions) == {"mvqa", "epvqa"}
    for plan in plans:
        families = [{font.family for font in fonts} for fonts in plan.fonts.values()]
        assert families[0] and families[1] and families[0].isdisjoint(families[1])
        assert set(plan.sentences["train"]).isdisjoint(plan.sentences["test"])
        assert len(plan.sentences["train"] + plan.sentences["test"]) == 18
    page = (root / "train" / "FONTS.md").read_text(encoding="utf-8")
    assert "| DejaVu Serif Book | Version 2." in page and "public domain" in page


def test_same_bytes_again_and_others_with_another_seed(tmp_path, sentences):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make_text_images(tmp_path / name, ["hr"], 8, source=sentences, seed=seed)
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert a == b and a.keys() == c.keys()
    assert all(a[path] != c[path] for path in a if path.suffix == ".jpg")


def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been(tmp_path, sentences):
    code = (
        "import sys; from pathlib import Path; from matplotlib import font_manager as fonts;"
        "find = fonts.findSystemFonts;"
        "fonts.findSystemFonts = lambda paths=None: find(paths) if paths else [];"
        "from lrm_ext.corpus.text_images import make_text_images;"
        "make_text_images(Path(sys.argv[1]), ['hr'], 80, source=Path(sys.argv[2]))"
    )
    root = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", code, str(root), str(sentences)])
    while not (early := sorted(root.glob("images/hr/*.jpg"))) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not (root / "COMPLETE").exists()
    written = early[0].stat().st_mtime_ns
    for name in ("killed", "other"):
        make_text_images(tmp_path / name, ["hr"], 80, source=sentences)
    assert early[0].stat().st_mtime_ns == written
    assert contents(root) == contents(tmp_path / "other")


def test_what_was_made_otherwise_is_not_replaced_unasked(tmp_path, sentences):
    root = tmp_path / "out"
    make_text_images(root, ["hr"], 4, source=sentences)
    before = contents(root)
    with pytest.raises(DataError, match="other sentences, fonts or options.*--overwrite"):
        make_text_images(root, ["hr"], 6, source=sentences)
    assert contents(root) == before
    make_text_images(root, ["hr"], 6, source=sentences, overwrite=True)
    assert len(Corpus.open(root / "train")) == 6


def test_asks_in_english_where_a_language_has_no_wording(tmp_path, monkeypatch):
    own = os.path.join(os.path.dirname(__file__), "..", "languages", "own")
    monkeypatch.setenv(FOLDER_VARIABLE, own)
    reload_languages()
    try:
        lines = tmp_path / "sk.txt"
        lines.write_text("\n".join(f"Veta číslo {n}." for n in range(20)), encoding="utf-8")
        said = lrm("corpus", "text-images", "--lang", "sk", "--rows", 4, "--from", lines,
                   "--out", tmp_path / "out")  # fmt: skip
        assert "asked in English, for want of a table [reading]: sk" in said
        turns = [Corpus.open(tmp_path / "out" / "train").turns("sk", i) for i in range(4)]
        assert turns[0][0].text == "<image>\nWhat is written in the picture?"
        assert {turns[1][1].text, turns[3][1].text} == {"Yes", "No"}
    finally:
        monkeypatch.undo()
        reload_languages()


def test_a_question_that_cannot_hold_the_text_is_refused(tmp_path):
    text = (DATA_DIR / "cs.toml").read_text(encoding="utf-8")
    path = write(tmp_path / "cs.toml", text.replace("„{text}“", "„{word}“"))
    with pytest.raises(ConfigError, match=r"reading\.is_written is 'Je na.*\{text\}"):
        load_language(path)


def test_sentences_of_the_project(tmp_path):
    found = read_sentences(None, ["hr"])["hr"]
    assert get_language("hr").short_answer in found and len(found) > 100


def test_what_is_left_out_is_counted(caplog):
    good = [f"Rečenica {n}." for n in range(20)]
    lines = [*good, "rečenica 3.", "", "  Rečenica   4. ", "x" * 161, "a <image> b", "कख"]
    (plan,) = plan_languages({"hr": lines}, (), 0)
    assert plan.left_out == {"repeated": 2, "too long": 1, "not plain text": 1, "no font": 1}
    assert sorted([*plan.sentences["train"], *plan.sentences["test"]]) == sorted(good)
    assert "Devanagari (क ख)" in plan.remark


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def test_what_cannot_be_read_is_named(tmp_path):
    plain = write(tmp_path / "plain.txt", "Mačka.\nPas.\n")
    assert read_sentences(plain, ["hr"]) == {"hr": ["Mačka.", "Pas."]}
    with pytest.raises(DataError, match=r"plain\.txt: the first line does not name its language"):
        read_sentences(plain, ["hr", "ru"])
    mixed = write(tmp_path / "mixed.tsv", "hr\tMačka.\nfoo\tbar\n")
    with pytest.raises(DataError, match=r"mixed\.tsv:2: expected LANG<TAB>TEXT .*'foo\\tbar'"):
        read_sentences(mixed, ["hr"])
    with pytest.raises(DataError, match=r"latin\.txt: not UTF-8"):
        read_sentences(write(tmp_path / "latin.txt", "kuća", "cp1250"), ["hr"])
    with pytest.raises(DataError, match=r"lacks hr\.txt, ru\.txt; expected <lang>\.txt"):
        read_sentences(tmp_path, ["hr", "ru"])


def test_lines_in_other_languages_are_counted(tmp_path, caplog):
    path = write(tmp_path / "a.tsv", "hr\tMačka.\nde\tKatze.\nde\tHund.\n")
    assert read_sentences(path, ["hr"]) == {"hr": ["Mačka."]}
    assert "lines in other languages are left out: de 2" in caplog.text


def test_a_language_without_a_font_ends_it_before_anything_is_written(tmp_path):
    path = write(tmp_path / "zh.tsv", "".join(f"zh\t猫{n}。\nhr\tPas {n}.\n" for n in range(9)))
    with pytest.raises(ConfigError, match=r"^zh: no font here covers Han.*noto-cjk.*--fonts$"):
        make_text_images(tmp_path / "out", ["hr", "zh"], 8, source=path)
    assert not (tmp_path / "out").exists()


def test_too_few_rows(tmp_path, sentences):
    with pytest.raises(ConfigError, match="--rows 3: expected at least 4"):
        make_text_images(tmp_path / "out", ["hr", "ru"], 3, source=sentences)
    assert not (tmp_path / "out").exists()


def test_too_few_sentences():
    with pytest.raises(DataError, match=r"hr: 1 sentences for the train images.*of 4 lines"):
        plan_languages({"hr": ["Jedan.", "Dva.", "Tri.", "tri."]}, (), 0)


def test_the_other_sentence_is_near_and_not_shown():
    import random

    texts = ["Mačka spava vani.", "Mačka spava ovdje.", "Ёж", "Mačka", "spava vani."]
    for seed in range(20):
        assert (
            text_images._other_sentence(texts[0], texts, random.Random(seed))
            == "Mačka spava ovdje."
        )
    assert text_images._other_sentence("ab", ["ab", "a"], random.Random(0)) == "ab"
