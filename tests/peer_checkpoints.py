"""Published checkpoints of other projects: their `config.json`, and the list of their weights.

Sizes and keys are facts, from the configurations and the code that their owners published. Where
those were not to be had, the size is that of the base model, and `unverified` says so. No weights
are here; `shapes` follows from the sizes, by the rule by which such files are written.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers as hf
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

GOLDEN = Path(__file__).parent / "golden" / "llava"

CLIP_336 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
SO400M_384 = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}
SIGLIP_256 = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 256,
    "patch_size": 16,
}
# Hub id: (kind, sizes)
TOWERS = {
    "openai/clip-vit-large-patch14-336": ("clip", CLIP_336),
    "google/siglip-so400m-patch14-384": ("siglip", SO400M_384),
    "google/siglip-base-patch16-256-multilingual": ("siglip", SIGLIP_256),
}
SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)
VICUNA_7B = dict(zip(SIZES, (32000, 4096, 11008, 32, 32, 32), strict=True))
VICUNA_13B = dict(zip(SIZES, (32000, 5120, 13824, 40, 40, 40), strict=True))
YI_34B = dict(zip(SIZES, (64000, 7168, 20480, 60, 56, 8), strict=True))
LLAMA_3_8B = dict(zip(SIZES, (128256, 4096, 14336, 32, 32, 8), strict=True))
QWEN2_HALF_B = dict(zip(SIZES, (151936, 896, 4864, 24, 14, 2), strict=True))
QWEN2_7B = dict(zip(SIZES, (152064, 3584, 18944, 28, 28, 4), strict=True))
QWEN25_1B = dict(zip(SIZES, (151936, 1536, 8960, 28, 12, 2), strict=True))
QWEN15_7B = dict(zip(SIZES, (151936, 4096, 11008, 32, 32, 32), strict=True))
QWEN15_72B = dict(zip(SIZES, (152064, 8192, 24576, 80, 64, 64), strict=True))
AYA_8B = dict(zip(SIZES, (256000, 4096, 14336, 32, 32, 8), strict=True))
MULTIMODAL = {
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
    "mm_use_im_start_end": False,
    "mm_use_im_patch_token": False,
    "use_mm_proj": True,
    "tokenizer_padding_side": "right",
    "freeze_mm_mlp_adapter": False,
    "tune_mm_mlp_adapter": False,
    "mm_projector_lr": None,
    "use_cache": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.40.0.dev0",
}
TILES = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
ANYRES = {
    "image_aspect_ratio": "anyres",
    "image_grid_pinpoints": TILES,
    "mm_patch_merge_type": "spatial_unpad",
}
PAD = {"image_aspect_ratio": "pad", "mm_patch_merge_type": "flat"}
QWEN = {
    "architectures": ["LlavaQwenForCausalLM"],
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "rope_scaling": None,
    "sliding_window": 131072,
    "max_window_layers": 28,
    "use_sliding_window": False,
    "max_position_embeddings": 32768,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "tokenizer_model_max_length": 32768,
    "mm_resampler_type": None,
    "mm_tunable_parts": "mm_vision_tower,mm_mlp_adapter,mm_language_model",
    "mm_vision_tower_lr": 2e-6,
    "mm_spatial_pool_stride": None,
    "image_crop_resolution": None,
    "image_split_resolution": None,
    "use_pos_skipping": False,
    "vision_tower_pretrained": None,
}
LLAMA = {
    "architectures": ["LlavaLlamaForCausalLM"],
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "max_position_embeddings": 4096,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tokenizer_model_max_length": 4096,
}
CLIP, SIGLIP, SIGLIP_BASE = TOWERS
TOWER_PREFIX = "model.vision_tower.vision_tower.vision_model."


@dataclass(frozen=True)
class Peer:
    """A published checkpoint.

    Attributes:
        config: Its `config.json`.
        class_name: Our class for it.
        template: Its conversation template.
        num_tokens: Positions of an image, or of one tile.
        billions: Parameters in all, its tower included.
        towers: Where the tower is: "inside" its files, "apart", or both where that is not known.
        unverified: What its owner's files did not show.
    """

    config: dict
    class_name: str
    template: str
    num_tokens: int
    billions: float
    towers: tuple[str, ...] = ("inside",)
    unverified: str = ""


def config_of(base, sizes, tower, **changes):
    hidden = TOWERS[tower][1]["hidden_size"]
    return {**MULTIMODAL, **base, **sizes, "mm_vision_tower": tower, "mm_hidden_size": hidden,
            "tie_word_embeddings": False, **changes}  # fmt: skip


UNSEEN = "its `config.json`; sizes are those of {}"
FROZEN = "whether its files hold the frozen tower"
ONEVISION = {
    "image_aspect_ratio": "anyres_max_9",
    "mm_patch_merge_type": "spatial_unpad",
    "mm_newline_position": "one_token",
}
RANGE = {"image_grid_pinpoints": "(1x1),...,(6x6)"}
PALO = {**LLAMA, "model_type": "palo", "architectures": ["PaloForCausalLM"], **PAD}
PEERS = {
    "Pangea-7B": Peer(
        config_of(QWEN, QWEN2_7B, CLIP, model_type="qwen2", mm_newline_position="grid",
                  mm_spatial_pool_mode="bilinear", add_faster_video=False, faster_token_stride=10,
                  **ANYRES),
        "LlavaQwenForCausalLM", "qwen_1_5", 576, 7.94,
        unverified="`vocab_size` and tower in its `config.json`; its base's and script's are taken",
    ),
    "PALO-7B": Peer(
        config_of(PALO, VICUNA_7B, CLIP),
        "LlavaLlamaForCausalLM", "v1", 576, 7.06, ("inside", "apart"),
        f"{UNSEEN.format('Vicuna-7B')}; {FROZEN}",
    ),
    "PALO-13B": Peer(
        config_of(PALO, VICUNA_13B, CLIP),
        "LlavaLlamaForCausalLM", "v1", 576, 13.35, ("inside", "apart"),
        f"{UNSEEN.format('Vicuna-13B')}; {FROZEN}",
    ),
    "Maya-8B": Peer(
        config_of(
            {}, AYA_8B, SIGLIP_BASE, model_type="llava_cohere",
            architectures=["LlavaCohereForCausalLM"], hidden_act="silu", layer_norm_eps=1e-5,
            logit_scale=0.0625, rope_theta=10000, use_qk_norm=False, attention_bias=False,
            max_position_embeddings=8192, bos_token_id=5, eos_token_id=255001, pad_token_id=0,
            tokenizer_model_max_length=2048, tie_word_embeddings=True, **PAD,
        ),
        "LlavaCohereForCausalLM", "aya", 255, 8.14, ("inside", "apart"),
        f"{UNSEEN.format('aya-23-8B')}; {FROZEN}",
    ),
    "LLaVA-1.6-34B": Peer(
        config_of(
            LLAMA, YI_34B, CLIP, model_type="llava", rope_theta=5000000.0, eos_token_id=7,
            unfreeze_mm_vision_tower=True, mm_vision_tower_lr=2e-6, image_crop_resolution=224,
            image_split_resolution=224, mm_resampler_type=None, **ANYRES,
        ),
        "LlavaLlamaForCausalLM", "chatml_direct", 576, 34.75,
    ),
    "LLaVA-NeXT-Llama3-8B": Peer(
        config_of(
            LLAMA, LLAMA_3_8B, CLIP, model_type="llava_llama", rope_theta=500000.0,
            bos_token_id=128000, eos_token_id=128001, unfreeze_mm_vision_tower=True,
            max_position_embeddings=8192, tokenizer_model_max_length=8192, **ANYRES,
        ),
        "LlavaLlamaForCausalLM", "llava_llama_3", 576, 8.35,
        unverified=UNSEEN.format("Llama-3-8B-Instruct"),
    ),
    "LLaVA-NeXT-72B": Peer(
        config_of(QWEN, QWEN15_72B, CLIP, model_type="llava_qwen", **ANYRES),
        "LlavaQwenForCausalLM", "qwen_1_5", 576, 72.66,
        unverified=UNSEEN.format("Qwen1.5-72B-Chat"),
    ),
    "LLaVA-OneVision-0.5B": Peer(
        config_of(QWEN, QWEN2_HALF_B, SIGLIP, model_type="llava_qwen", tie_word_embeddings=True,
                  **ONEVISION, **RANGE),
        "LlavaQwenForCausalLM", "qwen_1_5", 729, 0.89,
        unverified=UNSEEN.format("Qwen2-0.5B-Instruct"),
    ),
    # a list of all grids, as trainings from it have it
    "LLaVA-OneVision-7B": Peer(
        config_of(
            QWEN, QWEN2_7B, SIGLIP, model_type="llava_qwen", **ONEVISION,
            image_grid_pinpoints=[[384 * i, 384 * j] for i in range(1, 7) for j in range(1, 7)],
        ),
        "LlavaQwenForCausalLM", "qwen_1_5", 729, 8.03,
        unverified=UNSEEN.format("Qwen2-7B-Instruct"),
    ),
    "Aquila-VL-2B": Peer(
        config_of(QWEN, QWEN25_1B, SIGLIP, model_type="qwen2", tie_word_embeddings=True,
                  **ONEVISION, **RANGE),
        "LlavaQwenForCausalLM", "qwen_1_5", 729, 1.95,
        unverified=UNSEEN.format("Qwen2.5-1.5B-Instruct") + "; its system text",
    ),
    # the Hub's copy of its config.json was given this type
    "LLaVA-Video-7B (images)": Peer(
        config_of(QWEN, QWEN2_7B, SIGLIP, model_type="llava", **ONEVISION, **RANGE),
        "LlavaQwenForCausalLM", "qwen_1_5", 729, 8.03,
        unverified=UNSEEN.format("Qwen2-7B-Instruct"),
    ),
    "LLaVA-NeXT-Interleave-7B": Peer(
        config_of(QWEN, QWEN15_7B, SIGLIP, model_type="llava_qwen", **PAD,
                  mm_newline_position="grid"),
        "LlavaQwenForCausalLM", "qwen_1_5", 729, 8.14,
        unverified=UNSEEN.format("Qwen1.5-7B-Chat"),
    ),
}  # fmt: skip


def shapes(config, tower="inside", tower_sizes=None):
    """Name to shape of every weight in the files of a checkpoint."""
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    found = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = (vocab, hidden)
    for i in range(config["num_hidden_layers"]):
        found |= {f"model.layers.{i}.{name}": shape for name, shape in layer_of(config).items()}
    if tower == "inside":
        found |= tower_of(config, tower_sizes)
    found |= {
        "model.mm_projector.0.weight": (hidden, config["mm_hidden_size"]),
        "model.mm_projector.0.bias": (hidden,),
        "model.mm_projector.2.weight": (hidden, hidden),
        "model.mm_projector.2.bias": (hidden,),
    }
    if "unpad" in config["mm_patch_merge_type"]:
        found["model.image_newline"] = (hidden,)
    return found


def layer_of(config):
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    key_value = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    is_cohere = config["model_type"] == "llava_cohere"  # attention and MLP beside each other
    has_bias = config["architectures"] == ["LlavaQwenForCausalLM"]
    projections = {"q_proj": hidden, "k_proj": key_value, "v_proj": key_value}
    layer = {f"self_attn.{name}.weight": (size, hidden) for name, size in projections.items()}
    if has_bias:
        layer |= {f"self_attn.{name}.bias": (size,) for name, size in projections.items()}
    layer |= {
        "self_attn.o_proj.weight": (hidden, hidden),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
        "input_layernorm.weight": (hidden,),
    }
    return layer if is_cohere else {**layer, "post_attention_layernorm.weight": (hidden,)}


def tower_of(config, sizes=None):
    """Weights of the tower as this checkpoint holds them."""
    kind, published = TOWERS[config["mm_vision_tower"]]
    is_cut = kind == "siglip" and config["architectures"] == ["LlavaQwenForCausalLM"]
    found = tower_shapes(kind, sizes or published, is_cut)
    return {TOWER_PREFIX + name: shape for name, shape in found.items()}


def tower_shapes(kind, sizes, is_cut=False):
    """Weights of a tower; LLaVA-NeXT's SigLIP lacks its last layer and its head."""
    width, inner, patch = sizes["hidden_size"], sizes["intermediate_size"], sizes["patch_size"]
    num_patches = (sizes["image_size"] // patch) ** 2
    found = {
        "embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "embeddings.position_embedding.weight": (num_patches + (kind == "clip"), width),
    }
    norms = ["post_layernorm"]
    if kind == "clip":
        found["embeddings.class_embedding"] = (width,)
        norms.append("pre_layrnorm")
    else:
        found["embeddings.patch_embedding.bias"] = (width,)
    matrices = {}
    for i in range(sizes["num_hidden_layers"] - is_cut):
        layer = f"encoder.layers.{i}"
        norms += [f"{layer}.layer_norm1", f"{layer}.layer_norm2"]
        matrices |= {f"{layer}.self_attn.{x}_proj": (width, width) for x in ("k", "v", "q", "out")}
        matrices |= {f"{layer}.mlp.fc1": (inner, width), f"{layer}.mlp.fc2": (width, inner)}
    if kind == "siglip" and not is_cut:
        norms.append("head.layernorm")
        found |= {
            "head.probe": (1, 1, width),
            "head.attention.in_proj_weight": (3 * width, width),
            "head.attention.in_proj_bias": (3 * width,),
        }
        matrices |= {
            "head.attention.out_proj": (width, width),
            "head.mlp.fc1": (inner, width),
            "head.mlp.fc2": (width, inner),
        }
    for name, shape in matrices.items():
        found |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return found | {f"{norm}.{part}": (width,) for norm in norms for part in ("weight", "bias")}


def write_tower_config(root: Path, name: str, **changes) -> None:
    """Writes a tower's settings where a `config.json` finds it by its Hub id, from `root`."""
    kind, sizes = TOWERS[name]
    sizes = {**sizes, **changes}
    square = {"height": sizes["image_size"], "width": sizes["image_size"]}
    if kind == "clip":
        config = hf.CLIPVisionConfig(**sizes)
        short = {"shortest_edge": sizes["image_size"]}
        processor = hf.CLIPImageProcessorPil(size=short, crop_size=square)
    else:
        config = hf.SiglipVisionConfig(**sizes)
        processor = hf.SiglipImageProcessorPil(
            size=square, image_mean=[0.5] * 3, image_std=[0.5] * 3, resample=3
        )
    config.save_pretrained(root / name)
    settings = {
        **processor.to_dict(),
        "image_processor_type": type(processor).__name__.removesuffix("Pil"),
    }
    (root / name / "preprocessor_config.json").write_text(json.dumps(settings))


TINY_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
WORDS = ("Is there a cat?", "Vidi li se pas na slici?", "What is number", "Nalazi li se")
# of each language model: class of its tokenizer, special tokens, and settings
TOKENIZERS = {
    "LlavaQwenForCausalLM": (
        "Qwen2Tokenizer", ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    ),
    # its training wrote the text "null" for a missing token
    "LlavaCohereForCausalLM": (
        "CohereTokenizerFast", ("<PAD>", "<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>"),
        {"bos_token": "<BOS_TOKEN>", "eos_token": "<|END_OF_TURN_TOKEN|>", "pad_token": "<PAD>",
         "unk_token": "null"},
    ),
}  # fmt: skip


def tiny(name):
    """Returns the `config.json` of a checkpoint with small sizes; all else is as published."""
    config = PEERS[name].config
    heads = 4 if config["num_key_value_heads"] == config["num_attention_heads"] else 2
    sizes = dict(zip(SIZES, (512, 32, 64, 2, 4, heads), strict=True))
    if config["architectures"][0] not in TOKENIZERS:
        sizes["vocab_size"] = 2002
    tiles = {"image_grid_pinpoints": [[32, 64], [64, 32], [64, 64]]}
    tiles = tiles if isinstance(config.get("image_grid_pinpoints"), list) else {}
    return {**config, **sizes, **tiles, "mm_hidden_size": 32, "torch_dtype": "float32"}


def write_peer(root: Path, folder: Path, name: str, extra: dict | None = None) -> dict:
    """Writes a tiny checkpoint with random weights and exactly the published keys.

    Args:
        root: Where its tower's folder goes, under its Hub id.
        folder: The checkpoint's.
        name: Of `PEERS`.
        extra: Further weights.

    Returns:
        Its weights and those of its tower, by the names in the checkpoint.
    """
    config, where = tiny(name), PEERS[name].towers[-1]
    generator = torch.Generator().manual_seed(0)

    def random(listed):
        found = {}
        for key, shape in listed.items():
            found[key] = torch.randn(shape, generator=generator) * 0.2
            if key.endswith("norm.weight") or "layer_norm" in key and "weight" in key:
                found[key] += 1
        return found

    folder.mkdir(parents=True)
    weights = random(shapes(config, where, TINY_TOWER))
    save_file({**weights, **(extra or {})}, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder, config["architectures"][0], is_yi=name == "LLaVA-1.6-34B")
    tower = config["mm_vision_tower"]
    write_tower_config(root, tower, **TINY_TOWER)
    if where == "apart":
        apart = random(tower_of(config, TINY_TOWER))
        kept = {key.replace(TOWER_PREFIX, "vision_model."): value for key, value in apart.items()}
        save_file(kept, root / tower / "model.safetensors", {"format": "pt"})
        weights |= apart
    return weights


def byte_tokenizer(special):
    """Bytes, a few merges, and special tokens."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[*special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(WORDS, trainer)
    return hf.PreTrainedTokenizerFast(tokenizer_object=inner)


def write_tokenizer(folder: Path, architecture: str, is_yi: bool) -> None:
    if architecture not in TOKENIZERS:
        # of Yi's ChatML; loaded from tokenizer.model, as the slow tokenizers were
        shutil.copy(GOLDEN / "tokenizer.model", folder)
        tokens = {"2000": "<|im_start|>", "2001": "<|im_end|>"}
        decoder = {key: {"content": text, "special": True} for key, text in tokens.items()}
        settings = {
            "tokenizer_class": "LlamaTokenizer",
            "legacy": True,
            "add_bos_token": not is_yi,
            "eos_token": "<|im_end|>" if is_yi else "</s>",
            "added_tokens_decoder": decoder,
        }
    else:
        kind, special, settings = TOKENIZERS[architecture]
        byte_tokenizer(special).save_pretrained(folder)
        settings = {"tokenizer_class": kind, "model_max_length": 2048, **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
