"""The loader and the cache of features with towers other than CLIP."""

import json
from types import SimpleNamespace

import pytest
import torch
from tiny_towers import photograph, write_tower

from llava.model.multimodal_encoder.builder import build_vision_tower
from lrm_ext.training.feature_cache import FeatureCache, ImageLoader, cache_key


def build(folder, **changes):
    settings = {"mm_vision_select_layer": -2, "vision_tower": str(folder), **changes}
    return build_vision_tower(SimpleNamespace(**settings))


@pytest.mark.parametrize("names", ["siglip", "dinov2", "siglip2+dinov2"])
def test_cached_features_are_the_towers(names, tmp_path):
    folders = [str(write_tower(tmp_path / name, name)) for name in names.split("+")]
    tower = build("+".join(folders))
    loader = ImageLoader(tower.image_processor, "pad")
    photograph().save(tmp_path / "image.png")
    path = tmp_path / "image.png"
    cache = FeatureCache(tmp_path / "cache", tower, loader, "float32")
    assert cache.add([path], tower) == 1
    assert torch.equal(cache(path), tower(loader(path)[None])[0].float())
    assert loader.empty.shape == loader(path).shape and loader.empty.dtype == loader(path).dtype


def test_the_key_tells_towers_apart(tmp_path):
    folder = write_tower(tmp_path / "siglip", "siglip")
    plain, maya = build(folder), build(folder, model_type="llava_cohere")
    loader = ImageLoader(plain.image_processor, "pad")
    keys = {cache_key(plain, loader, "float32"), cache_key(maya, loader, "float32")}
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    settings["image_mean"] = [0.4] * 3
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    other = build(folder)
    keys.add(cache_key(other, ImageLoader(other.image_processor, "pad"), "float32"))
    assert len(keys) == 3


@pytest.mark.parametrize("feature_cache", ["off", "on"])
def test_two_steps_on_a_mixture(feature_cache, run_lrm, tmp_path):
    towers = [str(write_tower(tmp_path / name, name)) for name in ("siglip", "dinov2")]
    cache = "off" if feature_cache == "off" else tmp_path / "features"
    out = run_lrm(vision_tower="+".join(towers), feature_cache=cache, max_steps=2)
    config = json.loads((out / "config.json").read_text())
    assert (config["mm_hidden_size"], config["mm_num_image_tokens"]) == (64, 16)
