"""Tiles of any tower: limits, ranges of grids, several images; against transformers' models."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from tiny_towers import TOWERS, photograph, write_tower

from llava.errors import ConfigError
from llava.images import expand2square
from llava.mm_utils import get_anyres_image_grid_shape, process_images
from llava.model.language_model.causal_lm import model_class_of
from llava.model.multimodal_encoder.builder import build_vision_tower
from llava.model.splice import merge_spatial
from llava.model.tiles import Tiling, is_tiled, read_pinpoints

RANGE = "(1x1),...,(6x6)"
LIST = [[32, 64], [64, 32], [64, 64], [96, 32], [32, 96]]
IMAGE_TOKEN = 40
NAMES = (
    ("model.vision_tower.vision_tower.vision_model.", "model.vision_tower."),
    ("model.vision_tower.vision_tower.", "model.vision_tower."),
    ("model.mm_projector.0.", "model.multi_modal_projector.linear_1."),
    ("model.mm_projector.2.", "model.multi_modal_projector.linear_2."),
    ("model.image_newline", "model.image_newline"),
    ("lm_head.", "lm_head."),
    ("model.", "model.language_model."),
)


def test_a_range_of_grids_is_that_of_the_towers_tiles():
    grids = [(c, r) for c in range(1, 7) for r in range(1, 7)]
    assert read_pinpoints(RANGE, 384) == [(384 * c, 384 * r) for c, r in grids]
    assert read_pinpoints("(1x1),(2x1)", 32) == [(32, 32), (64, 32)]
    assert read_pinpoints(str(LIST), 32) == read_pinpoints(LIST, 384) == [*map(tuple, LIST)]
    assert get_anyres_image_grid_shape((100, 300), RANGE, 100) == (1, 3)
    for wrong in (None, "", "(6x6),...,(1x1)", "(0x1),...,(2x2)", [[3]], "all"):
        with pytest.raises(ConfigError, match="expected a list.*or a range"):
            read_pinpoints(wrong, 384)


def test_names_of_aspect_ratios():
    assert is_tiled("anyres") and is_tiled("anyres_max_9")
    assert not is_tiled("pad") and not is_tiled(None)
    for wrong in ("anyres_max_", "anyres_max_0", "anyres9"):
        with pytest.raises(ConfigError, match="anyres_max_N"):
            is_tiled(wrong)


def tiling(ratio, merge_type="spatial_unpad", pinpoints=RANGE, side=384, num_tokens=729):
    settings = SimpleNamespace(
        image_aspect_ratio=ratio, mm_patch_merge_type=merge_type, image_grid_pinpoints=pinpoints
    )
    return Tiling.of(settings, side, num_tokens)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((384, 384), 729 + 27 * 28),
        # 54 x 81 are six tiles: below nine
        ((1152, 768), 729 + 54 * 82),
        # 108 x 162 positions are 24 tiles, 1.63 times the side of nine: 66 x 99 stay
        ((2304, 1536), 729 + 66 * 100),
        # unpadded first, to 121 x 162 of 135 x 162, which is 1.73 times
        ((2304, 1720), 729 + 70 * 94),
        # one of several
        (None, 729 + 1),
    ],
)
def test_positions_of_anyres_max_9(size, expected):
    """By hand from the description of LLaVA-NeXT's layout."""
    assert tiling("anyres_max_9").num_positions(size) == expected


def test_positions_of_llava_16():
    """The table of the released models, and the other merge types."""
    given = "[(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)]"
    of = {(640, 480): 2340, (1000, 300): 2182, (336, 336): 1176, (1920, 1080): 1948}
    for size, expected in of.items():
        assert (
            tiling("anyres", pinpoints=given, side=336, num_tokens=576).num_positions(size)
            == expected
        )
    flat, spatial = (tiling("anyres", kind, given, 336, 576) for kind in ("flat", "spatial"))
    assert flat.num_positions((640, 480)) == spatial.num_positions((640, 480)) == 5 * 576
    assert flat.num_positions(None) == spatial.num_positions(None) == 576
    assert tiling("pad").num_positions((640, 480)) == 729


@pytest.mark.parametrize("ratio", ["anyres", "anyres_max_1", "anyres_max_3"])
@pytest.mark.parametrize("merge_type", ["spatial", "spatial_unpad"])
def test_the_count_is_that_of_the_features(ratio, merge_type):
    """Images of any shape."""
    generator = torch.Generator().manual_seed(0)
    newline = torch.zeros(2) if merge_type == "spatial_unpad" else None
    for width, height in torch.randint(8, 400, (60, 2), generator=generator).tolist():
        cut = tiling(ratio, merge_type, side=32, num_tokens=16)
        columns, rows = cut.grid((width, height))
        features = torch.randn(1 + columns * rows, 16, 2)
        merged = merge_spatial(features, cut, (width, height), newline)
        assert len(merged) == cut.num_positions((width, height)), (width, height)


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    root = tmp_path_factory.mktemp("towers")
    return {name: write_tower(root / name, name) for name in ("clip", "siglip")}


def llava_model(model_type, tower, **settings):
    """A random model with a tower, as its published kind is configured."""
    kind = model_class_of({"model_type": model_type, "mm_vision_tower": str(tower)}, "here")
    torch.manual_seed(0)
    config = kind.config_class(
        vocab_size=50, hidden_size=24, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=4096,
        tie_word_embeddings=False, mm_vision_tower=str(tower), mm_hidden_size=32,
        mm_projector_type="mlp2x_gelu", mm_vision_select_layer=-2, mm_use_im_patch_token=False,
        mm_patch_merge_type="spatial_unpad", architectures=[kind.__name__], **settings,
    )  # fmt: skip
    model = kind(config, materialize_tower=True).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(std=0.2)
    return model


def transformers_model(model, kind, layer, strategy):
    """The same weights in transformers' class."""
    tower = model.get_vision_tower()
    text = {k: v for k, v in model.config.to_dict().items() if not k.startswith(("mm_", "image_"))}
    ratio = model.config.image_aspect_ratio
    pinpoints = read_pinpoints(model.config.image_grid_pinpoints, tower.input_size)
    vision = tower.vision_tower.config
    keys = {} if ratio == "anyres" else {"vision_aspect_ratio": ratio}
    config = kind.config_class(
        text_config=hf.Qwen2Config(**{**text, "model_type": "qwen2"}), vision_config=vision,
        vision_feature_layer=layer, vision_feature_select_strategy=strategy,
        image_grid_pinpoints=[[h, w] for w, h in pinpoints], image_token_id=IMAGE_TOKEN,
        image_token_index=IMAGE_TOKEN, tie_word_embeddings=False, **keys,
    )  # fmt: skip
    found = kind(config).eval()
    weights = {}
    for key, value in model.state_dict().items():
        old, new = next(pair for pair in NAMES if key.startswith(pair[0]))
        weights[new + key.removeprefix(old)] = value
    missing = found.load_state_dict(weights, strict=False)
    assert not missing.unexpected_keys and all("head." in key for key in missing.missing_keys)
    return found


def logits_of_both(model, theirs, images, is_one_prompt=False):
    """Ours and theirs, for a prompt with all images."""
    processor = model.get_vision_tower().image_processor
    pixels = process_images(images, processor, model.config, is_one_prompt)
    sizes = [image.size for image in images]
    ids = [1, *(part for i in range(len(images)) for part in (-200, 3 + i)), 9, 10]
    embeds = model.prepare_inputs_labels_for_multimodal(
        torch.tensor([ids]), None, None, None, None, pixels, sizes
    )[4]
    ours = model(torch.tensor([ids]), images=pixels, image_sizes=sizes).logits
    settings = Tiling.of(model.config, 32, 16)
    their_ids = []
    for i in ids:
        size = sizes[their_ids.count(-1)] if not is_one_prompt else None
        their_ids += [IMAGE_TOKEN] * settings.num_positions(size) if i == -200 else [i]
    given = {} if not is_one_prompt else {"batch_num_images": torch.tensor([len(images)])}
    longest = max(len(tiles) for tiles in pixels)
    padded = torch.stack([F.pad(t, (0, 0, 0, 0, 0, 0, 0, longest - len(t))) for t in pixels])
    found = theirs(
        input_ids=torch.tensor([their_ids]), pixel_values=padded,
        image_sizes=torch.tensor([[h, w] for w, h in sizes]), **given,
    ).logits  # fmt: skip
    assert embeds.shape[1] == len(their_ids)
    return ours, found


@torch.no_grad()
def test_llava_onevision_equals_transformers(towers):
    model = llava_model(
        "llava_qwen", towers["siglip"], image_aspect_ratio="anyres_max_9",
        image_grid_pinpoints=RANGE,
    )  # fmt: skip
    assert model.get_vision_tower().deviation.num_cut_layers == 1
    theirs = transformers_model(model, hf.LlavaOnevisionForConditionalGeneration, -1, "full")
    for size in ((190, 130), (33, 31), (64, 64), (20, 180)):
        torch.testing.assert_close(
            *logits_of_both(model, theirs, [photograph(*size)]), atol=1e-5, rtol=1e-5
        )
    several = [photograph(190, 130), photograph(40, 90)]
    torch.testing.assert_close(
        *logits_of_both(model, theirs, several, is_one_prompt=True), atol=1e-5, rtol=1e-5
    )


@torch.no_grad()
def test_llava_next_equals_transformers(towers):
    model = llava_model(
        "llava_qwen", towers["clip"], image_aspect_ratio="anyres", image_grid_pinpoints=LIST
    )
    theirs = transformers_model(model, hf.LlavaNextForConditionalGeneration, -2, "default")
    for size in ((90, 60), (31, 33), (20, 90)):
        torch.testing.assert_close(
            *logits_of_both(model, theirs, [photograph(*size)]), atol=1e-5, rtol=1e-5
        )


def test_tiles_equal_those_of_transformers():
    """Pixel for pixel, and the squares of several images too."""
    ours = TOWERS["siglip"][1]()
    side = {"height": 32, "width": 32}
    pinpoints = [[h, w] for w, h in read_pinpoints(RANGE, 32)]
    theirs = hf.LlavaOnevisionImageProcessorPil(
        size=side, image_grid_pinpoints=pinpoints, image_mean=ours.image_mean,
        image_std=ours.image_std, resample=ours.resample,
    )  # fmt: skip
    settings = SimpleNamespace(image_aspect_ratio="anyres_max_9", image_grid_pinpoints=RANGE)
    images = [photograph(*size) for size in ((190, 130), (33, 31), (20, 180))]
    for image in images:
        (found,) = process_images([image], ours, settings)
        assert torch.equal(found, theirs(image, return_tensors="pt")["pixel_values"][0])
    found = process_images(images, ours, settings, is_one_prompt=True)
    assert torch.equal(found, theirs([images], return_tensors="pt")["pixel_values"])


def test_several_images_of_a_prompt_are_squares(towers):
    tower = build_vision_tower(SimpleNamespace(
        vision_tower=str(towers["siglip"]), mm_vision_select_layer=-2,
        mm_vision_select_feature="patch",
    ))  # fmt: skip
    processor = tower.image_processor
    config = SimpleNamespace(image_aspect_ratio="anyres", image_grid_pinpoints=RANGE)
    images = [photograph(50, 40), photograph(30, 60)]
    found = process_images(images, processor, config, is_one_prompt=True)
    grey = tuple(int(255 * mean) for mean in processor.image_mean)
    squares = [expand2square(image, grey) for image in images]
    expected = processor.preprocess(squares, return_tensors="pt")["pixel_values"]
    assert torch.equal(found, expected[:, None])
    (alone,) = process_images(images[:1], processor, config, is_one_prompt=True)
    assert torch.equal(alone, process_images(images, processor, config)[0]) and len(alone) == 5
