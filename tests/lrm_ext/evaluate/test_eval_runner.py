"""What is asked, what is written, and how an interrupted run goes on."""

import dataclasses
import itertools
import json
import resource

import pytest
from toy_benchmark import FakeAnswerer

from llava.errors import CheckpointError, ConfigError, DataError
from llava.eval.records import cut_unfinished_line
from lrm_ext.evaluate.inspecting import load_runs
from lrm_ext.evaluate.predictions import (
    PredictionWriter,
    add_lines,
    read_predictions,
)
from lrm_ext.evaluate.registry import names_in
from lrm_ext.evaluate.report import score_run
from lrm_ext.evaluate.runner import run_evaluation


def run(config, answerer=None):
    answerer = answerer or FakeAnswerer()
    run_evaluation(config, lambda: answerer)
    return answerer


def never():
    raise AssertionError("the model must not be loaded")


def files(config):
    return {path.name: path.read_bytes() for path in config.predictions_dir.glob("*.jsonl")}


def test_writes_one_line_a_question(config):
    run(config)
    names = {"toy.en.jsonl", "toy.hr.jsonl", "toy.en.blind.jsonl", "toy.hr.blind.jsonl"}
    assert files(config).keys() == names
    records = [json.loads(line) for line in files(config)["toy.hr.jsonl"].splitlines()]
    assert len(records) == 9
    assert list(records[0])[:6] == [
        "question_id",
        "prompt",
        "text",
        "answer_id",
        "model_id",
        "metadata",
    ]
    by_key = {record["key"]: record for record in records}
    assert by_key["naming-1"]["text"] == "mačka"
    assert by_key["naming-1"]["gold"] == "mačka"
    assert len({record["answer_id"] for record in records}) == 9


def test_the_progress_names_what_is_being_asked(config, monkeypatch, caplog):
    monkeypatch.setattr("llava.progress._LOG_EVERY_S", -1.0)
    with caplog.at_level("INFO"):
        run(config)
    lines = [line for line in caplog.messages if " questions, " in line]
    names = ("toy en", "toy hr", "toy en blind", "toy hr blind")
    assert list(dict.fromkeys(line.partition(":")[0] for line in lines)) == [
        f"evaluate {name}" for name in names
    ]
    assert "evaluate: 36 questions" in caplog.messages


def test_images_with_long_questions_first_and_equal_ones_once(config, benchmark_dir):
    for lang in ("en", "hr"):
        path = benchmark_dir / f"{lang}.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            if line["category"] == "naming":
                line["text"] = "What?"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    answerer = run(config)
    first, blind = answerer.batches[:3], answerer.batches[6:]
    asked = [(request.images, len(request.text)) for batch in first for request in batch]
    by_image = [[n for _, n in own] for _, own in itertools.groupby(asked, lambda pair: pair[0])]
    assert [len(own) for own in by_image] == [3, 3, 3], "questions on an image stand together"
    assert by_image == sorted((sorted(own, reverse=True) for own in by_image), reverse=True)
    # blind, the three questions "What?" on three images are one
    assert sum(map(len, blind)) == 2 * 7
    assert len(files(config)["toy.en.blind.jsonl"].splitlines()) == 9


def test_a_second_run_asks_nothing(config):
    run(config)
    before = files(config)
    run_evaluation(config, never)
    assert files(config) == before


@pytest.mark.parametrize("cut", [1, 40, 700, 1500])
def test_resuming_after_a_cut_gives_the_same_bytes(config, cut):
    run(config)
    before = files(config)
    path = config.predictions_dir / "toy.hr.jsonl"
    path.write_bytes(before["toy.hr.jsonl"][:-cut])
    run(config)
    assert files(config) == before


def test_an_unparsable_last_line_is_cut_off(config):
    run(config)
    before = files(config)
    path = config.predictions_dir / "toy.hr.jsonl"
    path.write_bytes(before["toy.hr.jsonl"] + b'{"key": \n')
    run_evaluation(config, never)
    assert files(config) == before


def test_a_byte_order_mark_costs_no_answer(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('\ufeff{"key": "1", "text": "yes"}\n', encoding="utf-8")
    cut_unfinished_line(path)
    assert read_predictions(path) == {"1": "yes"}
    add_lines(path, {"1": "", "2": '{"key": "2", "text": "a\u2028b"}\n'})
    add_lines(path, {"3": '{"key": "3", "text": ""}\n'})
    assert read_predictions(path) == {"1": "yes", "2": "a\u2028b", "3": ""}


def test_any_other_bad_line_is_an_error(config):
    run(config)
    path = config.predictions_dir / "toy.hr.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], b"oops\n", *lines[1:]]))
    with pytest.raises(DataError, match=r"toy\.hr\.jsonl:2: not JSON"):
        run_evaluation(config, never)


def test_an_interrupted_run_keeps_its_finished_batches(config):
    class Failing(FakeAnswerer):
        def answer(self, requests):
            if len(self.batches) == 2:
                raise KeyboardInterrupt
            return super().answer(requests)

    with pytest.raises(KeyboardInterrupt):
        run(config, Failing())
    assert len(files(config)["toy.en.jsonl"].splitlines()) == 8
    answerer = run(config)
    assert len(answerer.batches[0]) == 1


def test_a_full_disk_keeps_whole_lines(tmp_path):
    answer = {"key": "q0", "text": "a" * 60_000}
    path = tmp_path / "own.en.jsonl"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError) as caught, PredictionWriter(path) as writer:
            writer.write([answer])
            writer.write([{**answer, "key": "q1"}])
        assert list(read_predictions(path)) == ["q0"] and path.read_text().endswith("\n")
        path.unlink()
        with pytest.raises(OSError), PredictionWriter(path) as writer:
            writer.write([{"key": "q0", "text": "a" * 120_000}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not path.exists()  # no empty file, which no reader takes
    assert caught.value.filename == str(path)


def test_answers_of_another_run_are_refused(config, model_dir):
    run(config)
    other = dataclasses.replace(config, max_new_tokens=9)
    with pytest.raises(ConfigError, match=r"another run \(different: generation\).*--fresh"):
        run_evaluation(other, never)
    weights = model_dir / "model.safetensors"
    weights.write_bytes(weights.read_bytes() + b" ")
    with pytest.raises(ConfigError, match="weights_sha256"):
        run_evaluation(config, never)
    run(dataclasses.replace(other, fresh=True))
    run_evaluation(other, never)


def test_other_questions_are_refused(config, benchmark_dir):
    run(config)
    path = benchmark_dir / "hr.jsonl"
    path.write_text(path.read_text().replace("uopće", "zaista"))
    with pytest.raises(ConfigError, match=r"different: toy/hr\.jsonl"):
        run_evaluation(config, never)


def test_languages_join_a_run_one_by_one(config):
    run(dataclasses.replace(config, languages=("hr",), blind=False))
    assert files(config).keys() == {"toy.hr.jsonl"}
    run(config)
    assert len(files(config)) == 4
    run_evaluation(dataclasses.replace(config, languages=("en",)), never)


def test_limit_asks_whole_images_and_can_be_raised(config):
    answerer = run(dataclasses.replace(config, limit=4, blind=False))
    assert sum(map(len, answerer.batches)) == 2 * 6
    answerer = run(dataclasses.replace(config, blind=False))
    assert sum(map(len, answerer.batches)) == 2 * 3


def test_damage_of_any_format_is_found_before_anything_is_asked(
    config, benchmark_dir, damaged_image
):
    (benchmark_dir / "1.png").write_bytes(damaged_image)
    with pytest.raises(DataError, match=r"1 images are missing or cannot be read:\n .*1\.png"):
        run_evaluation(config, never)


def test_missing_and_broken_images_are_listed_before_anything_is_asked(config, benchmark_dir):
    (benchmark_dir / "1.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"1 images are missing or cannot be read:\n .*1\.png"):
        run_evaluation(config, never)
    (benchmark_dir / "1.png").unlink()
    (benchmark_dir / "2.png").unlink()
    with pytest.raises(DataError, match=r"2 images") as caught:
        run_evaluation(config, never)
    assert "1.png" in str(caught.value) and "2.png" in str(caught.value)
    assert not config.predictions_dir.exists()


def test_questions_without_their_image_are_wrong_where_they_are_allowed(config, benchmark_dir):
    (benchmark_dir / "1.png").unlink()
    (benchmark_dir / "2.png").write_bytes(b"no picture")
    skipping = dataclasses.replace(config, skip_missing_images=True)
    answerer = FakeAnswerer()
    sets = run_evaluation(skipping, lambda: answerer)
    assert sum(map(len, answerer.batches)) == 2 * 2 * 3, "one image, two languages, blind too"
    report = score_run(skipping, sets, "")
    _, croatian = report.benchmarks[0].languages
    assert (croatian.total.num_questions, croatian.total.num_missing) == (9, 6)
    assert croatian.total.accuracy == 3 / 9


def test_a_folder_without_a_name_is_filed_under_its_own(config, benchmark_dir):
    unnamed = dataclasses.replace(config, benchmarks=(), blind=False, languages=("en",))
    (questions,) = run_evaluation(unnamed, lambda: FakeAnswerer())
    assert questions.path(config.predictions_dir, False).name == "toy.en.jsonl"
    # and is found again by those who show its images
    assert load_runs([config.results_dir]).roots == {"toy": questions.benchmark.image_root}
    assert load_runs([config.results_dir], benchmark_dir).roots.keys() == {"toy"}
    assert names_in(benchmark_dir.parent) == ("toy",)
    assert dataclasses.replace(unnamed, benchmark_dir=None).names() == ("scenes",)
    with pytest.raises(ConfigError, match="no benchmark in .*expected a folder with <lang>.jsonl"):
        names_in(config.model_path)


def test_unknown_names_list_the_choices(config, benchmark_dir):
    with pytest.raises(ConfigError, match="unknown language 'xx'.*Choose from: en, cs"):
        run_evaluation(dataclasses.replace(config, languages=("xx",)), never)
    with pytest.raises(DataError, match=r"no cs\.jsonl .* it has en, hr"):
        run_evaluation(dataclasses.replace(config, languages=("cs",)), never)
    with pytest.raises(ConfigError, match="batch_size is 0"):
        run_evaluation(dataclasses.replace(config, batch_size=0), never)


def test_a_folder_without_a_model_is_refused(config, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        run_evaluation(dataclasses.replace(config, model_path=tmp_path / "empty"), never)
