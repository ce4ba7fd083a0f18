"""Validation while training: what is held out, what is logged, when a run ends."""

import json
import math
import pickle
from types import SimpleNamespace

import pytest

from llava.errors import ConfigError
from llava.train.metrics import METRICS_FILE, read_metrics
from lrm_ext.mixture import Mixture, MixtureSpec
from lrm_ext.training.data_module import StopEarly, is_held_out, split_corpus

VALIDATED = {"eval_share": 0.4, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2}


def entries(folder, key):
    return [line for line in read_metrics(folder / METRICS_FILE) if key in line]


def test_a_picture_is_on_one_side_with_all_its_rows(corpus):
    trained, held_out = split_corpus(corpus, 0.4)
    assert len(trained) + len(held_out) == len(corpus)
    sides = []
    for part in (trained, held_out):
        rows = [part.row(i) for i in range(len(part))]
        sides.append({row.image or row.id for row in rows})
        for lang in ("en", "hr"):
            for index in part.usable_rows(lang):
                assert part.turns(lang, int(index)) is not None
        assert [part.image_paths(i) for i in range(len(part))] == [
            tuple(part.image_root / image for image in row.images) for row in rows
        ]
    assert not sides[0] & sides[1]
    assert len({part.fingerprint() for part in (corpus, trained, held_out)}) == 3


def test_parts_can_be_mixed_and_sent_to_workers(corpus):
    trained, _ = split_corpus(corpus, 0.4)
    mixture = Mixture(MixtureSpec(), trained)
    sent = pickle.loads(pickle.dumps(mixture))
    assert [sent.sample(i).id for i in range(len(mixture))] == [
        mixture.sample(i).id for i in range(len(mixture))
    ]


def test_shares_are_kept_and_grow():
    names = [f"train2017/{i:012d}.jpg" for i in range(20_000)]
    small = {name for name in names if is_held_out(name, 0.02)}
    large = {name for name in names if is_held_out(name, 0.05)}
    assert small < large  # a larger share holds out more, not others
    assert len(large) == pytest.approx(1000, abs=4 * math.sqrt(1000))


def test_a_share_that_leaves_nothing_is_refused(corpus):
    with pytest.raises(ConfigError, match="leaves 12 rows for training and 0 for validation"):
        split_corpus(corpus, 1e-9)


def test_validation_loss_by_language(run_lrm):
    out = run_lrm(**VALIDATED)
    logged = entries(out, "eval_loss")
    assert [line["step"] for line in logged] == [2, 4]
    line = logged[-1]
    languages = ("en", "hr", "zh")
    tokens = {lang: line[f"eval_tokens/{lang}"] for lang in languages}
    mean = sum(line[f"eval_loss/{lang}"] * tokens[lang] for lang in languages)
    assert line["eval_loss"] == pytest.approx(mean / sum(tokens.values()))
    assert logged[1]["eval_loss"] < logged[0]["eval_loss"]
    best = json.loads((out / "best.json").read_text())
    assert best["checkpoint"] == "checkpoint-4"
    assert best["eval_loss"] == pytest.approx(line["eval_loss"])


def test_another_corpus_to_validate_on(run_lrm, corpus_path):
    out = run_lrm(**{**VALIDATED, "eval_share": 0, "eval_corpus_path": corpus_path})
    assert entries(out, "eval_loss/hr")


def test_validation_does_not_change_what_is_learnt(run_lrm, tmp_path):
    from safetensors.torch import load_file

    rarely = run_lrm(output_dir=tmp_path / "a", **{**VALIDATED, "eval_steps": 4})
    often = run_lrm(output_dir=tmp_path / "b", **{**VALIDATED, "eval_steps": 1})
    first, second = (load_file(folder / "model.safetensors") for folder in (rarely, often))
    assert all((value == second[name]).all() for name, value in first.items())


def questions(folder, corpus_path):
    """Two questions in two languages, about pictures of the corpus."""
    folder.mkdir()
    for lang, question, answer in (("en", "Is it red?", "yes"), ("hr", "Je li crveno?", "da")):
        items = [
            {
                "question_id": f"q{i}",
                "image": f"../{corpus_path.parent.name}/images/{i}.png",
                "text": question,
                "category": "colour",
                "answer": answer,
                "lang": lang,
                "answer_type": "yesno",
            }
            for i in range(2)
        ]
        lines = "".join(json.dumps(item) + "\n" for item in items)
        (folder / f"{lang}.jsonl").write_text(lines)
    return folder


def test_questions_are_asked_in_every_language(run_lrm, corpus_path):
    folder = corpus_path.parent.parent / "asked"
    out = run_lrm(
        **VALIDATED, eval_benchmark=questions(folder, corpus_path), eval_questions=2, packing=True
    )
    (line, *_) = entries(out, "eval_answers")
    assert line["eval_answers"] == pytest.approx(
        (line["eval_answers/en"] + line["eval_answers/hr"]) / 2
    )
    assert line["eval_answers_low"] <= line["eval_answers"] <= line["eval_answers_high"]
    assert len(entries(out, "loss")) == 4  # and training went on


@pytest.mark.parametrize(
    ("losses", "stops"),
    [([3, 2, 1], False), ([3, 1, 2], False), ([1, 2, 3], True), ([2, 1, 3, 2], True)],
)
def test_a_run_ends_when_the_loss_no_longer_falls(losses, stops):
    history = [{"step": i, "eval_loss": loss} for i, loss in enumerate(losses)]
    control = SimpleNamespace(should_training_stop=False)
    state = SimpleNamespace(log_history=[{"loss": 1, "step": 0}, *history], global_step=9)
    StopEarly(2).on_evaluate(None, state, control)
    assert control.should_training_stop is stops


def test_a_run_that_learns_nothing_ends_early(run_lrm):
    out = run_lrm(
        **{**VALIDATED, "eval_steps": 1, "learning_rate": 0.0, "max_steps": 20},
        early_stop_patience=2,
    )
    assert [line["step"] for line in entries(out, "eval_loss")][-1] == 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"eval_share": 0.4}, "need --eval_strategy steps"),
        ({"eval_strategy": "steps"}, "nothing to validate on"),
        ({"eval_share": 1.5}, "expected a share"),
        ({"early_stop_patience": 1}, "need --eval_share"),
        ({**VALIDATED, "eval_corpus_path": "x"}, "exclude each other"),
        ({**VALIDATED, "eval_questions": 1, "eval_benchmark": "none"}, "unknown benchmark none"),
    ],
)
def test_flags_that_do_not_fit_are_refused(run_lrm, changes, said):
    with pytest.raises(ConfigError, match=said):
        run_lrm(**changes)
