"""The released checkpoints' weights fit our models, name by name and shape by shape.

Nothing is downloaded: the lists follow from the sizes in their `config.json`, in the spelling of
the files, and the models are built without memory (meta device).
"""

import json

import pytest
import torch
from transformers import CLIPVisionConfig

from llava.model import (
    LlavaConfig,
    LlavaLlamaForCausalLM,
    LlavaMistralConfig,
    LlavaMistralForCausalLM,
)
from llava.model.checkpoint import with_old_level

TOWER = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
         "num_attention_heads": 16, "image_size": 336, "patch_size": 14}  # fmt: skip
SHARED = {
    "mm_hidden_size": 1024,
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
    "mm_use_im_start_end": False,
    "mm_use_im_patch_token": False,
    "vocab_size": 32000,
}
MODELS = {
    "llava-v1.5-7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "image_aspect_ratio": "pad",
    },
    "llava-v1.5-13b": {
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "num_key_value_heads": 40,
        "image_aspect_ratio": "pad",
    },
    "llava-v1.6-mistral-7b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "image_aspect_ratio": "anyres",
        "mm_patch_merge_type": "spatial_unpad",
        "unfreeze_mm_vision_tower": True,
        "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
    },
}
# parameters in all, as published to three digits: language model, projector, CLIP ViT-L/14-336
BILLIONS = {"llava-v1.5-7b": 7.06, "llava-v1.5-13b": 13.35, "llava-v1.6-mistral-7b": 7.57}


def language_model(hidden, intermediate, num_layers, num_heads, num_kv_heads):
    key_value = hidden // num_heads * num_kv_heads
    shapes = {
        "model.embed_tokens.weight": (32000, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (32000, hidden),
    }
    layer = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (key_value, hidden),
        "self_attn.v_proj": (key_value, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (intermediate, hidden),
        "mlp.up_proj": (intermediate, hidden),
        "mlp.down_proj": (hidden, intermediate),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    for i in range(num_layers):
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    return shapes


def tower(prefix):
    width, inner = TOWER["hidden_size"], TOWER["intermediate_size"]
    num_positions = (TOWER["image_size"] // TOWER["patch_size"]) ** 2 + 1
    shapes = {
        "embeddings.class_embedding": (width,),
        "embeddings.patch_embedding.weight": (width, 3, 14, 14),
        "embeddings.position_embedding.weight": (num_positions, width),
    }
    norms = ["pre_layrnorm", "post_layernorm"]
    for i in range(TOWER["num_hidden_layers"]):
        layer = f"encoder.layers.{i}"
        norms += [f"{layer}.layer_norm1", f"{layer}.layer_norm2"]
        matrices = {f"self_attn.{x}_proj": (width, width) for x in ("k", "v", "q", "out")}
        matrices |= {"mlp.fc1": (inner, width), "mlp.fc2": (width, inner)}
        for name, shape in matrices.items():
            shapes |= {f"{layer}.{name}.weight": shape, f"{layer}.{name}.bias": shape[:1]}
    shapes |= {f"{norm}.{part}": (width,) for norm in norms for part in ("weight", "bias")}
    return {prefix + name: shape for name, shape in shapes.items()}


def released(name, tower_prefix):
    """Name to shape of every weight in the files."""
    sizes = MODELS[name]
    hidden = sizes["hidden_size"]
    shapes = language_model(
        hidden, sizes["intermediate_size"], sizes["num_hidden_layers"],
        sizes["num_attention_heads"], sizes["num_key_value_heads"],
    )  # fmt: skip
    shapes |= tower(tower_prefix)
    shapes |= {
        "model.mm_projector.0.weight": (hidden, 1024),
        "model.mm_projector.0.bias": (hidden,),
        "model.mm_projector.2.weight": (hidden, hidden),
        "model.mm_projector.2.bias": (hidden,),
    }
    if "unpad" in sizes.get("mm_patch_merge_type", ""):
        shapes["model.image_newline"] = (hidden,)
    return shapes


@pytest.fixture(scope="module")
def clip(tmp_path_factory, golden_dir):
    """CLIP ViT-L/14-336 without its weights."""
    folder = tmp_path_factory.mktemp("towers") / "clip-vit-large-patch14-336"
    CLIPVisionConfig(**TOWER).save_pretrained(folder)
    processor = golden_dir / "llava" / "model" / "tiny-clip" / "preprocessor_config.json"
    content = json.loads(processor.read_text())
    content.update(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    (folder / "preprocessor_config.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def build(clip):
    built = {}

    def build(name):
        if name not in built:
            mistral = "mistral" in name
            config = (LlavaMistralConfig if mistral else LlavaConfig)(
                **SHARED, **MODELS[name], mm_vision_tower=str(clip)
            )
            model_class = LlavaMistralForCausalLM if mistral else LlavaLlamaForCausalLM
            with torch.device("meta"):
                built[name] = model_class(config, materialize_tower=True)
        return built[name]

    return build


def on_meta(shapes):
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


PREFIX = "model.vision_tower.vision_tower."


@pytest.mark.parametrize("old", [True, False], ids=["old spelling", "new spelling"])
@pytest.mark.parametrize("name", MODELS)
def test_every_weight_has_its_place(name, old, build):
    shapes = released(name, PREFIX + ("vision_model." if old else ""))
    model = build(name)
    result = model.load_state_dict(on_meta(shapes), assign=True)  # strict: also checks shapes
    assert not result.missing_keys and not result.unexpected_keys
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(
        BILLIONS[name], abs=5e-3
    )
    written = {key: tuple(value.shape) for key, value in with_old_level(model.state_dict()).items()}
    assert written == released(name, PREFIX + "vision_model.")


@pytest.mark.parametrize("name", MODELS)
def test_a_gap_or_a_stranger_is_noticed(name, build):
    shapes = released(name, PREFIX + "vision_model.")
    del shapes["model.mm_projector.2.bias"]
    shapes["model.vision_resampler.weight"] = (1,)
    result = build(name).load_state_dict(on_meta(shapes), strict=False, assign=True)
    assert result.missing_keys == ["model.mm_projector.2.bias"]
    assert result.unexpected_keys == ["model.vision_resampler.weight"]


@pytest.mark.parametrize("name", MODELS)
def test_towers_read_on_their_own(name, clip):
    """v1.5's files leave the tower to its own folder; the model is then built without it."""
    mistral = "mistral" in name
    sizes = {**SHARED, **MODELS[name], "unfreeze_mm_vision_tower": False}
    config = (LlavaMistralConfig if mistral else LlavaConfig)(**sizes, mm_vision_tower=str(clip))
    with torch.device("meta"):
        model = (LlavaMistralForCausalLM if mistral else LlavaLlamaForCausalLM)(config)
    shapes = {k: s for k, s in released(name, PREFIX).items() if not k.startswith(PREFIX)}
    assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == shapes
    assert model.get_vision_tower().num_patches == 576
