"""Checkpoints of a run that trained the tower: saved, loaded by either key, resumed, merged."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava.errors import CheckpointError
from llava.model.builder import load_pretrained_model
from llava.model.checkpoint import MultimodalConfig

TOWER, ADAPTER, LANGUAGE = "mm_vision_tower", "mm_mlp_adapter", "mm_language_model"
ALL = ",".join((TOWER, ADAPTER, LANGUAGE))
LORA = {"lora_enable": True, "lora_r": 4, "lora_dropout": 0.0}


def features_of(model):
    """Features of a random image by the tower."""
    pixels = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return model.eval().get_vision_tower()(pixels)


@pytest.mark.parametrize("changes", [{}, {"mm_vision_tower_last_layers": 1}])
def test_a_reloaded_tower_gives_the_same_features(changes, trained, tmp_path, tiny_tower):
    settings = {"mm_tunable_parts": ALL, "mm_vision_tower_lr": 1e-3, "max_steps": 2, **changes}
    expected = features_of(trained(**settings).model)
    _, model, _, _ = load_pretrained_model(str(tmp_path / "out"), None, "llava", device="cpu")
    assert torch.equal(features_of(model), expected)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["unfreeze_mm_vision_tower"] is True
    assert config["mm_tunable_parts"] == ALL
    assert config["mm_vision_tower_lr"] == 1e-3
    assert config["mm_vision_tower_last_layers"] == changes.get("mm_vision_tower_last_layers")


@pytest.mark.parametrize(
    "keys", [{"unfreeze_mm_vision_tower": True}, {"mm_tunable_parts": f"{ADAPTER},{TOWER}"}]
)
def test_either_key_reads_the_tower_of_the_checkpoint(keys, trained, tmp_path):
    expected = features_of(trained(mm_tunable_parts=ALL).model)
    out = tmp_path / "out"
    content = json.loads((out / "config.json").read_text())
    for key in ("unfreeze_mm_vision_tower", "mm_tunable_parts"):
        del content[key]
    (out / "config.json").write_text(json.dumps({**content, **keys}))
    _, model, _, _ = load_pretrained_model(str(out), None, "llava", device="cpu")
    assert torch.equal(features_of(model), expected)

    # without the tower's weights, the tower of that name would be another one
    weights = load_file(out / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "vision_tower" not in name}
    save_file(kept, out / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="vision tower's weights are missing"):
        load_pretrained_model(str(out), None, "llava", device="cpu")


def test_a_later_stage_keeps_a_trained_tower(trained, tmp_path):
    first = features_of(trained(mm_tunable_parts=ALL).model)
    again = trained(model_name_or_path=tmp_path / "out", output_dir=tmp_path / "again")
    assert torch.equal(features_of(again.model), first)
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    # what was trained this time, and that the tower's weights are in the files
    assert config["mm_tunable_parts"] is None
    assert config["unfreeze_mm_vision_tower"] is True


@pytest.mark.parametrize(
    "changes", [{"mm_vision_tower_lr": 1e-3}, {"mm_vision_tower_last_layers": 1}, LORA]
)
def test_a_resumed_run_ends_with_the_same_weights(changes, trained, tmp_path):
    settings = {"mm_tunable_parts": ALL, "max_steps": 4, "save_steps": 2, **changes}
    trained(output_dir=tmp_path / "a", **settings)
    (tmp_path / "b").mkdir()
    shutil.move(tmp_path / "a" / "checkpoint-2", tmp_path / "b" / "checkpoint-2")
    trained(output_dir=tmp_path / "b", **settings)
    name = "adapter_model.safetensors" if changes is LORA else "model.safetensors"
    left, right = (load_file(tmp_path / folder / name) for folder in "ab")
    assert any("vision_tower" in key for key in left)
    assert left.keys() == right.keys()
    assert all(torch.equal(value, right[key]) for key, value in left.items())


@pytest.mark.parametrize(
    ("changes", "layers"),
    [
        ({"mm_tunable_parts": ALL}, {0, 1}),
        ({"mm_tunable_parts": f"{TOWER},{ADAPTER}"}, {0, 1}),
        ({"mm_tunable_parts": ALL, "mm_vision_tower_last_layers": 1}, {1}),
        ({"mm_tunable_parts": f"{ADAPTER},{LANGUAGE}"}, set()),
    ],
)
def test_lora_merged_is_lora_unmerged(changes, layers, trained, tmp_path, tiny_llm):
    trainer = trained(**LORA, **changes)
    out = tmp_path / "out"
    adapters = load_file(out / "adapter_model.safetensors")
    in_tower = {name for name in adapters if "vision_tower" in name}
    assert {int(name.partition("layers.")[2].partition(".")[0]) for name in in_tower} == layers
    assert (adapters.keys() == in_tower) == (LANGUAGE not in changes["mm_tunable_parts"])
    assert not any("mm_projector" in name for name in adapters)
    unmerged = features_of(trainer.model)
    with trainer.model.disable_adapter():
        assert torch.equal(features_of(trainer.model), unmerged) == (not layers)
    _, merged, _, _ = load_pretrained_model(str(out), str(tiny_llm), "llava-lora", device="cpu")
    assert not any("lora_" in name for name, _ in merged.named_parameters())
    torch.testing.assert_close(features_of(merged), unmerged, atol=1e-5, rtol=1e-5)
    assert merged.config.mm_tunable_parts == changes["mm_tunable_parts"]

    # the merged model carries its tower, and says so
    merged.save_pretrained(tmp_path / "merged")
    trainer.processing_class.save_pretrained(tmp_path / "merged")
    _, again, _, _ = load_pretrained_model(str(tmp_path / "merged"), None, "x", device="cpu")
    assert torch.equal(features_of(again), features_of(merged))


def test_adapters_do_not_take_another_tower(trained, tmp_path, tiny_llm):
    """LoRA on top of a model with a trained tower: its base is that model."""
    trained(output_dir=tmp_path / "base", mm_tunable_parts=ALL)
    lora = trained(model_name_or_path=tmp_path / "base", output_dir=tmp_path / "lora", **LORA)
    path = str(tmp_path / "lora")
    _, merged, _, _ = load_pretrained_model(path, str(tmp_path / "base"), "l", device="cpu")
    assert torch.equal(features_of(merged), features_of(lora.model))
    with pytest.raises(CheckpointError, match="name the base that the training started from"):
        load_pretrained_model(path, str(tiny_llm), "lora", device="cpu")


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, False),
        ({"unfreeze_mm_vision_tower": True}, True),
        ({"mm_tunable_parts": "mm_mlp_adapter, mm_vision_tower"}, True),
        ({"mm_tunable_parts": "mm_mlp_adapter"}, False),
        ({"mm_tunable_parts": None, "unfreeze_mm_vision_tower": None}, False),
    ],
)
def test_config_says_whether_the_tower_was_trained(keys, expected):
    assert MultimodalConfig.from_config(SimpleNamespace(**keys)).tunes_tower is expected
