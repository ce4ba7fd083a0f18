"""A checkpoint of TinyLLaVA's three parts becomes one of LLaVA's, with the same logits."""

import json

import pytest
import torch
import transformers as hf
from peer_checkpoints import TINY_TOWER, WORDS, byte_tokenizer
from safetensors.torch import save_file
from typer.testing import CliRunner

from llava.errors import CheckpointError, ConfigError
from llava.model.builder import load_pretrained_model
from lrm_ext.cli import app
from lrm_ext.export.tinyllava import import_tinyllava

PHI = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
       "num_attention_heads": 4, "max_position_embeddings": 512}  # fmt: skip
TOWERS = {
    "siglip": (hf.SiglipVisionConfig, hf.SiglipVisionModel, 15),
    "clip": (hf.CLIPVisionConfig, hf.CLIPVisionModel, 16),
}


def write(folder, kind):
    """Writes a tiny one; returns its three parts."""
    config_class, tower_class, _ = TOWERS[kind]
    torch.manual_seed(0)
    tower = tower_class(config_class(**TINY_TOWER)).eval()
    text = hf.PhiForCausalLM(hf.PhiConfig(**PHI)).eval()
    connector = torch.nn.Sequential(
        torch.nn.Linear(32, 32), torch.nn.GELU(), torch.nn.Linear(32, 32)
    )
    weights = {f"language_model.{key}": value for key, value in text.state_dict().items()}
    weights |= {
        f"vision_tower._vision_tower.vision_model.{key}": value
        for key, value in tower.state_dict().items()
    }
    weights |= {f"connector._connector.{k}": v for k, v in connector.state_dict().items()}
    folder.mkdir()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = {
        "architectures": ["TinyLlavaForConditionalGeneration"],
        "auto_map": {"AutoConfig": "configuration.TinyLlavaConfig"},
        "model_type": "tinyllava",
        "connector_type": "mlp2x_gelu",
        "llm_model_name_or_path": "microsoft/phi-2",
        "vision_model_name_or_path": "google/siglip-so400m-patch14-384",
        "vision_model_name_or_path2": "",
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "patch",
        "image_aspect_ratio": "square",
        "image_token_index": -200,
        "tokenizer_model_max_length": 300,
        "text_config": {"model_type": "phi", **PHI},
        "vision_config": {**tower.config.to_diff_dict(), "hidden_size": 32, "image_size": 32,
                          "model_type": f"{kind}_vision_model", "model_name_or_path2": ""},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    words = byte_tokenizer(("<|endoftext|>",))
    words.add_special_tokens({"pad_token": "<|endoftext|>", "eos_token": "<|endoftext|>"})
    words.save_pretrained(folder)
    return text, tower, connector


@pytest.mark.parametrize("kind", TOWERS)
@torch.inference_mode()
def test_the_logits_are_those_of_its_parts(kind, tmp_path):
    text, tower, connector = write(tmp_path / "tiny", kind)
    arguments = ["import", "tinyllava", "--model", tmp_path / "tiny", "--out", tmp_path / "ours"]
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    assert result.exit_code == 0, result.output
    tokenizer, model, processor, _ = load_pretrained_model(
        str(tmp_path / "ours"), None, "ours", device="cpu"
    )
    assert type(model).__name__ == "LlavaPhiForCausalLM"
    assert processor.num_image_tokens == TOWERS[kind][2]
    assert tokenizer.eos_token == "<|endoftext|>" and tokenizer(WORDS[0]).input_ids
    pixels = torch.randn(1, 3, 32, 32)
    logits = model(torch.tensor([[5, 6, -200, 7]]), images=pixels).logits
    # of both towers the first position is dropped: a class token, or a patch
    states = tower(pixel_values=pixels, output_hidden_states=True).hidden_states
    embed = text.get_input_embeddings()
    parts = (
        embed(torch.tensor([[5, 6]])),
        connector(states[-2][:, 1:]),
        embed(torch.tensor([[7]])),
    )
    expected = text(inputs_embeds=torch.cat(parts, dim=1)).logits[..., : len(tokenizer)]
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    # a training goes on with it, and its checkpoint still drops the patch
    model.save_pretrained(tmp_path / "again")
    tokenizer.save_pretrained(tmp_path / "again")
    (tmp_path / "ours" / "vision_tower").rename(tmp_path / "vision_tower")
    again = load_pretrained_model(str(tmp_path / "again"), None, "again", device="cpu")[1]
    assert torch.equal(again(torch.tensor([[5, 6, -200, 7]]), images=pixels).logits, logits)


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("", {"connector_type": "qformer"}, "connector_type 'qformer' is not here"),
        ("text_config", {"model_type": "openelm"}, "'openelm' is not known"),
        ("text_config", {"model_type": "stablelm"}, "'stablelm' is not known.*--conv-mode"),
        ("vision_config", {"model_type": "dinov2"}, "its tower is 'dinov2'"),
        ("vision_config", {"model_name_or_path2": "a/dino"}, "with a/dino; only one of"),
    ],
)
def test_parts_that_are_not_here(part, changes, message, tmp_path):
    write(tmp_path / "tiny", "siglip")
    path = tmp_path / "tiny" / "config.json"
    config = json.loads(path.read_text())
    (config[part] if part else config).update(changes)
    path.write_text(json.dumps(config))
    (tmp_path / "tiny" / "model.safetensors").write_bytes(b"")  # is not read
    with pytest.raises(ConfigError, match=message):
        import_tinyllava(tmp_path / "tiny", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_files_that_do_not_fit(tmp_path):
    write(tmp_path / "tiny", "siglip")
    weights = tmp_path / "tiny" / "model.safetensors"
    config = tmp_path / "tiny" / "config.json"
    text = config.read_text()
    config.write_text(text.replace('"num_hidden_layers": 2', '"num_hidden_layers": 4'))
    with pytest.raises(CheckpointError, match=r"weights are missing, e.g. \['model.layers.2"):
        import_tinyllava(tmp_path / "tiny", tmp_path / "ours")
    save_file({"language_model.a": torch.zeros(1), "other.b": torch.zeros(1)}, weights)
    with pytest.raises(CheckpointError, match="other.b is no weight of language model"):
        import_tinyllava(tmp_path / "tiny", tmp_path / "ours")
    weights.unlink()
    with pytest.raises(CheckpointError, match="LoRA run of TinyLLaVA"):
        import_tinyllava(tmp_path / "tiny", tmp_path / "ours")
    config.write_text(text.replace('"tinyllava"', '"llava"'))
    with pytest.raises(CheckpointError, match="model_type is 'llava'; expected .*TinyLLaVA"):
        import_tinyllava(tmp_path / "tiny", tmp_path / "ours")
    (tmp_path / "config.json").write_text('{"model_type": "tinyllava", "text_config": {}}')
    with pytest.raises(CheckpointError, match=r"config.json has no vision_config$"):
        import_tinyllava(tmp_path, tmp_path / "new")
