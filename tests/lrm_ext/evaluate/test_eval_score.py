"""From files of answers to figures, and the command line around it."""

import dataclasses
import json

import pytest
from toy_benchmark import FakeAnswerer
from typer.testing import CliRunner

from llava.errors import ConfigError, DataError
from lrm_ext.evaluate import commands
from lrm_ext.evaluate.report import EvalReport, mean_of, score_run
from lrm_ext.evaluate.runner import load_questions, run_evaluation
from lrm_ext.evaluate.statistics import wilson_interval


def run_and_score(config):
    sets = run_evaluation(config, FakeAnswerer)
    return score_run(config, sets, command="lrm eval")


def test_scores_of_a_model_that_is_known(config):
    (benchmark,) = run_and_score(config).benchmarks
    english, croatian = benchmark.languages
    # It says "Ne." in English, too, which decides nothing there.
    assert (croatian.total.accuracy, english.total.accuracy) == (1.0, 6 / 9)
    assert english.yesno.num_unparsed == 3 and croatian.yesno.num_unparsed == 0
    assert (english.yesno.low, english.yesno.high) == wilson_interval(3, 6)
    # Blind it says yes to everything: right where yes is expected.
    assert croatian.yesno.blind_accuracy == 0.5
    assert croatian.tasks["existence"].blind_accuracy == 1
    assert croatian.text.blind_accuracy == 0
    # Each task of the toy has one answer only.
    assert croatian.total.majority == 1
    assert croatian.total.fidelity == 1 and english.total.fidelity == 6 / 9
    assert croatian.yesno_tasks == ("existence", "category")
    assert croatian.character_errors is None
    assert mean_of([english.yesno, croatian.yesno, None]) == 0.75


def test_text_in_images_has_a_character_error_rate(config):
    asked = (("reading", "What is written?", "text"), ("reading_control", "Is it?", "yesno"))
    for lang, text in (("en", "A cat."), ("hr", "Mačka spava.")):
        rows = [
            {
                "question_id": f"{lang}-{task}", "image": "0.png", "text": question,
                "category": task, "answer": text if kind == "text" else "Yes", "lang": lang,
                "answer_type": kind,
            }
            for task, question, kind in asked
        ]  # fmt: skip
        lines = "\n".join(json.dumps(row) for row in rows)
        (config.benchmark_dir / f"{lang}.jsonl").write_text(lines, encoding="utf-8")

    class Reader(FakeAnswerer):
        def _text(self, request):
            # decomposed, which is the same; another letter, and no full stop
            return "A cat." if request.lang == "en" else "Mac\u030cka sppva"

    sets = run_evaluation(config, Reader)
    english, croatian = score_run(config, sets, "").benchmarks[0].languages
    assert (english.character_errors, croatian.character_errors) == (0.0, 2 / 12)


def test_files_of_a_score(config):
    report = run_and_score(config)
    lines = (config.results_dir / "scores.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2 * 2 * 9
    line = json.loads(lines[0])
    assert {"key", "parsed", "correct", "answer_lang", "mode"} <= line.keys()
    assert EvalReport.read(config.results_dir) == report
    first, second = report.benchmarks[0].examples
    assert [answer.lang for answer in first.answers] == ["en", "hr"]
    assert first.answers[1].answer == "Da" and first.answers[1].correct
    assert first.image != second.image
    copied = (config.results_dir / second.file).read_bytes()
    assert copied == (config.benchmark_dir / "1.png").read_bytes()


def test_scoring_again_gives_the_same_bytes(config):
    run_and_score(config)
    paths = [config.results_dir / name for name in ("scores.jsonl", "report.json")]
    before = [path.read_bytes() for path in paths]
    run_and_score(config)
    assert [path.read_bytes() for path in paths] == before


def test_a_blind_run_counts_only_when_it_is_whole(config):
    sets = run_evaluation(config, FakeAnswerer)
    path = config.predictions_dir / "toy.hr.blind.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    english, croatian = score_run(config, sets, "").benchmarks[0].languages
    assert english.total.blind_accuracy is not None
    assert croatian.total.blind_accuracy is None


def test_a_question_without_an_answer_is_an_error(config):
    run_evaluation(dataclasses.replace(config, limit=1), FakeAnswerer)
    with pytest.raises(DataError, match="6 of 9 questions in language en have no answer"):
        score_run(config, load_questions(config), "")


def test_command_line(config, monkeypatch):
    flags = ["--model", str(config.model_path), "--benchmark-dir", str(config.benchmark_dir)]
    flags += ["--benchmarks", "toy", "--device", "cpu", "--max-new-tokens", "4"]
    cut = ["--limit", "3", "--languages", "en,hr", "--languages", "hr"]
    result = CliRunner().invoke(commands.app, ["eval", *flags, *cut], catch_exceptions=False)
    assert result.exit_code == 0
    assert "Croatian" in result.output and "blind" in result.output
    page = config.results_dir / "report.html"
    assert page.is_file()
    # the folder is named as for `lrm compare` and `lrm inspect`, or as it used to be
    model, results = str(config.model_path), str(config.results_dir)
    for named in ([model], [results], ["--model", model], [model, "--out", results]):
        page.unlink()
        result = CliRunner().invoke(commands.app, ["report", *named], catch_exceptions=False)
        assert "Croatian" in result.output and page.is_file()
    with pytest.raises(ConfigError, match="name a run"):
        CliRunner().invoke(commands.app, ["report"], catch_exceptions=False)
