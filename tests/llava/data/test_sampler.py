import pytest
import torch

from llava.data.batching import (
    LengthGroupedSampler,
    get_length_grouped_indices,
    get_modality_length_grouped_indices,
    split_to_even_chunks,
)


def test_orders_equal_llava(load_golden):
    cases = load_golden("group_by_modality_length")
    for case in cases:
        lengths, sizes = case["lengths"], (case["batch_size"], case["world_size"])
        seed = case["seed"]
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        found = get_modality_length_grouped_indices(lengths, *sizes, generator=generator)
        assert found == case["modality_indices_generator"]
        torch.manual_seed(seed)
        found = list(LengthGroupedSampler(*sizes, lengths=lengths, group_by_modality=True))
        assert found == case["modality_indices_global_seed"]
        torch.manual_seed(seed)
        found = get_length_grouped_indices([abs(n) for n in lengths], *sizes)
        assert found == case["length_indices_global_seed"]
    assert len(cases) == 9


def test_one_modality_is_grouped_by_length_on_the_given_generator():
    def order(lengths):
        generator = torch.Generator().manual_seed(3)
        return get_modality_length_grouped_indices(lengths, 2, 2, generator)

    lengths = list(range(1, 12))
    generator = torch.Generator().manual_seed(3)
    assert order(lengths) == get_length_grouped_indices(lengths, 2, 2, generator)
    assert order([-n for n in lengths]) == order(lengths)


def test_every_megabatch_but_the_last_has_one_modality_and_nothing_is_lost():
    lengths = [5, -3] * 20 + [7] * 5
    torch.manual_seed(0)
    order = get_modality_length_grouped_indices(lengths, 4, 2)
    assert sorted(order) == list(range(45))
    signs = [[lengths[i] > 0 for i in order[k : k + 8]] for k in range(0, 45, 8)]
    leftover = 25 % 8 + 20 % 8
    assert all(len(set(group)) == 1 for group in signs[: (45 - leftover) // 8])


def test_megabatches_are_dealt_evenly():
    assert split_to_even_chunks([0, 1, 2, 3], [5, 4, 3, 2], 2) == [[0, 3], [1, 2]]
    assert split_to_even_chunks([0, 1, 2], [5, 4, 3], 2) == [[0, 2], [1]]


def test_lengths_are_needed_and_must_not_be_zero():
    with pytest.raises(ValueError, match="Lengths must be provided"):
        LengthGroupedSampler(2, 1)
    with pytest.raises(AssertionError):
        get_modality_length_grouped_indices([1, 0], 2, 1)
    assert len(LengthGroupedSampler(2, 1, lengths=[1, 2, 3])) == 3
