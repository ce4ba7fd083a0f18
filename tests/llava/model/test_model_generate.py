from threading import Thread

import pytest
import torch
from transformers import AutoTokenizer, TextIteratorStreamer

from llava.errors import DataError

GREEDY = {"do_sample": False, "max_new_tokens": 12}


def left_padded(rows):
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def prompts(golden):
    """The golden prompts: one image, two images, no image."""
    return golden["generate"]


def test_greedy_equals_the_golden_values(tiny_llava, golden, pixels):
    for case in prompts(golden):
        images = None if case["images"] is None else pixels[case["images"]]
        ids = torch.tensor([case["input_ids"]])
        found = tiny_llava.generate(ids, images=images, **GREEDY)
        assert found.tolist() == [case["output_ids"][1:]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_batch_equals_one_at_a_time(tiny_llava, golden, pixels, side):
    cases = prompts(golden)
    ids, mask = left_padded([case["input_ids"] for case in cases])
    if side == "right":
        lengths = mask.sum(dim=1)
        ids = torch.stack([row.roll(int(n)) for row, n in zip(ids, lengths, strict=True)])
        mask = mask.flip(1)
    slots = [*cases[0]["images"], *cases[1]["images"], 0]  # a dummy for the row without an image
    found = tiny_llava.generate(ids, images=pixels[slots], attention_mask=mask, **GREEDY)
    assert found.tolist() == [case["output_ids"][1:] for case in cases]


def test_text_only_batch_needs_no_images(tiny_llava, golden):
    case = prompts(golden)[2]
    ids, mask = left_padded([case["input_ids"], case["input_ids"][4:]])
    found = tiny_llava.generate(ids, attention_mask=mask, **GREEDY)
    single = tiny_llava.generate(torch.tensor([case["input_ids"][4:]]), **GREEDY)
    assert found.tolist() == [case["output_ids"][1:], *single.tolist()]


def test_cached_features_equal_images(tiny_llava, golden, pixels):
    case = prompts(golden)[1]
    features = tiny_llava.get_vision_tower()(pixels[case["images"]])
    ids = torch.tensor([case["input_ids"]])
    found = tiny_llava.generate(ids, image_features=features, **GREEDY)
    assert found.tolist() == [case["output_ids"][1:]]


def test_without_the_cache_the_tokens_are_the_same(tiny_llava, golden, pixels):
    case = prompts(golden)[0]
    ids = torch.tensor([case["input_ids"]])
    found = tiny_llava.generate(ids, images=pixels[:1], use_cache=False, **GREEDY)
    assert found.tolist() == [case["output_ids"][1:]]


def test_beams_and_sampling_return_new_tokens_only(tiny_llava, golden, pixels):
    ids = torch.tensor([prompts(golden)[0]["input_ids"]])
    beams = tiny_llava.generate(ids, images=pixels[:1], num_beams=3, **GREEDY)
    assert beams.shape[1] <= 12
    torch.manual_seed(0)
    options = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "max_new_tokens": 5}
    assert tiny_llava.generate(ids, images=pixels[:1], **options).shape == (1, 5)


def test_streaming(tiny_llava, golden, pixels, models):
    case = prompts(golden)[0]
    tokenizer = AutoTokenizer.from_pretrained(models / "tiny-llava", use_fast=False)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=30)
    keywords = {"images": pixels[:1], "streamer": streamer, **GREEDY}
    thread = Thread(
        target=tiny_llava.generate, args=(torch.tensor([case["input_ids"]]),), kwargs=keywords
    )
    thread.start()
    text = "".join(streamer)
    thread.join()
    assert text == tokenizer.decode(case["output_ids"][1:])


def test_training_settings_do_not_touch_the_prompt(tiny_llava, golden, pixels):
    tiny_llava.config.tokenizer_model_max_length = 10
    case = prompts(golden)[0]
    found = tiny_llava.generate(torch.tensor([case["input_ids"]]), images=pixels[:1], **GREEDY)
    assert found.tolist() == [case["output_ids"][1:]]


def test_prompt_longer_than_the_context(tiny_llava, pixels):
    ids = torch.tensor([[1, -200] + [300] * 250])
    with pytest.raises(DataError, match="267 positions.*context is 256"):
        tiny_llava.generate(ids, images=pixels[:1], **GREEDY)


def test_placeholders_and_images_must_match(tiny_llava, pixels):
    ids = torch.tensor([[1, -200, 300]])
    with pytest.raises(DataError, match="2 image.*1 <image>"):
        tiny_llava.generate(ids, images=pixels[:2], **GREEDY)
    with pytest.raises(DataError, match=r"1 <image> placeholder\(s\) and 0 image"):
        tiny_llava.generate(ids, **GREEDY)


def test_embeddings_are_refused(tiny_llava):
    with pytest.raises(NotImplementedError):
        tiny_llava.generate(torch.tensor([[1]]), inputs_embeds=torch.zeros(1, 1, 48))
