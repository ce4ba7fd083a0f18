"""Samples that do not fit and pictures that break: cut, counted, named, never lost in silence."""

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from llava.constants import IGNORE_INDEX
from llava.data.sample import Turn
from llava.errors import DataError
from lrm_ext.corpus.store import Corpus, CorpusRow
from lrm_ext.corpus.writer import CorpusWriter
from lrm_ext.mixture import Mixture, MixtureSpec
from lrm_ext.training import dataset as dataset_module
from lrm_ext.training.dataset import MixtureDataset, SampleLimits, SampleLosses
from lrm_ext.training.feature_cache import FeatureCache, ImageLoader

NUM_ROWS = 8


@pytest.fixture
def chats(tmp_path):
    """Chats of four rounds; those in Croatian are longer."""
    (tmp_path / "images").mkdir()
    with CorpusWriter(tmp_path / "chats", ["hr"], image_root="../images") as writer:
        for i in range(NUM_ROWS):
            Image.new("RGB", (9, 9), (i, i, i)).save(tmp_path / "images" / f"{i}.png")
            row = CorpusRow(f"r{i}", f"{i}.png", None, None, True, chat("It is a box.", i))
            writer.append(row, {"hr": chat("To je jedna velika kutija. " * 2, i)})
    return Corpus.open(tmp_path / "chats")


def chat(answer, number):
    asked = [f"{'<image>' if i == 0 else ''}Q{i} {number}?" for i in range(4)]
    pairs = [(Turn("human", question), Turn("gpt", f"{answer} {number}")) for question in asked]
    return tuple(turn for pair in pairs for turn in pair)


@pytest.fixture
def make(chats, tiny_tokenizer, tiny_tower):
    def build(limit=2000, rate=0.0, instruction="mvqa", features=None):
        loader = ImageLoader(tiny_tower.image_processor, "pad")
        spec = MixtureSpec.from_dict({"instructions": {instruction: 1}})
        return MixtureDataset(
            Mixture(spec, chats),
            tiny_tokenizer,
            "lrm_v1",
            SampleLimits(limit, 16, rate),
            features or loader,
        )

    return build


def test_a_chat_is_cut_at_a_round(make):
    whole = make()
    lengths = {"en": [], "hr": []}
    for i in range(len(whole)):
        lengths[whole.encoded(i).lang].append(whole.length(i))
    assert max(lengths["en"]) < min(lengths["hr"])
    limit = max(lengths["en"])
    cut = make(limit)
    for i in range(len(cut)):
        item, uncut = cut.encoded(i), whole.encoded(i)
        num_ids = len(item.input_ids)
        assert item.length <= limit and (item.labels != IGNORE_INDEX).any()
        assert item.input_ids.tolist() == uncut.input_ids[:num_ids].tolist()
        assert item.labels.tolist() == uncut.labels[:num_ids].tolist()
        if num_ids < len(uncut.input_ids):
            assert item.lang == "hr"
            # it ends with an answer's end, which is learnt
            assert item.labels[-1] == cut.tokenizer.eos_token_id
    assert cut.sample_losses.number("cut", "hr") == len(lengths["hr"]) == NUM_ROWS
    assert cut.sample_losses.number("cut", "en") == 0
    assert f"cut            hr   {NUM_ROWS:>8} of {NUM_ROWS}" in cut.report()


def test_as_many_rounds_are_kept_as_fit(make):
    whole = make()
    kept = set()
    for limit in range(40, whole.length(0) + 5, 5):
        cut = make(limit, rate=0.99)
        try:
            item = cut.encoded(0)
        except DataError:
            continue
        answers = (item.labels == cut.tokenizer.eos_token_id).sum()
        assert item.length <= limit
        kept.add(int(answers))
    assert kept == {1, 2, 3, 4}


def test_a_first_round_that_does_not_fit_is_refused(make):
    with pytest.raises(
        DataError, match=r"'r\d\S*' \(\w\w, mvqa\) takes \d+ positions.*Raise it, or"
    ):
        make(limit=60)[0]


def test_no_answer_means_no_sample(make, monkeypatch):
    """Where only a later answer is learnt, a cut before it leaves nothing to learn."""
    dataset = make(limit=150, rate=0.9)
    make_sample = dataset.mixture.make_sample

    def learn_last(draw):
        sample = make_sample(draw)
        turns = tuple(Turn(t.role, t.text, i == 7) for i, t in enumerate(sample.turns))
        return type(sample)(**{**vars(sample), "turns": turns})

    monkeypatch.setattr(dataset.mixture, "make_sample", learn_last)
    for i in range(len(dataset)):
        try:
            assert (dataset.encoded(i).labels != IGNORE_INDEX).any()
        except DataError as error:
            assert "in a row exceed" in str(error)
    assert dataset.sample_losses.number("cut") == 0
    assert dataset.sample_losses.number("too long") > 0


def break_picture(chats, row):
    path = chats.image_paths(row)[0]
    path.write_bytes(path.read_bytes()[:40])


def test_a_broken_picture_is_named(make, chats):
    dataset = make()
    break_picture(chats, 3)
    index = next(i for i in range(len(dataset)) if dataset.encoded(i).row == 3)
    said = r"chats: sample 'r3\S*' \(\w\w\): .*3\.png: the image cannot be read.*Fix it, or tol"
    with pytest.raises(DataError, match=said):
        dataset[index]


def test_a_tolerated_broken_picture_keeps_its_place(make, chats, caplog):
    dataset = make(rate=0.2)
    before = [dataset[i] for i in range(len(dataset))]
    break_picture(chats, 3)
    for i, item in enumerate(before):
        again = dataset[i]
        assert again["id"] == item["id"]
        assert torch.equal(again["input_ids"], item["input_ids"])
        is_broken = dataset.encoded(i).row == 3
        assert bool((again["labels"] != IGNORE_INDEX).any()) == (not is_broken)
        assert again["image"].shape == item["image"].shape
        assert again["image"].dtype == item["image"].dtype
    assert dataset.sample_losses.number("broken image") == 2  # English and Croatian
    assert dataset.sample_losses.number("broken image", "hr") == 1
    assert "3.png" in caplog.text and "nothing is learned from it" in caplog.text


def test_a_path_that_leaves_the_image_folder_is_counted_alike(make, chats, monkeypatch):
    image_paths = Corpus.image_paths

    def leaves(corpus, index):
        if index == 3:
            raise DataError("image '../3.png' is outside")
        return image_paths(corpus, index)

    monkeypatch.setattr(Corpus, "image_paths", leaves)
    dataset = make(rate=0.2)
    assert len([dataset[i] for i in range(len(dataset))]) == len(dataset)
    assert dataset.sample_losses.number("broken image") == 2


def test_damage_of_any_format_is_counted(make, chats, damaged_image):
    chats.image_paths(3)[0].write_bytes(damaged_image)
    dataset = make(rate=0.2)
    assert len([dataset[i] for i in range(len(dataset))]) == len(dataset)
    assert dataset.sample_losses.number("broken image") == 2


def test_with_a_feature_cache_a_broken_picture_is_counted_alike(make, chats, tmp_path, tiny_tower):
    before = make(rate=0.2)
    plain = [before[i]["labels"] for i in range(len(before))]
    break_picture(chats, 3)
    chats.image_paths(5)[0].unlink()
    loader = ImageLoader(tiny_tower.image_processor, "pad")
    paths = [chats.image_paths(row)[0] for row in range(NUM_ROWS)]
    cache = FeatureCache(tmp_path / "cache", tiny_tower, loader, "float32")
    with pytest.raises(DataError, match=r"3\.png: the image cannot be read"):
        cache.add(paths, tiny_tower)
    assert cache.add(paths, tiny_tower, tolerates_broken=True) == NUM_ROWS - 2
    dataset = make(rate=0.3, features=cache)
    for i, labels in enumerate(plain):
        item, row = dataset[i], dataset.encoded(i).row
        assert item["image_features"].shape == cache.feature_shape
        if row in (3, 5):
            assert (item["labels"] == IGNORE_INDEX).all() and not item["image_features"].any()
        else:
            assert torch.equal(item["labels"], labels)
            assert torch.equal(item["image_features"], cache(paths[row]))
    assert dataset.sample_losses.number("read") == len(dataset)
    assert dataset.sample_losses.number("broken image", "hr") == 2
    with pytest.raises(DataError, match=r"sample 'r[35]\S*' \(\w\w\): .*Fix it, or tolerate"):
        strict = make(features=cache)
        for i in range(len(strict)):
            strict[i]
    # mended, it is read at the next opening
    Image.new("RGB", (9, 9)).save(chats.image_paths(3)[0])
    assert cache.add(paths, tiny_tower, tolerates_broken=True) == 1
    assert cache(paths[3]).shape == cache.feature_shape


def test_workers_count_into_the_same_account(make, chats):
    dataset = make(rate=0.2)
    break_picture(chats, 0)
    loader = DataLoader(dataset, batch_size=None, num_workers=2)
    assert sum(1 for _ in loader) == len(dataset)
    assert dataset.sample_losses.number("encoded") == len(dataset)
    assert dataset.sample_losses.number("read") == len(dataset)
    assert dataset.sample_losses.number("broken image") == 2
    # the process that plans steps encodes the same samples: they are not counted twice
    for i in range(len(dataset)):
        dataset.length(i)
    assert dataset.sample_losses.number("encoded") == len(dataset)


def test_too_many_broken_ones_end_the_run(monkeypatch):
    monkeypatch.setattr(dataset_module, "_MIN_SEEN", 10)
    counts = SampleLosses(("en", "hr"), max_drop_rate=0.3)
    for _ in range(100):
        counts.count("read", "en")
    for i in range(10):
        counts.count("read", "hr")
        if i < 3:  # too few were seen yet to say that a third is too much
            counts.lose("broken image", "hr", "x.png", "Fix it")
    with pytest.raises(DataError, match=r"x\.png; more than --max_drop_rate 30\.0%") as caught:
        counts.lose("broken image", "hr", "x.png", "Fix it")
    assert "broken image   hr          4 of 10" in str(caught.value)
