"""The benchmarks of the paper through the runner: asked, scored, and scored again from the file."""

import dataclasses
import json
import shutil

import official_files as files
import pytest
from toy_benchmark import MODELS, FakeAnswerer

from lrm_ext.evaluate.importing import import_benchmark
from lrm_ext.evaluate.report import EvalReport, score_run
from lrm_ext.evaluate.runner import run_evaluation
from lrm_ext.evaluate.scoring import score_file
from lrm_ext.report.evaluation import headline_table, print_report


class Knowing(FakeAnswerer):
    """Knows the answers to the made-up files; says yes without an image."""

    def _text(self, request):
        yes, no = {"en": ("Yes", "No"), "cs": ("Ano", "Ne")}[request.lang]
        if None in request.images:
            return yes
        wrong = ("blue", "Alien", "owl", "person", "sofa")
        if "A. " in request.text:
            options = dict(line.split(". ", 1) for line in request.text.split("\n") if ". " in line)
            right = "yes" if "big" in request.text else "dog"
            return next(letter for letter, text in options.items() if text == right)
        return no if any(word in request.text for word in wrong) else yes


@pytest.fixture
def answered(config, tmp_path, monkeypatch):
    """Import the made-up benchmarks with images that can be read, ask and score."""
    monkeypatch.setattr(files, "picture", lambda number: (MODELS / "image0.png").read_bytes())
    benchmarks = tmp_path / "benchmarks"
    sources = {
        "mme": files.mme_folder(tmp_path / "mme"),
        "pope": files.pope_folder(tmp_path / "pope"),
        "mmbench": files.mmbench_tsv(tmp_path / "mmbench.tsv"),
    }
    for name, source in sources.items():
        for lang in ("en", "cs"):
            import_benchmark(name, source, benchmarks / name, lang=lang)
    run = dataclasses.replace(config, benchmarks=tuple(sources), benchmark_dir=benchmarks)
    report = score_run(run, run_evaluation(run, Knowing), "lrm eval")
    return run, report


def test_headlines_in_each_mode(answered):
    _, report = answered
    found = {
        (benchmark.name, result.lang, headline.mode): (headline.value, headline.blind)
        for benchmark in report.benchmarks
        for result in benchmark.languages
        for headline in result.headlines
    }
    assert found[("mme", "en", "lmms-eval")] == (400, 100)
    assert found[("mme", "cs", "local")] == (400, 100)
    assert found[("pope", "en", "llava")] == found[("pope", "en", "local")]
    assert found[("pope", "cs", "local")] == (100, pytest.approx(200 / 3))
    assert found[("mmbench", "en", "lmms-eval")] == (100, 50)
    assert ("mme", "en", "local") in found and ("mme", "cs", "lmms-eval") not in found


def test_the_report_is_read_back_and_printed(answered, console):
    run, report = answered
    again = EvalReport.read(run.results_dir)
    assert again.benchmarks[0].languages[0].headlines[0].value == 400
    print_report(report, console)
    text = console.file.getvalue()
    assert "perception" in text and "mean F1" in text and "circular accuracy" in text
    assert "2 of 14 categories are there: at most 400 points of perception" in text
    assert headline_table(report.benchmarks[0], "perception", 80).row_count == 3


def test_the_answers_say_all_that_scoring_needs(answered):
    run, report = answered
    for benchmark in report.benchmarks:
        for result in benchmark.languages:
            path = run.predictions_dir / f"{benchmark.name}.{result.lang}.jsonl"
            again = score_file(benchmark.name, path)
            assert again.headline == result.headlines[0].value
            assert again.version == result.headlines[0].details["version"] != ""
            assert again.counts["questions"] == result.total.num_questions


def test_llavas_keys_come_first_and_ids_are_the_sources(answered):
    run, _ = answered
    path = run.predictions_dir / "mme.en.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert list(records[0])[:6] == [
        "question_id", "prompt", "text", "answer_id", "model_id", "metadata",
    ]  # fmt: skip
    ids = [record["question_id"] for record in records]
    assert len(set(ids)) == 2 and len({record["key"] for record in records}) == 4
    record = json.loads((run.predictions_dir / "mmbench.en.jsonl").read_text().splitlines()[0])
    assert record["option_char"] == list("ABC")[: len(record["options"])]
    assert record["round_id"] == 0 and record["group"] in ("7", "8")


def test_a_limit_takes_whole_images_and_rotations(answered):
    run, _ = answered
    cut = dataclasses.replace(run, limit=1, out_dir=run.results_dir.parent / "cut")
    shutil.rmtree(cut.results_dir, ignore_errors=True)
    report = score_run(cut, run_evaluation(cut, Knowing), "")
    assert report.benchmarks[0].languages[0].headlines[0].value == 200
