"""A result is judged once for each mode that is reported, stored, and read by every command."""

import dataclasses
import json

import pytest
from test_compare import answers, write_run
from toy_benchmark import FakeAnswerer
from typer.testing import CliRunner

from lrm_ext.cli import app
from lrm_ext.evaluate import results
from lrm_ext.evaluate.report import score_run
from lrm_ext.evaluate.results import open_result
from lrm_ext.evaluate.runner import run_evaluation

NUM_QUESTIONS = 9


@pytest.fixture
def judged(monkeypatch):
    """Ids of the questions whose answers were judged."""
    seen = []
    judge_answers = results.judge_answers

    def counted(items, texts, *rest):
        seen.extend(item.question_id for item in items if item.question_id in texts)
        return judge_answers(items, texts, *rest)

    monkeypatch.setattr(results, "judge_answers", counted)
    return seen


def evaluate(config):
    return score_run(config, run_evaluation(config, FakeAnswerer), "lrm eval")


def test_each_answer_is_judged_once_and_never_again(config, judged, tmp_path):
    report = evaluate(config)
    assert len(judged) == 2 * 2 * NUM_QUESTIONS  # languages, with and without the image
    judged.clear()
    assert evaluate(config) == report
    run, out = str(config.model_path), str(tmp_path / "figure.svg")
    choice = ["--benchmarks", "toy", "--benchmark-dir", str(config.benchmark_dir)]
    for command in (
        ["report", run],
        ["compare", run, str(config.predictions_dir), "--replicates", "50"],
        ["table", "1", run],
        ["figure", "4", run, *choice, "--out", out],
        ["export", "predictions", run, "--to", "lmms-eval", "--out", str(tmp_path / "logs")],
    ):
        result = CliRunner().invoke(app, command, catch_exceptions=False)
        assert result.exit_code == 0, (command, result.output)
    from lrm_ext.evaluate.inspecting import load_runs

    assert len(load_runs([config.model_path]).rows) == 2 * NUM_QUESTIONS
    assert judged == []


def test_english_of_a_benchmark_of_the_paper_is_judged_in_two_modes(tmp_path, judged):
    write_run(tmp_path, "en", answers(60))
    result = open_result(tmp_path / "predictions" / "pope.en.jsonl", "pope", "en")
    first = result.score()
    assert first.mode == "llava" and result.score().headline == first.headline
    assert len(judged) == len(result.items)
    assert result.score("local").mode == "local" and len(judged) == 2 * len(result.items)


def test_stored_verdicts_hold_for_these_answers_and_rules_only(config, judged, monkeypatch):
    evaluate(config)
    judged.clear()
    path = config.predictions_dir / "toy.hr.jsonl"

    def score():
        judged.clear()
        return open_result(path, "toy", "hr").score().headline

    assert score() == 100 and judged == []
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"text": "Ne."', '"text": "Da."'), encoding="utf-8")
    assert score() == pytest.approx(100 * 2 / 3) and len(judged) == NUM_QUESTIONS
    path.write_text(text, encoding="utf-8")
    assert score() == 100 and judged == []
    with monkeypatch.context() as patch:
        patch.setattr(results, "RULES_VERSION", 0)
        assert score() == 100 and len(judged) == NUM_QUESTIONS
    scores = config.results_dir / "scores.jsonl"
    lines = [json.loads(line) for line in scores.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        del line["state"]  # as before verdicts were read again
    scores.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert score() == 100 and len(judged) == NUM_QUESTIONS


def test_verdicts_on_what_was_asked_earlier_are_kept(config, judged):
    for lang in ("en", "hr"):
        evaluate(dataclasses.replace(config, languages=(lang,)))
    judged.clear()
    for lang in ("en", "hr"):
        open_result(config.predictions_dir / f"toy.{lang}.jsonl", "toy", lang).score()
    assert judged == []


def test_answers_without_verdicts_are_read_as_an_evaluation_reads_them(config, judged):
    report = evaluate(config)
    (config.results_dir / "scores.jsonl").unlink()
    judged.clear()
    for language in report.benchmarks[0].languages:
        path = config.predictions_dir / f"toy.{language.lang}.jsonl"
        score = open_result(path, "toy", language.lang).score()
        assert score.fidelity["share"] == language.total.fidelity
    assert len(judged) == 2 * NUM_QUESTIONS
