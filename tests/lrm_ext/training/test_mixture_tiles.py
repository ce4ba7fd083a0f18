"""A mixture whose images are cut into tiles: items, positions, cached features, losses."""

import json

import pytest
import torch
from PIL import Image

from llava.constants import IMAGE_TOKEN_INDEX
from llava.data.sample import Turn
from llava.errors import DataError
from llava.model.splice import merge_spatial
from llava.model.tiles import Tiling, byte_table, read_pinpoints, to_floats
from lrm_ext.corpus.store import Corpus, CorpusRow
from lrm_ext.corpus.writer import CorpusWriter
from lrm_ext.mixture import Mixture, MixtureSpec
from lrm_ext.training.dataset import MixtureDataset, SampleLimits
from lrm_ext.training.feature_cache import FeatureCache, ImageLoader, cache_key

SIZES = [(20, 30), (90, 40), (30, 150), (61, 60), (170, 160), (28, 28)]
TILED = {
    "image_aspect_ratio": "anyres_max_4",
    "image_grid_pinpoints": "(1x1),...,(4x4)",
    "mm_patch_merge_type": "spatial_unpad",
}
TILING = Tiling(
    "anyres_max_4", tuple(read_pinpoints("(1x1),...,(4x4)", 28)), "spatial_unpad", 28, 16
)


@pytest.fixture(scope="module")
def tiled_path(tmp_path_factory):
    """Six rows with an image each, of varying shapes, two without, and two with several."""
    root = tmp_path_factory.mktemp("tiled")
    with CorpusWriter(root / "small", ("hr",), image_root="..") as writer:
        for i in range(10):
            image, asked = None, "What?"
            if i < len(SIZES):
                image, asked = f"{i}.png", "<image>\nWhat?"
                gradient = Image.linear_gradient("L").resize(SIZES[i])
                Image.merge("RGB", [gradient, gradient.rotate(90), gradient]).save(root / image)
            elif i == 8:
                image, asked = ("0.png", "1.png"), "Is <image> like <image>?"
            pairs = [(asked, "It is {}."), ("Truly?", "Yes.")]
            if i == 9:
                image, pairs = (
                    ("2.png", "3.png", "4.png"),
                    [("<image> C?", "C."), ("<image>?", "D.")],
                )
                pairs.append(("Or <image>?", "E."))
            turns = tuple(
                turn
                for question, answer in pairs
                for turn in (Turn("human", question), Turn("gpt", answer.format(i)))
            )
            row = CorpusRow(f"r{i}", image, "made up", "naming", True, turns)
            writer.append(row, {"hr": turns})
    return root / "small"


@pytest.fixture
def loader(tiny_tower):
    return ImageLoader(tiny_tower.image_processor, TILING)


@pytest.fixture
def dataset(tiled_path, tiny_tokenizer, loader):
    mixture = Mixture(MixtureSpec(), Corpus.open(tiled_path))
    return MixtureDataset(mixture, tiny_tokenizer, "lrm_v1", SampleLimits(512, 16), loader)


def test_tiles_as_bytes_are_those_of_inference(loader, tiled_path, tiny_tower):
    assert loader.gives_bytes
    for i, size in enumerate(SIZES):
        path = tiled_path.parent / f"{i}.png"
        tiles = loader(path)
        columns, rows = TILING.grid(size)
        assert tiles.dtype == torch.uint8 and len(tiles) == 1 + columns * rows
        expected = TILING.prepare(Image.open(path), tiny_tower.image_processor)
        assert torch.equal(to_floats(tiles, byte_table(tiny_tower.image_processor)), expected)


def test_lengths_are_those_of_the_spliced_rows(dataset, tiny_tower):
    seen, counts = set(), set()
    for i in range(len(dataset)):
        item = dataset[i]
        num_images = int((item["input_ids"] == IMAGE_TOKEN_INDEX).sum())
        slots = item["image"] if num_images > 1 else [item["image"]]
        assert len(slots) == len(item["image_sizes"]) == max(num_images, 1)
        num_positions = 0
        if num_images == 1:
            (size,) = item["image_sizes"]
            features = tiny_tower(item["image"])
            num_positions = len(merge_spatial(features, TILING, size, torch.zeros(32)))
        elif num_images > 1:
            assert all(slot.shape == (1, 3, 28, 28) for slot in slots)
            num_positions = 17 * num_images  # with a newline each
        else:
            assert item["image"].shape == (1, 3, 28, 28) and not item["image"].any()
        num_tiles = sum(map(len, slots)) if num_images else 0
        assert item["image_positions"] == (num_positions, num_tiles)
        assert dataset.length(i) == len(item["input_ids"]) - num_images + num_positions
        seen.add(num_positions)
        counts.add(num_images)
    assert len(seen) > 4 and counts == {0, 1, 2, 3}


def test_rounds_that_do_not_fit_take_their_images_along(dataset):
    """Of three images in three rounds those of the rounds that are left."""
    index = next(i for i in range(len(dataset)) if dataset.mixture.draw(i).row == 9)
    whole = dataset[index]
    dataset.limits = SampleLimits(dataset.length(index) - 1, 16)
    dataset._cache.clear()
    cut = dataset[index]
    assert len(whole["image"]) == 3 and len(cut["image"]) == len(cut["image_sizes"]) == 2
    assert all(map(torch.equal, cut["image"], whole["image"]))
    assert cut["image_positions"] == (34, 2) and dataset.length(index) < dataset.limits.max_length


def test_squares_of_several_images_without_tiles(tiled_path, tiny_tokenizer, tiny_tower):
    mixture = Mixture(MixtureSpec(), Corpus.open(tiled_path))
    loader = ImageLoader(tiny_tower.image_processor, "pad")
    dataset = MixtureDataset(mixture, tiny_tokenizer, "lrm_v1", SampleLimits(512, 16), loader)
    index = next(i for i in range(len(dataset)) if mixture.draw(i).row == 8)
    item = dataset[index]
    first, second = item["image"]
    assert torch.equal(first, loader(tiled_path.parent / "0.png"))
    assert torch.equal(second, loader(tiled_path.parent / "1.png"))
    assert "image_sizes" not in item
    assert dataset.length(index) == len(item["input_ids"]) + 2 * 15


def test_cached_tiles_are_the_towers(tmp_path, tiny_tower, loader, tiled_path):
    cache = FeatureCache(tmp_path / "cache", tiny_tower, loader, "float32")
    paths = [tiled_path.parent / f"{i}.png" for i in range(len(SIZES))]
    assert cache.add(paths, tiny_tower) == 6
    # one of several in its sample is another image
    assert cache.add(paths[:2], tiny_tower, is_alone=False) == 2
    again = FeatureCache(tmp_path / "cache", tiny_tower, loader, "float32")
    assert len(again) == 8 and not again.missing(paths) and not again.missing(paths[:2], False)
    for path in paths:
        torch.testing.assert_close(again(path), tiny_tower(loader(path)), atol=1e-5, rtol=1e-5)
    square = again(paths[1], is_alone=False)
    assert square.shape == (1, 16, 32) == again.empty.shape
    expected = tiny_tower(loader(paths[1], is_alone=False))
    torch.testing.assert_close(square, expected, atol=1e-5, rtol=1e-5)
    # the same tiles merged otherwise have the same features
    flat = Tiling("anyres", TILING.pinpoints, "flat", 28, 16)
    keys = [
        cache_key(tiny_tower, ImageLoader(tiny_tower.image_processor, one), "float32")
        for one in (TILING, flat, Tiling("anyres", ((28, 56),), "flat", 28, 16), "pad")
    ]
    assert keys[0] == keys[1] and len(set(keys)) == 3


def losses(folder):
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def test_cached_packed_and_padded_runs_learn_the_same(run_lrm, tiled_path, tmp_path):
    """Batches of tiles, squares of several images and text."""
    settings = {**TILED, "corpus_path": tiled_path, "length_window": 0, "max_steps": 3}
    expected = losses(run_lrm(**settings, output_dir=tmp_path / "padded"))
    assert len(expected) == 3
    for name, changes in {
        "cached": {"feature_cache": tmp_path / "features", "feature_cache_dtype": "float32"},
        "packed": {"packing": True},
        "both": {"packing": True, "feature_cache": tmp_path / "features"},
    }.items():
        found = losses(run_lrm(**settings, **changes, output_dir=tmp_path / name))
        tolerance = 1e-3 if name == "both" else 1e-5  # float16
        assert found == pytest.approx(expected, rel=tolerance), name


def test_more_images_than_positions_are_an_error_before_the_first_step(run_lrm, tmp_path):
    (tmp_path / "a.png").write_bytes(b"never opened")
    with CorpusWriter(tmp_path / "small", ("hr",), image_root="..") as writer:
        turns = (Turn("human", "<image>" * 200), Turn("gpt", "Many."))
        row = CorpusRow("many", ("a.png",) * 200, "made up", "naming", True, turns)
        writer.append(row, {"hr": turns})
    with pytest.raises(DataError, match="'many': its 200 images take 3,200 positions.*is 512"):
        run_lrm(corpus_path=tmp_path / "small")
