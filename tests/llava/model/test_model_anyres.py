import pytest
import torch
from transformers import CLIPImageProcessorPil

from llava.constants import IGNORE_INDEX
from llava.errors import ConfigError, DataError
from llava.mm_utils import process_images
from llava.model import LlavaLlamaForCausalLM

CASES = {
    "anyres_flat": "flat",
    "anyres_spatial": "spatial",
    "anyres_spatial_unpad": "spatial_unpad",
}


@pytest.fixture
def model(models):
    return LlavaLlamaForCausalLM.from_pretrained(models / "tiny-llava-anyres-unpad")


@pytest.fixture
def inputs(golden, models, pictures, model):
    case = golden["anyres_flat"]
    slots = [pictures[i] for i in (0, 1, 2, 0)]
    processor = CLIPImageProcessorPil.from_pretrained(models / "tiny-clip")
    tensors = {name: torch.tensor(case[name]) for name in ("input_ids", "labels", "attention_mask")}
    images = process_images(slots, processor, model.config)
    return {**tensors, "images": images, "image_sizes": [picture.size for picture in slots]}


@pytest.mark.parametrize("name", CASES)
def test_equals_the_golden_values(name, golden, model, inputs):
    case = golden[name]
    model.config.mm_patch_merge_type = CASES[name]
    ids, _, mask, _, embeds, labels = model.prepare_inputs_labels_for_multimodal(
        inputs["input_ids"],
        None,
        inputs["attention_mask"],
        None,
        inputs["labels"],
        inputs["images"],
        inputs["image_sizes"],
    )
    assert ids is None
    assert labels.tolist() == case["spliced_labels"]
    assert mask.tolist() == case["spliced_attention_mask"]
    sums = embeds.double().sum(dim=(1, 2)).tolist()
    assert sums == pytest.approx(case["spliced_embed_sum"], rel=1e-3)
    assert list(embeds.shape) == case["spliced_shape"]
    output = model(**inputs)
    output.loss.backward()
    rows = [row for row in range(len(labels)) if (labels[row] != IGNORE_INDEX).any()]
    last = [int((labels[row] != IGNORE_INDEX).nonzero()[-1]) - 1 for row in rows]
    torch.testing.assert_close(
        output.logits[rows, last, :16], torch.tensor(case["logits_last"]), atol=1e-4, rtol=0
    )
    assert output.loss.item() == pytest.approx(case["loss"], abs=1e-4)
    for parameter, norm in case["grad_norms"].items():
        found = model.get_parameter(parameter).grad.norm().item()
        assert found == pytest.approx(norm, rel=1e-3), parameter


def test_cached_features_equal_images(model, inputs):
    expected = model(**inputs).loss
    tower = model.get_vision_tower()
    inputs["image_features"] = [tower(tiles) for tiles in inputs.pop("images")]
    torch.testing.assert_close(model(**inputs).loss, expected)


def test_what_the_spatial_layout_needs(model, inputs):
    with pytest.raises(DataError, match="image_sizes"):
        model(**{**inputs, "image_sizes": None})
    with pytest.raises(DataError, match="lacks image 2"):
        model(**{**inputs, "image_sizes": inputs["image_sizes"][:1]})
    given = model.config.image_grid_pinpoints
    model.config.image_grid_pinpoints = [[60, 60]]
    with pytest.raises(ConfigError, match="tiles, expected.*multiples of 28"):
        model(**inputs)
    model.config.image_grid_pinpoints = given
    model.config.image_aspect_ratio = "pad"
    with pytest.raises(NotImplementedError, match="anyres"):
        model(**inputs)
    model.config.mm_patch_merge_type = "mosaic"
    with pytest.raises(ConfigError, match="Choices: flat, spatial, spatial_unpad"):
        model(**inputs)
