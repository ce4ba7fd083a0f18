import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MptConfig, MptForCausalLM

from llava.errors import CheckpointError
from llava.model import LlavaMptConfig, LlavaMptForCausalLM, apply_delta, consolidate, make_delta
from llava.model.make_delta import add_base
from llava.model.utils import auto_upgrade


@pytest.fixture
def checkpoint(models, tmp_path):
    shutil.copytree(models / "tiny-clip", tmp_path / "tiny-clip")
    return shutil.copytree(models / "tiny-llava", tmp_path / "llava-tiny")


@pytest.fixture
def base(models, checkpoint, tmp_path):
    """A language model with two rows fewer and other weights."""
    folder = shutil.copytree(checkpoint, tmp_path / "base")
    weights = load_file(folder / "model.safetensors")
    weights = {k: v * 0.5 for k, v in weights.items() if "vision_tower" not in k and "mm_" not in k}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = weights[name][:1998].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config = {key: value for key, value in config.items() if not key.startswith("mm_")}
    config.update(model_type="llama", vocab_size=1998)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_delta_there_and_back(checkpoint, base, tmp_path):
    delta, again = tmp_path / "elsewhere" / "delta", tmp_path / "llava-again"
    flags = ["--base-model-path", str(base), "--delta-path", str(delta), "--target-model-path"]
    make_delta.main([*flags, str(checkpoint)])
    before = load_file(checkpoint / "model.safetensors")
    difference = load_file(delta / "model.safetensors")
    assert difference.keys() == before.keys()
    name = "model.norm.weight"
    torch.testing.assert_close(difference[name], before[name].half() / 2, atol=1e-3, rtol=1e-3)
    projector = "model.mm_projector.0.weight"
    assert torch.equal(difference[projector], before[projector].half())

    apply_delta.main([*flags, str(again)])
    after = load_file(again / "model.safetensors")
    assert after.keys() == before.keys()
    for key, value in before.items():
        torch.testing.assert_close(after[key].float(), value, atol=2e-3, rtol=2e-3)
    for folder in (delta, again):
        assert (folder / "tokenizer.model").is_file()
        assert json.loads((folder / "config.json").read_text())["rope_theta"] == 10000.0


def test_a_tied_table_is_changed_once(models):
    config = LlavaMptConfig(
        d_model=16, n_heads=2, n_layers=1, vocab_size=9, mm_vision_tower=str(models / "tiny-clip"),
        mm_hidden_size=32, mm_vision_select_layer=-2,
    )  # fmt: skip
    target = LlavaMptForCausalLM(config)
    base = MptForCausalLM(MptConfig(d_model=16, n_heads=2, n_layers=1, vocab_size=7))
    before = target.transformer.wte.weight.detach().clone()
    projector = target.transformer.mm_projector.weight.detach().clone()
    add_base(target, base, sign=-1)
    after = target.transformer.wte.weight
    torch.testing.assert_close(after[:7], before[:7] - base.transformer.wte.weight)
    assert torch.equal(after[7:], before[7:]) and target.lm_head.weight is after
    assert torch.equal(target.transformer.mm_projector.weight, projector)


def test_delta_of_models_that_do_not_belong_together(checkpoint, base, capsys):
    weights = load_file(base / "model.safetensors")
    config = json.loads((base / "config.json").read_text())
    config.update(num_hidden_layers=1)
    (base / "config.json").write_text(json.dumps(config))
    save_file(
        {key: value for key, value in weights.items() if "layers.1." not in key},
        base / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(CheckpointError, match=r"layers\.1\..*not in the base model"):
        make_delta.make_delta(str(base), str(checkpoint), str(base.parent / "delta"))


def test_consolidate_reads_pickles_and_writes_safetensors(checkpoint, tmp_path):
    weights = load_file(checkpoint / "model.safetensors")
    torch.save(weights, checkpoint / "pytorch_model.bin")
    (checkpoint / "model.safetensors").unlink()
    consolidate.main(["--src", str(checkpoint), "--dst", str(tmp_path / "out")])
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[key], weights[key].half()) for key in weights)
    assert (tmp_path / "out" / "tokenizer.model").is_file()


def test_a_consolidated_language_model_keeps_its_rope_theta(base, tmp_path):
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "rope_theta": 1e6}))
    consolidate.main(["--src", str(base), "--dst", str(tmp_path / "out")])
    assert json.loads((tmp_path / "out" / "config.json").read_text())["rope_theta"] == 1e6


def test_consolidate_says_what_is_wrong(tmp_path):
    with pytest.raises(SystemExit, match="error: .*no such folder"):
        consolidate.main(["--src", str(tmp_path / "none"), "--dst", str(tmp_path / "out")])


def test_upgrade_asks_first(checkpoint, monkeypatch):
    path = checkpoint / "config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "model_type": "llama"}))
    monkeypatch.setattr("builtins.input", lambda prompt: "n")
    with pytest.raises(SystemExit) as stopped:
        auto_upgrade(checkpoint)
    assert stopped.value.code == 1 and json.loads(path.read_text())["model_type"] == "llama"
    monkeypatch.setattr("builtins.input", lambda prompt: "Y")
    auto_upgrade(checkpoint)
    upgraded = json.loads(path.read_text())
    assert upgraded["model_type"] == "llava"
    assert upgraded["architectures"] == ["LlavaLlamaForCausalLM"]
    monkeypatch.setattr("builtins.input", lambda prompt: pytest.fail("asked again"))
    auto_upgrade(checkpoint)
