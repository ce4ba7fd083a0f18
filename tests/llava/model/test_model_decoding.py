"""How answers are decoded: sampling, beams, stopping, the cache."""

import pytest
import torch
from transformers import CLIPImageProcessorPil, StoppingCriteriaList

from llava.mm_utils import KeywordsStoppingCriteria, process_images
from llava.model import LlavaLlamaForCausalLM
from llava.model.tokenizer import load_tokenizer

GREEDY = {"do_sample": False, "max_new_tokens": 12}


@pytest.fixture(scope="session")
def tokenizer(models):
    return load_tokenizer(models / "tiny-llava")


@pytest.fixture
def ask(tiny_llava, golden, pixels):
    """Generate for a golden prompt (0: one picture, 1: two, 2: none)."""

    def ask(case=0, **keywords):
        prompt = golden["generate"][case]
        images = None if prompt["images"] is None else pixels[prompt["images"]]
        ids = torch.tensor([prompt["input_ids"]])
        return tiny_llava.generate(ids, images=images, **{**GREEDY, **keywords})

    return ask


def log_probability(model, ids, images, answer):
    """Summed log-probability of `answer` [1, T] after a prompt."""
    whole = torch.cat([ids, answer], dim=1)
    logits = model(whole, images=images).logits[:, -answer.shape[1] - 1 : -1]
    return logits.log_softmax(-1).gather(2, answer[..., None]).sum().item()


def test_sampling_follows_its_seed_and_settings(ask):
    def sample(seed, **keywords):
        torch.manual_seed(seed)
        return ask(do_sample=True, min_new_tokens=12, **keywords).tolist()

    assert sample(1, temperature=1.0) == sample(1, temperature=1.0)
    assert len({str(sample(seed, temperature=1.0)) for seed in range(4)}) > 1
    greedy = ask(min_new_tokens=12).tolist()
    assert sample(5, top_k=1) == greedy
    assert sample(5, top_p=1e-6) == greedy
    torch.manual_seed(0)
    several = ask(do_sample=True, num_return_sequences=3, min_new_tokens=12)
    assert several.shape == (3, 12)


def test_beams_find_a_likelier_answer(ask, tiny_llava, golden, pixels):
    ids, images = torch.tensor([golden["generate"][0]["input_ids"]]), pixels[:1]
    greedy, beams = ask(min_new_tokens=12), ask(min_new_tokens=12, num_beams=4)
    assert beams.shape == (1, 12) and not torch.equal(beams, greedy)
    scores = [log_probability(tiny_llava, ids, images, answer) for answer in (greedy, beams)]
    assert scores[1] > scores[0]


def test_beams_in_a_left_padded_batch_equal_one_at_a_time(ask, tiny_llava, golden, pixels):
    options = {"num_beams": 3, "min_new_tokens": 12}
    rows = [case["input_ids"] for case in golden["generate"]]
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    slots = [*golden["generate"][0]["images"], *golden["generate"][1]["images"], 0]
    found = tiny_llava.generate(
        ids, images=pixels[slots], attention_mask=mask, **{**GREEDY, **options}
    )
    assert torch.equal(found, torch.cat([ask(i, **options) for i in range(3)]))


def test_a_stop_string_ends_the_answer(ask, tokenizer):
    words = ask()[0].tolist()
    stop = tokenizer.decode(words[4]).strip()
    first = next(i for i in range(len(words)) if stop in tokenizer.decode(words[: i + 1]))
    found = ask(stop_strings=[stop], tokenizer=tokenizer)
    assert stop and found.tolist() == [words[: first + 1]] and first < 11


def test_keywords_end_the_answer(ask, tokenizer, golden):
    words = ask()[0].tolist()
    stop = tokenizer.decode(words[4]).strip()
    prompt = torch.tensor([golden["generate"][0]["input_ids"]])
    criteria = KeywordsStoppingCriteria([stop], tokenizer, prompt)
    found = ask(stopping_criteria=StoppingCriteriaList([criteria]))[0].tolist()
    assert found == words[: len(found)] and len(found) < 12
    assert stop in tokenizer.decode(found)


def test_the_end_token_ends_each_row_for_itself(ask, tiny_llava, golden, pixels):
    words = ask()[0].tolist()
    end = words[3]
    found = ask(eos_token_id=end, pad_token_id=0)[0].tolist()
    assert found == words[: words.index(end) + 1]
    ids = torch.tensor([golden["generate"][0]["input_ids"]] * 2)
    both = tiny_llava.generate(ids, images=pixels[:2], eos_token_id=end, pad_token_id=0, **GREEDY)
    first = both[0].tolist()
    assert first[: len(found)] == found and not any(first[len(found) :])


def test_the_cache_is_on_and_the_tower_runs_once(ask, tiny_llava):
    steps, pictures = [], []
    inner, tower = tiny_llava.get_model(), tiny_llava.get_vision_tower()

    def note(module, args, keywords):
        given = keywords.get("inputs_embeds")
        steps.append((keywords["input_ids"] if given is None else given).shape[1])

    handles = [
        inner.register_forward_pre_hook(note, with_kwargs=True),
        tower.register_forward_pre_hook(lambda *_: pictures.append(1)),
    ]
    ask(min_new_tokens=12)
    for handle in handles:
        handle.remove()
    assert steps == [steps[0]] + [1] * 11 and steps[0] > 16
    assert len(pictures) == 1


def test_pictures_of_different_tiles_in_a_batch(models, pictures):
    """anyres: each row's answer is that of the row alone."""
    model = LlavaLlamaForCausalLM.from_pretrained(models / "tiny-llava-anyres-unpad")
    processor = CLIPImageProcessorPil.from_pretrained(models / "tiny-clip")
    images = process_images(pictures, processor, model.config)
    sizes = [picture.size for picture in pictures]
    assert isinstance(images, list)
    rows = [[1, 300, -200, 301], [1, -200, 400]]
    single = [
        model.generate(
            torch.tensor([row]), images=[images[i]], image_sizes=[sizes[i]], min_new_tokens=12,
            **GREEDY,
        )
        for i, row in enumerate(rows)
    ]  # fmt: skip
    ids = torch.tensor([rows[0], [0, *rows[1]]])
    mask = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])
    found = model.generate(ids, images=images[:2], image_sizes=sizes[:2], attention_mask=mask,
                           min_new_tokens=12, **GREEDY)  # fmt: skip
    assert torch.equal(found, torch.cat(single))
