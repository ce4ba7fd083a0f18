"""The recipe of the built-in corpus: splits are disjoint, combinations are held out."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from llava.errors import DataError
from lrm_ext.emoji import scenes as scenes_module
from lrm_ext.emoji.scenes import (
    SPLITS,
    Placed,
    Scene,
    combinations,
    concept_ids,
    load_concepts,
    load_scenes,
    load_sprites,
    render_scene,
    sample_scene,
    scene_from_line,
    scene_to_line,
    split_of_combination,
    split_of_combinations,
)
from tools.build_emoji import NUM_SCENES


@pytest.fixture(scope="module")
def scenes() -> tuple[Scene, ...]:
    return load_scenes()


def _content(scene: Scene) -> tuple[object, ...]:
    return (scene.background, scene.shade, scene.objects)


def test_split_sizes_are_as_stated(scenes: tuple[Scene, ...]) -> None:
    assert Counter(scene.split for scene in scenes) == NUM_SCENES
    assert len({scene.id for scene in scenes}) == len(scenes)


def test_no_scene_is_in_two_splits(scenes: tuple[Scene, ...]) -> None:
    contents = {s: {_content(scene) for scene in scenes if scene.split == s} for s in SPLITS}
    assert not contents["train"] & contents["test"]
    assert not contents["train"] & contents["val"]
    assert not contents["val"] & contents["test"]


def test_held_out_combinations_are_never_in_training(scenes: tuple[Scene, ...]) -> None:
    shown: dict[str, set[tuple[str, str]]] = {split: set() for split in SPLITS}
    for scene in scenes:
        shown[scene.split].update(combinations(scene))
    trained = shown["train"]
    for split in ("val", "test"):
        held_out = {c for c in shown[split] if split_of_combination(c) == split}
        assert held_out and not held_out & trained
    assert {split_of_combination(c) for c in trained} == {"train"}


def test_every_held_out_scene_shows_a_held_out_combination(scenes: tuple[Scene, ...]) -> None:
    trained = {c for scene in scenes if scene.split == "train" for c in combinations(scene)}
    for scene in scenes:
        kinds = {split_of_combination(c) for c in combinations(scene)}
        assert kinds - {"train"} == {scene.split} - {"train"}, scene
        if scene.split != "train":
            assert set(combinations(scene)) - trained, scene


def test_shares_of_held_out_combinations() -> None:
    ids = concept_ids()
    pairs = [(a, b) for a in ids for b in ids if a < b]
    share = Counter(map(split_of_combination, pairs))
    assert 0.06 < share["test"] / len(pairs) < 0.10
    assert 0.025 < share["val"] / len(pairs) < 0.055


def test_test_and_validation_combinations_do_not_mix() -> None:
    pairs = [(a, b) for a in concept_ids() for b in concept_ids() if a < b]
    test, val, train = (
        next(p for p in pairs if split_of_combination(p) == split)
        for split in ("test", "val", "train")
    )
    assert split_of_combinations([test, train]) == "test"
    assert split_of_combinations([val, train]) == "val"
    assert split_of_combinations([test, val]) is None


def test_objects_lie_inside_and_apart(scenes: tuple[Scene, ...]) -> None:
    for scene in scenes:
        assert 1 <= len(scene.objects) <= 4
        assert len({p.concept for p in scene.objects}) == len(scene.objects)
        for p in scene.objects:
            # a size that is odd in thousandths may stick out by half a thousandth
            assert p.size / 2 <= min(p.x, p.y) + 6e-4
            assert max(p.x, p.y) + p.size / 2 <= 1 + 6e-4
        if len(scene.objects) > 1:
            positions = [p.position for p in scene.objects]
            assert len(set(positions)) == len(positions)
            order = ["top_left", "top_right", "bottom_left", "bottom_right"]
            assert positions == sorted(positions, key=order.index)


def test_every_concept_is_common_in_training(scenes: tuple[Scene, ...]) -> None:
    count = Counter(p.concept for s in scenes if s.split == "train" for p in s.objects)
    assert min(count[concept] for concept in concept_ids()) > 400


def test_sampling_depends_on_the_seed_alone() -> None:
    first, again, other = (
        sample_scene(random.Random(seed), "test", "test-x") for seed in (1, 1, 2)
    )
    assert first == again != other


def test_lines_come_back_as_scenes(scenes: tuple[Scene, ...]) -> None:
    for scene in scenes[:200]:
        assert scene_from_line(scene_to_line(scene), "here:1") == scene


@pytest.mark.parametrize(
    "line",
    [
        "",
        "train-000000\tred\td63430",
        "train-000000\tred\td63430\tdog:100:100",
        "train-000000\tred\td63430\tdragon:100:100:300",
        "train-000000\tbeige\td63430\tdog:100:100:300",
        "dev-000000\tred\td63430\tdog:100:100:300",
        "train-000000\tred\td63430\tdog:100:100:300:x",
    ],
)
def test_a_broken_line_is_named(line: str) -> None:
    with pytest.raises(DataError, match="scenes.tsv:7"):
        scene_from_line(line, "scenes.tsv:7")


def test_missing_recipe_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes_module, "SCENES_FILE", "nowhere.tsv")
    with pytest.raises(DataError, match="build-emoji"):
        load_scenes()


def test_every_concept_has_a_picture() -> None:
    sprites = load_sprites()
    assert set(sprites) == set(concept_ids()) and len(sprites) >= 60
    assert all(sprite.mode == "RGBA" and max(sprite.size) > 90 for sprite in sprites.values())
    assert len({concept.codepoint for concept in load_concepts()}) == len(sprites)


def test_rendering_puts_things_where_the_recipe_says() -> None:
    scene = Scene("t", "train", "blue", (48, 96, 208), (Placed("dog", 0.25, 0.25, 0.4, False),))
    image = render_scene(scene, load_sprites(), size=100)
    assert (image.size, image.mode) == ((100, 100), "RGB")
    assert image.crop((50, 0, 100, 100)).getcolors() == [(5000, (48, 96, 208))]
    assert len(image.crop((5, 5, 45, 45)).getcolors(10_000) or ()) > 50


def test_mirroring_flips_the_picture() -> None:
    plain, mirrored = (
        render_scene(
            Scene("t", "train", "white", (255, 255, 255), (Placed("dog", 0.5, 0.5, 0.8, m),)),
            load_sprites(),
        )
        for m in (False, True)
    )
    assert plain.tobytes() != mirrored.tobytes()
