"""What a GPU would refuse, found without one: devices, dtypes, flash-attention's arguments."""

import pytest
import torch
from other_device import DEVICE, other_device
from torch import nn
from transformers.quantizers.quantizers_utils import should_convert_module

from llava.model import LlavaLlamaForCausalLM
from llava.model.families import NOT_QUANTIZED
from llava.model.language_model.causal_lm import (
    FLASH_ATTENTION,
    PACKED_SDPA,
    choose_attention,
    get_family,
)
from llava.model.loss import causal_lm_loss
from tools.gpu.flash_stand_in import installed


def build(models, attention, **options):
    folder = models / "tiny-llava"
    return LlavaLlamaForCausalLM.from_pretrained(folder, attn_implementation=attention, **options)


@pytest.mark.parametrize("attention", ["eager", "sdpa", PACKED_SDPA])
@pytest.mark.parametrize("packing", [True, False])
def test_a_training_step_mixes_no_devices(attention, packing, batch, models):
    def step(device):
        model = build(models, attention).train().to(device)
        on_device = {name: value.to(device) for name, value in batch.items()}
        loss = model(**on_device, packing=packing).loss
        loss.backward()
        gradient = model.get_model().mm_projector[0].weight.grad
        return loss.cpu(), gradient.cpu()

    expected = step("cpu")
    with other_device():
        found = step(DEVICE)
    torch.testing.assert_close(found, expected)


def test_the_other_device_refuses_what_a_gpu_refuses(batch, models):
    with other_device():
        model = build(models, "sdpa").to(DEVICE)
        with pytest.raises(RuntimeError, match="found tensors on the GPU, and on the CPU"):
            model(**batch)


@pytest.mark.parametrize("shares_prefixes", [True, False])
def test_generation_mixes_no_devices(shares_prefixes, pixels, models):
    ids = torch.tensor([[1, -200, 40 + i, 50] for i in (0, 1, 0)])
    lengths = {"prefix_lengths": [5] * 3} if shares_prefixes else {}

    def answer(device):
        model = build(models, "sdpa").eval().to(device)
        images = pixels[[0, 0, 0]].to(device)
        mask = torch.ones_like(ids).to(device)
        given = {"images": images, "attention_mask": mask, **lengths}
        return model.generate(ids.to(device), **given, do_sample=False, max_new_tokens=3).tolist()

    expected = answer("cpu")
    with other_device():
        assert answer(DEVICE) == expected


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("is_autocast", [True, False])
def test_flash_attention_is_called_as_its_kernels_need(packing, is_autocast, batch, models):
    kept = torch.float32 if is_autocast else torch.bfloat16
    batch = {**batch, "images": batch["images"].to(kept)}

    def losses(attention):
        model = build(models, attention, dtype=kept).train()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
            return model(**batch, packing=packing).loss

    with installed() as calls:
        found = losses(FLASH_ATTENTION)
    torch.testing.assert_close(found, losses("sdpa"), rtol=0.01, atol=0.0)
    model = build(models, "sdpa")
    assert len(calls) == model.config.num_hidden_layers
    rows = model.pack_inputs(*(batch[key] for key in ("input_ids", "attention_mask", "labels")),
                             batch["images"].float())  # fmt: skip
    for call in calls:
        assert call["causal"] and call["q"].dtype == torch.bfloat16
        assert call["cu_seqlens_q"].tolist() == call["cu_seqlens_k"].tolist()
        assert call["cu_seqlens_q"].tolist() == rows.cu_seq_lens.tolist()
        assert call["max_seqlen_q"] == call["max_seqlen_k"] == rows.max_length


def test_flash_attention_gives_way_where_it_cannot_compute():
    llama = get_family("llama").model_class
    assert choose_attention(llama, FLASH_ATTENTION, packing=True) == FLASH_ATTENTION
    by_mask = type("ByMask", (llama,), {"packs_by_mask": True})
    assert choose_attention(by_mask, FLASH_ATTENTION, packing=True) == "sdpa"
    assert choose_attention(by_mask, FLASH_ATTENTION, packing=False) == FLASH_ATTENTION
    without = type("Without", (llama,), {"_supports_flash_attn": False})
    assert choose_attention(without, FLASH_ATTENTION, packing=True) == PACKED_SDPA


@pytest.mark.parametrize(
    ("name", "is_quantized"),
    [
        ("model.layers.0.self_attn.q_proj", True),
        ("model.mm_projector.0", False),
        ("model.vision_tower.vision_tower.encoder.layers.0.mlp.fc1", False),
        ("lm_head", False),
    ],
)
def test_only_the_language_models_layers_are_quantized(name, is_quantized):
    assert should_convert_module(name, list(NOT_QUANTIZED)) == is_quantized


class QuantizedHead(nn.Linear):
    """As bitsandbytes': packed weights, which only a call unpacks."""

    def __init__(self, plain):
        super().__init__(plain.in_features, plain.out_features, bias=False)
        self.plain = [plain]
        self.weight = nn.Parameter(
            torch.zeros(plain.weight.numel() // 2, 1, dtype=torch.uint8), requires_grad=False
        )

    def forward(self, hidden):
        return self.plain[0](hidden)


def test_the_loss_does_not_read_a_quantized_head():
    plain, hidden = nn.Linear(8, 20, bias=False), torch.randn(2, 5, 8)
    labels = torch.randint(20, (2, 5))
    expected = causal_lm_loss(hidden, labels, plain)
    found = causal_lm_loss(hidden, labels, QuantizedHead(plain), use_liger=True)
    torch.testing.assert_close(found, expected)
