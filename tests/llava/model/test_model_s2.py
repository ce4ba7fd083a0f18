from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from llava.errors import ConfigError
from llava.mm_utils import process_images
from llava.model import LlavaConfig, LlavaLlamaForCausalLM
from llava.model.multimodal_encoder.builder import build_vision_tower
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTowerS2


def settings(models, **changes):
    base = {
        "vision_tower": str(models / "tiny-clip"),
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_projector_type": "mlp2x_gelu",
        "mm_patch_merge_type": "flat",
        "pretrain_mm_mlp_adapter": None,
        "s2": True,
        "s2_scales": "84,28,56",
    }
    return SimpleNamespace(**{**base, **changes})


@pytest.fixture
def tower(models):
    return build_vision_tower(settings(models))


def test_sizes(tower):
    assert isinstance(tower, CLIPVisionTowerS2) and tower.is_frozen
    assert (tower.s2_scales, tower.s2_split_size, tower.s2_image_size) == ((28, 56, 84), 28, 84)
    assert (tower.hidden_size, tower.num_patches, tower.input_size) == (96, 16, 84)
    assert tower.dummy_image.shape == (3, 84, 84)
    pixels = process_images([Image.new("RGB", (50, 30))], tower.image_processor, SimpleNamespace())
    assert pixels.shape == (1, 3, 84, 84)


def test_delayed_loading_keeps_the_order(models):
    tower = build_vision_tower(settings(models), delay_load=True)
    assert not tower.is_loaded and tower.hidden_size == 96
    tower.load_model()
    assert tower.image_processor.crop_size["width"] == 84


def test_each_scale_is_the_plain_tower_on_its_squares(tower, models):
    plain = build_vision_tower(settings(models, s2=False))
    torch.manual_seed(0)
    images = torch.randn(2, 3, 84, 84)
    found = tower(images).split(32, dim=-1)
    assert [part.shape for part in found] == [(2, 16, 32)] * 3
    small = F.interpolate(images, size=(28, 28), mode="bicubic")
    torch.testing.assert_close(found[0], plain(small), atol=1e-5, rtol=1e-4)
    # the largest scale, square by square: 3 x 3 squares of 4 x 4 patches, averaged to 4 x 4
    rows = [
        torch.cat([plain(images[..., y : y + 28, x : x + 28]).unflatten(1, (4, 4))
                   for x in (0, 28, 56)], dim=2)
        for y in (0, 28, 56)
    ]  # fmt: skip
    grid = torch.cat(rows, dim=1)  # [2, 12, 12, 32]
    mean = grid.unflatten(2, (4, 3)).unflatten(1, (4, 3)).mean(dim=(2, 4)).flatten(1, 2)
    torch.testing.assert_close(found[2], mean, atol=1e-5, rtol=1e-4)


def test_dtype_of_the_images_comes_back(tower):
    assert tower(torch.zeros(1, 3, 84, 84, dtype=torch.float16)).dtype == torch.float16
    assert [f.shape for f in tower([torch.zeros(3, 84, 84)])] == [(1, 16, 96)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"s2_scales": "28,50"}, "multiple of the smallest, 28"),
        ({"s2_scales": "small"}, "expected sides in pixels"),
        ({"s2_scales": "336,672"}, "takes images of 28 pixels"),
        ({"mm_vision_select_feature": "cls_patch"}, "patch"),
    ],
)
def test_settings_that_do_not_fit(models, changes, message):
    with pytest.raises(ConfigError, match=message):
        build_vision_tower(settings(models, **changes), delay_load=True)


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = LlavaConfig(vocab_size=50, hidden_size=24, intermediate_size=32, num_hidden_layers=1,
                         num_attention_heads=2, mm_use_im_patch_token=False)  # fmt: skip
    return LlavaLlamaForCausalLM(config).eval()


@pytest.mark.parametrize("merge", ["flat", "spatial_unpad"])
def test_a_model_with_it_trains_saves_and_loads(model, models, tmp_path, merge):
    model.get_model().initialize_vision_modules(settings(models, mm_patch_merge_type=merge))
    assert model.config.s2 and model.config.mm_hidden_size == 96
    assert model.get_model().mm_projector[0].weight.shape == (24, 96)
    ids = torch.tensor([[1, -200, 3]])
    torch.manual_seed(0)
    keywords = {"images": torch.randn(1, 3, 84, 84)}
    if merge == "spatial_unpad":
        model.config.update({"image_aspect_ratio": "anyres", "image_grid_pinpoints": [[168, 84]]})
        keywords = {"images": [torch.randn(3, 3, 84, 84)], "image_sizes": [(168, 84)]}
    output = model(ids, labels=ids, **keywords)
    # anyres: the overview's 16, and 4 lines of 2 x 4 with a newline each
    assert output.logits.shape[1] == 2 + (16 if merge == "flat" else 16 + 4 * 9)
    model.save_pretrained(tmp_path / "again")
    again = LlavaLlamaForCausalLM.from_pretrained(tmp_path / "again")
    assert isinstance(again.get_vision_tower(), CLIPVisionTowerS2)
    torch.testing.assert_close(again(ids, labels=ids, **keywords).loss, output.loss)


def test_not_for_a_checkpoint_that_was_trained_without(tiny_llava, models):
    with pytest.raises(ConfigError, match="without it"):
        tiny_llava.get_model().initialize_vision_modules(settings(models))
