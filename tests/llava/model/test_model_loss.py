import pytest
import torch
import torch.nn.functional as F

from llava.constants import IGNORE_INDEX
from llava.model.loss import causal_lm_loss, has_liger


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 9, 8, generator=generator, requires_grad=True)
    labels = torch.randint(0, 50, (3, 9), generator=generator)
    labels[torch.rand(3, 9, generator=generator) < 0.5] = IGNORE_INDEX
    lm_head = torch.nn.Linear(8, 50, bias=False)
    torch.nn.init.normal_(lm_head.weight, generator=generator)
    return hidden, labels, lm_head


def plain(hidden, labels, lm_head):
    logits = lm_head(hidden)[:, :-1].flatten(0, 1)
    return F.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=IGNORE_INDEX)


@pytest.mark.parametrize("max_chunk_logits", [2**26, 200, 1])
def test_equals_plain_cross_entropy_with_its_gradients(problem, max_chunk_logits):
    hidden, labels, lm_head = problem
    expected = torch.autograd.grad(plain(*problem), [hidden, lm_head.weight])
    loss = causal_lm_loss(hidden, labels, lm_head, max_chunk_logits=max_chunk_logits)
    torch.testing.assert_close(loss, plain(*problem))
    found = torch.autograd.grad(loss, [hidden, lm_head.weight])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.skipif(not has_liger(), reason="needs liger-kernel and a GPU, or TRITON_INTERPRET=1")
@pytest.mark.parametrize("is_trained", [True, False])
def test_liger_gives_the_same_gradients(problem, is_trained):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    hidden, labels, lm_head = (part.to(device) for part in problem)
    hidden = hidden.detach().requires_grad_()
    lm_head.weight.requires_grad_(is_trained)
    wanted = [hidden, lm_head.weight] if is_trained else [hidden]
    expected = torch.autograd.grad(plain(hidden, labels, lm_head), wanted)
    loss = causal_lm_loss(hidden, labels, lm_head, use_liger=True)
    found = torch.autograd.grad(loss, wanted)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_only_supervised_positions_reach_the_head(problem):
    hidden, labels, lm_head = problem
    sizes = []
    lm_head.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    causal_lm_loss(hidden, labels, lm_head)
    assert sizes == [int((labels[:, 1:] != IGNORE_INDEX).sum())]


@pytest.mark.parametrize("count", [7, torch.tensor(7)])
def test_sum_over_the_items_of_the_step(problem, count):
    hidden, labels, lm_head = problem
    num_supervised = (labels[:, 1:] != IGNORE_INDEX).sum()
    loss = causal_lm_loss(hidden, labels, lm_head, num_items_in_batch=count)
    torch.testing.assert_close(loss, plain(*problem) * num_supervised / 7)


def test_nothing_supervised(problem):
    hidden, labels, lm_head = problem
    # the first position has nothing before it that could predict it
    labels.fill_(IGNORE_INDEX)[:, 0] = 3
    loss = causal_lm_loss(hidden, labels, lm_head, num_items_in_batch=0)
    loss.backward()
    assert loss.item() == 0 and not hidden.grad.any() and not lm_head.weight.grad.any()
