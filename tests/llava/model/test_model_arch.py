import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import CLIPConfig, CLIPModel

from llava.errors import CheckpointError, ConfigError
from llava.model import LlavaConfig, LlavaLlamaForCausalLM
from llava.model.llava_arch import unpad_image
from llava.model.multimodal_encoder.builder import build_vision_tower
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.model.multimodal_projector.builder import (
    IdentityMap,
    SimpleResBlock,
    build_vision_projector,
)
from llava.model.splice import merge_single, merge_spatial
from llava.model.tiles import Tiling
from llava.model.tokenizer import load_tokenizer

TINY = {
    "vocab_size": 2000,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "pad_token_id": 0,
}


def model_args(models, **changes):
    defaults = {
        "vision_tower": str(models / "tiny-clip"),
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_projector_type": "mlp2x_gelu",
        "mm_patch_merge_type": "flat",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "tune_mm_mlp_adapter": False,
        "pretrain_mm_mlp_adapter": None,
    }
    return SimpleNamespace(**{**defaults, **changes})


@pytest.fixture
def text_model():
    torch.manual_seed(0)
    return LlavaLlamaForCausalLM(LlavaConfig(**TINY))


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("linear", {"weight", "bias"}),
        ("mlp2x_gelu", {"0.weight", "0.bias", "2.weight", "2.bias"}),
        ("mlp1x_gelu", {"0.weight", "0.bias"}),
        ("mlp3x_gelu", {f"{i}.{name}" for i in (0, 2, 4) for name in ("weight", "bias")}),
        ("identity", set()),
    ],
)
def test_projector_keys(kind, keys):
    sizes = {"mm_hidden_size": 6, "hidden_size": 6 if kind == "identity" else 4}
    config = SimpleNamespace(mm_projector_type=kind, **sizes)
    projector = build_vision_projector(config)
    assert set(projector.state_dict()) == keys
    assert projector(torch.zeros(2, 3, 6)).shape == (2, 3, config.hidden_size)


def test_projector_defaults_and_errors():
    config = SimpleNamespace(mm_hidden_size=6, hidden_size=4)
    assert isinstance(build_vision_projector(config), nn.Linear)
    assert IdentityMap().config == {"mm_projector_type": "identity"}
    assert SimpleResBlock(4)(torch.zeros(2, 4)).shape == (2, 4)
    for kind in ("qformer", "mlp2x_relu", "mlp0x_gelu"):
        with pytest.raises(ConfigError, match="Unknown projector type.*mlpNx_gelu"):
            build_vision_projector(SimpleNamespace(mm_projector_type=kind, **vars(config)))
    with pytest.raises(ConfigError, match="identity needs equal sizes.*6.*4"):
        build_vision_projector(SimpleNamespace(mm_projector_type="identity", **vars(config)))


def test_tower_attributes(models):
    tower = build_vision_tower(model_args(models), delay_load=True)
    assert not tower.is_loaded and tower.hidden_size == 32
    assert (tower.num_patches_per_side, tower.num_patches) == (4, 16)
    tower.load_model()
    tower.load_model()
    assert tower.is_loaded and tower.is_frozen and tower.image_processor.crop_size["width"] == 28
    assert tower.dummy_feature.shape == (1, 32)
    image = torch.zeros(3, 28, 28, dtype=torch.float16)
    assert tower(image[None]).dtype == torch.float16
    assert [features.shape for features in tower([image, image])] == [(1, 16, 32)] * 2
    tower.select_feature = "cls_patch"
    assert tower(image[None]).shape == (1, 17, 32)


@pytest.mark.parametrize("layer", [-4, -2, -1, 0, 1, 3])
def test_tower_layers_are_those_of_clip(models, pixels, layer):
    tower = build_vision_tower(model_args(models, mm_vision_select_layer=layer))
    outputs = tower.vision_tower(pixels, output_hidden_states=True)
    assert len(outputs.hidden_states) == 4
    torch.testing.assert_close(tower(pixels), outputs.hidden_states[layer][:, 1:])
    torch.testing.assert_close(tower.feature_select(outputs), tower(pixels))


def test_tower_layer_that_is_not_there(models, pixels):
    for layer in (-5, 4):
        with pytest.raises(ConfigError, match="from -4 to 3"):
            build_vision_tower(model_args(models, mm_vision_select_layer=layer))(pixels)


def test_tower_errors(models, tmp_path):
    with pytest.raises(ConfigError, match="select feature.*patch, cls_patch"):
        build_vision_tower(model_args(models, mm_vision_select_feature="cls"))
    with pytest.raises(ConfigError, match="no vision tower is named"):
        build_vision_tower(model_args(models, vision_tower=None))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="cannot read its"):
        CLIPVisionTower(str(tmp_path), args=model_args(models))


def test_towers_with_gaps(models, tmp_path):
    clip = shutil.copytree(models / "tiny-clip", tmp_path / "tower")
    config = json.loads((clip / "config.json").read_text())
    (clip / "config.json").write_text(json.dumps({**config, "model_type": "siglip_vision_model"}))
    # no class token, whose position the weights have: not another model's weights at random
    with pytest.raises(CheckpointError, match="tower'.*position_embedding.*another model's"):
        build_vision_tower(model_args(models, vision_tower=str(clip)))
    (clip / "config.json").write_text(json.dumps({**config, "intermediate_size": 16}))
    with pytest.raises(CheckpointError, match="tower'.*another shape.*mlp"):
        build_vision_tower(model_args(models, vision_tower=str(clip)))
    (clip / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))
    with pytest.raises(CheckpointError, match=r"16 weights are missing.*layers\.3\."):
        build_vision_tower(model_args(models, vision_tower=str(clip)))


def test_a_whole_clip_model_gives_its_vision_part(models, pixels, tmp_path):
    plain = build_vision_tower(model_args(models))
    config = CLIPConfig(
        vision_config=plain.config.to_dict(),
        text_config={"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
                     "num_attention_heads": 2, "vocab_size": 9},
    )  # fmt: skip
    whole = CLIPModel(config)
    whole.vision_model.load_state_dict(plain.vision_tower.state_dict())
    whole.save_pretrained(tmp_path)
    plain.image_processor.save_pretrained(tmp_path)
    found = build_vision_tower(model_args(models, vision_tower=str(tmp_path)))
    torch.testing.assert_close(found(pixels), plain(pixels))


def test_vision_modules_are_added_and_recorded(text_model, models, pixels):
    assert text_model.get_vision_tower() is None
    args = model_args(models, pretrain_mm_mlp_adapter=str(models / "tiny-llava-mm_projector.bin"))
    text_model.get_model().initialize_vision_modules(args)
    config = text_model.config
    assert config.mm_vision_tower == str(models / "tiny-clip")
    assert (config.mm_hidden_size, config.mm_projector_type) == (32, "mlp2x_gelu")
    assert config.use_mm_proj and config.mm_vision_select_layer == -2
    saved = torch.load(models / "tiny-llava-mm_projector.bin", weights_only=True)
    weight = text_model.get_model().mm_projector[0].weight
    assert torch.equal(weight, saved["model.mm_projector.0.weight"])
    assert text_model.encode_images(pixels).shape == (3, 16, 48)


def test_vision_modules_of_a_checkpoint_are_kept(tiny_llava, models):
    model = tiny_llava.get_model()
    tower, projector = model.get_vision_tower(), model.mm_projector
    projector.requires_grad_(False)
    model.initialize_vision_modules(model_args(models, mm_vision_select_layer=-1))
    assert model.get_vision_tower() is tower and model.mm_projector is projector
    assert projector[0].weight.requires_grad and tower.select_layer == -1


def test_fsdp_hides_the_tower(text_model, models):
    text_model.get_model().initialize_vision_modules(model_args(models), fsdp=["full_shard"])
    assert not any("vision_tower" in name for name, _ in text_model.named_parameters())
    assert text_model.get_vision_tower().is_loaded


def test_projector_file_that_does_not_fit(text_model, models, tmp_path):
    args = model_args(
        models,
        mm_projector_type="linear",
        pretrain_mm_mlp_adapter=str(models / "tiny-llava-mm_projector.bin"),
    )
    with pytest.raises(CheckpointError, match="does not fit"):
        text_model.get_model().initialize_vision_modules(args)
    cut = tmp_path / "mm_projector.bin"
    cut.write_bytes((models / "tiny-llava-mm_projector.bin").read_bytes()[:500])
    for path, text in ((cut, "cut short"), (tmp_path / "none.bin", "no such file")):
        args.pretrain_mm_mlp_adapter = str(path)
        with pytest.raises(CheckpointError, match=text):
            text_model.get_model().initialize_vision_modules(args)


def test_image_newline_for_unpad(text_model, models):
    args = model_args(models, mm_patch_merge_type="spatial_unpad")
    text_model.get_model().initialize_vision_modules(args)
    newline = text_model.get_model().image_newline
    assert newline.shape == (48,) and 0 < newline.std() < 0.5


def test_image_tokens_get_the_mean_of_the_old_rows(tiny_llava, models):
    tokenizer = load_tokenizer(models / "tiny-llava")
    mean = tiny_llava.get_input_embeddings().weight.mean(dim=0)
    args = model_args(models, mm_use_im_start_end=True, tune_mm_mlp_adapter=True)
    tiny_llava.initialize_vision_tokenizer(args, tokenizer)
    assert tokenizer.convert_ids_to_tokens([2000, 2001]) == ["<im_start>", "<im_end>"]
    for table in (tiny_llava.get_input_embeddings(), tiny_llava.get_output_embeddings()):
        assert table.weight.shape == (2002, 48)
    torch.testing.assert_close(tiny_llava.get_input_embeddings().weight[2001], mean)
    assert tiny_llava.get_input_embeddings().weight.requires_grad
    assert not tiny_llava.get_output_embeddings().weight.requires_grad


def test_image_tokens_from_a_projector_file(tiny_llava, models, tmp_path):
    rows = torch.arange(96.0).reshape(2, 48)
    path = tmp_path / "mm_projector.bin"
    args = model_args(models, mm_use_im_start_end=True, pretrain_mm_mlp_adapter=str(path))
    torch.save({"model.embed_tokens.weight": rows}, path)
    tiny_llava.initialize_vision_tokenizer(args, load_tokenizer(models / "tiny-llava"))
    assert torch.equal(tiny_llava.get_input_embeddings().weight[-2:], rows)


def test_image_tokens_of_another_shape(tiny_llava, models, tmp_path):
    path = tmp_path / "mm_projector.bin"
    args = model_args(models, mm_use_im_start_end=True, pretrain_mm_mlp_adapter=str(path))
    torch.save({"model.embed_tokens.weight": torch.zeros(3, 48)}, path)
    with pytest.raises(CheckpointError, match=r"\(3, 48\)"):
        tiny_llava.initialize_vision_tokenizer(args, load_tokenizer(models / "tiny-llava"))


def test_no_image_tokens_by_default(tiny_llava, models):
    tokenizer = load_tokenizer(models / "tiny-llava")
    tiny_llava.initialize_vision_tokenizer(model_args(models), tokenizer)
    assert len(tokenizer) == tiny_llava.get_input_embeddings().weight.shape[0] == 2000


def test_unpad_equals_the_golden_shapes(models):
    cases = json.loads((models.parent / "anyres.json").read_text())
    assert cases
    for case in cases:
        found = unpad_image(torch.zeros(3, 48, 48), case["image_size"])
        assert list(found.shape) == case["unpad_shape"], case


def test_tiles_are_laid_out_row_by_row():
    # 2 columns, 1 row of 2 x 2 tiles; a feature's value is its number
    features = torch.arange(12.0).reshape(3, 4, 1)
    tiling = Tiling("anyres", ((4, 2),), "spatial_unpad", side_px=2, num_tokens=4)
    picture = merge_spatial(features, tiling, (4, 2), None)
    assert picture.flatten().tolist() == [0, 1, 2, 3, 4, 5, 8, 9, 6, 7, 10, 11]
    lines = merge_spatial(features, tiling, (4, 2), torch.tensor([-1.0])).flatten().tolist()
    assert lines == [0, 1, 2, 3, 4, 5, 8, 9, -1, 6, 7, 10, 11, -1]
    assert merge_single(features[:1], torch.tensor([-1.0])).flatten().tolist() == [0, 1, 2, 3, -1]
