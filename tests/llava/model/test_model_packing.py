"""Samples that lie one after the other in a row learn what each would learn by itself."""

import pytest
import torch
import torch.nn.functional as F
from transformers import modeling_flash_attention_utils

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.errors import ConfigError
from llava.model import LlavaLlamaForCausalLM
from llava.model.language_model.causal_lm import PACKED_SDPA
from llava.model.language_model.llava_mistral import LlavaMistralForCausalLM
from llava.model.language_model.llava_mpt import LlavaMptForCausalLM

ATTENTION = ("eager", "sdpa", PACKED_SDPA)


@pytest.fixture
def batch(golden, pixels):
    """Samples with one picture, none (which takes a dummy), and two."""
    case = golden["mlp2x_gelu"]
    batch = {key: torch.tensor(case[key]) for key in ("input_ids", "labels", "attention_mask")}
    return {**batch, "images": pixels[[0, 1, 2, 0]]}


def build(models, attention, model_class=LlavaLlamaForCausalLM, **config):
    model = model_class.from_pretrained(
        models / "tiny-llava", attn_implementation=attention, **config
    )
    return model.train()


def sample_losses(model, batch):
    """The summed loss of each sample, run by itself without padding."""
    losses = []
    counts = (batch["input_ids"] == IMAGE_TOKEN_INDEX).sum(1).clamp(min=1).tolist()
    for row, images in enumerate(batch["images"].split(counts)):
        kept = batch["attention_mask"][row].bool()
        one = {key: batch[key][row][kept][None] for key in ("input_ids", "labels")}
        one["images"] = images
        losses.append(model(**one, num_items_in_batch=1).loss)
    return torch.stack(losses)


def packed_losses(model, batch):
    """The same from a packed row."""
    with torch.no_grad():
        rows = model.pack_inputs(
            batch["input_ids"], batch["attention_mask"], batch["labels"], batch["images"]
        )
        logits = model.eval()(**batch, packing=True).logits[0]
    losses = F.cross_entropy(logits[:-1], rows.labels[0, 1:], reduction="none")
    borders = rows.cu_seq_lens.tolist()
    return torch.stack(
        [losses[start : end - 1].sum() for start, end in zip(borders, borders[1:], strict=False)]
    )


@pytest.mark.parametrize("attention", ATTENTION)
def test_each_sample_has_the_loss_it_has_by_itself(attention, batch, models):
    model = build(models, attention)
    alone = sample_losses(model, batch)
    assert (alone > 0).sum() > 1
    torch.testing.assert_close(packed_losses(model, batch), alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", ATTENTION)
def test_gradients_are_those_of_the_padded_batch(attention, batch, models):
    padded, packed = build(models, "sdpa"), build(models, attention)
    padded(**batch, num_items_in_batch=7).loss.backward()
    loss = packed(**batch, num_items_in_batch=7, packing=True)
    loss.loss.backward()
    compared = 0
    for (name, left), right in zip(padded.named_parameters(), packed.parameters(), strict=True):
        if left.grad is not None:
            torch.testing.assert_close(right.grad, left.grad, atol=1e-6, rtol=1e-4, msg=name)
            compared += 1
    assert compared > 10


@pytest.fixture
def flash(monkeypatch):
    """Flash-attention's varlen kernel as its documentation has it, on the CPU; calls are kept."""
    calls = []

    def varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, **options):
        calls.append((q.shape, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, options))
        assert options["causal"]
        borders = cu_seqlens_q.tolist()
        outputs = []
        for start, end in zip(borders, borders[1:], strict=False):
            rows = (x[start:end].transpose(0, 1) for x in (q, k, v))
            outputs.append(
                F.scaled_dot_product_attention(
                    *rows, is_causal=True, scale=options["softmax_scale"], enable_gqa=True
                ).transpose(0, 1)
            )
        return torch.cat(outputs)

    def refuse(*args, **kwargs):
        raise AssertionError("a packed row must take the varlen kernel")

    accepted = ("causal", "softmax_scale")

    def options(*args, is_causal, softmax_scale, max_seqlen_q, max_seqlen_k, **kwargs):
        lengths = {"max_seqlen_q": max_seqlen_q, "max_seqlen_k": max_seqlen_k}
        return {**lengths, **dict(zip(accepted, (is_causal, softmax_scale), strict=True))}

    functions = ((refuse, varlen, refuse, refuse, refuse), (options, refuse))
    monkeypatch.setattr(
        modeling_flash_attention_utils, "lazy_import_flash_attention", lambda _: functions
    )
    return calls


def test_flash_attention_gets_the_borders(flash, batch, models):
    reference = build(models, "eager")
    model = build(models, "sdpa")
    # `set_attn_implementation` would ask for the kernel
    model.config._attn_implementation = "flash_attention_2"
    torch.testing.assert_close(
        packed_losses(model, batch), sample_losses(reference, batch), atol=1e-5, rtol=1e-5
    )
    rows = model.pack_inputs(
        batch["input_ids"], batch["attention_mask"], batch["labels"], batch["images"]
    )
    assert len(flash) == model.config.num_hidden_layers
    for shape, queries, keys, longest_query, longest_key, _ in flash:
        assert shape[0] == rows.embeds.shape[1] == queries[-1]
        assert queries is keys and queries.dtype == torch.int32
        assert torch.equal(queries, rows.cu_seq_lens)
        assert longest_query == longest_key == rows.max_length
        assert type(longest_query) is int  # no wait for the device in every layer


def test_other_samples_do_not_matter(batch, models):
    """Not by a bit: a sample's loss is the same whatever it is packed with."""
    model = build(models, PACKED_SDPA)
    before = packed_losses(model, batch)
    changed = {**batch, "images": batch["images"].clone(), "input_ids": batch["input_ids"].clone()}
    changed["images"][0] += 1
    changed["input_ids"][0, 1:5] = 7
    after = packed_losses(model, changed)
    assert after[0] != before[0]
    assert torch.equal(after[1:], before[1:])


def test_a_row_is_as_long_as_its_samples(batch, models):
    model = build(models, PACKED_SDPA)
    rows = model.pack_inputs(
        batch["input_ids"], batch["attention_mask"], batch["labels"], batch["images"]
    )
    _, _, mask, _, _, labels = model.prepare_inputs_labels_for_multimodal(
        batch["input_ids"], None, batch["attention_mask"], None, batch["labels"], batch["images"]
    )
    assert rows.embeds.shape[1] == mask.sum() == rows.cu_seq_lens[-1]
    assert rows.max_length == mask.sum(1).max()
    # all labels but those of the samples' first positions, which nothing predicts
    expected = [row[keep.bool()].clone() for row, keep in zip(labels, mask, strict=True)]
    for row in expected:
        row[0] = IGNORE_INDEX
    assert torch.equal(rows.labels[0], torch.cat(expected))
    starts = rows.cu_seq_lens[:-1].long()
    assert rows.position_ids[0, starts].tolist() == [0] * len(starts)
    assert rows.position_ids[0, starts[1:] - 1].tolist() == (mask.sum(1)[:-1] - 1).tolist()


@pytest.mark.parametrize("window", [4, 1000])
def test_sliding_windows_stay_within_a_sample(window, batch, models):
    model = build(models, PACKED_SDPA, LlavaMistralForCausalLM, sliding_window=window)
    reference = build(models, "eager", LlavaMistralForCausalLM, sliding_window=window)
    alone = sample_losses(reference, batch)
    torch.testing.assert_close(packed_losses(model, batch), alone, atol=1e-5, rtol=1e-5)


def test_without_packing_it_is_sdpa(batch, models):
    ours, theirs = build(models, PACKED_SDPA), build(models, "sdpa")
    assert torch.equal(ours(**batch).loss, theirs(**batch).loss)
    ids, image = batch["input_ids"][:1, :12], batch["images"][:1]
    settings = {"images": image, "do_sample": False, "max_new_tokens": 5}
    assert torch.equal(
        ours.eval().generate(ids, **settings), theirs.eval().generate(ids, **settings)
    )


def test_activation_checkpointing_gives_the_same_gradients(batch, models):
    plain, saving = build(models, PACKED_SDPA), build(models, PACKED_SDPA)
    saving.activation_checkpointing_enable()
    grads = []
    for model in (plain, saving):
        model(**batch, packing=True).loss.backward()
        grads.append(model.lm_head.weight.grad)
    assert torch.equal(*grads)


def test_a_model_without_positions_is_refused(batch):
    with pytest.raises(ConfigError, match="LlavaMptForCausalLM cannot be packed.*no position ids"):
        model = LlavaMptForCausalLM.__new__(LlavaMptForCausalLM)
        model._packed_inputs(batch["input_ids"], None, batch["labels"])
