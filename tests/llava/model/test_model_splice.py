import pytest
import torch

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.errors import DataError
from llava.model.splice import pad_rows, splice_rows, strip_padding, truncate_rows

IMG = IMAGE_TOKEN_INDEX


def embed(ids):
    """Token t becomes the embedding (t, t)."""
    return ids.float()[:, None].expand(-1, 2)


def image(value, length):
    return torch.full((length, 2), float(value), requires_grad=True)


def long(*values):
    return torch.tensor(values)


def run(rows, features):
    ids = [long(*row) for row in rows]
    embeds, labels = splice_rows(ids, [row.clone() for row in ids], features, embed)
    return [row[:, 0].tolist() for row in embeds], [row.tolist() for row in labels]


def test_padding_goes_wherever_it_is():
    ids = torch.tensor([[0, 0, 5, 6], [7, 8, 0, 0]])
    mask = ids != 0
    rows, labels = strip_padding(ids, mask, ids * 10)
    assert [row.tolist() for row in rows] == [[5, 6], [7, 8]]
    assert [row.tolist() for row in labels] == [[50, 60], [70, 80]]


def test_features_replace_sentinels_in_row_major_order():
    rows = [[1, IMG, 2], [IMG, 3, IMG], [4, 5]]
    features = [image(-1, 2), image(-2, 1), image(-3, 2), image(-4, 3)]
    embeds, labels = run(rows, features)
    assert embeds == [[1, -1, -1, 2], [-2, 3, -3, -3], [4, 5]]
    ignored = IGNORE_INDEX
    assert labels == [[1, ignored, ignored, 2], [ignored, 3, ignored, ignored], [4, 5]]


def test_neighbouring_sentinels_and_a_row_of_sentinels_only():
    assert run([[1, IMG, IMG, 2]], [image(-1, 1), image(-2, 2)])[0] == [[1, -1, -2, -2, 2]]
    assert run([[IMG]], [image(-1, 2)])[0] == [[-1, -1]]


def test_row_without_a_sentinel_keeps_its_dummy_in_the_graph():
    dummy = image(-1, 3)
    embeds, _ = splice_rows([long(1, 2)], [long(1, 2)], [dummy], embed)
    embeds[0].sum().backward()
    assert dummy.grad is not None and not dummy.grad.any()


def test_count_mismatch_names_both_numbers():
    with pytest.raises(DataError, match=r"1 image\(s\) for 2 <image>.*expected 3"):
        run([[1, IMG, IMG], [2]], [image(-1, 1)])


def test_truncation_counts_what_it_cuts():
    rows = [torch.zeros(5, 2), torch.zeros(2, 2)]
    embeds, labels, num_cut = truncate_rows(rows, [torch.zeros(5), torch.zeros(2)], 3)
    assert [len(row) for row in embeds] == [len(row) for row in labels] == [3, 2]
    assert num_cut == 2
    assert truncate_rows(rows, rows, None)[2] == 0


@pytest.mark.parametrize(
    ("side", "mask", "positions"),
    [
        ("right", [[1, 1, 1], [1, 0, 0]], [[0, 1, 2], [0, 0, 0]]),
        ("left", [[1, 1, 1], [0, 0, 1]], [[0, 1, 2], [0, 0, 0]]),
    ],
)
def test_padding_on_either_side(side, mask, positions):
    embeds = [embed(long(1, 2, 3)), embed(long(4))]
    batch = pad_rows(embeds, [long(1, 2, 3), long(4)], side)
    assert batch.attention_mask.int().tolist() == mask
    assert batch.position_ids.tolist() == positions
    assert batch.embeds[1, :, 0].tolist() == ([4, 0, 0] if side == "right" else [0, 0, 4])
    expected = [4, IGNORE_INDEX, IGNORE_INDEX]
    assert batch.labels[1].tolist() == (expected if side == "right" else expected[::-1])
    assert batch.labels.dtype == torch.long
