"""Vision towers of each family, on tiny random models made on the spot."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from tiny_towers import SIZES, TOWERS, photograph, write_tower

from llava.errors import CheckpointError, ConfigError
from llava.images import shape_image
from llava.mm_utils import process_images
from llava.model import LlavaConfig, LlavaLlamaForCausalLM
from llava.model.multimodal_encoder.builder import build_vision_tower
from llava.model.multimodal_encoder.families import NUM_TOKENS_KEY
from llava.model.tiles import keeps_bytes, preprocess_bytes
from llava.train.build import tower_layers


def arguments(tower, **changes):
    base = {"vision_tower": str(tower), "mm_vision_select_layer": -2,
            "mm_vision_select_feature": "patch"}  # fmt: skip
    return SimpleNamespace(**{**base, **changes})


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("towers")
    return {name: write_tower(root / name, name) for name in TOWERS}


def vision_model(folder):
    """The model as transformers itself loads it."""
    config = hf.AutoConfig.from_pretrained(folder)
    config = getattr(config, "vision_config", None) or config
    kind = getattr(hf, type(config).__name__.removesuffix("Config") + "Model")
    return kind.from_pretrained(folder, config=config).eval()


@pytest.mark.parametrize("name", TOWERS)
def test_sizes(folders, name):
    for feature, count in zip(("patch", "cls_patch"), TOWERS[name][-2:], strict=True):
        args = arguments(folders[name], mm_vision_select_feature=feature)
        tower = build_vision_tower(args, delay_load=True)
        assert not tower.is_loaded and tower.num_image_tokens == count
        assert (tower.num_patches_per_side, tower.hidden_size) == (4, 32)
        tower.load_model()
        assert tower.is_frozen and tower(tower.dummy_image[None]).shape == (1, count, 32)
        assert tower.image_processor.num_image_tokens == count


@pytest.mark.parametrize("name", TOWERS)
def test_features_are_the_hidden_states_of_transformers(folders, name):
    side = 36 if name == "siglip2" else 32
    images = torch.randn(2, 3, side, side)
    states = vision_model(folders[name])(pixel_values=images, output_hidden_states=True)
    assert len(states.hidden_states) == 4
    tower = build_vision_tower(arguments(folders[name]))
    num_before = states.hidden_states[0].shape[1] - 16
    # the last state of a ViT is after its norm in transformers, before it here
    for layer in (0, 1, 2, -4, -2) if name == "vit" else (0, 1, 2, 3, -4, -2, -1):
        tower.select_layer = layer
        assert torch.equal(tower(images), states.hidden_states[layer][:, num_before:])
    tower.select_layer, tower.select_feature = -2, "cls_patch"
    expected = states.hidden_states[-2]
    if num_before == 5:  # four registers
        expected = torch.cat([expected[:, :1], expected[:, 5:]], dim=1)
    assert torch.equal(tower(images), expected)


@pytest.mark.parametrize("name", TOWERS)
def test_the_image_processor_is_the_models_own(folders, name):
    processor = build_vision_tower(arguments(folders[name])).image_processor
    own = TOWERS[name][1]()
    image = photograph()
    expected = own.preprocess(image, return_tensors="pt")["pixel_values"]
    assert torch.equal(process_images([image], processor, SimpleNamespace()), expected)
    assert (list(processor.image_mean), list(processor.image_std)) == (
        list(own.image_mean), list(own.image_std),
    )  # fmt: skip


@pytest.mark.parametrize("name", [*TOWERS, "siglip+dinov2"])
def test_a_batch_is_as_one_at_a_time_and_bytes_as_floats(folders, name):
    tower = build_vision_tower(arguments("+".join(str(folders[n]) for n in name.split("+"))))
    images = [photograph(), photograph(40, 70)]
    pixels = process_images(
        images, tower.image_processor, SimpleNamespace(image_aspect_ratio="pad")
    )
    alone = torch.cat(tower(list(pixels)))
    torch.testing.assert_close(tower(pixels), alone, atol=1e-5, rtol=1e-5)
    assert keeps_bytes(tower.image_processor)
    squares = [shape_image(image, tower.image_processor, "pad") for image in images]
    as_bytes = torch.stack([preprocess_bytes(i, tower.image_processor) for i in squares])
    assert torch.equal(tower(as_bytes), tower(pixels))


def llava(**changes):
    torch.manual_seed(0)
    config = LlavaConfig(vocab_size=50, hidden_size=24, intermediate_size=32, num_hidden_layers=1,
                         num_attention_heads=2, mm_use_im_patch_token=False, **changes)  # fmt: skip
    return LlavaLlamaForCausalLM(config).eval()


def with_tower(args):
    model = llava()
    model.get_model().initialize_vision_modules(args)
    return model


def training(tower, **changes):
    rest = {"mm_projector_type": "linear", "mm_patch_merge_type": "flat",
            "pretrain_mm_mlp_adapter": None, "s2": False}  # fmt: skip
    return arguments(tower, **{**rest, **changes})


IDS = torch.tensor([[1, -200, 3]])


@pytest.mark.parametrize("name", [*TOWERS, "siglip+dinov3"])
def test_a_checkpoint_carries_its_tower(folders, name, tmp_path):
    model = with_tower(training("+".join(str(folders[part]) for part in name.split("+"))))
    tower = model.get_vision_tower()
    with torch.no_grad():  # as a training of the tower would
        for parameter in tower.parameters():
            parameter.add_(0.01)
    pixels = process_images([photograph()], tower.image_processor, SimpleNamespace())
    output = model(IDS, labels=IDS, images=pixels)
    assert output.logits.shape[1] == 2 + tower.num_image_tokens
    assert getattr(model.config, NUM_TOKENS_KEY, None) == (None if name == "clip" else 16)
    model.save_pretrained(tmp_path)
    stem = "model.vision_tower.vision_tower."
    keys = [key for key in load_file(tmp_path / "model.safetensors") if key.startswith(stem)]
    has_level = {key.startswith(stem + "vision_model.") for key in keys}
    assert has_level == ({name in ("clip", "siglip", "siglip2")} if "+" not in name else set())
    again = LlavaLlamaForCausalLM.from_pretrained(tmp_path)
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    torch.testing.assert_close(again(IDS, labels=IDS, images=pixels).loss, output.loss)
    if name != "clip":
        again.config.update({NUM_TOKENS_KEY: 15})
        with pytest.raises(ConfigError, match="gives 16 tokens an image.*trained with 15"):
            build_vision_tower(again.config, delay_load=True)


def test_two_towers_see_each_their_own_image(folders):
    names = ("siglip2", "dinov2")  # 36 and 32 pixels
    both = build_vision_tower(arguments("+".join(str(folders[name]) for name in names)))
    image = photograph()
    pixels = process_images([image], both.image_processor, SimpleNamespace())
    assert pixels.shape == (1, 6, 36, 36) and both.dummy_image.shape == (6, 36, 36)
    apart = []
    for name in names:
        tower = build_vision_tower(arguments(folders[name]))
        apart.append(tower(process_images([image], tower.image_processor, SimpleNamespace())))
    assert torch.equal(both(pixels), torch.cat(apart, dim=-1)) and both.hidden_size == 64
    # bytes would fill the smaller image up with black, floats with grey
    assert not keeps_bytes(both.image_processor)
    assert "+" in both.vision_tower_name and both.num_image_tokens == 16


@pytest.mark.parametrize("name", ["siglip", "dinov2", "dinov3", "vit"])
def test_several_scales(folders, name):
    args = arguments(folders[name], s2=True, s2_scales="32,64")
    tower, plain = build_vision_tower(args), build_vision_tower(arguments(folders[name]))
    pixels = process_images([photograph()], tower.image_processor, SimpleNamespace())
    assert pixels.shape == (1, 3, 64, 64) and tower.hidden_size == 64
    found = tower(pixels)
    corner = plain(pixels[..., :32, :32]).unflatten(1, (2, 2, 2, 2)).mean(dim=(2, 4))
    torch.testing.assert_close(found.unflatten(1, (4, 4))[:, :2, :2, 32:], corner)


def test_tiles_lose_no_margin_to_the_centre_crop(folders):
    processor = build_vision_tower(arguments(folders["dinov2"])).image_processor
    tile = photograph(32, 32)
    settings = SimpleNamespace(image_aspect_ratio="anyres", image_grid_pinpoints=[[32, 32]])
    (found,) = process_images([tile], processor, settings)
    whole = processor.preprocess(tile, do_resize=False, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(found[0], whole) and torch.equal(found[1], whole)


MAYA = {"model_type": "llava_cohere", "architectures": ["LlavaCohereForCausalLM"]}
NEXT = {"model_type": "qwen2", "architectures": ["LlavaQwenForCausalLM"]}


def test_published_checkpoints_keep_their_deviations(folders):
    folder = folders["siglip"]
    images = torch.randn(1, 3, 32, 32)
    states = vision_model(folder)(pixel_values=images, output_hidden_states=True).hidden_states
    maya = build_vision_tower(arguments(folder, **MAYA))
    assert torch.equal(maya(images), states[-2][:, 1:]) and maya.num_image_tokens == 15
    # whatever layer its configuration names, the last of a tower that lacks one
    next_ = build_vision_tower(arguments(folder, mm_vision_select_layer=-1, **NEXT))
    assert torch.equal(next_(images), states[-2]) and next_.num_image_tokens == 16
    keys = next_.state_dict()
    assert not any("layers.2." in key or "head" in key for key in keys)
    assert any("layers.1." in key for key in keys) and any("post_layernorm" in key for key in keys)
    parrot = build_vision_tower(
        arguments(folders["clip"], mm_vision_select_feature="cls_patch", model_type="parrot_qwen2")
    )
    assert parrot.num_image_tokens == 17


def test_a_published_checkpoint_without_the_last_layer_loads(folders, tmp_path):
    """As LLaVA-OneVision is written: the tower inside, one layer and its head short."""
    model = with_tower(training(folders["siglip"]))
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    gone = ("vision_model.encoder.layers.2.", "vision_model.head.")
    save_file(
        {key: value for key, value in weights.items() if not any(part in key for part in gone)},
        tmp_path / "model.safetensors", {"format": "pt"},
    )  # fmt: skip
    config = json.loads((tmp_path / "config.json").read_text())
    del config[NUM_TOKENS_KEY]
    config["architectures"] = ["LlavaQwenForCausalLM"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    again = LlavaLlamaForCausalLM.from_pretrained(tmp_path)
    images = torch.randn(1, 3, 32, 32)
    states = vision_model(folders["siglip"])(pixel_values=images, output_hidden_states=True)
    assert torch.equal(again.get_vision_tower()(images), states.hidden_states[-2])
    # a training goes on with it, and its checkpoint still says that it deviates
    again.get_model().initialize_vision_modules(training(folders["siglip"]))
    assert torch.equal(again.get_vision_tower()(images), states.hidden_states[-2])
    assert getattr(again.config, NUM_TOKENS_KEY, None) is None


def test_what_the_features_come_from_is_tuned(folders):
    """Of three layers the first two, also where a published checkpoint lacks the third."""
    for changes in ({}, NEXT):
        tower = build_vision_tower(arguments(folders["siglip"], **changes))
        assert tower_layers(tower)[2] == range(2)
        assert tower_layers(tower, last_layers=1)[2] == range(1, 2)


def test_nothing_new_deviates(folders):
    for changes in (MAYA, NEXT):
        new = build_vision_tower(arguments(folders["siglip"], **changes, **{NUM_TOKENS_KEY: 16}))
        assert new.deviation is None and new.num_image_tokens == 16
        # another kind of tower
        assert build_vision_tower(arguments(folders["clip"], **changes)).deviation is None


@pytest.mark.parametrize(
    ("names", "changes", "message"),
    [
        ("siglip", {"mm_vision_select_layer": 4}, "4 hidden states, choose from -4 to 3"),
        ("siglip", {"mm_vision_select_feature": "cls"}, "Choices: patch, cls_patch"),
        ("siglip", {"s2": True, "s2_scales": "48,96"}, "32 pixels: give --s2_scales 32,64,96"),
        ("siglip+clip", {"mm_vision_select_feature": "cls_patch"}, "clip: 17 tokens.*crop_size"),
        ("siglip+clip", {"s2": True, "s2_scales": "32,64"}, "images of one tower"),
        ("nowhere", {}, "(?s)Unknown vision tower: .*SigLIP.*DINOv3"),
    ],
)
def test_settings_that_do_not_fit(folders, names, changes, message):
    places = [str(folders.get(name, name)) for name in names.split("+")]
    with pytest.raises(ConfigError, match="(?s)" + message.removeprefix("(?s)")):
        build_vision_tower(arguments("+".join(places), **changes), delay_load=True)


RESNET = (
    "(?s)a 'resnet' model has no num_hidden_layers, so it has no hidden states.*towers that work"
)


def convnext():
    return hf.ConvNextConfig(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], image_size=32)


def swin():
    return hf.SwinConfig(embed_dim=8, depths=[1, 1], num_heads=[1, 1], image_size=32, window_size=2)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: hf.ViTMAEConfig(**SIZES), "(?s)shape .1, 5, 32.*expected .1, 16 patches"),
        (convnext, "(?s)hidden states.*have the shape.*towers that work"),
        (swin, "(?s)hidden states.*towers that work"),
        (lambda: hf.Siglip2VisionConfig(**SIZES), "name a fixed size of SigLIP 2"),
        (lambda: hf.BertConfig(), "(?s)cannot encode images.*towers that work: CLIP"),
        (hf.EfficientNetConfig, "EfficientNetModel has no list of .* so it has no hidden states"),
        (hf.ResNetConfig, RESNET),
    ],
)
def test_models_that_are_no_towers(tmp_path, folders, config, message):
    config().save_pretrained(tmp_path)
    shutil.copy(folders["vit"] / "preprocessor_config.json", tmp_path)
    with pytest.raises(ConfigError, match=message):
        build_vision_tower(arguments(tmp_path), delay_load=True)


def test_what_a_tower_lacks_is_said_before_its_processor_is_asked_for(tmp_path):
    hf.ResNetConfig().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=RESNET):
        build_vision_tower(arguments(tmp_path), delay_load=True)


def test_files_that_are_wrong(tmp_path, folders):
    folder = shutil.copytree(folders["siglip"], tmp_path / "tower")
    processor = folder / "preprocessor_config.json"
    settings = json.loads(processor.read_text())
    for size, message in (
        ({"height": 64, "width": 64}, "takes images of 32 pixels, but .* makes them 64"),
        ({"shortest_edge": 32}, "needs squares of one size"),
    ):
        processor.write_text(json.dumps({**settings, "size": size}))
        with pytest.raises(ConfigError, match=message):
            build_vision_tower(arguments(folder))
    processor.write_text(json.dumps({**settings, "image_processor_type": "NewImageProcessor"}))
    with pytest.raises(ConfigError, match="no NewImageProcessorPil, and only Pillow"):
        build_vision_tower(arguments(folder))
    processor.unlink()
    with pytest.raises(CheckpointError, match="no image_processor_type.*copy the file"):
        build_vision_tower(arguments(folder))
    (folder / "config.json").write_text('{"model_type": "eye_of_newt"}')
    with pytest.raises(CheckpointError, match=r"(?s)eye_of_newt.*towers that work: CLIP"):
        build_vision_tower(arguments(folder))
