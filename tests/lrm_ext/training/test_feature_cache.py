"""The tower's outputs on disk: right values, computed once, found again, never stale."""

import pickle

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from llava.errors import ConfigError, DataError
from lrm_ext.training import feature_cache
from lrm_ext.training.feature_cache import FeatureCache, ImageLoader, cache_key


@pytest.fixture
def loader(tiny_tower):
    return ImageLoader(tiny_tower.image_processor, "pad")


@pytest.fixture
def paths(tmp_path):
    rng = np.random.default_rng(0)
    made = [tmp_path / f"{i}.png" for i in range(7)]
    for path in made:
        Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(path)
    return made


@pytest.fixture
def cache(tmp_path, tiny_tower, loader):
    return FeatureCache(tmp_path / "cache", tiny_tower, loader, "float32")


def test_values_are_the_towers(cache, paths, loader, tiny_tower):
    assert cache.add(paths, tiny_tower) == 7
    for path in paths:
        expected = tiny_tower(loader(path)[None])[0]
        assert torch.allclose(cache(path), expected, atol=1e-5)


def test_a_second_opening_finds_them(cache, paths, loader, tiny_tower, tmp_path):
    cache.add(paths[:4], tiny_tower)
    again = FeatureCache(tmp_path / "cache", tiny_tower, loader, "float32")
    assert len(again) == 4
    # the larger corpus of the second stage
    assert again.add(paths, tiny_tower) == 3
    assert torch.equal(again(paths[0]), cache(paths[0]))


def test_an_interrupted_run_goes_on(cache, paths, loader, tiny_tower, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_cache, "BATCH_SIZE", 2)
    monkeypatch.setattr(feature_cache, "ROWS_PER_SHARD", 2)
    calls = []

    def dies(pixels):
        calls.append(len(pixels))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return tiny_tower(pixels)

    with pytest.raises(KeyboardInterrupt):
        cache.add(paths, dies)
    # a shard without its list does not count
    (cache.folder / "orphan.npy").write_bytes(b"half")
    again = FeatureCache(tmp_path / "cache", tiny_tower, loader, "float32")
    assert len(again) == 4
    assert again.add(paths, tiny_tower) == 3


def test_a_changed_picture_is_computed_anew(cache, paths, tiny_tower):
    cache.add(paths, tiny_tower)
    before = cache(paths[0])
    Image.new("RGB", (9, 9), (255, 0, 0)).save(paths[0])
    assert cache.missing(paths) == [paths[0]]
    cache.add(paths, tiny_tower)
    assert not torch.equal(before, cache(paths[0]))
    assert cache.missing(paths) == []


def test_images_are_seen_upright(cache, loader, tiny_tower, tmp_path, monkeypatch):
    image = Image.effect_noise((40, 20), 50)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    image.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "plain.png")
    turned, plain = tmp_path / "turned.png", tmp_path / "plain.png"
    assert torch.equal(loader(turned), loader(plain))
    cache.add([turned, plain], tiny_tower)
    assert torch.equal(cache(turned), cache(plain))
    # features of images as stored, which a cache may hold from before, are not found
    monkeypatch.setattr(feature_cache, "FORMAT", 1)
    assert cache_key(tiny_tower, loader, "float32") != cache.folder.name


def test_the_key_holds_what_features_depend_on(tiny_tower, loader):
    key = cache_key(tiny_tower, loader, "float32")
    assert key == cache_key(tiny_tower, loader, "float32")
    assert key != cache_key(tiny_tower, loader, "float16")
    other = ImageLoader(tiny_tower.image_processor, "square")
    assert key != cache_key(tiny_tower, other, "float32")
    weight = next(tiny_tower.parameters())
    saved = weight.detach().clone()
    weight.data += 1e-3
    assert key != cache_key(tiny_tower, loader, "float32")
    weight.data.copy_(saved)


def test_spelling_of_a_path_does_not_matter(cache, paths, tiny_tower):
    cache.add(paths, tiny_tower)
    other = paths[0].parent / "x" / ".." / paths[0].name
    assert torch.equal(cache(other), cache(paths[0]))


def test_it_travels_to_workers(cache, paths, tiny_tower):
    cache.add(paths, tiny_tower)
    cache(paths[0])
    copy = pickle.loads(pickle.dumps(cache))
    assert torch.equal(copy(paths[3]), cache(paths[3]))


def test_overflow_is_refused(tmp_path, paths, loader, tiny_tower):
    cache = FeatureCache(tmp_path / "c", tiny_tower, loader, "float16")
    with pytest.raises(DataError, match="feature_cache_dtype float32"):
        cache.add(paths, lambda pixels: tiny_tower(pixels) * 1e6)


def test_pictures_that_cannot_be_read(cache, tmp_path, tiny_tower, loader):
    with pytest.raises(DataError, match="no such image"):
        cache.add([tmp_path / "gone.png"], tiny_tower)
    with pytest.raises(DataError, match="no such image"):
        loader(tmp_path / "gone.png")
    (tmp_path / "cut.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match=r"cut\.png: the image cannot be read"):
        cache.add([tmp_path / "cut.png"], tiny_tower)


def test_unknown_shape(tiny_tower):
    with pytest.raises(ConfigError, match="square, pad"):
        ImageLoader(tiny_tower.image_processor, "round")
