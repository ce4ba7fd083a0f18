from types import SimpleNamespace

import pytest
import torch

from llava.constants import IGNORE_INDEX
from llava.data.batching import DataCollatorForSupervisedDataset
from llava.errors import ConfigError, DataError

COLLATE = DataCollatorForSupervisedDataset(SimpleNamespace(pad_token_id=0, model_max_length=5))


def _instance(num_tokens, **extra):
    ids = torch.arange(1, num_tokens + 1)
    return {"input_ids": ids, "labels": torch.where(ids > 2, ids, IGNORE_INDEX), **extra}


def test_rows_are_padded_on_the_right_and_cut():
    batch = COLLATE([_instance(3), _instance(7)])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 0, 0], [1, 2, 3, 4, 5]]
    assert batch["labels"].tolist() == [[-100, -100, 3, -100, -100], [-100, -100, 3, 4, 5]]
    assert batch["attention_mask"].tolist() == [[True] * 3 + [False] * 2, [True] * 5]
    assert set(batch) == {"input_ids", "labels", "attention_mask"}


def test_a_token_that_equals_the_padding_is_attended_to():
    instance = {"input_ids": torch.tensor([1, 0, 2]), "labels": torch.tensor([1, 0, 2])}
    assert COLLATE([instance])["attention_mask"].all()


def test_pictures_are_stacked_or_listed():
    small, large = torch.zeros(3, 4, 4), torch.ones(2, 3, 4, 4)
    same = COLLATE([_instance(2, image=small), _instance(3, image=small)])
    assert same["images"].shape == (2, 3, 4, 4)
    mixed = COLLATE([_instance(2, image=small), _instance(3, image=large)])["images"]
    assert [tuple(image.shape) for image in mixed] == [(3, 4, 4), (2, 3, 4, 4)]
    features = COLLATE([_instance(2, image_features=torch.zeros(16, 8))] * 2)
    assert features["image_features"].shape == (2, 16, 8) and "images" not in features


def test_a_batch_half_with_pictures_is_refused():
    with pytest.raises(DataError, match="1 of 2 samples"):
        COLLATE([_instance(2), _instance(2, image=torch.zeros(3, 4, 4))])


def test_a_tokenizer_without_padding_is_refused():
    collate = DataCollatorForSupervisedDataset(
        SimpleNamespace(pad_token_id=None, model_max_length=5)
    )
    with pytest.raises(ConfigError, match="padding token"):
        collate([_instance(2)])
