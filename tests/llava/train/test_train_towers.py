"""Short trainings with towers other than CLIP."""

import json

import pytest
import torch
from PIL import Image
from tiny_towers import write_tower

from llava.errors import ConfigError
from llava.mm_utils import process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model
from llava.serve.engine import Engine, GenerationRequest


@pytest.mark.parametrize(
    ("names", "width"), [("siglip", 32), ("dinov3", 32), ("metaclip2", 32), ("siglip+dinov2", 64)]
)
def test_two_steps_and_an_answer(names, width, flags, run_train, tiny_llm, tiny_data, tmp_path):
    towers = [str(write_tower(tmp_path / name, name)) for name in names.split("+")]
    out = tmp_path / "out"
    run_train(flags(vision_tower="+".join(towers), max_steps=2, output_dir=out))
    config = json.loads((out / "config.json").read_text())
    assert (config["mm_hidden_size"], config["mm_num_image_tokens"]) == (width, 16)
    state = json.loads((out / "trainer_state.json").read_text())
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    assert len(losses) == 2 and losses[1] < losses[0]
    tokenizer, model, processor, _ = load_pretrained_model(str(out), None, "llava", device="cpu")
    assert model.get_vision_tower().num_image_tokens == 16
    ids = tokenizer_image_token("<image>\nWhich colour?", tokenizer, return_tensors="pt")[None]
    pixels = process_images([Image.open(tiny_data / "images" / "0.png")], processor, model.config)
    with torch.no_grad():
        assert model(ids, images=pixels).logits.shape[1] == ids.shape[1] - 1 + 16
        answer = model.generate(ids, images=pixels, max_new_tokens=4, do_sample=False)
    pieces = []
    image = Image.open(tiny_data / "images" / "0.png")
    request = GenerationRequest("<image>\nWhich colour?", (image,), 0.0, max_new_tokens=4)
    Engine(tokenizer, model, processor, "tiny").answer(request, pieces.append)
    served = tokenizer.decode(answer[0], skip_special_tokens=True).strip()
    assert "".join(pieces).strip() == served


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mm_vision_select_layer": -9}, "4 hidden states, choose from -4 to 3"),
        ({"s2": True, "s2_scales": "48,96"}, "give --s2_scales 32,64,96"),
        ({"mm_vision_select_feature": "all"}, "Choices: patch, cls_patch"),
    ],
)
def test_errors_come_before_the_first_step(changes, message, flags, run_train, tmp_path):
    tower = write_tower(tmp_path / "siglip", "siglip")
    with pytest.raises(ConfigError, match=message):
        run_train(flags(vision_tower=tower, **changes))
    assert not list((tmp_path / "out").glob("checkpoint-*"))
