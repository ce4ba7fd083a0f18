import dataclasses
import json
import random

import pytest
import torch

from llava.errors import CheckpointError
from llava.model.tokenizer import load_tokenizer
from lrm_ext.corpus.emoji.concepts import load_concepts
from lrm_ext.corpus.emoji.packed import LANGUAGES
from lrm_ext.corpus.emoji.scenes import combinations, sample_scene, split_of_combination
from lrm_ext.mini import text, tower
from lrm_ext.mini.build import check_base, hash_files, models_dir
from lrm_ext.mini.recipe import BaseRecipe, LanguageModelRecipe, TowerRecipe


def test_the_committed_models_are_the_ones_that_build_json_names():
    check_base(models_dir())
    size = sum((models_dir() / name).stat().st_size for name in hash_files(models_dir()))
    assert size <= 8_000_000


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

    monkeypatch.setattr(text, "sample_scene", spy)
    monkeypatch.setattr(tower, "sample_scene", spy)
    list(text.iter_conversations(50, 0.8, seed=1))
    list(text.iter_tokenizer_sentences(20, seed=1))
    _, index = tower.build_phrases()
    tower.draw_pictures(dataclasses.replace(TowerRecipe(), num_scenes=20), index)
    assert len(seen) == 90
    splits = {split_of_combination(c) for scene in seen for c in combinations(scene)}
    assert splits == {"train"}


def test_text_is_mostly_english_and_repeats_itself():
    first = list(text.iter_conversations(300, LanguageModelRecipe.english_share, seed=3))
    assert first == list(text.iter_conversations(300, LanguageModelRecipe.english_share, seed=3))
    answers = {turn.text for turns in first for turn in turns}
    assert {"Yes", "Да", "是"} <= answers
    english = sum(any(turn.text in ("Yes", "No") for turn in turns[1::2]) for turns in first)
    assert 0.7 < english / len(first) < 0.9


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
