import pytest
import torch

from llava.constants import IGNORE_INDEX
from llava.errors import DataError
from llava.model import LlavaLlamaForCausalLM

SPLICE_INPUTS = ("input_ids", "labels", "attention_mask")
CASES = {
    "mlp2x_gelu": "tiny-llava",
    "left_padding": "tiny-llava",
    "truncate_24": "tiny-llava",
    "linear_cls_patch": "tiny-llava-linear",
}


def splice(model, batch, **changes):
    inputs = {**batch, **changes}
    return model.prepare_inputs_labels_for_multimodal(
        inputs["input_ids"],
        inputs.get("position_ids"),
        inputs["attention_mask"],
        None,
        inputs["labels"],
        inputs.get("images"),
        image_features=inputs.get("image_features"),
    )


@pytest.mark.parametrize("name", CASES)
def test_equals_the_golden_values(name, golden, models, pixels):
    case = golden[name]
    model = LlavaLlamaForCausalLM.from_pretrained(models / CASES[name])
    model.config.tokenizer_padding_side = "left" if case["left"] else "right"
    model.config.tokenizer_model_max_length = case["max_length"]
    inputs = {key: torch.tensor(case[key]) for key in SPLICE_INPUTS}
    check_case(model, case, {**inputs, "images": pixels[[0, 1, 2, 0]]})


def check_case(model, case, inputs):
    ids, _, mask, _, embeds, labels = splice(model, inputs)
    assert ids is None
    assert labels.tolist() == case["spliced_labels"]
    assert mask.tolist() == case["spliced_attention_mask"]
    assert list(embeds.shape) == case["spliced_shape"]
    sums = embeds.double().sum(dim=(1, 2)).tolist()
    assert sums == pytest.approx(case["spliced_embed_sum"], rel=1e-3)

    output = model(**inputs)
    output.loss.backward()
    assert output.loss.item() == pytest.approx(case["loss"], abs=1e-4)
    for name, norm in case["grad_norms"].items():
        found = model.get_parameter(name).grad.norm().item()
        assert found == pytest.approx(norm, rel=1e-3, abs=1e-9), name
    # the golden logits predict the last supervised token of each row that has one
    rows = [row for row in range(len(labels)) if (labels[row] != IGNORE_INDEX).any()]
    last = [int((labels[row] != IGNORE_INDEX).nonzero()[-1]) - 1 for row in rows]
    torch.testing.assert_close(
        output.logits[rows, last, :16], torch.tensor(case["logits_last"]), atol=1e-4, rtol=0
    )


def test_training_mode_gives_the_same_loss_without_logits(tiny_llava, batch):
    expected = tiny_llava(**batch).loss
    output = tiny_llava.train()(**batch)
    assert output.logits is None
    torch.testing.assert_close(output.loss, expected)


def test_cached_features_equal_images(tiny_llava, batch):
    expected = tiny_llava(**batch)
    features = tiny_llava.get_vision_tower()(batch.pop("images"))
    output = tiny_llava(**batch, image_features=features)
    torch.testing.assert_close(output.logits, expected.logits)
    as_list = tiny_llava(**batch, image_features=list(features))
    torch.testing.assert_close(as_list.logits, expected.logits)


def test_list_of_images_equals_a_batch_of_images(tiny_llava, batch):
    expected = splice(tiny_llava, batch)[4]
    listed = splice(tiny_llava, batch, images=list(batch["images"]))[4]
    torch.testing.assert_close(listed, expected)


def test_loss_is_divided_by_the_items_of_the_whole_step(tiny_llava, batch):
    labels = splice(tiny_llava, batch)[5]
    num_supervised = int((labels[:, 1:] != IGNORE_INDEX).sum())
    mean = tiny_llava(**batch).loss
    output = tiny_llava(**batch, num_items_in_batch=torch.tensor(1000))
    torch.testing.assert_close(output.loss, mean * num_supervised / 1000)


def test_accumulated_micro_batches_equal_one_batch(tiny_llava, batch):
    count = int((splice(tiny_llava, batch)[5][:, 1:] != IGNORE_INDEX).sum())
    tiny_llava(**batch).loss.backward()
    weight = tiny_llava.get_model().mm_projector[0].weight
    expected, weight.grad = weight.grad.clone(), None
    for row, slots in ((0, [0]), (1, [1, 2]), (2, [3])):
        part = {key: value[[row]] for key, value in batch.items() if key != "images"}
        tiny_llava(**part, images=batch["images"][slots], num_items_in_batch=count).loss.backward()
    torch.testing.assert_close(weight.grad, expected, atol=1e-6, rtol=1e-4)


def test_nothing_supervised_gives_zero_and_keeps_the_graph(tiny_llava, batch):
    batch["labels"].fill_(IGNORE_INDEX)
    output = tiny_llava.train()(**batch)
    output.loss.backward()
    assert output.loss.item() == 0
    grad = tiny_llava.get_model().mm_projector[0].weight.grad
    assert grad is not None and not grad.any()


@pytest.mark.parametrize("with_dummies", [True, False])
def test_text_only_training_batch_reaches_the_projector(tiny_llava, batch, with_dummies):
    text = {key: value[[2, 2]] for key, value in batch.items() if key != "images"}
    expected = tiny_llava(**text).loss
    if with_dummies:
        text["images"] = batch["images"][:2]
    loss = tiny_llava.train()(**text).loss
    loss.backward()
    torch.testing.assert_close(loss, expected)
    grad = tiny_llava.get_model().mm_projector[0].weight.grad
    assert grad is not None and not grad.any()


def test_mask_is_returned_where_rows_were_padded(tiny_llava, batch):
    rows = [0, 2]
    ids = batch["input_ids"][rows][:, :20]
    inputs = {"input_ids": ids, "attention_mask": None, "labels": None}
    mask = splice(tiny_llava, inputs, images=batch["images"][:2])[2]
    assert mask.sum(dim=1).tolist() == [20 + 15, 20]
    equal = {**inputs, "input_ids": ids[:1]}
    assert splice(tiny_llava, equal, images=batch["images"][:1])[2] is None


def test_what_was_none_stays_none_and_dtypes_stay(tiny_llava, batch):
    _, positions, mask, _, _, labels = splice(tiny_llava, batch, labels=None)
    assert positions is None and labels is None and mask.dtype == batch["attention_mask"].dtype
    positions = splice(tiny_llava, batch, position_ids=torch.zeros_like(batch["input_ids"]))[1]
    length = int(mask[0].sum())
    assert positions[0].tolist() == [*range(length)] + [0] * (mask.shape[1] - length)


def test_text_and_decoding_steps_pass_through(tiny_llava, batch):
    ids = batch["input_ids"][2:]
    text = {"input_ids": ids, "attention_mask": None, "labels": None}
    assert splice(tiny_llava, text)[0] is ids
    step = {"input_ids": ids[:, :1], "attention_mask": None, "labels": None}
    result = splice(tiny_llava, step, images=batch["images"][:1])
    assert result[0] is step["input_ids"] and result[4] is None


@pytest.mark.parametrize(("slots", "numbers"), [([0, 1, 2], (3, 4)), ([0, 1, 2, 0, 1], (5, 4))])
def test_wrong_number_of_images(tiny_llava, batch, slots, numbers):
    found, expected = numbers
    with pytest.raises(DataError, match=rf"^{found} image.*3 <image>.*expected {expected}"):
        tiny_llava(**{**batch, "images": batch["images"][slots]})


def test_placeholder_without_an_image(tiny_llava, batch):
    del batch["images"]
    with pytest.raises(DataError, match=r"3 <image> placeholder\(s\) and 0 image"):
        tiny_llava(**batch)


def test_truncation_is_logged(tiny_llava, batch, caplog):
    tiny_llava.config.tokenizer_model_max_length = 24
    tiny_llava(**batch)
    assert "87 position(s)" in caplog.text


def test_frozen_tower_stays_in_evaluation_mode(tiny_llava, batch):
    tower = tiny_llava.train().get_vision_tower()
    assert not tower.training and tower.is_frozen
    assert not tower(batch["images"]).requires_grad
    tower.requires_grad_(True)
    assert tower.train().training
    assert tower(batch["images"]).requires_grad


def test_float32_pixels_in_a_bfloat16_model(tiny_llava, batch):
    expected = tiny_llava(**batch).loss.item()
    output = tiny_llava.to(torch.bfloat16)(**batch)
    assert output.logits.dtype == torch.bfloat16 and output.loss.dtype == torch.float32
    assert output.loss.item() == pytest.approx(expected, rel=0.02)


def test_mixed_precision_of_projector_and_language_model(tiny_llava, batch):
    expected = tiny_llava(**batch).loss.item()
    tiny_llava.to(torch.bfloat16).get_model().mm_projector.to(torch.float32)
    output = tiny_llava.train()(**batch)
    output.loss.backward()
    assert output.loss.item() == pytest.approx(expected, rel=0.02)
    assert tiny_llava.get_model().mm_projector[0].weight.grad.dtype == torch.float32


def test_gradient_checkpointing_gives_the_same_gradients(tiny_llava, batch):
    tiny_llava.train()(**batch).loss.backward()
    weight = tiny_llava.get_model().mm_projector[0].weight
    expected, weight.grad = weight.grad.clone(), None
    tiny_llava.gradient_checkpointing_enable()
    tiny_llava(**batch, use_cache=False).loss.backward()
    torch.testing.assert_close(weight.grad, expected)


def test_tuple_and_attention_outputs(tiny_llava, batch):
    expected = tiny_llava(**batch)
    loss, logits, *_ = tiny_llava(**batch, return_dict=False)
    torch.testing.assert_close((loss, logits), (expected.loss, expected.logits))
    output = tiny_llava(**batch, output_hidden_states=True)
    assert len(output.hidden_states) == 3 and output.hidden_states[0].shape[-1] == 48
    # transformers hooks nested models a second time then; the tower must not notice
    torch.testing.assert_close(tiny_llava(**batch).logits, expected.logits)
    last = tiny_llava(**{**batch, "labels": None}, logits_to_keep=1).logits
    torch.testing.assert_close(last, expected.logits[:, -1:])
