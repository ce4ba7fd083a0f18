"""Reads what the files of a checkpoint say, without loading its tensors.

In: a folder or a Hub id, or a model configuration. Out: the kind of checkpoint, its tensor names,
and the multimodal keys of `config.json` with their documented defaults; an incomplete folder is
refused before memory is spent. Loading is `llava.model.builder`. `add_rope_theta` completes a
`config.json` for readers with transformers 4, LLaVA's own code among them, and the tower's weights
are written in their spelling. The multimodal keys stay out of `LlavaConfig` itself, because an
absent `mm_vision_tower` means "no tower"; `LlavaMetaModel.initialize_vision_modules` and `train()`
write them.
"""

from __future__ import annotations

import dataclasses
import json
import pickle
import re
import zipfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers.utils import cached_file

from llava.errors import CheckpointError

PROJECTOR_FILE = "mm_projector.bin"
UNREADABLE = (
    SafetensorError,
    pickle.UnpicklingError,
    RuntimeError,
    ValueError,
    EOFError,
    OSError,
)
"""What readers raise at a file that holds no tensors, or only a part of them."""

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_LFS_POINTER = b"version https://git-lfs"
_OLD_LEVEL = "vision_model."
_NEW_KEY = re.compile(rf"(vision_tower\.vision_tower\.)(?!{re.escape(_OLD_LEVEL)})")
_ADVICE = "the checkpoint is incomplete, use an earlier one or save it again"


def find_file(name_or_path: str | Path, filename: str) -> Path | None:
    """Finds a file of a checkpoint; one on the Hub is downloaded.

    Returns:
        Its path, or None if the checkpoint has no such file.

    Raises:
        CheckpointError: There is neither such a folder nor such a repository.
    """
    folder = Path(name_or_path)
    if folder.is_dir():
        return folder / filename if (folder / filename).is_file() else None
    # `runs/mini` looks like owner/name, too; if `runs` is a folder, a folder in it was meant
    is_hub_id = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(name_or_path))
    if not is_hub_id or folder.parent.is_dir():
        raise CheckpointError(f"{name_or_path}: no such folder (nor a Hub id, owner/name)")
    try:
        found = cached_file(
            str(name_or_path), filename, _raise_exceptions_for_missing_entries=False
        )
    except OSError as error:
        raise CheckpointError(
            f"{name_or_path}: no such folder, and not available from the Hub: {error}"
        ) from error
    return Path(found) if found else None


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        CheckpointError: The file is missing, cut short or no object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable as JSON: {error}; {_ADVICE}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def read_config(name_or_path: str | Path, filename: str = "config.json") -> dict[str, Any] | None:
    """Reads a JSON file of a checkpoint; None if it has no such file."""
    path = find_file(name_or_path, filename)
    return None if path is None else read_json(path)


def add_rope_theta(folder: str | Path) -> None:
    """Repeats RoPE's settings in `config.json` under the keys that transformers 4 reads.

    Transformers 5 writes `rope_parameters` only. Transformers 4 does not know that key and would
    compute positions with its defaults, without an error.

    Args:
        folder: Has a `config.json`; a `text_config` in it is completed, too.

    Raises:
        CheckpointError: The file is missing or is no JSON object.
    """
    path = Path(folder) / "config.json"
    config = read_json(path)
    for part in (config, config.get("text_config")):
        if isinstance(part, dict):
            part |= _old_rope_keys(part.get("rope_parameters") or {})
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _old_rope_keys(rope: dict[str, Any]) -> dict[str, Any]:
    if "rope_theta" not in rope:
        return {}
    keys: dict[str, Any] = {"rope_theta": rope["rope_theta"]}
    kind = rope.get("rope_type", "default")
    if kind in ("linear", "dynamic"):
        # the only types that 4.37 supports; it refuses any third key
        keys["rope_scaling"] = {"type": kind, "factor": rope["factor"]}
    elif kind != "default":
        keys["rope_scaling"] = {key: rope[key] for key in rope if key not in ("rope_theta", "type")}
    return keys


def kind_of(name_or_path: str | Path) -> str:
    """Tells what a checkpoint is: "lora", "full" or "projector" (of a base model).

    Raises:
        CheckpointError: It is none of them.
    """
    if find_file(name_or_path, "adapter_config.json"):
        return "lora"
    if find_file(name_or_path, "config.json"):
        if weight_paths(name_or_path):
            return "full"
        if find_file(name_or_path, PROJECTOR_FILE):
            return "projector"
    folder = Path(name_or_path)
    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    raise CheckpointError(
        f"{name_or_path}: no checkpoint. Expected config.json with model.safetensors (whole "
        f"model), config.json with {PROJECTOR_FILE} (projector of a base model) or "
        f"adapter_config.json (LoRA); found: {', '.join(found) or 'nothing'}"
    )


def weight_paths(name_or_path: str | Path) -> list[Path]:
    """Returns the files with the weights of a whole model; empty if there are none.

    Shards of a folder are returned whether or not they exist.
    """
    return sorted(_weight_files(name_or_path))


def _weight_files(name_or_path: str | Path) -> dict[Path, set[str]]:
    """Returns the files with the weights, each with the names that an index lists for it."""
    for name in INDEX_FILES:
        if (index := find_file(name_or_path, name)) is not None:
            weight_map = read_json(index).get("weight_map")
            if not isinstance(weight_map, dict):
                raise CheckpointError(f"{index}: no weight_map; {_ADVICE}")
            files: dict[Path, set[str]] = defaultdict(set)
            for weight, shard in weight_map.items():
                files[index.parent / shard].add(weight)
            return files
    for name in WEIGHT_FILES:
        if (path := find_file(name_or_path, name)) is not None:
            return {path: set()}
    return {}


def check_complete(folder: Path) -> None:
    """Refuses a folder whose weights were written halfway.

    Every shard of the index must be there with the weights that the index says, and every file
    must be as long as its header says.

    Raises:
        CheckpointError: It names the file, and what to do.
    """
    for path, indexed in sorted(_weight_files(folder).items()):
        if not path.is_file():
            raise CheckpointError(f"{folder}: {path.name} is missing; {_ADVICE}")
        if missing := sorted(indexed - set(tensor_names(path))):
            raise CheckpointError(
                f"{path}: {len(missing)} weights are missing that the index places here, e.g. "
                f"{missing[:5]}; the file is another checkpoint's, or {_ADVICE}"
            )


def tensor_names(path: Path) -> list[str]:
    """Returns the names of the tensors in a weights file; of safetensors only the header is read.

    Raises:
        CheckpointError: The file is not readable, or is shorter than its header says.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return list(file.keys())
        # files of torch < 1.6 are no zip archives and cannot be mapped
        mmap = zipfile.is_zipfile(path)
        return list(torch.load(path, map_location="cpu", weights_only=True, mmap=mmap))
    except UNREADABLE as error:
        advice = _ADVICE
        with path.open("rb") as file:
            if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
                advice = "it is a pointer of Git LFS, not the weights: run `git lfs pull`"
        raise CheckpointError(f"{path}: not readable ({error}); {advice}") from error


def carries_tower(name_or_path: str | Path | None) -> bool:
    """Tells whether a checkpoint holds the weights of its vision tower.

    The own tower of a composite model, of which only the language model is taken, does not count.
    """
    if name_or_path is None:
        return False
    config = read_config(name_or_path) or {}
    if "text_config" in config and "mm_vision_tower" not in config:
        return False
    return carries(name_or_path, "vision_tower.")


def carries(name_or_path: str | Path, part: str) -> bool:
    """Tells whether a checkpoint of a whole model has weights with `part` in their names."""
    files = _weight_files(name_or_path)
    names = (name for path, indexed in files.items() for name in indexed or tensor_names(path))
    return any(part in name for name in names)


def context_limit(config: Any) -> int | None:
    """Returns the number of positions that a model was made for; None if it has no limit."""
    return getattr(config, "max_position_embeddings", None)


PATCH_MERGE_TYPES = ("flat", "spatial", "spatial_unpad")
# LLaVA-NeXT's names of what is trained: `--mm_tunable_parts`, and the same key of config.json
TOWER_PART, PROJECTOR_PART, LANGUAGE_PART = TUNABLE_PARTS = (
    "mm_vision_tower",
    "mm_mlp_adapter",
    "mm_language_model",
)


def split_parts(text: str | None) -> list[str]:
    """Splits the comma list `mm_tunable_parts`; None and an empty text name no part."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]


@dataclasses.dataclass(frozen=True)
class MultimodalConfig:
    """The multimodal part of a model's configuration; field names are the keys of `config.json`."""

    mm_vision_tower: str | None = None
    mm_projector_type: str = "linear"
    mm_patch_merge_type: str = "flat"
    mm_use_im_start_end: bool = False
    mm_use_im_patch_token: bool = True
    tune_mm_mlp_adapter: bool = False
    unfreeze_mm_vision_tower: bool = False
    mm_tunable_parts: str | None = None
    image_aspect_ratio: str = "square"
    image_grid_pinpoints: Any = None
    mm_spatial_pool_stride: int | None = None
    mm_spatial_pool_mode: str | None = None
    mm_newline_position: str | None = None
    tokenizer_padding_side: str = "right"
    tokenizer_model_max_length: int | None = None
    max_sequence_length: int | None = None

    @classmethod
    def from_config(cls, config: Any) -> MultimodalConfig:
        """Reads the keys that `config` has; the others keep their defaults."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: getattr(config, name) for name in names if hasattr(config, name)})

    @property
    def tunes_tower(self) -> bool:
        """Tells whether the tower was trained, so that its weights are not those of its name."""
        return bool(self.unfreeze_mm_vision_tower) or TOWER_PART in split_parts(
            self.mm_tunable_parts
        )

    @property
    def has_image_newline(self) -> bool:
        """Tells whether the model owns an `image_newline` parameter."""
        return "unpad" in (self.mm_patch_merge_type or "")


def save_tower(tower: Any, folder: str | Path, level: str = _OLD_LEVEL) -> None:
    """Writes a vision model as a folder whose keys have the level that published ones have.

    Transformers 4 and vLLM know no other spelling of CLIP and SigLIP: there, keys without it leave
    the tower with random weights, or are refused.
    """
    weights = {level + key: value for key, value in tower.state_dict().items()}
    tower.save_pretrained(folder, state_dict=weights)


def with_old_level(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Spells the tower's weights as checkpoints do: `...vision_tower.vision_model.*`.

    Args:
        state_dict: Of a whole model; keys of other modules and keys already so spelt stay.
    """
    return {_NEW_KEY.sub(rf"\1{_OLD_LEVEL}", key): value for key, value in state_dict.items()}


def accept_old_level(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Lets `load_state_dict` read the old spelling (a resumed training run uses it)."""
    old = f"{prefix}vision_tower.{_OLD_LEVEL}"
    for key in [key for key in state_dict if key.startswith(old)]:
        value = state_dict.pop(key)
        if not key.endswith("embeddings.position_ids"):
            state_dict[f"{prefix}vision_tower.{key.removeprefix(old)}"] = value
