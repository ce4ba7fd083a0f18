"""The optional alignment loss."""

import math

import pytest
import torch
from safetensors.torch import load_file

from llava.errors import ConfigError
from llava.train.metrics import METRICS_FILE, read_metrics
from lrm_ext.training.contrastive_loss import TEMPERATURE, contrast


def test_the_term_is_info_nce():
    features = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    texts = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    right, wrong = math.exp(1 / TEMPERATURE), 1.0
    expected = -math.log(right / (right + wrong))
    assert contrast(features, texts, torch.tensor([7, 8])).item() == pytest.approx(
        expected, abs=1e-6
    )
    crossed = contrast(features, texts.flip(0), torch.tensor([7, 8])).item()
    assert crossed == pytest.approx(1 / TEMPERATURE, rel=1e-4)


def test_texts_about_the_same_picture_are_no_wrong_ones():
    torch.manual_seed(0)
    features, texts = torch.randn(3, 4), torch.randn(3, 4)
    features[1] = features[0]
    twice = contrast(features, texts, torch.tensor([7, 7, 8]))
    pairs = [contrast(features[[i, 2]], texts[[i, 2]], torch.tensor([7, 8])) for i in (0, 1)]
    assert twice < contrast(features, texts, torch.tensor([7, 9, 8]))
    assert twice.isfinite() and all(pair.isfinite() for pair in pairs)


@pytest.mark.parametrize("pictures", [[-1, -1], [7, -1], [7, 7]])
def test_without_two_pictures_it_is_nothing_but_keeps_its_graph(pictures):
    features = torch.randn(2, 4, requires_grad=True)
    term = contrast(features, torch.randn(2, 4), torch.tensor(pictures))
    term.backward()
    assert term == 0 and not features.grad.any()


def extra_losses(folder):
    lines = read_metrics(folder / METRICS_FILE)
    return [line["extra_loss"] for line in lines if "extra_loss" in line]


def test_it_is_learnt(run_lrm):
    logged = extra_losses(run_lrm(alignment_loss=1.0, max_steps=12, per_device_train_batch_size=8))
    assert len(logged) == 12
    assert sum(logged[-3:]) < 0.8 * sum(logged[:3])


def test_accumulated_micro_batches_give_its_mean(run_lrm):
    settings = {"alignment_loss": 0.5, "max_steps": 1, "length_window": 0}
    out = run_lrm(per_device_train_batch_size=4, gradient_accumulation_steps=2, **settings)
    lines = [line for line in read_metrics(out / METRICS_FILE) if "loss" in line]
    tokens = sum(lines[0][f"tokens/{lang}"] for lang in ("en", "hr", "zh"))
    text = sum(lines[0][f"tokens/{lang}"] * lines[0][f"loss/{lang}"] for lang in ("en", "hr", "zh"))
    assert lines[0]["loss"] == pytest.approx(text / tokens + lines[0]["extra_loss"], abs=2e-3)


def test_it_is_off_by_default(run_lrm, tmp_path):
    plain = run_lrm(output_dir=tmp_path / "a", max_steps=2)
    off = run_lrm(output_dir=tmp_path / "b", max_steps=2, alignment_loss=0)
    assert not extra_losses(plain)
    first, second = (load_file(folder / "model.safetensors") for folder in (plain, off))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_flags_that_do_not_fit_are_refused(run_lrm):
    with pytest.raises(ConfigError, match="expected 0 or more"):
        run_lrm(alignment_loss=-1)
