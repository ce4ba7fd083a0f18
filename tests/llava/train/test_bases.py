"""What training starts from: MPT, several scales, bases with gaps, foreign projectors."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MptConfig, MptForCausalLM

from llava.errors import CheckpointError, ConfigError
from llava.model import LlavaMptForCausalLM
from llava.model.builder import load_pretrained_model


@pytest.fixture
def mpt_base(tiny_llm, tmp_path):
    """An MPT with random weights and the golden tokenizer."""
    folder = tmp_path / "base"
    torch.manual_seed(0)
    vocab_size = json.loads((tiny_llm / "config.json").read_text())["vocab_size"]
    config = MptConfig(d_model=32, n_heads=4, n_layers=2, vocab_size=vocab_size, max_seq_len=256)
    MptForCausalLM(config).save_pretrained(folder)
    for path in tiny_llm.glob("*token*"):
        shutil.copy(path, folder)
    return folder


def test_mpt_through_both_stages(mpt_base, run_train, flags, tmp_path):
    shared = {"model_name_or_path": mpt_base, "version": "mpt", "max_steps": 2, "save_steps": 50}
    stage1, stage2 = tmp_path / "stage1", tmp_path / "stage2"
    run_train(flags(**shared, tune_mm_mlp_adapter=True, output_dir=stage1))
    projector = torch.load(stage1 / "mm_projector.bin", weights_only=True)
    assert sorted(projector)[0] == "transformer.mm_projector.0.bias"
    adapter = stage1 / "mm_projector.bin"
    run_train(flags(**shared, pretrain_mm_mlp_adapter=adapter, output_dir=stage2))
    _, model, _, _ = load_pretrained_model(str(stage2), None, "stage2", device="cpu")
    assert isinstance(model, LlavaMptForCausalLM) and model.config.conversation["name"] == "mpt"
    before = load_file(mpt_base / "model.safetensors")["transformer.wte.weight"]
    assert not torch.equal(model.get_input_embeddings().weight[: len(before)], before)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    # stage 1 alone answers, too, on its base
    _, model, _, _ = load_pretrained_model(str(stage1), str(mpt_base), "stage1", device="cpu")
    weight = model.get_model().mm_projector[0].weight
    torch.testing.assert_close(weight, projector["transformer.mm_projector.0.weight"])


def test_s2_through_a_flag(run_train, flags, tmp_path):
    run_train(flags(s2=True, s2_scales="28,56", tune_mm_mlp_adapter=True, max_steps=1))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["s2"], config["s2_scales"], config["mm_hidden_size"]) == (True, "28,56", 64)


@pytest.mark.parametrize("projector", ["identity", "mlp1x_gelu", "mlp4x_gelu"])
def test_projectors_of_any_depth_train_and_load(projector, run_train, flags, tmp_path):
    run_train(flags(mm_projector_type=projector, max_steps=1, save_steps=50))
    _, model, processor, _ = load_pretrained_model(str(tmp_path / "out"), None, "o", device="cpu")
    layers = [m for m in model.get_model().mm_projector.modules() if isinstance(m, torch.nn.Linear)]
    assert len(layers) == {"identity": 0, "mlp1x_gelu": 1, "mlp4x_gelu": 4}[projector]
    ids, side = torch.tensor([[1, -200, 5]]), processor.crop_size["height"]
    logits = model(ids, images=torch.zeros(1, 3, side, side)).logits
    assert logits.shape[1] == 2 + 16 and torch.isfinite(logits).all()


@pytest.mark.parametrize("kind", ["gap", "cut short"])
def test_a_base_with_gaps_is_refused(kind, tiny_llm, run_train, flags, tmp_path):
    base = shutil.copytree(tiny_llm, tmp_path / "base")
    weights = base / "model.safetensors"
    if kind == "gap":
        tensors = load_file(weights)
        del tensors["model.layers.1.mlp.up_proj.weight"]
        save_file(tensors, weights, metadata={"format": "pt"})
        message = r"base: 1 weights are missing.*layers\.1\.mlp\.up_proj"
    else:
        weights.write_bytes(weights.read_bytes()[:-100])
        message = r"base/model\.safetensors: not readable"
    with pytest.raises(CheckpointError, match=message):
        run_train(flags(model_name_or_path=base))


def test_a_projector_of_another_width_is_refused(run_train, flags, tmp_path):
    path = tmp_path / "mm_projector.bin"
    names = {"0.weight": (48, 32), "0.bias": (48,), "2.weight": (48, 48), "2.bias": (48,)}
    torch.save({f"model.mm_projector.{k}": torch.zeros(s) for k, s in names.items()}, path)
    with pytest.raises(
        CheckpointError, match=r"(?s)does not fit.*\(48, 32\).*expected.*\(32, 32\)"
    ):
        run_train(flags(pretrain_mm_mlp_adapter=path))


def test_a_trained_model_keeps_its_projector(run_train, flags, tmp_path, caplog):
    first, second = tmp_path / "first", tmp_path / "second"
    run_train(flags(output_dir=first, max_steps=2, save_steps=50))
    untouched = {"max_steps": 1, "save_steps": 50, "learning_rate": 0.0}
    run_train(flags(model_name_or_path=first, output_dir=second, **untouched))
    assert "is a trained model" not in caplog.text
    weights = [load_file(folder / "model.safetensors") for folder in (first, second)]
    names = [name for name in weights[0] if "mm_projector" in name]
    assert names and all(torch.equal(weights[0][name], weights[1][name]) for name in names)


def test_what_replaces_a_part_of_a_trained_model_is_named(run_train, flags, tmp_path, caplog):
    model, other = tmp_path / "model", tmp_path / "other"
    run_train(flags(output_dir=model, max_steps=1, save_steps=50))
    run_train(flags(output_dir=other, max_steps=1, tune_mm_mlp_adapter=True, seed=1))
    adapter = other / "mm_projector.bin"
    changes = {"model_name_or_path": model, "pretrain_mm_mlp_adapter": adapter, "version": "mpt"}
    short = {"max_steps": 1, "save_steps": 50, "learning_rate": 0.0}
    run_train(flags(**changes, mm_vision_select_layer=-1, **short))
    assert f"--pretrain_mm_mlp_adapter {adapter} replaces its trained projector" in caplog.text
    assert "trained with --version v1, not mpt" in caplog.text
    assert "trained with --mm_vision_select_layer -2, not -1" in caplog.text
    # as in LLaVA, the flag wins
    given = torch.load(adapter, weights_only=True)["model.mm_projector.0.weight"]
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(weights["model.mm_projector.0.weight"], given)
    with pytest.raises(ConfigError, match="give --mm_projector_type mlp2x_gelu"):
        run_train(flags(model_name_or_path=model, mm_projector_type="linear"))


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"lora_enable": True, "lora_r": 4}, "merge_lora_weights.py --model-path .*part"),
        ({"tune_mm_mlp_adapter": True}, "--pretrain_mm_mlp_adapter .*part/mm_projector.bin"),
    ],
)
def test_training_does_not_start_from_a_part(stage, message, run_train, flags, tmp_path):
    part = tmp_path / "part"
    run_train(flags(output_dir=part, max_steps=1, save_steps=50, **stage))
    with pytest.raises(CheckpointError, match=message):
        run_train(flags(model_name_or_path=part))
