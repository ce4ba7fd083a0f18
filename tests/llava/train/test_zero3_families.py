"""Other language models than Llama under ZeRO-3, where no rank holds a whole weight."""

import pytest
import torch
from test_distributed import ROOT, launch, losses

from llava.model.multimodal_projector.builder import read_tensors

pytest.importorskip("deepspeed")
pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]


@pytest.mark.parametrize(
    "name", ["qwen3", "gemma2", "cohere", "granite", "mixtral", "qwen3_moe", "smollm3"]
)
def test_two_ranks_learn_what_one_process_learns(name, make_base, run_train, flags, tmp_path):
    """Tied heads, scaled and soft-capped logits, and experts in one tensor are gathered."""
    projector = tmp_path / "start.bin"
    generator = torch.Generator().manual_seed(0)
    shapes = {"0.weight": (32, 32), "0.bias": (32,), "2.weight": (32, 32), "2.bias": (32,)}
    start = {k: 0.1 * torch.randn(v, generator=generator) for k, v in shapes.items()}
    torch.save({f"model.mm_projector.{k}": v for k, v in start.items()}, projector)
    settings = {
        "model_name_or_path": make_base(name),
        "pretrain_mm_mlp_adapter": projector,
        "train_sampling_strategy": "sequential",
        "max_steps": 3,
        "save_steps": 50,
        "learning_rate": 1e-3,
    }
    one, two = tmp_path / "one", tmp_path / "two"
    run_train(flags(output_dir=one, **settings))
    zero_3 = {"deepspeed": ROOT / "scripts" / "zero3.json", "per_device_train_batch_size": 2}
    launch(2, flags(output_dir=two, **zero_3, **settings))
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    left, right = (read_tensors(folder / "model.safetensors") for folder in (one, two))
    assert left.keys() == right.keys()
    for key, weight in left.items():
        torch.testing.assert_close(right[key].float(), weight.float(), atol=2e-4, rtol=1e-3)
