"""What transformers and servers look for in a folder, and who can load it: `lrm export check`.

Input: a folder of transformers' LLaVA classes. Output: one finding an item, and for each server
whether it starts with the folder. Nothing is loaded but configuration, tokenizer and the names and
shapes of weights.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.errors import CheckpointError, UserError
from llava.model.checkpoint import read_config

TOWER_ITEM = "vision tower"
# architectures that the registries of transformers and vLLM name
ARCHITECTURES = ("LlavaForConditionalGeneration", "LlavaNextForConditionalGeneration")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for.

    Attributes:
        item: What.
        ok: Whether it is as servers expect.
        found: What is there.
    """

    item: str
    ok: bool
    found: str


@dataclass(frozen=True)
class Server:
    """Whether a program can load a folder.

    Attributes:
        name: The program, with the version that was tried.
        loads: Whether it can.
        reason: What is known of that version.
    """

    name: str
    loads: bool
    reason: str


def check_servers(findings: list[Finding]) -> list[Server]:
    """Tell for each program whether it loads a folder with these findings.

    What is said holds for the version named; other versions were not tried.
    """
    gaps = [finding.item for finding in findings if not finding.ok]
    in_transformers = [item for item in gaps if item != TOWER_ITEM]
    return [
        _server("transformers 5.23", in_transformers, "loads it, with AutoProcessor"),
        _server("vLLM 0.32", gaps, "serves flat images (anyres was not tried)"),
        # its Llava class finds no CLIP model in SGLang's registry, whatever the folder holds
        Server("SGLang 0.5.23", False, "does not start: its Llava class knows no CLIP tower"),
    ]


def _server(name: str, gaps: list[str], success: str) -> Server:
    return Server(name, not gaps, f"cannot load it: {', '.join(gaps)}" if gaps else success)


def check_folder(folder: Path) -> list[Finding]:
    """Look a folder through.

    Raises:
        CheckpointError: There is no such folder, or it has no `config.json`.
    """
    config = read_config(folder) if folder.is_dir() else None
    if config is None:
        raise CheckpointError(f"{folder}: no folder with a config.json")
    shapes = _shapes(folder)
    tokens = _tokenizer_ids(folder)
    return [
        _architecture(config),
        _sub_config(config, "text_config"),
        _sub_config(config, "vision_config"),
        _image_token(config, tokens),
        _weights(shapes),
        _tower(shapes),
        _vocabulary(config, shapes, tokens),
        _processor(folder),
        _template(folder),
    ]


def _architecture(config: dict[str, Any]) -> Finding:
    found = config.get("architectures") or []
    return Finding("architecture", bool(found) and found[0] in ARCHITECTURES, str(found))


def _sub_config(config: dict[str, Any], key: str) -> Finding:
    kind = (config.get(key) or {}).get("model_type")
    return Finding(key, kind is not None, str(kind))


def _image_token(config: dict[str, Any], tokens: dict[str, int]) -> Finding:
    index = config.get("image_token_index", config.get("image_token_id"))
    known = tokens.get(DEFAULT_IMAGE_TOKEN)
    text = f"{index} in config.json, {known} in the tokenizer"
    return Finding("image token", index is not None and index == known, text)


def _weights(shapes: dict[str, tuple[int, ...]]) -> Finding:
    text = f"{len(shapes)} tensors in safetensors" if shapes else "no safetensors"
    return Finding("weights", bool(shapes), text)


def _tower(shapes: dict[str, tuple[int, ...]]) -> Finding:
    keys = [name for name in shapes if "vision_tower." in name]
    without = [name for name in keys if "vision_tower.vision_model." not in name]
    if without:
        text = f"{without[0]} and {len(without) - 1} more keys lack the level vision_model."
    else:
        text = f"{len(keys)} keys with the level vision_model."
    return Finding(TOWER_ITEM, bool(keys) and not without, text)


def _vocabulary(
    config: dict[str, Any], shapes: dict[str, tuple[int, ...]], tokens: dict[str, int]
) -> Finding:
    rows = next((s[0] for name, s in shapes.items() if name.endswith("embed_tokens.weight")), None)
    size = (config.get("text_config") or {}).get("vocab_size")
    needed = max(tokens.values(), default=-1) + 1
    text = f"{rows} rows, vocab_size {size}, {needed} token ids"
    return Finding("vocabulary", rows is not None and rows == size and rows >= needed > 0, text)


def _processor(folder: Path) -> Finding:
    settings = read_config(folder, "processor_config.json") or {}
    pictures = settings.get("image_processor") or read_config(folder, "preprocessor_config.json")
    kind = (pictures or {}).get("image_processor_type")
    has_all = "patch_size" in settings and kind is not None
    return Finding("processor", has_all, f"{settings.get('processor_class')} with {kind}")


def _template(folder: Path) -> Finding:
    if (folder / "chat_template.jinja").is_file():
        return Finding("chat template", True, "chat_template.jinja")
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (read_config(folder, name) or {}).get("chat_template"):
            return Finding("chat template", True, name)
    return Finding("chat template", False, "none")


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                shapes[name] = tuple(file.get_slice(name).get_shape())
    return shapes


def _tokenizer_ids(folder: Path) -> dict[str, int]:
    """Every token's id; empty if the folder has no `tokenizer.json`."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not readable as JSON: {error}") from error
    vocabulary = content["model"]["vocab"]
    pairs = vocabulary.items() if isinstance(vocabulary, dict) else enumerate(vocabulary)
    ids = (
        dict(pairs) if isinstance(vocabulary, dict) else {entry[0]: index for index, entry in pairs}
    )
    ids.update({token["content"]: token["id"] for token in content.get("added_tokens", [])})
    return ids
