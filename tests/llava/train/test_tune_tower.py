"""What a run with `--mm_tunable_parts` trains: parts, layers of the tower, learning rates."""

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from llava.errors import CheckpointError, ConfigError
from llava.train.arguments import ModelArguments, _check_parts, parse_arguments
from llava.train.llava_trainer import LLaVATrainer

ROOT = Path(__file__).parents[3]
TOWER, ADAPTER, LANGUAGE = "mm_vision_tower", "mm_mlp_adapter", "mm_language_model"
ALL = ",".join((TOWER, ADAPTER, LANGUAGE))
LORA = {"lora_enable": True, "lora_r": 4, "lora_dropout": 0.0}
# the tiny tower has three layers; the selected hidden state -2 is the output of the second
LAYERS = "vision_tower.vision_tower.encoder.layers."


def changed(trainer, tiny_llm, tiny_tower):
    """Names of the weights that differ from the base models'."""
    before = {**load_file(tiny_llm / "model.safetensors")}
    for name, value in load_file(tiny_tower / "model.safetensors").items():
        if not name.endswith("position_ids"):
            before["model.vision_tower.vision_tower." + name.removeprefix("vision_model.")] = value
    after = trainer.model.state_dict()
    assert before.keys() <= after.keys()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def names_with_gradient(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("parts", [ALL, f"{TOWER}, {ADAPTER}", TOWER])
def test_only_the_named_parts_learn(parts, trained, tiny_llm, tiny_tower):
    trainer = trained(mm_tunable_parts=parts)
    names = changed(trainer, tiny_llm, tiny_tower)
    in_tower = {name for name in names if "vision_tower" in name}
    assert {name.partition("layers.")[2][:1] for name in in_tower if "layers" in name} == {"0", "1"}
    assert any("patch_embedding" in name for name in in_tower)
    assert not any("post_layernorm" in name for name in names_with_gradient(trainer.model))
    assert (names - in_tower == set()) == (LANGUAGE not in parts)
    with_gradient = names_with_gradient(trainer.model)
    assert any("mm_projector" in name for name in with_gradient) == (ADAPTER in parts)
    assert all(p.grad is None or p.requires_grad for p in trainer.model.parameters())


def test_every_trained_weight_of_the_tower_has_a_gradient(trained, monkeypatch, tmp_path):
    """A weight without one would stop DDP, and a layer that is not run has none."""
    seen = {}
    step = LLaVATrainer.training_step

    def spy(self, model, *args, **kwargs):
        loss = step(self, model, *args, **kwargs)
        seen.update({n: p.grad is not None for n, p in model.named_parameters() if p.requires_grad})
        return loss

    monkeypatch.setattr(LLaVATrainer, "training_step", spy)
    for number, changes in enumerate(({}, {"mm_vision_tower_last_layers": 1}, LORA)):
        seen.clear()
        out = tmp_path / str(number)
        trained(mm_tunable_parts=ALL, output_dir=out, gradient_checkpointing=True, **changes)
        assert any("vision_tower" in name for name in seen)
        assert all(seen.values()), [name for name, has in seen.items() if not has]


def test_checkpointing_changes_no_loss(trained, tmp_path):
    def losses(name, **changes):
        folder = tmp_path / name
        trainer = trained(output_dir=folder, mm_tunable_parts=ALL, max_steps=3, **changes)
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    assert losses("a") == pytest.approx(losses("b", gradient_checkpointing=True), abs=1e-5)


def test_the_last_layers_are_those_that_the_features_come_from(trained, tiny_llm, tiny_tower):
    trainer = trained(mm_tunable_parts=ALL, mm_vision_tower_last_layers=1)
    names = changed(trainer, tiny_llm, tiny_tower)
    in_tower = {name for name in names if "vision_tower" in name}
    assert in_tower and all(f"{LAYERS}1." in name for name in in_tower)


def test_llava_nexts_form_of_the_first_stage(trained, tmp_path):
    trained(mm_tunable_parts=ADAPTER)
    assert (tmp_path / "out" / "mm_projector.bin").is_file()
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_rates_by_part(trained):
    trainer = trained(
        mm_tunable_parts=ALL,
        mm_vision_tower_lr=2e-4,
        mm_projector_lr=3e-3,
        weight_decay=0.1,
        lr_scheduler_type="constant",
    )
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    rates = {
        names[id(p)]: (group["lr"], group["weight_decay"])
        for group in trainer.optimizer.param_groups
        for p in group["params"]
    }
    assert rates.keys() == names_with_gradient(trainer.model)
    for name, (rate, decay) in rates.items():
        expected = 2e-4 if "vision_tower" in name else 3e-3 if "mm_projector" in name else 1e-2
        assert rate == expected, name
        assert decay == (0.0 if "bias" in name or "norm" in name else 0.1), name


def test_other_parts_are_another_run(trained):
    trained(mm_tunable_parts=ALL)
    with pytest.raises(CheckpointError, match="--mm_tunable_parts was mm_vision_tower,"):
        trained(mm_tunable_parts=f"{TOWER},{ADAPTER}")


def test_the_tower_is_kept_in_float32_where_it_is_trained(trained, tmp_path):
    trainer = trained(mm_tunable_parts=f"{TOWER},{ADAPTER}", bf16=True)
    dtypes = {name: str(p.dtype) for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert set(dtypes.values()) == {"torch.float32"}
    assert trainer.model.lm_head.weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mm_tunable_parts": "mm_vision_towr"}, "unknown mm_vision_towr; expected a comma list"),
        ({"mm_tunable_parts": " ,"}, "names no part"),
        ({"mm_tunable_parts": ALL, "tune_mm_mlp_adapter": True}, "--tune_mm_mlp_adapter False"),
        ({"mm_tunable_parts": ALL, "freeze_mm_mlp_adapter": True}, "--freeze_mm_mlp_adapter True"),
        ({"mm_tunable_parts": ALL, "freeze_backbone": True}, "--freeze_backbone True exclude"),
        ({"mm_tunable_parts": ALL, "vision_tower": None}, "name a --vision_tower"),
        ({"mm_tunable_parts": ADAPTER, "lora_enable": True}, "exclude each other"),
        ({"mm_vision_tower_lr": 1e-6}, "add mm_vision_tower to --mm_tunable_parts"),
        ({"mm_tunable_parts": ALL, "mm_vision_tower_lr": -1}, "expected 0 or more"),
        ({"mm_vision_tower_last_layers": 1}, "the vision tower is not trained"),
        ({"mm_tunable_parts": ALL, "mm_vision_tower_last_layers": 0}, "expected 1 or more"),
    ],
)
def test_bad_flags_are_refused_before_a_model_is_loaded(changes, said, flags):
    with pytest.raises(ConfigError, match=said):
        parse_arguments(args=flags(model_name_or_path="nowhere", **changes))


@pytest.mark.parametrize("name", ["zero3_offload", "zero3"])
def test_a_rate_that_deepspeed_would_not_use(name):
    config = json.loads((ROOT / "scripts" / f"{name}.json").read_text())
    model_args = ModelArguments(mm_tunable_parts=ALL, vision_tower="clip")
    training_args = SimpleNamespace(
        freeze_mm_mlp_adapter=False,
        bits=16,
        lora_enable=False,
        mm_vision_tower_lr=2e-6,
        deepspeed=name,
        hf_deepspeed_config=SimpleNamespace(config=config),
    )
    has_own_rate = pytest.raises(ConfigError, match="optimizer or scheduler has one rate")
    with has_own_rate if name == "zero3_offload" else contextlib.nullcontext():
        _check_parts(model_args, training_args)


def test_quantized_weights_are_not_trained():
    model_args = ModelArguments(mm_tunable_parts=ALL, vision_tower="clip")
    settings = {"freeze_mm_mlp_adapter": False, "mm_vision_tower_lr": None, "deepspeed": None}
    _check_parts(model_args, SimpleNamespace(**settings, bits=4, lora_enable=True))
    with pytest.raises(ConfigError, match="add --lora_enable True"):
        _check_parts(model_args, SimpleNamespace(**settings, bits=4, lora_enable=False))


@pytest.mark.parametrize("lora", [False, True])
def test_more_last_layers_than_the_tower_runs(lora, flags, run_train):
    said = "is 3, but the features come from 2 layers of the vision tower: it has 3"
    with pytest.raises(ConfigError, match=said):
        run_train(flags(mm_tunable_parts=ALL, mm_vision_tower_last_layers=3, lora_enable=lora))
