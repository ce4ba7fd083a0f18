"""Options ranked by likelihood: over exactly their tokens, whatever the batch."""

import dataclasses
import json

import pytest
import torch

from llava.errors import ConfigError, DataError
from llava.images import open_image
from lrm_ext.evaluate.answerer import load_answerer
from lrm_ext.evaluate.items import Request
from lrm_ext.evaluate.runner import OptionRanker, run_evaluation
from lrm_ext.languages.templates import Templates

OPTIONS = ("a red apple", "pear", "a yellow banana on a table")


@pytest.fixture
def answerer(model_dir):
    templates = Templates.of_checkpoint(model_dir, "vicuna_v1")
    return load_answerer(model_dir, None, templates, max_new_tokens=8, device="cpu")


def test_losses_are_those_of_one_row_without_padding(answerer, benchmark_dir):
    from llava.mm_utils import process_images

    request = Request("What is it?", "en", (benchmark_dir / "0.png",))
    found = answerer.token_losses([request] * 3, OPTIONS)
    model = answerer._model
    image = open_image(request.images[0])
    images = process_images([image], answerer._image_processor, model.config)
    for text, losses in zip(OPTIONS, found, strict=True):
        ids = torch.tensor([answerer._tokens(request, text)])
        num = len(losses)
        labels = torch.full_like(ids, -100)
        labels[0, -num:] = ids[0, -num:]
        assert answerer._tokenizer.decode(ids[0, -num:]).strip() == text
        with torch.inference_mode():
            whole = model(ids, labels=labels, images=images, image_sizes=[image.size])
        assert torch.allclose(losses.mean(), whole.loss, atol=1e-4)


def test_the_cheapest_option_wins_whatever_the_batch(answerer, benchmark_dir):
    requests = [
        Request(f"What is it, {n}?", "en", (benchmark_dir / "0.png",), OPTIONS[n:] + OPTIONS[:n])
        for n in range(3)
    ]
    for mode, reduce in (("mean", torch.mean), ("sum", torch.sum)):
        ranking = OptionRanker(answerer, mode)
        together = [answer.text for answer in ranking.answer(requests)]
        assert together == [ranking.answer([request])[0].text for request in requests]
        for request, letter in zip(requests, together, strict=True):
            costs = [
                float(reduce(answerer.token_losses([request], [text])[0]))
                for text in request.options
            ]
            assert "ABC".index(letter) == costs.index(min(costs))


def test_equal_options_give_the_first():
    class Equal:
        def token_losses(self, requests, answers):
            return [torch.ones(3)] * len(answers)

    (answer,) = OptionRanker(Equal(), "mean").answer([Request("Q", "en", (None,), OPTIONS)])
    assert answer.text == "A"


def test_lrm_eval_ranks_and_keeps_such_answers_apart(config):
    folder = config.benchmark_dir
    for path in folder.glob("*.jsonl"):
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for record in records:
            options = {"options": list(OPTIONS), "answer": "B", "answer_type": "letter"}
            record.update(options, question="What is it?")
        path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    ranking = dataclasses.replace(config, rank="mean", blind=False)
    (questions, *_) = run_evaluation(ranking)
    lines = questions.path(config.predictions_dir, False).read_text(encoding="utf-8").splitlines()
    assert lines
    for line in lines:
        record = json.loads(line)
        assert record["text"] in ("A", "B", "C") and record["prompt"] == "What is it?"
    with pytest.raises(ConfigError, match="of another run"):
        run_evaluation(dataclasses.replace(ranking, rank="sum"))


def test_what_cannot_be_ranked_is_an_error(config):
    with pytest.raises(DataError, match="has no options"):
        run_evaluation(dataclasses.replace(config, rank="mean"))
    with pytest.raises(ConfigError, match="expected mean or sum"):
        dataclasses.replace(config, rank="best").validate()
    with pytest.raises(ConfigError, match="LLaVA's format"):
        OptionRanker(object(), "mean")
