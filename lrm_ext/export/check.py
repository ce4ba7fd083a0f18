"""Checks a folder for what transformers and servers need: `lrm export check`.

Input: a folder of transformers' LLaVA classes. Output: one finding per item, and one per program
that may load the folder. Only configuration, tokenizer and the names and shapes of weights are
read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.errors import CheckpointError
from llava.model.checkpoint import read_config
from llava.model.multimodal_encoder.families import family_of

TOWER_ITEM = "vision tower"
# architectures in the registries of transformers and vLLM
ARCHITECTURES = (
    "LlavaForConditionalGeneration",
    "LlavaNextForConditionalGeneration",
    "LlavaOnevisionForConditionalGeneration",
)
# with which vLLM was run, see tools/check_vllm.py
VLLM_TOWERS = ("clip_vision_model", "siglip_vision_model")
TILES_ITEM = "vision_aspect_ratio"
VLLM_TILES = "anyres_max_9"


class Finding(NamedTuple):
    """The result of one check.

    Attributes:
        item: The item that was checked, or a program with the version that was tried.
        ok: Whether the item is as servers expect, or whether the program can load the folder.
        found: Description of the item, or what is known about that version.
    """

    item: str
    ok: bool
    found: str


def check_servers(findings: list[Finding]) -> list[Finding]:
    """Returns for each program whether it can load a folder with these findings.

    The results hold for the version that is named; other versions were not tried.
    """
    gaps = [finding.item for finding in findings if not finding.ok]
    in_transformers = [item for item in gaps if item != TOWER_ITEM]
    found = {finding.item: finding.found for finding in findings}
    loads = "loads it, with AutoProcessor"
    if "Onevision" in found.get("architecture", ""):
        loads += " if torchvision is installed (for its part for videos)"
    # it counts image tokens by this number of tiles, whatever config.json says
    tiles = found.get(TILES_ITEM, VLLM_TILES)
    other = f"loads it, but its answers are others: it takes {tiles} for {VLLM_TILES}"
    is_same = tiles == VLLM_TILES
    if (tower := found.get("vision_config")) not in (None, *VLLM_TOWERS):
        gaps.append(f"a {tower} tower, with which it was not tried")
    return [
        Finding("transformers 5.23", not in_transformers, _cannot_load(in_transformers) or loads),
        Finding(
            "vLLM 0.32",
            is_same and not gaps,
            _cannot_load(gaps) or ("serves it" if is_same else other),
        ),
        # its Llava class finds no CLIP model in SGLang's registry, whatever the folder holds
        Finding("SGLang 0.5.23", False, "does not start: its Llava class knows no CLIP tower"),
    ]


def _cannot_load(gaps: list[str]) -> str:
    return f"cannot load it: {', '.join(gaps)}" if gaps else ""


def check_folder(folder: Path) -> list[Finding]:
    """Checks a folder.

    Raises:
        CheckpointError: There is no such folder, or it has no `config.json`.
    """
    config = read_config(folder) if folder.is_dir() else None
    if config is None:
        raise CheckpointError(f"{folder}: no folder with a config.json")
    shapes, tokens = _shapes(folder), _tokenizer_ids(folder)
    kinds = config.get("architectures") or []
    findings = [Finding("architecture", bool(kinds) and kinds[0] in ARCHITECTURES, str(kinds))]
    for key in ("text_config", "vision_config"):
        kind = (config.get(key) or {}).get("model_type")
        findings.append(Finding(key, kind is not None, str(kind)))
    if TILES_ITEM in config:
        findings.append(Finding(TILES_ITEM, True, config[TILES_ITEM]))
    index = config.get("image_token_index", config.get("image_token_id"))
    known = tokens.get(DEFAULT_IMAGE_TOKEN)
    text = f"{index} in config.json, {known} in the tokenizer"
    findings.append(Finding("image token", index is not None and index == known, text))
    return [*findings, *_check_weights(config, shapes, tokens), *_check_processing(folder)]


def _check_weights(
    config: dict[str, Any], shapes: dict[str, list[int]], tokens: dict[str, int]
) -> list[Finding]:
    """Checks that there are weights, the names of the tower's, and the rows of the vocabulary."""
    weights = f"{len(shapes)} tensors in safetensors" if shapes else "no safetensors"
    tower = [name for name in shapes if "vision_tower." in name]
    family = family_of((config.get("vision_config") or {}).get("model_type"))
    level = family.old_level if family else ""
    without = [name for name in tower if f"vision_tower.{level}" not in name]
    named = f"{len(tower)} keys" + (f" with the level {level}" if level else "")
    if without:
        named = f"{without[0]} and {len(without) - 1} more keys lack the level {level}"
    tables = ("embed_tokens.weight", "lm_head.weight")  # one of them is there, whatever the base
    rows = next((shape[0] for name, shape in shapes.items() if name.endswith(tables)), None)
    size = (config.get("text_config") or {}).get("vocab_size")
    needed = max(tokens.values(), default=-1) + 1
    is_whole = rows is not None and rows == size and rows >= needed > 0
    return [
        Finding("weights", bool(shapes), weights),
        Finding(TOWER_ITEM, bool(tower) and not without, named),
        Finding("vocabulary", is_whole, f"{rows} rows, vocab_size {size}, {needed} token ids"),
    ]


def _check_processing(folder: Path) -> list[Finding]:
    """Checks the processor and the chat template."""
    settings = read_config(folder, "processor_config.json") or {}
    images = settings.get("image_processor") or read_config(folder, "preprocessor_config.json")
    kind = (images or {}).get("image_processor_type")
    has_all = bool({"patch_size", "num_image_tokens"} & settings.keys()) and kind is not None
    templates = {"chat_template.jinja": (folder / "chat_template.jinja").is_file()}
    for name in ("chat_template.json", "tokenizer_config.json"):
        templates[name] = bool((read_config(folder, name) or {}).get("chat_template"))
    template = next((name for name, is_there in templates.items() if is_there), "none")
    return [
        Finding("processor", has_all, f"{settings.get('processor_class')} with {kind}"),
        Finding("chat template", template != "none", template),
    ]


def _shapes(folder: Path) -> dict[str, list[int]]:
    shapes: dict[str, list[int]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            shapes |= {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    return shapes


def _tokenizer_ids(folder: Path) -> dict[str, int]:
    """Returns the id of each token; empty if there is no `tokenizer.json`."""
    content = read_config(folder, "tokenizer.json")
    if content is None:
        return {}
    ids = content["model"]["vocab"]  # of a Unigram model a list of (token, score)
    if not isinstance(ids, dict):
        ids = {entry[0]: index for index, entry in enumerate(ids)}
    return ids | {token["content"]: token["id"] for token in content.get("added_tokens", [])}
