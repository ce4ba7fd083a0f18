"""Weights of other projects' published checkpoints fit our models, name by name, shape by shape.

Nothing is downloaded: see `peer_checkpoints`. The models are built without memory (meta device),
from a `config.json` as it is published and beside folders that its tower's name finds.
"""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from peer_checkpoints import (
    PEERS,
    TINY_TOWER,
    TOWER_PREFIX,
    TOWERS,
    shapes,
    tiny,
    write_peer,
    write_tower_config,
)
from safetensors.torch import save_file

from llava.conversation import select_conversation
from llava.errors import CheckpointError, ConfigError
from llava.model.builder import load_pretrained_model, model_class_of, read_model_config

CASES = [(name, tower) for name, peer in PEERS.items() for tower in peer.towers]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    for name in TOWERS:
        write_tower_config(root, name)
    return root


@pytest.mark.parametrize(("name", "tower"), CASES)
def test_every_weight_has_its_place(name, tower, hub, tmp_path, monkeypatch):
    monkeypatch.chdir(hub)
    peer = PEERS[name]
    (tmp_path / "config.json").write_text(json.dumps(peer.config))
    # the folder's name says nothing
    model_class = model_class_of(peer.config, str(tmp_path), "model")
    assert model_class.__name__ == peer.class_name
    config = read_model_config(model_class, str(tmp_path))
    assert config.rope_parameters["rope_type"] == "default"
    assert config.rope_parameters["rope_theta"] == peer.config.get("rope_theta", 10000)
    with torch.device("meta"):
        model = model_class(config, materialize_tower=tower == "inside")
    listed = shapes(peer.config, tower)
    weights = {key: torch.empty(shape, device="meta") for key, shape in listed.items()}
    result = model.load_state_dict(weights, strict=False, assign=True)  # also checks shapes
    tied = ["lm_head.weight"] if peer.config["tie_word_embeddings"] else []
    assert (result.missing_keys, result.unexpected_keys) == (tied, [])
    vision_tower = model.get_vision_tower()
    assert vision_tower.num_image_tokens == peer.num_tokens
    if tower == "inside":
        model.tie_weights()
        billions = sum(value.numel() for value in model.parameters()) / 1e9
        assert billions == pytest.approx(peer.billions, abs=0.01)
    assert select_conversation(config, "model")[0] == peer.template
    assert select_conversation(peer.config, "model")[0] == peer.template


PAGE = Path(__file__).parents[3] / "docs" / "compatibility.md"
HEADER = "| Checkpoint | `model_type` | Tower | Template | Positions | Not verified |"


def row(name):
    peer = PEERS[name]
    tiles = " a tile" if "anyres" in peer.config["image_aspect_ratio"] else ""
    cells = (name, f"`{peer.config['model_type']}`", peer.config["mm_vision_tower"],
             f"`{peer.template}`", f"{peer.num_tokens}{tiles}", peer.unverified)  # fmt: skip
    return f"| {' | '.join(cells)} |"


def test_the_page_has_them():
    lines = PAGE.read_text(encoding="utf-8").split(HEADER, 1)[1].splitlines()[2:]
    assert lines[: lines.index("")] == [row(name) for name in PEERS]


BASES = {
    "LlavaQwenForCausalLM": (hf.Qwen2Config, hf.Qwen2ForCausalLM),
    "LlavaLlamaForCausalLM": (hf.LlamaConfig, hf.LlamaForCausalLM),
    "PaloForCausalLM": (hf.LlamaConfig, hf.LlamaForCausalLM),
    "LlavaCohereForCausalLM": (hf.CohereConfig, hf.CohereForCausalLM),
}
LOADED = ("Pangea-7B", "PALO-7B", "Maya-8B", "LLaVA-1.6-34B", "Aquila-VL-2B",
          "LLaVA-NeXT-Interleave-7B")  # fmt: skip


def load(folder, **kwargs):
    return load_pretrained_model(str(folder), None, "model", device="cpu", **kwargs)


def expected_logits(name, weights, before, pixels, after):
    """Logits of transformers' own classes around the features that this project's code takes."""
    config = tiny(name)
    kind = TOWERS[config["mm_vision_tower"]][0]
    config_class, tower_class = {
        "clip": (hf.CLIPVisionConfig, hf.CLIPVisionModel),
        "siglip": (hf.SiglipVisionConfig, hf.SiglipVisionModel),
    }[kind]
    tower = tower_class(config_class(**TINY_TOWER)).eval()
    # where the checkpoint has no last layer, what that would give is not looked at
    inside = {k.removeprefix(TOWER_PREFIX): v for k, v in weights.items() if TOWER_PREFIX in k}
    assert not tower.load_state_dict(inside, strict=False).unexpected_keys
    states = tower(pixel_values=pixels, output_hidden_states=True).hidden_states
    features = states[-2][:, 1:] if name == "Maya-8B" or kind == "clip" else states[-2]
    for layer in ("0", "2"):
        key = f"model.mm_projector.{layer}."
        features = features if layer == "0" else F.gelu(features)
        features = F.linear(features, weights[key + "weight"], weights[key + "bias"])
    base_config, base_class = BASES[config["architectures"][0]]
    text = {key: value for key, value in config.items() if key != "model_type"}
    base = base_class(base_config.from_dict(text)).eval()
    result = base.load_state_dict(weights, strict=False)
    assert result.missing_keys in ([], ["lm_head.weight"])
    embed = base.get_input_embeddings()
    parts = [embed(torch.tensor([before])), features, embed(torch.tensor([after]))]
    return base(inputs_embeds=torch.cat(parts, dim=1)).logits


@pytest.mark.parametrize("name", LOADED)
@torch.inference_mode()
def test_a_tiny_one_answers(name, tmp_path, monkeypatch, caplog):
    """Its files have the published keys; its logits are those of transformers' own parts."""
    monkeypatch.chdir(tmp_path)
    weights = write_peer(tmp_path, tmp_path / "checkpoint", name)
    tokenizer, model, processor, context_len = load(tmp_path / "checkpoint")
    assert "weights not used" not in caplog.text
    assert type(model).__name__ == PEERS[name].class_name
    assert context_len == model.config.max_position_embeddings or context_len == 2048
    # rows beyond the tokenizer are padding
    assert model.get_input_embeddings().num_embeddings == len(tokenizer)
    assert processor.num_image_tokens == (15 if name == "Maya-8B" else 16)
    torch.manual_seed(0)
    pixels, before, after = torch.randn(1, 3, 32, 32), [5, 6, 7], [8, 9]
    ids = torch.tensor([[*before, -200, *after]])
    # one image without tiles, as Pangea's published example gives it
    logits = model(ids, images=pixels).logits
    expected = expected_logits(name, weights, before, pixels, after)[..., : len(tokenizer)]
    torch.testing.assert_close(logits, expected, atol=2e-4, rtol=2e-4)
    answer = model.generate(ids, images=pixels, max_new_tokens=4, do_sample=False)
    assert answer[0, 0] == logits[0, -1].argmax()


def test_chatml_is_single_tokens_of_a_slow_tokenizer(tmp_path, monkeypatch):
    """LLaVA-1.6-34B's folder has `tokenizer.model`, and no BOS is added."""
    monkeypatch.chdir(tmp_path)
    write_peer(tmp_path, tmp_path / "checkpoint", "LLaVA-1.6-34B")
    tokenizer, model, *_ = load(tmp_path / "checkpoint")
    name, conversation = select_conversation(model.config, "checkpoint")
    conversation.append_message(conversation.roles[0], "Hi")
    ids = tokenizer(conversation.get_prompt()).input_ids
    assert name == "chatml_direct" and tokenizer.eos_token_id == 2001
    assert [index for index in ids if index >= 2000] == [2000, 2001, 2000, 2001]
    assert tokenizer.bos_token_id not in ids


def test_a_head_that_is_written_though_it_is_tied(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    weights = write_peer(tmp_path, tmp_path / "checkpoint", "Maya-8B")
    ids = torch.tensor([[5, 6, 7]])
    logits = load(tmp_path / "checkpoint")[1](ids).logits
    head = {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}
    write_peer(tmp_path, tmp_path / "with-head", "Maya-8B", head)
    assert torch.equal(load(tmp_path / "with-head")[1](ids).logits, logits)
    assert "weights not used" not in caplog.text


@pytest.mark.parametrize("name", ["Pangea-7B", "LLaVA-1.6-34B"])  # by either key of config.json
def test_a_tuned_tower_that_is_not_in_the_files(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = write_peer(tmp_path, tmp_path / "checkpoint", name)
    kept = {key: value for key, value in weights.items() if TOWER_PREFIX not in key}
    save_file(kept, tmp_path / "checkpoint" / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="vision tower's weights are missing"):
        load(tmp_path / "checkpoint")


def test_weights_that_are_for_videos_are_named_and_left_out(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    extra = {"model.faster_token": torch.zeros(32), "model.image_newline": torch.zeros(32)}
    write_peer(tmp_path, tmp_path / "checkpoint", "LLaVA-NeXT-Interleave-7B", extra)
    load(tmp_path / "checkpoint")
    assert "2 weights not used, e.g. ['model.faster_token', 'model.image_newline']" in caplog.text


def test_a_tokenizer_may_be_the_bases(tmp_path, monkeypatch):
    """Maya is published without one."""
    monkeypatch.chdir(tmp_path)
    write_peer(tmp_path, tmp_path / "checkpoint", "Maya-8B")
    own = load(tmp_path / "checkpoint")[0]
    base = tmp_path / "base"
    base.mkdir()
    for file in (tmp_path / "checkpoint").glob("tokenizer*"):
        file.rename(base / file.name)
    with pytest.raises(CheckpointError, match="tokenizer"):
        load(tmp_path / "checkpoint")
    given = load_pretrained_model(str(tmp_path / "checkpoint"), str(base), "x", device="cpu")[0]
    assert given("Is there a cat?").input_ids == own("Is there a cat?").input_ids


def change(folder, **changes):
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    kept = {key: value for key, value in config.items() if value != "gone"}
    path.write_text(json.dumps(kept))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mm_projector_type": "ldpnetv2"}, "ldpnetv2.*MobilePALO.*--base-url"),
        ({"mm_vision_tower": "mobileclip_l_1024"}, "FastVLM.*fast_vlm"),
        ({"model_type": "parrot_qwen2"}, "mixture of experts.*--base-url"),
        ({"mm_resampler_type": "spatial_pool"}, "resampler.*video"),
        ({"model_type": "centurio"}, "multiscale-pool.*--base-url"),
        ({"model_type": "tinyllava"}, "lrm import tinyllava"),
    ],
)
def test_what_is_not_here_is_said_before_weights_are_read(changes, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_peer(tmp_path, tmp_path / "checkpoint", "Pangea-7B")
    (tmp_path / "checkpoint" / "model.safetensors").write_bytes(b"")  # cannot be read
    change(tmp_path / "checkpoint", **changes)
    with pytest.raises(ConfigError, match=message):
        load(tmp_path / "checkpoint")


@pytest.mark.parametrize(
    ("tower", "error", "message"),
    [
        ("gone", CheckpointError, "no vision tower: set mm_vision_tower"),
        (None, CheckpointError, "no vision tower: set mm_vision_tower"),
        ("/data/clip", ConfigError, "Unknown vision tower: '/data/clip'.*Change mm_vision_tower"),
        ("a/clip", CheckpointError, "'a/clip': cannot read its.*put the tower's folder beside"),
    ],
)
def test_a_tower_that_is_neither_here_nor_named(tower, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    write_peer(tmp_path, tmp_path / "checkpoint", "Pangea-7B")
    change(tmp_path / "checkpoint", mm_vision_tower=tower)
    with pytest.raises(error, match="(?s)" + message):
        load(tmp_path / "checkpoint")
