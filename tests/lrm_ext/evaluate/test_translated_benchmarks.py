"""`lrm benchmark translate` and `agreement`: letters and labels stay, and people win."""

import csv
import json
from types import SimpleNamespace

import pytest
from official_files import mme_folder
from typer.testing import CliRunner

from lrm_ext.cli import app
from lrm_ext.evaluate.importing import import_benchmark
from lrm_ext.evaluate.items import Item, read_items
from lrm_ext.evaluate.registry import write_folder
from lrm_ext.evaluate.translating import LanguagePairs, Pair, measure, read_corrections
from lrm_ext.languages import get_language
from lrm_ext.translate import runner
from lrm_ext.translate.engines.base import Outcome, Reply

ASKED = "What is on the table?"
TABLE = {
    ASKED: "Co je na stole?",
    "A red car stands here.": "Stojí tu červené auto.",
    "a red apple": "červené jablko",
    "a green pear": "zelená hruška",
    "a round fruit": "kulaté ovoce",
    "a round berry": "kulaté ovoce",
    "Is the car red?": "Je to auto červené?",
    "Is the car blue?": "Je to auto modré?",
    "Is it Jaws?": "Jsou to Čelisti?",
    "Is it Alien?": "Je to Vetřelec?",
}


def invoke(*args):
    result = CliRunner().invoke(app, ["benchmark", *map(str, args)])
    return result, str(result.exception or "") + result.output


def rotations(options, hint="", first=0):
    """A question of MMBench in all rotations, the first option being right."""
    english = get_language("en")
    items = []
    for turn in range(len(options)):
        shown = tuple(options[turn:] + options[:turn])
        lines = [f"{letter}. {text}" for letter, text in zip("ABCD", shown, strict=False)]
        text = "\n".join([*([hint] if hint else []), ASKED, *lines, english.option_letter])
        items.append(
            Item(
                question_id=str(first + turn * 1_000_000),
                image="a.png",
                text=text,
                category="object_localization",
                answer="ABCD"[-turn % len(options)],
                lang="en",
                answer_type="letter",
                options=shown,
                question=ASKED,
                hint=hint,
                group=str(first),
            )
        )
    return tuple(items)


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "table.tsv"
    path.write_text("".join(f"{a}\t{b}\n" for a, b in TABLE.items()), encoding="utf-8")
    return path


@pytest.fixture
def source(tmp_path):
    """An imported MMBench: `source(items)`."""

    def make(items, name="source"):
        folder = tmp_path / name
        write_folder(folder, "mmbench", "en", items, folder / "images", tmp_path / "mm.tsv")
        return folder

    return make


def translate(folder, out, table, *more):
    given = ("--to", "cs", "--engine", "memory", "-o", f"table={table}", "--out", out)
    return invoke("translate", folder, *given, *more)


def test_mmbench_keeps_letters_and_asks_as_llava_does(source, table, tmp_path):
    items = rotations(["a red apple", "a green pear"], "A red car stands here.")
    result, output = translate(source(items), tmp_path / "out", table)
    assert result.exit_code == 0, output
    first, second = read_items(tmp_path / "out" / "cs.jsonl", "cs")
    assert first.text == (
        "Stojí tu červené auto.\nCo je na stole?\nA. červené jablko\nB. zelená hruška\n"
        + get_language("cs").option_letter
    )
    assert [first.answer, second.answer] == ["A", "B"]
    assert second.options == ("zelená hruška", "červené jablko")


def test_mme_keeps_labels_and_scores(table, tmp_path):
    import_benchmark("mme", mme_folder(tmp_path / "official"), tmp_path / "mme")
    result, output = translate(tmp_path / "mme", tmp_path / "mme", table)
    assert result.exit_code == 0, output
    items = read_items(tmp_path / "mme" / "cs.jsonl", "cs")
    assert [item.answer for item in items] == ["Yes", "No", "Yes", "No"]
    assert items[0].text == "Je to auto červené?\n" + get_language("cs").short_answer
    answers = tmp_path / "answers.jsonl"
    lines = [{"question_id": i.question_id, "text": "Ano"} for i in items]
    answers.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    scored, output = invoke(
        "score", "mme", "--predictions", answers, "--data", tmp_path / "mme", "--lang", "cs",
        "--json", "--no-intervals",
    )  # fmt: skip
    assert json.loads(scored.stdout)["headline"] == 100.0, output


def test_a_rejected_question_is_an_error_or_is_counted_in_english(source, table, tmp_path):
    items = rotations(["a red apple", "an unknown thing"])
    folder, out = source(items), tmp_path / "out"
    result, output = translate(folder, out, table)
    assert result.exit_code != 0
    assert "2 of 2 questions have no good translation (engine 2)" in output
    assert not (out / "cs.jsonl").exists()
    with (out / "translation" / "cs.review.tsv").open(encoding="utf-8") as file:
        review = list(csv.DictReader(file, delimiter="\t"))
    assert [row["field"] for row in review] == ["question", "option A", "option B"]
    result, output = translate(folder, out, table, "--with-english")
    assert result.exit_code == 0, output
    assert "2 are asked in English" in output
    assert read_items(out / "cs.jsonl", "cs")[0].text == items[0].text
    described = json.loads((out / "benchmark.json").read_text(encoding="utf-8"))
    assert described["files"]["cs"]["num_in_english"] == 2


def test_a_correction_wins_is_kept_and_holds_in_all_rotations(source, table, tmp_path):
    folder, out = source(rotations(["a red apple", "an unknown thing"])), tmp_path / "out"
    translate(folder, out, table)
    filled = tmp_path / "filled.csv"
    filled.write_text(
        "\ufefflang;question_id;field;english;correction\n"
        "cs;0;option B;an unknown thing;neznámá věc\n"
        "cs;0;question;" + ASKED + ";Copak je na stole?\n"
        "cs;0;option A;a red apple;\n",
        encoding="utf-8",
    )
    result, output = translate(folder, out, table, "--corrections", filled)
    assert result.exit_code == 0, output
    # again, and by another table, which means another version of the engine
    table.write_text("a red apple\trudé jablko\n" + ASKED + "\tCo tu je?\n", encoding="utf-8")
    result, output = translate(folder, out, table)
    assert result.exit_code == 0, output
    first, second = read_items(out / "cs.jsonl", "cs")
    assert (first.question, first.options) == ("Copak je na stole?", ("rudé jablko", "neznámá věc"))
    assert second.options == ("neznámá věc", "rudé jablko")


def test_a_correction_of_an_older_text_is_reported_and_not_applied(source, table, tmp_path):
    filled = tmp_path / "filled.tsv"
    filled.write_text(
        "lang\tquestion_id\tfield\tenglish\tcorrection\n"
        "cs\t0\toption A\ta ripe apple\tzralé jablko\n"
        "cs\t7\tquestion\tWhere?\tKde?\n",
        encoding="utf-8",
    )
    folder = source(rotations(["a red apple", "a green pear"]))
    result, output = translate(folder, tmp_path / "out", table, "--corrections", filled)
    assert result.exit_code == 0, output
    assert "corrected when it was 'a ripe apple', now it is 'a red apple'" in output
    assert "7, question: there is no such text any more" in output
    assert read_items(tmp_path / "out" / "cs.jsonl", "cs")[0].options[0] == "červené jablko"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lang\tquestion_id\nx\ty\n", "no column field, english, correction"),
        ("{h}cs\t0\tquestion\tq\ta\ncs\t0\tquestion\tq\tb\n", "corrected twice, differently"),
        ("{h}cs\t0\tquestion\tq\tx <image>\n", "holds <image>"),
    ],
)
def test_a_wrong_list_of_corrections_is_an_error(tmp_path, text, message):
    from llava.errors import DataError

    path = tmp_path / "wrong.tsv"
    head = "lang\tquestion_id\tfield\tenglish\tcorrection\n"
    path.write_text(text.replace("{h}", head), encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_corrections(path)


def test_options_that_became_the_same_are_told_apart(source, table, tmp_path):
    folder = source(rotations(["a round fruit", "a round berry"]))
    # the corpus rejects them; people may say that it is right
    filled = tmp_path / "filled.tsv"
    filled.write_text(
        "lang\tquestion_id\tfield\tenglish\tcorrection\n"
        "cs\t0\toption A\ta round fruit\tkulaté ovoce\n",
        encoding="utf-8",
    )
    result, output = translate(folder, tmp_path / "out", table, "--corrections", filled)
    assert result.exit_code == 0, output
    first = read_items(tmp_path / "out" / "cs.jsonl", "cs")[0]
    assert first.options == ("kulaté ovoce (a round fruit)", "kulaté ovoce (a round berry)")
    made = json.loads((tmp_path / "out/translation/cs.json").read_text(encoding="utf-8"))
    assert made["counts"]["options told apart"] == 4


class Engine:
    """Answers from the table; it is killed after some texts."""

    version, options, is_table, is_sentence_level = "1", {}, False, False
    context, mask_styles = "question", ()

    def __init__(self, name="fake", dies_after=None, change=""):
        self.name, self.asked, self.dies_after, self.change = name, [], dies_after, change

    def translate(self, segments):
        for i, segment in enumerate(segments):
            if len(self.asked) == self.dies_after:
                raise KeyboardInterrupt
            self.asked.append(segment)
            yield Reply((Outcome(i, TABLE[segment.text] + self.change),))

    def close(self):
        pass


@pytest.fixture
def engines(monkeypatch):
    def use(*made):
        by_name = {engine.name: engine for engine in made}
        monkeypatch.setattr(runner, "build_engine", lambda name, *_: by_name[name])
        monkeypatch.setattr(runner, "get_spec", lambda name: SimpleNamespace(licence="none"))
        monkeypatch.setattr(
            "lrm_ext.translate.engines.base.split_options",
            lambda _, names: dict.fromkeys(names, {}),
        )

    return use


def test_options_know_their_question_and_what_was_answered_is_not_asked_again(
    source, engines, tmp_path
):
    folder = source(rotations(["a red apple", "a green pear"]))

    def run(engine, out, cache):
        engines(engine)
        args = ("--to", "cs", "--engine", "fake", "--out", tmp_path / out, "--no-check")
        return invoke("translate", folder, *args, "--cache", tmp_path / cache)

    whole = Engine()
    result, output = run(whole, "whole", "a.sqlite")
    assert result.exit_code == 0, output
    assert {segment.text: segment.context for segment in whole.asked} == {
        ASKED: "",
        "a red apple": ASKED,
        "a green pear": ASKED,
    }
    run(Engine(dies_after=2), "cut", "b.sqlite")
    assert not (tmp_path / "cut" / "cs.jsonl").exists()
    again = Engine()
    result, output = run(again, "cut", "b.sqlite")
    assert result.exit_code == 0, output
    assert len(again.asked) == 1
    for name in ("cs.jsonl", "benchmark.json", "translation/cs.jsonl", "translation/cs.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_two_engines_are_compared_and_the_worst_are_listed(source, engines, tmp_path):
    pytest.importorskip("sacrebleu")
    folder = source(rotations(["a red apple", "a green pear"]))
    engines(Engine("one"), Engine("two", change=" zde"))
    for name in ("one", "two"):
        args = ("--to", "cs", "--engine", name, "--out", tmp_path / name, "--no-check")
        more = ("--compare-with", "two") if name == "one" else ()
        result, output = invoke("translate", folder, *args, *more)
        assert result.exit_code == 0, output
    review = tmp_path / "review.tsv"
    result, output = invoke(
        "agreement", tmp_path / "one", tmp_path / "two", "--json", "--review", review
    )
    content = json.loads(result.stdout)
    assert (content["hypothesis"], content["reference"]) == ("one 1", "two 1")
    cs = content["languages"]["cs"]
    assert (cs["num_texts"], cs["num_left_out"]) == (3, 0)
    assert "tok:13a" in cs["signature"]
    assert 0 < cs["bleu"] == content["mean"]["bleu"] < 100
    rows = review.read_text(encoding="utf-8").splitlines()
    assert len(rows) == 4
    assert (
        rows
        == (tmp_path / "one/translation/disagreements.two.tsv")
        .read_text(encoding="utf-8")
        .splitlines()
    )
    result, output = invoke("agreement", tmp_path / "one", tmp_path / "one", "--json")
    assert json.loads(result.stdout)["mean"]["chrf"] == 100.0


def test_chinese_has_its_own_tokenizer():
    pytest.importorskip("sacrebleu")
    pairs = LanguagePairs(
        (Pair("1", "question", "What?", "桌子上有什么东西?", "桌子上有什么?"),), 0
    )
    found = measure(pairs, "zh")
    assert "tok:zh" in found.signature
    assert 0 < found.bleu < 100


def test_what_people_wrote_is_not_overwritten_and_english_may_not_change(source, table, tmp_path):
    items = rotations(["a red apple", "a green pear"])
    folder, out = source(items), tmp_path / "out"
    translate(folder, out, table)
    other = source(rotations(["a red apple", "a round fruit"]), "other")
    result, output = translate(other, out, table)
    assert "its English questions are not those of" in output
    (out / "translation" / "cs.json").unlink()
    result, output = translate(folder, out, table)
    assert "people wrote or imported" in output
    result, output = translate(folder, out, table, "--replace")
    assert result.exit_code == 0, output


def test_languages_that_are_missing_are_named(source, table, tmp_path):
    folder = source(rotations(["a red apple", "a green pear"]))
    translate(folder, tmp_path / "out", table)
    result, output = invoke("agreement", tmp_path / "out", tmp_path / "out", "--languages", "hr")
    assert "has no hr.jsonl" in output
    result, output = invoke("agreement", folder, tmp_path / "out")
    assert "no language to compare" in output


def test_pictures_are_found_through_a_link_to_the_folder(source, tmp_path):
    from lrm_ext.evaluate.registry import open_named

    folder = source(rotations(["a red apple", "a green pear"]))
    link = tmp_path / "deeper" / "still" / "link"
    link.parent.mkdir(parents=True)
    link.symlink_to(folder)
    assert open_named(str(link)).image_path("a.png") == folder.resolve() / "images" / "a.png"
