import dataclasses
import itertools
import json
import random

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llava.errors import CheckpointError
from llava.model.checkpoint import tensor_names
from llava.model.tokenizer import load_tokenizer
from lrm_ext.emoji.scenes import (
    LANGUAGES,
    Placed,
    Scene,
    combinations,
    concepts_by_id,
    load_concepts,
    sample_scene,
    split_of_combination,
)
from tools.mini import language_model, tower
from tools.mini.build import check_base, hash_files, models_dir
from tools.mini.language_model import answer_loss, learning_rate_factor
from tools.mini.recipe import BaseRecipe, LanguageModelRecipe, TowerRecipe


def test_the_committed_models_are_the_ones_that_build_json_names():
    check_base(models_dir())
    size = sum((models_dir() / name).stat().st_size for name in hash_files(models_dir()))
    assert size <= 8_000_000


def test_transformers_4_reads_the_committed_models():
    config = json.loads((models_dir() / "llm" / "config.json").read_text())
    assert config["rope_theta"] == LanguageModelRecipe().rope_theta
    names = tensor_names(models_dir() / "vision_tower" / "model.safetensors")
    assert all(name.startswith("vision_model.") for name in names)


def test_a_changed_file_is_noticed(tmp_path):
    for name in ("llm", "vision_tower"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "build.json").write_text(json.dumps({"sha256": hash_files(tmp_path)}))
    check_base(tmp_path)
    (tmp_path / "llm" / "config.json").write_text("{ }")
    with pytest.raises(CheckpointError, match="llm/config.json"):
        check_base(tmp_path)


def test_build_json_holds_the_recipe_of_the_code():
    record = json.loads((models_dir() / "build.json").read_text())
    assert record["recipe"] == dataclasses.asdict(BaseRecipe())


@pytest.mark.parametrize("lang", LANGUAGES)
def test_names_cost_as_few_tokens_in_every_language(lang):
    tokenizer = load_tokenizer(str(models_dir() / "llm"))
    names = [concept.names[lang] for concept in load_concepts()]
    # a lone blank is a piece of its own before a script that writes without blanks
    pieces = [[p for p in tokenizer.tokenize(name) if p != "\u2581"] for name in names]
    assert sum(map(len, pieces)) / len(pieces) < 1.1


def test_base_models_see_training_combinations_only(monkeypatch):
    seen = []

    def spy(rng, split, *args):
        seen.append(sample_scene(rng, split, *args))
        return seen[-1]

    monkeypatch.setattr(language_model, "sample_scene", spy)
    monkeypatch.setattr(tower, "sample_scene", spy)
    list(itertools.islice(language_model.iter_conversations(0.4, seed=1), 50))
    list(language_model.iter_tokenizer_sentences(20, seed=1))
    _, index = tower.build_phrases()
    tower.draw_pictures(dataclasses.replace(TowerRecipe(), num_scenes=20), index)
    assert len(seen) == 90
    splits = {split_of_combination(c) for scene in seen for c in combinations(scene)}
    assert splits == {"train"}


def conversations(num, seed=3):
    endless = language_model.iter_conversations(LanguageModelRecipe.english_share, seed)
    return list(itertools.islice(endless, num))


def test_text_is_english_more_than_anything_else_and_repeats_itself():
    first = conversations(300)
    assert first == conversations(300)
    answers = {turn.text for turns in first for turn in turns}
    assert {"Yes", "Да", "是"} <= answers
    english = sum(any(turn.text == "Yes" for turn in turns) for turns in first)
    share = LanguageModelRecipe.english_share
    assert share - 0.1 < english / len(first) < share + 0.1


def test_a_description_has_a_word_for_every_patch_and_tells_every_object():
    recipe = TowerRecipe()
    assert recipe.image_size_px == language_model.GRID * recipe.patch_size_px
    for turns in conversations(50):
        description, question = turns[0].text.split("\n")
        assert len(description.split()) == language_model.GRID**2 and question
    rng = random.Random(5)
    for _ in range(200):
        scene = sample_scene(rng, "train")
        told = set(language_model.describe(scene).split())
        names = {p.concept: concepts_by_id()[p.concept].names["en"] for p in scene.objects}
        assert all(set(name.split()) <= told for name in names.values())


def test_a_patch_is_told_as_the_object_that_lies_on_it():
    dog = Placed("dog", x=0.25, y=0.25, size=0.45, mirrored=False)
    phone = Placed("mobile_phone", x=0.75, y=0.75, size=0.3, mirrored=False)
    scene = Scene("one", "train", "blue", (0, 0, 255), (dog, phone))
    rows = [language_model.describe(scene).split()[start : start + 4] for start in range(0, 16, 4)]
    assert rows == [
        ["dog", "dog", "blue", "blue"],
        ["dog", "dog", "blue", "blue"],
        ["blue", "blue", "mobile", "phone"],
        ["blue", "blue", "blue", "blue"],
    ]


def test_noise_is_in_proportion_to_the_embeddings():
    config = LlamaConfig(
        vocab_size=30, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    input_ids = torch.randint(0, 30, (2, 9))
    plain, _ = answer_loss(model, input_ids, input_ids)
    again, _ = answer_loss(model, input_ids, input_ids, noise=0.0)
    noisy, _ = answer_loss(model, input_ids, input_ids, noise=0.5)
    assert plain == again != noisy


def test_the_learning_rate_rises_stays_and_falls_to_zero():
    recipe = dataclasses.replace(
        LanguageModelRecipe(), num_steps=100, num_warmup_steps=10, decay_share=0.5
    )
    factors = [learning_rate_factor(step, recipe) for step in range(101)]
    assert factors[0] == 0.1 and factors[9:51] == [1.0] * 42
    assert factors[75] == 0.5 and factors[100] == 0


def test_truth_of_phrases_is_what_the_scene_shows():
    scene = sample_scene(random.Random(4), "train")
    phrases, index = tower.build_phrases()
    facts = tower.facts_of(scene)
    assert f"on:{scene.background}" in facts and len(facts) == len(set(facts))
    assert all(phrases[index[fact]] for fact in facts)


def test_the_contrastive_model_has_a_logit_for_every_phrase():
    recipe = dataclasses.replace(TowerRecipe(), hidden_size=32, num_heads=2, num_layers=2)
    phrases, _ = tower.build_phrases()
    model = tower.ContrastiveModel(recipe, phrases)
    pictures = torch.zeros(2, 3, recipe.image_size_px, recipe.image_size_px)
    logits = model(pictures)
    assert logits.shape == (2, len(phrases))
    logits.sum().backward()
    assert model.tower.embeddings.patch_embedding.weight.grad is not None
