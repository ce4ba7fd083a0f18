"""Sums over groups and batches, against sums made by hand."""

import sys
from types import ModuleType
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.model.loss import causal_lm_loss, has_token_loss_hook, token_loss_hook
from llava.train import metrics as metrics_module
from llava.train.metrics import GroupSums, group_metrics, position_quantities, token_quantities

B, T, D, V = 3, 7, 8, 11


@pytest.fixture
def batch():
    torch.manual_seed(0)
    labels = torch.randint(0, V, (B, T))
    labels[0, :4] = labels[1, :2] = labels[2] = IGNORE_INDEX
    labels[2, 3] = 5
    return torch.randn(B, T, D), labels, nn.Linear(D, V, bias=False)


def watched(hidden, labels, head, **kwargs):
    tokens = []
    with token_loss_hook(lambda *token: tokens.append(token)):
        loss = causal_lm_loss(hidden, labels, head, **kwargs)
    assert not has_token_loss_hook()
    return loss, *(torch.cat(parts) for parts in zip(*tokens, strict=True))


def test_token_losses_are_those_of_the_loss(batch):
    hidden, labels, head = batch
    logits = head(hidden)[:, :-1].flatten(0, 1)
    expected = F.cross_entropy(logits, labels[:, 1:].flatten(), reduction="none")
    for options in ({}, {"max_chunk_logits": 2 * V}):  # at once, and two tokens at a time
        loss, losses, is_right = watched(hidden, labels, head, **options)
        loss.backward()  # computes chunks again, which nobody may see
        kept = labels[:, 1:].flatten() != IGNORE_INDEX
        torch.testing.assert_close(losses, expected[kept])
        assert torch.equal(is_right, (logits.argmax(-1) == labels[:, 1:].flatten())[kept])
        assert losses.mean() == pytest.approx(loss.item())


def test_watching_changes_neither_loss_nor_gradient(batch):
    hidden, labels, head = batch
    plain = causal_lm_loss(hidden, labels, head)
    (gradient,) = torch.autograd.grad(plain, head.weight)
    loss, *_ = watched(hidden, labels, head)
    assert torch.equal(loss, plain)
    assert torch.equal(torch.autograd.grad(loss, head.weight)[0], gradient)


def liger_stand_in(monkeypatch):
    """A module with the name, signature and result of Liger's function, but plain cross entropy.

    It tells that Liger's losses are watched, not that Liger's kernel is right.
    """

    def fused(hidden, weight, targets, bias=None, reduction="mean"):
        return F.cross_entropy(F.linear(hidden, weight, bias).float(), targets, reduction=reduction)

    functional = ModuleType("liger_kernel.transformers.functional")
    functional.liger_fused_linear_cross_entropy = Mock(side_effect=fused)
    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, functional.__name__, functional)
    return functional.liger_fused_linear_cross_entropy


@pytest.mark.parametrize("max_chunk_logits", [2**26, 2 * V])
def test_tokens_are_seen_although_liger_holds_no_logits(batch, monkeypatch, max_chunk_logits):
    hidden, labels, head = batch
    hidden.requires_grad_()
    expected = watched(hidden, labels, head)
    gradient = torch.autograd.grad(expected[0], [hidden, head.weight])
    kernel = liger_stand_in(monkeypatch)
    options = {"use_liger": True, "max_chunk_logits": max_chunk_logits}
    found = watched(hidden, labels, head, **options)
    assert kernel.call_count == 1
    torch.testing.assert_close(found, expected)
    assert not found[1].requires_grad
    torch.testing.assert_close(torch.autograd.grad(found[0], [hidden, head.weight]), gradient)
    causal_lm_loss(hidden, labels, head, **options)  # nobody watches: no logits are made
    assert kernel.call_count == 2


def summed(*batches):
    """Metrics of micro-batches (labels, losses, is_right, groups, units)."""
    sums = GroupSums()
    for labels, losses, is_right, groups, units in batches:
        quantities = token_quantities(labels, losses, is_right)
        quantities |= {f"per_{unit}": torch.tensor(amounts) for unit, amounts in units.items()}
        sums.add(quantities, groups)
    found = sums.take()
    assert not sums.take()  # they began anew
    return found


def test_groups_are_summed_over_micro_batches(batch):
    hidden, labels, head = batch
    _, losses, is_right = watched(hidden, labels, head)
    counts = (labels[:, 1:] != IGNORE_INDEX).sum(1).tolist()
    by_sample = [part.sum().item() for part in losses.split(counts)]
    groups = [("hr", "mvqa"), ("en", "mvqa"), ("hr", "bvqa")]
    one = (labels, losses, is_right, groups, {"character": [4, 5, 6]})
    metrics = group_metrics(summed(one, one))
    assert metrics["tokens/hr"] == 2 * (counts[0] + counts[2])
    assert metrics["loss/hr"] == pytest.approx(
        (by_sample[0] + by_sample[2]) / (counts[0] + counts[2])
    )
    assert metrics["loss/en"] == pytest.approx(by_sample[1] / counts[1])
    assert metrics["loss_per_character/hr"] == pytest.approx(2 * (by_sample[0] + by_sample[2]) / 20)
    right = [part.sum().item() for part in is_right.split(counts)]
    assert metrics["accuracy/mvqa"] == pytest.approx((right[0] + right[1]) / sum(counts[:2]))


def test_many_micro_batches_are_read_in_between(batch, monkeypatch):
    hidden, labels, head = batch
    _, losses, is_right = watched(hidden, labels, head)
    one = (labels, losses, is_right, [("hr",)] * B, {})
    expected = summed(*[one] * 5)
    monkeypatch.setattr(metrics_module, "_MAX_PENDING", 2)
    assert summed(*[one] * 5) == expected


def test_ranks_add_up(batch):
    hidden, labels, head = batch
    _, losses, is_right = watched(hidden, labels, head)
    groups = [("hr",), ("zh",), ("hr",)]
    whole = summed((labels, losses, is_right, groups, {"byte": [1, 2, 3]}))
    cut = int((labels[:1, 1:] != IGNORE_INDEX).sum())
    together = summed((labels[:1], losses[:cut], is_right[:cut], groups[:1], {"byte": [1]}))
    together.update(
        summed((labels[1:], losses[cut:], is_right[cut:], groups[1:], {"byte": [2, 3]}))
    )
    assert group_metrics(together) == pytest.approx(group_metrics(whole))


def test_losses_of_samples_that_were_cut_are_noticed(batch):
    hidden, labels, head = batch
    _, losses, is_right = watched(hidden, labels, head)
    groups = [("a",)] * B
    assert summed((labels, losses[:-1], is_right[:-1], groups, {}))["misfits", "a"]
    assert not summed((labels, losses, is_right, groups, {}))["misfits", "a"]


@pytest.mark.parametrize(("packing", "padded"), [(False, 3 * 10), (True, 10 + 4 + 9)])
def test_real_positions_and_padding(packing, padded):
    """Three samples of 6, 4 and 5 tokens; two have a picture of 5 positions in place of one."""
    ids = torch.zeros(3, 6, dtype=torch.long)
    mask = torch.arange(6) < torch.tensor([[6], [4], [5]])
    ids[0, 1] = ids[2, 1] = IMAGE_TOKEN_INDEX
    labels = torch.full_like(ids, IGNORE_INDEX)
    labels[:, 2] = 1
    inputs = {"input_ids": ids, "attention_mask": mask, "labels": labels, "packing": packing}
    found = position_quantities(inputs, 5)
    assert {name: value.sum().item() for name, value in found.items()} == {
        "real": 10 + 4 + 9,
        "padded": padded,
        "squared": 100 + 16 + 81,
        "supervised": 3,
        "images": 2,
    }
