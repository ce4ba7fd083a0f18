"""Two runs side by side: the verdicts, and what cannot be compared."""

import dataclasses
import io
import json
import re

import pytest
from rich.console import Console
from typer.testing import CliRunner

from llava.errors import DataError
from lrm_ext.evaluate import commands
from lrm_ext.evaluate.compare import compare_runs, print_comparison, sentence
from lrm_ext.evaluate.report import score_run
from lrm_ext.evaluate.runner import run_evaluation

NUM = 120


def write_run(folder, lang, texts, name="pope", golds=("yes", "no"), **more):
    path = folder / "predictions" / f"{name}.{lang}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, text in enumerate(texts):
        line = {
            "question_id": str(number), "key": f"random/{number}", "text": text,
            "gold": golds[number % 2], "category": "random", "benchmark": name, "kind": "pope",
            "lang": lang, "image": f"{number // 4}.jpg", "version": "v1", **more,
        }  # fmt: skip
        lines.append(json.dumps(line) + "\n")
    path.write_text("".join(lines), encoding="utf-8")


def answers(num_right, words=("Yes", "No")):
    """Right for the first so many questions, and the other word after them."""
    return [words[(n % 2) ^ (n >= num_right)] for n in range(NUM)]


@pytest.fixture
def runs(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    for lang, words in (("en", ("Yes", "No")), ("cs", ("Ano", "Ne")), ("de", ("Ja", "Nein"))):
        write_run(a, lang, answers(60, words))
        write_run(b, lang, answers({"en": 62, "cs": 110, "de": 20}[lang], words))
    return a, b


def test_better_worse_and_not_distinguishable(runs):
    (result,) = compare_runs(*runs, num_replicates=2000)
    assert {one.lang: one.verdict for one in result.languages} == {
        "en": "not distinguishable", "cs": "better", "de": "worse",
    }  # fmt: skip
    english, czech, german = result.languages
    assert (czech.only_a, czech.only_b, german.only_b) == (0, 50, 0)
    assert czech.num_questions == NUM and czech.num_units == NUM // 4
    assert czech.difference.low > 0 > german.difference.high
    assert english.num_needed > 5 * NUM > czech.num_needed
    assert czech.p_adjusted >= czech.difference.p
    assert result.mean.lang == "mean" and result.mean.a == (czech.a + german.a) / 2


def test_a_run_is_not_better_than_itself(runs):
    (result,) = compare_runs(runs[0], runs[0], num_replicates=100)
    for one in (*result.languages, result.mean):
        assert (one.verdict, one.difference.p, one.difference.value) == (
            "not distinguishable", 1, 0,
        )  # fmt: skip
        assert one.num_needed is None


def test_the_same_seed_gives_the_same_and_the_order_of_lines_is_nothing(runs):
    before = [result.to_json() for result in compare_runs(*runs, num_replicates=200)]
    for path in (runs[1] / "predictions").iterdir():
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(lines[::-1]))
    assert [result.to_json() for result in compare_runs(*runs, num_replicates=200)] == before


def test_one_language_only_in_one_run_is_said(runs):
    write_run(runs[1], "fr", answers(10, ("Oui", "Non")))
    (result,) = compare_runs(*runs, num_replicates=50)
    assert result.only_in == {str(runs[0]): (), str(runs[1]): ("fr",)}
    assert "fr" not in {one.lang for one in result.languages}


def test_what_cannot_be_compared(runs, tmp_path):
    a, b = runs
    with pytest.raises(DataError, match="no answers in it"):
        compare_runs(a, tmp_path / "nowhere")
    with pytest.raises(DataError, match="nothing in common; .* has pope cs"):
        compare_runs(a, b, languages=["it"])
    write_run(b, "cs", answers(60, ("Ano", "Ne"))[:-4])
    with pytest.raises(DataError, match="4 questions are answered in one of them only"):
        compare_runs(a, b)
    write_run(b, "cs", answers(60, ("Ano", "Ne")), version="v2")
    with pytest.raises(DataError, match="answers version v1, .* version v2"):
        compare_runs(a, b)
    write_run(b, "cs", answers(60, ("Ano", "Ne")), golds=("no", "yes"))
    with pytest.raises(DataError, match="120 questions have another wording or expected answer"):
        compare_runs(a, b)


def test_command_line(runs, tmp_path):
    arguments = ["compare", *map(str, runs), "--replicates", "200"]
    result = CliRunner().invoke(commands.app, arguments, catch_exceptions=False)
    text = " ".join(result.output.split())
    assert "b is better in cs; worse in de; not distinguishable in en" in text
    assert "would have been told" in text
    result = CliRunner().invoke(commands.app, [*arguments, "--json", "--languages", "cs"])
    content = json.loads(result.output)
    assert content["benchmarks"][0]["languages"][0]["verdict"] == "better"
    assert content["benchmarks"][0]["mean"] is None


def test_a_run_and_itself_are_not_told_apart(runs):
    (result,) = compare_runs(runs[0], runs[0], num_replicates=50)
    text = sentence(result, runs[0])
    assert "both score the same on every image" in text
    assert "0.0 or more" not in text


def test_runs_of_the_runner_are_compared(config, tmp_path):
    """Answers to a benchmark of plain questions, which name no kind."""
    from toy_benchmark import FakeAnswerer

    class Yes(FakeAnswerer):
        def _text(self, request):
            return "Da" if request.lang == "hr" else "Yes"

    for name, answerer in (("a", FakeAnswerer), ("b", Yes)):
        run = dataclasses.replace(config, out_dir=tmp_path / name)
        score_run(run, run_evaluation(run, answerer), "")
    (result,) = compare_runs(tmp_path / "a", tmp_path / "b", num_replicates=100)
    assert result.headline == "accuracy"
    english, croatian = result.languages
    assert (croatian.a, croatian.b) == (100, pytest.approx(100 / 3))
    assert english.only_b == 0 and english.a > english.b


def test_of_many_languages_the_worst_are_rows_and_the_rest_scripts(runs):
    (result,) = compare_runs(*runs, num_replicates=50)
    english, czech, german = result.languages
    codes = ["hr", "ru", *(f"q{chr(97 + i)}" for i in range(20))]
    others = [
        dataclasses.replace(
            czech,
            lang=lang,
            verdict="better",
            difference=dataclasses.replace(czech.difference, value=float(i)),
        )
        for i, lang in enumerate(codes)
    ]
    many = dataclasses.replace(result, languages=(english, *others, czech, german))

    def printed(width, show_all=False):
        console = Console(file=io.StringIO(), width=width)
        print_comparison([many], *runs, console, show_all)
        return console.file.getvalue()

    text = printed(80)
    assert max(map(len, text.splitlines())) <= 80 and "\u2026" not in text
    rows = [line.split() for line in text.splitlines() if re.search(r"\d\.\.[+-]\d", line)]
    # English, the ten of the least difference, the others without a file, Czech
    assert [row[0] for row in rows[:4]] == ["English", "German", "Croatian", "Russian"]
    assert [row[0] for row in rows[11:13]] == ["Czech", "other:"] and len(rows) == 14
    assert rows[12][-2:] == ["13", "better"]
    assert rows[12][4:6] == ["+15.0", "+9.0..+21.0"]
    words = " ".join(text.split())
    assert "unclear: not distinguishable" in words and "better in hr, ru, qa" in words
    assert "other:" not in printed(140, show_all=True) and "qt " in printed(140, show_all=True)
