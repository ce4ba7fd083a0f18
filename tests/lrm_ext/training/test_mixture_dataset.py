"""The mixture as a dataset: labels per language, lengths, what is too long."""

import pickle

import pytest
import torch

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.errors import DataError
from lrm_ext.mixture import Mixture, MixtureSpec
from lrm_ext.training.dataset import MixtureDataset, SampleLimits
from lrm_ext.training.feature_cache import FeatureCache, ImageLoader

NUM_IMAGE_TOKENS = 16


@pytest.fixture
def make(corpus, tiny_tokenizer, tiny_tower):
    def build(limit=512, rate=0.0, **kwargs):
        loader = ImageLoader(tiny_tower.image_processor, "pad")
        limits = SampleLimits(limit, NUM_IMAGE_TOKENS, rate)
        settings = {"version": "lrm_v1", "images": loader, **kwargs}
        return MixtureDataset(
            Mixture(MixtureSpec(), corpus), tiny_tokenizer, limits=limits, **settings
        )

    return build


def test_items_of_all_languages(make, tiny_tokenizer):
    dataset = make()
    assert len(dataset) == 24
    answers = set()
    for i in range(len(dataset)):
        item = dataset[i]
        labels = item["labels"]
        supervised = labels[labels != IGNORE_INDEX]
        assert supervised[-1] == tiny_tokenizer.eos_token_id
        answers.add(tiny_tokenizer.decode(supervised[:-1]).strip()[:5])
        has_image = bool((item["input_ids"] == IMAGE_TOKEN_INDEX).any())
        assert has_image == bool(item["image"].any())
        assert item["image"].shape == (3, 28, 28)
        expected = len(labels) + (NUM_IMAGE_TOKENS - 1 if has_image else 0)
        assert dataset.length(i) == expected
    assert {"It is", "To je", "这是第"} & {answer[:5].rstrip("0123456789") for answer in answers}


def test_template_speaks_the_language_of_the_answer(make, tiny_tokenizer):
    dataset = make()
    for i in range(len(dataset)):
        draw = dataset.mixture.draw(i)
        sample = dataset.mixture.make_sample(draw)
        ids = dataset[i]["input_ids"]
        text = tiny_tokenizer.decode(ids[ids >= 0])
        from lrm_ext.languages import get_language

        assert get_language(sample.lang).system.split()[0] in text


def test_epochs_are_in_the_index(make):
    dataset = make()
    draws = [dataset.mixture.draw(5, epoch) for epoch in (0, 1)]
    assert draws[0] != draws[1]
    for epoch, draw in enumerate(draws):
        sample = dataset.mixture.make_sample(draw)
        assert dataset[epoch * len(dataset) + 5]["id"] == sample.id


def test_a_copy_in_a_worker_gives_the_same_items(make):
    dataset = make()
    dataset[0]
    copy = pickle.loads(pickle.dumps(dataset))
    for i in range(6):
        left, right = dataset[i], copy[i]
        assert torch.equal(left["input_ids"], right["input_ids"])
        assert torch.equal(left["image"], right["image"])


def test_the_cache_is_bounded(make):
    dataset = make(cache_size=3)
    for i in range(10):
        dataset[i]
    assert len(dataset._cache) == 3


def test_too_long_is_refused_with_row_and_limit(make):
    with pytest.raises(DataError, match=r"small: sample 'r\d+\S*' .* --model_max_length is 60"):
        make(limit=60)[0]


def test_tolerated_drops_are_counted_by_language(make):
    lengths = sorted(make().length(i) for i in range(24))
    dataset = make(limit=lengths[-4], rate=0.5)
    ids = [dataset[i]["id"] for i in range(24)]
    assert all(dataset.length(i) <= lengths[-4] for i in range(24))
    assert len(set(ids)) < 24
    num_dropped = dataset.sample_losses.number("too long")
    assert num_dropped > 0
    assert f"{num_dropped} too long" in dataset.report()


def test_a_mixture_of_which_nothing_fits_ends(make):
    with pytest.raises(DataError, match="in a row exceed"):
        make(limit=10, rate=0.9)[0]


def test_cached_features_replace_pictures(make, corpus, tiny_tower, tmp_path):
    loader = ImageLoader(tiny_tower.image_processor, "pad")
    cache = FeatureCache(tmp_path, tiny_tower, loader, "float16")
    paths = [path for i in range(len(corpus)) for path in corpus.image_paths(i)]
    cache.add(paths, tiny_tower)
    item = make(images=cache)
    kinds = {bool(item[i]["image_features"].any()) for i in range(24)}
    assert kinds == {True, False}
    assert all(item[i]["image_features"].shape == (16, 32) for i in range(24))
    assert "image" not in item[0]


def test_pictures_travel_as_bytes(make, corpus, tiny_tower):
    from types import SimpleNamespace

    from llava.images import open_image
    from llava.mm_utils import process_images

    dataset = make()
    settings = SimpleNamespace(image_aspect_ratio="pad")
    processor = tiny_tower.image_processor
    for i in range(24):
        item = dataset[i]
        assert item["image"].dtype == torch.uint8
        for path in corpus.image_paths(dataset.encoded(i).row):
            floats = process_images([open_image(path)], processor, settings)
            assert torch.equal(tiny_tower(item["image"][None]), tiny_tower(floats))
