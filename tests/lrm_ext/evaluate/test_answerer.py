"""The batched answers of a tiny random LLaVA."""

import dataclasses
import json

import pytest
import torch

from llava.errors import CheckpointError, DataError
from llava.images import open_image
from lrm_ext.evaluate.answerer import load_answerer, open_or_blank
from lrm_ext.evaluate.items import Request
from lrm_ext.evaluate.runner import run_evaluation
from lrm_ext.languages.templates import Templates


@pytest.fixture
def templates(model_dir):
    return Templates.of_checkpoint(model_dir, "vicuna_v1")


@pytest.fixture
def answerer(model_dir, templates):
    return load_answerer(model_dir, None, templates, max_new_tokens=8, device="cpu")


@pytest.fixture
def requests(benchmark_dir):
    texts = ("Yes?", "Nalazi li se na slici nekakav pas ili mačka?", "图中有狗吗？", "A b c d")
    return [
        Request(text, "hr", (image,))
        for text in texts
        for image in (benchmark_dir / "0.png", benchmark_dir / "2.png", None)
    ]


def test_the_batch_size_does_not_change_an_answer(answerer, requests):
    single = [answerer.answer([request])[0] for request in requests]
    assert answerer.answer(requests[:8]) + answerer.answer(requests[8:]) == single
    assert len({answer.text for answer in single}) > 1, "the images and texts must matter"


def test_what_neighbouring_questions_begin_with_is_computed_once(answerer, requests):
    computed = []
    answerer._model.get_model().register_forward_hook(
        lambda module, args, kwargs, out: computed.append(tuple(out.last_hidden_state.shape[:2])),
        with_kwargs=True,
    )
    by_image = sorted(requests, key=lambda request: str(request.images))
    single = [answerer.answer([request])[0] for request in by_image]
    computed.clear()
    assert answerer.answer(by_image) == single
    beginnings, rests = computed[:2]
    lengths = [answerer.num_tokens(request) for request in by_image]
    assert beginnings[0] == 3 and rests[0] == len(by_image) == 12
    assert beginnings[1] + rests[1] == max(lengths)
    computed.clear()
    assert answerer.answer(by_image[::4]) == single[::4]
    assert computed[0] == (3, max(lengths[::4])), "no two of them are about the same image"


def test_images_matter_and_the_tower_runs_once_for_each(answerer, requests, monkeypatch):
    tower = answerer._model.get_vision_tower()
    shapes = []
    tower.register_forward_hook(lambda *call: shapes.append(len(call[1][0])))
    answerer.answer(requests[:2])
    answerer.answer(requests)
    assert shapes == [2, 1]


def test_the_result_is_that_of_images_without_a_cache(answerer, requests, templates):
    from llava.mm_utils import process_images, tokenizer_image_token

    request = requests[1]
    model = answerer._model
    conversation = templates.in_language("hr")
    conversation.append_message("USER", f"<image>\n{request.text}")
    conversation.append_message("ASSISTANT", None)
    ids = tokenizer_image_token(conversation.get_prompt(), answerer._tokenizer, return_tensors="pt")
    image = open_image(request.images[0])
    images = process_images([image], answerer._image_processor, model.config)
    found = model.generate(
        ids[None], images=images, image_sizes=[image.size], do_sample=False, max_new_tokens=8
    )
    text = answerer._tokenizer.decode(found[0], skip_special_tokens=True).strip()
    assert answerer.answer([request])[0].text == text


def test_the_blind_image_shows_nothing(answerer):
    from llava.mm_utils import process_images

    canvas = open_or_blank(None, answerer._image_processor.image_mean)
    pixels = process_images([canvas], answerer._image_processor, answerer._model.config)
    assert pixels.abs().max() < 0.02


def test_the_models_settings_are_put_back(answerer, requests):
    before = dict(vars(answerer._model.config))
    answerer.answer(requests[:1])
    assert dict(vars(answerer._model.config)) == before


def test_a_prompt_that_would_be_cut_is_refused(answerer, requests):
    long = dataclasses.replace(requests[0], text="pas " * 300)
    with pytest.raises(DataError, match=r"tokens with \d+ for the image leaves no 8 .* 256"):
        answerer.answer([long])


def test_answers_end_at_the_end_token(answerer):
    eos = answerer._tokenizer.eos_token_id
    ids = answerer._tokenizer("Da", add_special_tokens=False).input_ids
    assert dataclasses.astuple(answerer._decode([*ids, eos, 5, 5])) == ("Da", len(ids), "stop")
    assert answerer._decode(ids).finish_reason == "length"


def test_a_template_with_languages_is_used_in_the_language_of_the_question(model_dir):
    templates = Templates.of_checkpoint(model_dir, "lrm_v1")
    assert "hrvatskom" in templates.in_language("hr").system
    assert "English" in templates.in_language("en").system
    bare = Templates.of_checkpoint(model_dir, "lrm_bare")
    assert bare.in_language("hr").get_prompt() == bare.in_language("en").get_prompt()


def test_the_checkpoints_own_template_wins(model_dir):
    from llava.conversation import conversation_to_dict, get_conversation

    config = json.loads((model_dir / "config.json").read_text())
    stored = conversation_to_dict(dataclasses.replace(get_conversation("vicuna_v1"), system="Hi."))
    (model_dir / "config.json").write_text(json.dumps({**config, "conversation": stored}))
    assert Templates.of_checkpoint(model_dir, None).in_language("hr").system == "Hi."


def test_a_text_model_is_refused(model_dir, templates):
    config = json.loads((model_dir / "config.json").read_text())
    kept = {k: v for k, v in config.items() if not k.startswith("mm_")}
    kept |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (model_dir / "config.json").write_text(json.dumps(kept))
    with pytest.raises(CheckpointError):
        load_answerer(model_dir, None, templates, max_new_tokens=8, device="cpu")


def test_a_run_with_the_real_model(config):
    torch.manual_seed(0)
    run_evaluation(config)
    one = dataclasses.replace(config, batch_size=1, out_dir=config.model_path / "other")
    run_evaluation(one)
    for path in config.predictions_dir.glob("*.jsonl"):
        assert path.read_bytes() == (one.predictions_dir / path.name).read_bytes()
