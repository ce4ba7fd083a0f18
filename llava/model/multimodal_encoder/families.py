"""Finds a vision tower by name, and lists what differs from one kind to another.

In: `mm_vision_tower` (or `vision_tower`) of a configuration: a folder or a Hub id, or two of them
joined by `+`; the content of a tower's `config.json`. Out: the tower's folder, its `TowerFamily`
and sizes, and the `Deviation` of a published checkpoint whose code treats its tower in a way of its
own; published checkpoints with parts that are not here are refused. A relative folder may lie
beside the checkpoint, so that a checkpoint and its tower can be moved together. No weights are read
and torch is not imported, so that `lrm plan` uses the same table as training.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

from llava.errors import ConfigError

REPOSITORY_ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class TowerFamily:
    """What differs from one kind of vision tower to another.

    Attributes:
        name: Its name in documents and messages.
        model_types: `model_type` of a whole model and of its vision part.
        example: A published checkpoint.
        num_class_tokens: Positions before the patches that stand for the whole image.
        registers_key: Key of `config.json` with the number of register tokens, which lie between
            class token and patches.
        any_size: Positions are rotary or are interpolated, so that the image processor decides the
            size of an image, not `image_size`.
        old_level: Level that the keys of published weights have and current transformers' have not.
        processor: Image processor with a Pillow backend; by default the one that the checkpoint
            names.
    """

    name: str
    model_types: tuple[str, ...]
    example: str = ""
    num_class_tokens: int = 0
    registers_key: str = ""
    any_size: bool = False
    old_level: str = ""
    processor: str = ""

    def num_registers(self, config: Mapping[str, Any]) -> int:
        """Returns the number of register tokens of a tower with this configuration."""
        return int(config.get(self.registers_key) or 0) if self.registers_key else 0


FAMILIES = (
    TowerFamily(
        "CLIP", ("clip", "clip_vision_model"), "openai/clip-vit-large-patch14-336",
        num_class_tokens=1, old_level="vision_model.", processor="CLIPImageProcessorPil",
    ),
    # the fixed sizes of SigLIP 2 have SigLIP's model type
    TowerFamily(
        "SigLIP, SigLIP 2", ("siglip", "siglip_vision_model"),
        "google/siglip2-so400m-patch14-384", old_level="vision_model.",
    ),
    TowerFamily(
        "MetaCLIP 2", ("metaclip_2", "metaclip_2_vision_model"),
        "facebook/metaclip-2-worldwide-huge-quickgelu", num_class_tokens=1,
    ),
    TowerFamily(
        "DINOv2", ("dinov2",), "facebook/dinov2-large", num_class_tokens=1, any_size=True
    ),
    TowerFamily(
        "DINOv2 with registers", ("dinov2_with_registers",),
        "facebook/dinov2-with-registers-large", num_class_tokens=1,
        registers_key="num_register_tokens", any_size=True,
    ),
    # its own processor needs torchvision; ViT's does the same with Pillow
    TowerFamily(
        "DINOv3", ("dinov3_vit",), "facebook/dinov3-vitl16-pretrain-lvd1689m", num_class_tokens=1,
        registers_key="num_register_tokens", any_size=True, processor="ViTImageProcessorPil",
    ),
)  # fmt: skip
"""The kinds that are known; any other is measured with an image when it is built."""

REFUSED = dict.fromkeys(
    ("siglip2", "siglip2_vision_model"),
    "it takes images of varying shape (NaFlex); name a fixed size of SigLIP 2, such as "
    "google/siglip2-so400m-patch14-384",
)
"""Model types that cannot be towers, and what to do."""


def vision_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the part of a `config.json` that describes the vision model."""
    part = config.get("vision_config")
    return part if isinstance(part, Mapping) else config


def family_of(model_type: Any) -> TowerFamily | None:
    """Returns the family of a model type; None if it is not known."""
    return next((family for family in FAMILIES if model_type in family.model_types), None)


def side_px(value: Any, what: str) -> int | None:
    """Reads a size that is written as one number or as two equal ones.

    Raises:
        ConfigError: The two differ.
    """
    sides = set(value) if isinstance(value, (list, tuple)) else {value}
    if len(sides) != 1:
        raise ConfigError(f"{what} is {value}: only squares are supported")
    side = sides.pop()
    return None if side is None else int(side)


def processor_side(processor: Any) -> int:
    """Returns S, the side in pixels of the squares that an image processor gives.

    Raises:
        ConfigError: It gives none: its images have varying sizes, or are no squares.
    """
    size = getattr(processor, "size", None) or {}
    crop = getattr(processor, "crop_size", None)
    if crop is not None and getattr(processor, "do_center_crop", True):
        size = crop
    sides = {size.get("height"), size.get("width")}
    if len(sides) != 1 or None in sides:
        raise ConfigError(
            f"the image processor has size {dict(size)}; a tower needs squares of one size: give "
            "`size` (or `crop_size` with `do_center_crop`) a height and an equal width in its "
            "preprocessor_config.json"
        )
    return int(sides.pop())


def grid_side(image_size_px: int, patch_size_px: int | None, num_positions: int | None) -> int:
    """Returns the number of patches along a side of an image.

    Args:
        image_size_px: Side of an image in pixels.
        patch_size_px: Side of a patch; None where the configuration does not say it.
        num_positions: Positions that the tower was seen to give, with those before the patches.
    """
    if patch_size_px is None:
        return isqrt(num_positions or 0)
    return image_size_px // patch_size_px


@dataclass(frozen=True)
class Deviation:
    """What the code of published checkpoints does to their tower, and this code to no new one.

    Attributes:
        checkpoints: Whose code it is, for documents.
        names: `model_type` or architecture of the checkpoint, or what `IMPORTED_KEY` says.
        family: Model types of the tower.
        num_dropped: Patches at the beginning that the projector never saw.
        num_cut_layers: Layers at the end that the tower lacks; its weights in the checkpoint end
            there and have no pooling head, and its features are the last layer's, whatever
            `mm_vision_select_layer` says.
    """

    checkpoints: str
    names: tuple[str, ...]
    family: str
    num_dropped: int = 0
    num_cut_layers: int = 0


DEVIATIONS = (
    # its code drops position 0 as if it were a class token
    Deviation("Maya", ("llava_cohere", "LlavaCohereForCausalLM"), "SigLIP, SigLIP 2", 1),
    Deviation(
        "LLaVA-NeXT, LLaVA-OneVision", ("llava_qwen", "LlavaQwenForCausalLM"), "SigLIP, SigLIP 2",
        num_cut_layers=1,
    ),
    Deviation("TinyLLaVA, by `lrm import`", ("tinyllava",), "SigLIP, SigLIP 2", 1),
)  # fmt: skip
"""By what `config.json` says. Parrot needs no entry: it says `cls_patch`, which keeps CLS."""

IMPORTED_KEY = "imported_from"
"""Key of `config.json` with the format that a checkpoint was converted from."""
NUM_TOKENS_KEY = "mm_num_image_tokens"
"""Key of `config.json` with the positions of an image; only towers other than CLIP write it."""


def deviation_of(config: Any, family: TowerFamily | None) -> Deviation | None:
    """Returns how a published checkpoint treats its tower; None for new ones.

    Args:
        config: Configuration of the whole model, or arguments of a training.
        family: The tower's.
    """
    if family is None or getattr(config, NUM_TOKENS_KEY, None) is not None:
        return None  # this code wrote it
    names = {getattr(config, key, None) for key in ("model_type", IMPORTED_KEY)}
    names |= {*(getattr(config, "architectures", None) or ())}
    return next(
        (each for each in DEVIATIONS if each.family == family.name and names & {*each.names}), None
    )


PLACE_IT = (
    "Change mm_vision_tower in the checkpoint's config.json (in a training --vision_tower), or put "
    "the tower's folder beside the checkpoint under that name"
)


def choices() -> str:
    """Says which towers work."""
    names = "; ".join(f"{family.name} ({family.example})" for family in FAMILIES)
    return f"towers that work: {names}; other vision transformers that AutoModel builds"


def split_towers(name: str, checkpoint: str | Path | None = None) -> list[str]:
    """Splits `a+b` into the names of two towers; a folder whose name has a `+` stays whole."""
    if "+" not in name or _folder_of(name, checkpoint) is not None:
        return [name]
    return name.split("+")


def resolve_tower(name: str | None, checkpoint: str | Path | None = None) -> str:
    """Turns a tower's name into something that can be loaded.

    Args:
        name: A folder, absolute or relative, or a Hub id (`owner/name`); or several, joined by `+`.
        checkpoint: The folder of the checkpoint that names the tower.

    Returns:
        The first of these folders that exists: `name` from the working directory, in the
        checkpoint, beside it, beside its parent (for `checkpoint-N`), in the repository root;
        else `name` itself, if it can be a Hub id.

    Raises:
        ConfigError: None of them exists and the name is no Hub id.
    """
    if not name:
        raise ConfigError("no vision tower is named: set mm_vision_tower (or --vision_tower)")
    if len(parts := split_towers(name, checkpoint)) > 1:
        return "+".join(resolve_tower(part, checkpoint) for part in parts)
    if (folder := _folder_of(name, checkpoint)) is not None:
        return str(folder)
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        return name
    looked = "\n  ".join(str(place) for place in _places(name, checkpoint))
    raise ConfigError(
        f"Unknown vision tower: {name!r}. It is no Hub id (owner/name), and none of these is a "
        f"folder with a config.json:\n  {looked}\n{PLACE_IT}; {choices()}"
    )


def _places(name: str, checkpoint: str | Path | None) -> list[Path]:
    """Returns the folders that a name can mean."""
    places = [Path(name)]
    if not places[0].is_absolute():
        near = Path(checkpoint).resolve() if checkpoint and Path(checkpoint).is_dir() else None
        roots = [near, near.parent, near.parent.parent] if near else []
        places += [root / name for root in (*roots, REPOSITORY_ROOT)]
    return places


def _folder_of(name: str, checkpoint: str | Path | None) -> Path | None:
    """Returns the first folder with a `config.json` that a name can mean."""
    found = (place for place in _places(name, checkpoint) if (place / "config.json").is_file())
    return next(found, None)


def portable_tower(name: str, checkpoint: str | Path) -> str:
    """Returns the tower's name to store when a model leaves the folder of its checkpoint.

    A name that means the same from anywhere stays; one that only the checkpoint's place explains
    becomes a full path.

    Raises:
        ConfigError: There is no such tower.
    """
    try:
        resolve_tower(name)
    except ConfigError:
        return resolve_tower(name, checkpoint)
    return name


# parts of published checkpoints that are not here: key of config.json, a part of its value in lower
# case, and what it is
_SERVED = "serve it with its own code, and evaluate it with `lrm eval --base-url`"
_FOREIGN = (
    ("model_type", "tinyllava", "it is TinyLLaVA's format: convert it with `lrm import tinyllava`"),
    ("model_type", "centurio", "its projector (multiscale-pool, of five images of a timm tower) is "
     f"not here: {_SERVED}"),
    ("model_type", "parrot", f"its mixture of experts after the projector is not here: {_SERVED}"),
    ("mm_projector_type", "ldpnet", "MobileVLM's projector, which MobilePALO has, is not here: "
     f"{_SERVED}"),
    ("mm_vision_tower", "mobileclip", "FastVLM's tower is not here; transformers has it in the "
     "class `fast_vlm`: `lrm eval` asks a checkpoint in that format"),
    ("mm_resampler_type", "", "a resampler between tower and language model, as video checkpoints "
     f"have it, is not here: {_SERVED}"),
)  # fmt: skip


def refuse_foreign(config: Mapping[str, Any], where: str) -> None:
    """Refuses a published checkpoint that has parts which are not here, before weights are read.

    Args:
        config: Content of `config.json`.
        where: Its place, for messages.

    Raises:
        ConfigError: It has such a part; the message says what to do.
    """
    for key, part, reason in _FOREIGN:
        value = config.get(key)
        if value is not None and part in str(value).lower():
            raise ConfigError(f"{where}: config.json says {key} {value!r}: {reason}")
