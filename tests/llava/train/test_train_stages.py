"""The two stages end to end on tiny models: what is trained, what is written, what is loaded."""

import json
from filecmp import cmp

import pytest
import torch
from safetensors.torch import load_file

from llava import conversation as conversation_lib
from llava.conversation import conv_templates
from llava.model.builder import load_pretrained_model
from llava.model.multimodal_projector.builder import read_tensors
from llava.train.checkpoint import problem_of


def weights_of(folder):
    return load_file(folder / "model.safetensors")


@pytest.fixture
def stage_1(flags, run_train, tmp_path):
    run_train(flags(tune_mm_mlp_adapter=True, output_dir=tmp_path / "stage1"))
    return tmp_path / "stage1"


def test_stage_1_writes_projector_and_config_only(stage_1):
    written = {path.name for path in stage_1.iterdir() if path.is_file()}
    assert {"config.json", "mm_projector.bin", "trainer_state.json", "COMPLETE"} <= written
    assert not any(name.endswith(".safetensors") for name in written)
    assert problem_of(stage_1) is None
    names = set(read_tensors(stage_1 / "mm_projector.bin"))
    assert names == {
        f"model.mm_projector.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")
    }


def test_stage_1_config_carries_what_readers_need(stage_1, tiny_tower):
    config = json.loads((stage_1 / "config.json").read_text())
    assert config["model_type"] == "llava_llama"
    assert config["mm_vision_tower"] == str(tiny_tower)
    assert config["conversation"]["version"] == "v1"
    expected = {
        "image_aspect_ratio": "pad",
        "tokenizer_padding_side": "right",
        "tokenizer_model_max_length": 256,
        "tune_mm_mlp_adapter": True,
        "freeze_mm_mlp_adapter": False,
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "mm_projector_lr": None,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "use_cache": True,
        "rope_theta": 5e5,
    }
    assert {key: config[key] for key in expected} == expected


def test_stage_1_checkpoints_carry_the_run(stage_1):
    folder = stage_1 / "checkpoint-4"
    names = {path.name for path in folder.iterdir()}
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} <= names
    assert {"mm_projector.bin", "config.json", "COMPLETE"} <= names


def test_stage_1_loads_on_its_base(stage_1, tiny_llm):
    _, model, processor, _ = load_pretrained_model(
        str(stage_1), str(tiny_llm), "stage1", device="cpu"
    )
    saved = read_tensors(stage_1 / "mm_projector.bin")["model.mm_projector.0.weight"]
    assert torch.equal(model.get_model().mm_projector[0].weight, saved)
    assert processor is not None


def test_stage_2_trains_language_model_and_projector(
    stage_1, flags, run_train, tiny_llm, tiny_tower, tmp_path
):
    out = tmp_path / "stage2"
    run_train(
        flags(pretrain_mm_mlp_adapter=stage_1 / "mm_projector.bin", output_dir=out, max_steps=2)
    )
    before, after = load_file(tiny_llm / "model.safetensors"), weights_of(out)
    changed = [name for name, value in before.items() if not torch.equal(value, after[name])]
    assert sorted(changed) == sorted(before)
    projector = read_tensors(stage_1 / "mm_projector.bin")
    assert not torch.equal(
        projector["model.mm_projector.0.weight"], after["model.mm_projector.0.weight"]
    )
    tower = load_file(tiny_tower / "model.safetensors")
    stored = {k.split("vision_model.")[1]: v for k, v in after.items() if "vision_model." in k}
    assert stored
    for name, value in stored.items():
        assert torch.equal(value, tower[f"vision_model.{name}"]), name


@pytest.mark.parametrize("settings", [{}, {"async_save": True}, {"lora_enable": True}])
def test_what_is_trained_has_what_transformers_4_reads(
    settings, flags, run_train, tiny_llm, tmp_path
):
    out = tmp_path / "out"
    run_train(flags(output_dir=out, max_steps=2, save_steps=1, **settings))
    for folder in (out, out / "checkpoint-1"):
        assert cmp(folder / "tokenizer.model", tiny_llm / "tokenizer.model", False), folder
        assert json.loads((folder / "config.json").read_text())["rope_theta"] == 5e5, folder


def test_version_v0_keeps_the_assigned_default_template(flags, run_train, tmp_path, monkeypatch):
    monkeypatch.setattr(conversation_lib, "default_conversation", conv_templates["mpt"])
    run_train(flags(output_dir=tmp_path / "out", max_steps=1, version="v0"))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["conversation"]["name"] == "mpt"


def test_stage_2_loads_and_answers(flags, run_train, tmp_path):
    run_train(flags(output_dir=tmp_path / "out", max_steps=1))
    tokenizer, model, _, context = load_pretrained_model(
        str(tmp_path / "out"), None, "out", device="cpu"
    )
    assert context == 256
    ids = tokenizer("Hello", return_tensors="pt").input_ids
    assert model.generate(ids, max_new_tokens=2, do_sample=False).shape[0] == 1
