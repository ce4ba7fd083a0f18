"""From answers to what is kept of a run; the command around it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from llava.errors import ConfigError, DataError
from tools.reproduce import runner
from tools.reproduce.__main__ import app
from tools.reproduce.results import collect, dumps, read_results, write_result
from tools.reproduce.runner import run_study
from tools.reproduce.settings import read_study
from tools.reproduce.tasks import Task, result_path

WORDS = {"en": ("Yes", "No"), "cs": ("Ano", "Ne")}
STUDY = replace(
    read_study().choose(["full"], [0]), benchmarks=("scenes",), pretrain_steps=2, finetune_steps=2
)


def write_answers(run, lang, num=6, wrong=(1, 4)):
    """Answers to questions, two a picture; those named are wrong."""
    lines = []
    for i in range(num):
        gold = WORDS[lang][i % 2]
        text = WORDS[lang][(i + (i in wrong)) % 2]
        lines.append(
            {
                "question_id": f"q{i}",
                "prompt": "?",
                "text": text,
                "key": f"q{i}",
                "benchmark": "scenes",
                "lang": lang,
                "category": "existence",
                "image": f"{i // 2}.jpg",
                "gold": gold,
                "answer_type": "yesno",
                "finish_reason": "stop",
            }
        )
    folder = run / "eval" / "predictions"
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / f"scenes.{lang}.jsonl").write_text(text, encoding="utf-8")


def test_answers_become_scores_and_bits(tmp_path):
    for lang in WORDS:
        write_answers(tmp_path / "run", lang)
    content, questions = collect(tmp_path / "run", STUDY, STUDY.settings[0], 0, "lrm reproduce")
    assert questions["scenes"]["pictures"] == ["0.jpg"] * 2 + ["1.jpg"] * 2 + ["2.jpg"] * 2
    czech = content["benchmarks"]["scenes"]["languages"]["cs"]
    assert (czech["num_right"], czech["num_questions"]) == (4, 6)
    assert czech["score"] == pytest.approx(100 * 4 / 6, abs=1e-3)
    assert content["steps"] == {"pretrain": 2, "finetune": 2}
    assert json.loads(dumps(content)) == content
    assert sum('"right"' in line for line in dumps(content).splitlines()) == len(WORDS)
    write_result(tmp_path / "results", content, questions)
    results = read_results(tmp_path / "results")
    right = results.right("full", 0, "scenes", "cs").tolist()
    assert right == [True, False, True, True, False, True]


def test_other_questions_and_missing_answers_are_refused(tmp_path):
    run = tmp_path / "run"
    write_answers(run, "en")
    with pytest.raises(DataError, match="no answers to mini-mme"):
        study = replace(STUDY, benchmarks=("scenes", "mini-mme"))
        collect(run, study, STUDY.settings[0], 0, "")
    write_answers(run, "cs", num=4)
    with pytest.raises(DataError, match="other questions than in the languages before"):
        collect(run, STUDY, STUDY.settings[0], 0, "")


@pytest.fixture
def fake_tasks(monkeypatch):
    """A trainer and an asker that only write what they would leave behind."""

    def make(study, out):
        (setting,) = study.settings
        run = out / "runs" / "full.seed0"
        train = f"mkdir -p {run}/checkpoint-2 && touch {run}/COMPLETE"
        done = result_path(out, "full", 0)
        for lang in WORDS:
            write_answers(run, lang)
        return [
            Task("t", "finetune", ("sh", "-c", train), {}, run / "COMPLETE", (), 2, setting, 0),
            Task("q", "questions", ("true",), {}, done, ("t",), 1, setting, 0),
        ]

    monkeypatch.setattr(runner, "make_tasks", make)
    monkeypatch.setattr(runner, "write_mixtures", lambda *_: None)
    monkeypatch.setattr(runner, "_unpack_corpus", lambda *_: None)


def test_a_study_leaves_results_and_is_not_run_again(tmp_path, fake_tasks, capsys):
    out, export = tmp_path / "out", tmp_path / "export"
    console = Console(width=200)
    run_study(STUDY, "mini", out, console, jobs=2, export=export)
    assert "2 tasks run in" in capsys.readouterr().out
    assert {path.name for path in export.iterdir()} == {"full.seed0.json", "questions.json"}
    kept = json.loads((export / "full.seed0.json").read_text(encoding="utf-8"))
    assert kept["command"] == "lrm reproduce mini --settings full --seeds 0"
    assert kept["quick"] is False
    assert not list((out / "runs" / "full.seed0").glob("checkpoint-*"))
    run_study(STUDY, "mini", out, console, jobs=2)
    assert "0 tasks run in" in capsys.readouterr().out
    run_study(replace(STUDY, quick=True), "mini", out, console, jobs=1)
    assert "quick form" in capsys.readouterr().out


def test_other_presets_are_only_planned(tmp_path):
    with pytest.raises(ConfigError, match="only mini is run by this command; add --plan"):
        run_study(STUDY, "vicuna-13b", tmp_path, Console(), jobs=1)


def test_the_plan_of_the_full_one(tmp_path):
    command = ["--preset", "vicuna-13b", "--plan", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "hours in all:" in result.output and "GiB for 30 models" in result.output
    lines = [line for line in result.output.splitlines() if line.startswith("PRESET=vicuna-13b")]
    named = {word[8:] for line in lines for word in line.split() if word.startswith("MIXTURE=")}
    assert len(named) == 39 and all(Path(name).is_file() for name in named)
    # 3 seeds: 10 fine-tunings, and 3 pre-trainings that they share
    assert sum("lrm_finetune.sh" in line for line in lines) == 30
    assert sum("lrm_pretrain.sh" in line for line in lines) == 9
    # English only, as long as the full setting: its samples twice
    twice = [line for line in lines if "--num_train_epochs 2" in line]
    assert len(twice) == 6 and all("english-twice" in line or "as-long" in line for line in twice)
    assert sum(line.startswith("lrm eval --model") for line in result.output.splitlines()) == 30
