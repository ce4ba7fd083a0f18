"""Image tokens under ZeRO-3, where a rank sees no embedding table as a whole."""

import pytest
import torch
from test_distributed import ROOT, launch

from llava.model.multimodal_projector.builder import read_tensors

pytest.importorskip("deepspeed")
pytestmark = pytest.mark.distributed

TABLES = ("model.embed_tokens.weight", "lm_head.weight")


@pytest.mark.timeout(600)
def test_new_rows_are_those_of_one_process(run_train, flags, tmp_path):
    settings = {
        "mm_use_im_patch_token": True,
        "mm_use_im_start_end": True,
        "max_steps": 1,
        "learning_rate": 0,
    }
    one, two = tmp_path / "one", tmp_path / "two"
    run_train(flags(output_dir=one, per_device_train_batch_size=4, **settings))
    zero_3 = {"deepspeed": ROOT / "scripts" / "zero3.json", "per_device_train_batch_size": 2}
    launch(2, flags(output_dir=two, **zero_3, **settings))
    left, right = (read_tensors(folder / "model.safetensors") for folder in (one, two))
    for name in TABLES:
        assert left[name].shape == right[name].shape
        torch.testing.assert_close(left[name], right[name])
        new = right[name][-3:]
        torch.testing.assert_close(new, right[name][:-3].mean(dim=0).expand_as(new))


@pytest.mark.timeout(600)
def test_the_first_stage_takes_the_patch_token(flags, tmp_path):
    settings = {"mm_use_im_patch_token": True, "tune_mm_mlp_adapter": True, "max_steps": 1}
    zero_3 = {"deepspeed": ROOT / "scripts" / "zero3.json", "per_device_train_batch_size": 2}
    launch(2, flags(**zero_3, **settings))
    projector = read_tensors(tmp_path / "out" / "mm_projector.bin")
    assert projector["model.mm_projector.0.weight"].shape == (32, 32)
