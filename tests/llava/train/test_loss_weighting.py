"""Every supervised token of a global batch weighs the same, however the batch is cut."""

import pytest
import torch
from safetensors.torch import load_file

# plain gradient descent with rate 1: the weights change by the gradient itself
GRADIENT = {
    "optim": "sgd",
    "learning_rate": 1.0,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0,
    "max_steps": 1,
    "save_strategy": "no",
    "train_sampling_strategy": "sequential",
}


@pytest.fixture
def step(flags, run_train, tmp_path):
    """The weights after one step on the same eight samples with answers of different lengths."""

    def run(batch_size, **changes):
        folder = tmp_path / "-".join(map(str, [batch_size, *changes.values()]))
        batches = {"gradient_accumulation_steps": 8 // batch_size}
        batches |= {"per_device_train_batch_size": batch_size, "output_dir": folder}
        run_train(flags(**GRADIENT, **batches, **changes))
        return load_file(folder / "model.safetensors")

    return run


def difference(left, right):
    return max((left[name] - right[name]).abs().max().item() for name in left)


def test_a_step_is_the_same_however_it_is_cut(step):
    whole = step(8)
    for batch_size in (4, 2, 1):
        assert difference(step(batch_size), whole) < 1e-6, batch_size
    for batch_size in (8, 4, 1):
        assert difference(step(batch_size, packing=True), whole) < 1e-6, f"packed, {batch_size}"
    # LLaVA's way is another one, which this test can see
    assert difference(step(2, loss_normalization="micro_batch"), whole) > 1e-4
    assert all(torch.isfinite(value).all() for value in whole.values())
