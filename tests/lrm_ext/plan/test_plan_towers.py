"""Plans with towers other than CLIP."""

import json

import pytest
import torch
import transformers as hf

from llava.errors import ConfigError
from llava.train.flops import TowerShape
from lrm_ext.plan.presets import load_shape

SIZES = {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 12,
         "num_attention_heads": 3, "image_size": 224, "patch_size": 14}  # fmt: skip
LLM = "lmsys/vicuna-7b-v1.5"


@pytest.mark.parametrize(
    ("config", "before"),
    [
        (hf.SiglipVisionConfig(**SIZES), 0),
        (hf.MetaClip2VisionConfig(**SIZES), 1),
        (hf.Dinov2Config(**SIZES), 1),
        (hf.Dinov2Config(**SIZES, use_swiglu_ffn=True), 1),
        (hf.Dinov2WithRegistersConfig(**SIZES, num_register_tokens=4), 5),
        (hf.DINOv3ViTConfig(**SIZES, num_register_tokens=4), 5),
        (hf.DINOv3ViTConfig(**SIZES, use_gated_mlp=True), 1),
    ],
)
def test_parameters_of_each_family(config, before):
    shape = TowerShape.from_config(config.to_dict(), "tower")
    kind = getattr(hf, type(config).__name__.removesuffix("Config") + "Model")
    with torch.device("meta"):
        counted = sum(parameter.numel() for parameter in kind(config).parameters())
    assert shape.num_parameters == pytest.approx(counted, rel=0.01)
    assert (shape.num_patches, shape.num_before_patches) == (256, before)


def test_known_names_need_no_download():
    siglip = load_shape(LLM, "google/siglip2-so400m-patch14-384")
    assert siglip.num_image_tokens == 729
    assert siglip.tower.num_parameters == pytest.approx(428e6, rel=0.01)
    both = load_shape(LLM, "openai/clip-vit-large-patch14-336")
    assert both.num_image_tokens == 576


def test_towers_side_by_side(tmp_path):
    for name, side in (("a", 224), ("b", 448)):
        (tmp_path / name).mkdir()
        config = hf.Dinov2Config(**SIZES).to_dict()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        processor = {"size": {"shortest_edge": 256}, "crop_size": {"height": side, "width": side}}
        (tmp_path / name / "preprocessor_config.json").write_text(json.dumps(processor))
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    # the processor decides the size of DINOv2's images
    assert (load_shape(LLM, a).num_image_tokens, load_shape(LLM, b).num_image_tokens) == (256, 1024)
    both, one = load_shape(LLM, f"{a}+facebook/dinov2-large").tower, load_shape(LLM, a).tower
    assert both.hidden_size == 192 + 1024 and both.num_pixels == 2 * one.num_pixels
    assert both.num_parameters > 300e6 + one.num_parameters
    with pytest.raises(ConfigError, match="same number of patches; found .*256.*1024"):
        load_shape(LLM, f"{a}+{b}")
