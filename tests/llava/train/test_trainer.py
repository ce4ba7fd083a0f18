"""Loss normalisation, parameter groups, order of samples, loss that is not finite."""

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import RandomSampler, SequentialSampler
from transformers import Trainer

from llava.errors import UserError
from llava.train.llava_trainer import LLaVATrainer, SeededSampler
from llava.train.train import main


def trained(run_train, flags, folder, **settings):
    # plain gradient descent: Adam would blow rounding up
    run_train(flags(output_dir=folder, optim="sgd", max_grad_norm=0, max_steps=3, **settings))
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize(("batch", "accumulation"), [(4, 2), (2, 4)])
def test_accumulation_is_a_larger_batch(run_train, flags, tmp_path, batch, accumulation):
    order = {"train_sampling_strategy": "sequential"}
    whole = trained(run_train, flags, tmp_path / "a", per_device_train_batch_size=8, **order)
    parts = trained(
        run_train,
        flags,
        tmp_path / "b",
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        **order,
    )
    worst = max((whole[name] - parts[name]).abs().max() for name in whole)
    assert worst < 1e-6


def test_micro_batch_normalisation_is_another(run_train, flags, tmp_path):
    order = {"train_sampling_strategy": "sequential", "gradient_accumulation_steps": 4}
    settings = {"per_device_train_batch_size": 2, **order}
    tokens = trained(run_train, flags, tmp_path / "a", **settings)
    means = trained(run_train, flags, tmp_path / "b", loss_normalization="micro_batch", **settings)
    assert max((tokens[name] - means[name]).abs().max() for name in tokens) > 1e-5


def test_projector_has_its_own_rate(run_train, flags, monkeypatch):
    seen = {}
    make = LLaVATrainer.create_optimizer

    def spy(self, model=None):
        optimizer = make(self, model)
        names = {id(p): name for name, p in self.model.named_parameters()}
        seen["groups"] = [
            (group["lr"], group["weight_decay"], [names[id(p)] for p in group["params"]])
            for group in optimizer.param_groups
        ]
        return optimizer

    monkeypatch.setattr(LLaVATrainer, "create_optimizer", spy)
    run_train(flags(mm_projector_lr=5e-4, weight_decay=0.1, max_steps=1, warmup_steps=0))
    groups = seen["groups"]
    assert [group[:2] for group in groups] == [(1e-2, 0.1), (1e-2, 0.0), (5e-4, 0.1), (5e-4, 0.0)]
    assert all("mm_projector" not in name for group in groups[:2] for name in group[2])
    assert all("norm" in name or "bias" in name for name in groups[1][2])
    assert {name.rsplit(".", 1)[-1] for name in groups[2][2]} == {"weight"}
    assert {name.rsplit(".", 1)[-1] for name in groups[3][2]} == {"bias"}
    assert not any("vision_tower" in name for group in groups for name in group[2])


def test_a_loss_that_is_not_finite_ends_the_run(run_train, flags, monkeypatch, tmp_path):
    step = Trainer.compute_loss

    def broken(self, *args, **kwargs):
        loss = step(self, *args, **kwargs)
        return loss * float("nan") if self.state.global_step == 2 else loss

    monkeypatch.setattr(Trainer, "compute_loss", broken)
    with pytest.raises(UserError, match=r"loss is nan in step 3.*checkpoint-2.*learning_rate"):
        run_train(flags())


def test_seeded_order_depends_on_seed_and_epoch_only():
    sampler = SeededSampler(RandomSampler(range(20)), seed=3)
    first = list(sampler)
    torch.rand(5)
    assert list(sampler) == first
    sampler.set_epoch(1)
    second = list(sampler)
    assert second != first
    assert list(SeededSampler(RandomSampler(range(20)), seed=4)) == second
    assert len(sampler) == 20


def test_seeded_order_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    list(SeededSampler(RandomSampler(range(5)), seed=1))
    assert torch.equal(torch.rand(1), expected)


def test_errors_of_users_have_no_traceback(caplog):
    def fails():
        raise UserError("no such file")

    assert main(fails) == 1
    assert caplog.messages == ["no such file"]
    assert not any(record.exc_info for record in caplog.records)


def test_given_sampler_is_used(run_train, flags):
    from llava.train.train import default_data_module

    class Sampler(SequentialSampler):
        epochs = []

        def set_epoch(self, epoch):
            self.epochs.append(epoch)

    def module(context):
        data = default_data_module(context)
        return {**data, "train_sampler": Sampler(data["train_dataset"])}

    run_train(flags(max_steps=5), data_module=module)
    assert sorted(set(Sampler.epochs)) == [0, 1]


def test_only_the_layers_of_the_language_model_are_compiled(run_train, flags, monkeypatch):
    compiled = []
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **kwargs: compiled.append(type(self).__name__)
    )
    run_train(flags(max_steps=1, compile_layers=True))
    assert compiled == ["LlamaDecoderLayer"] * 2
