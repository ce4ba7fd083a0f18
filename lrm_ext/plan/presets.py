"""Reads the flags of a preset and the sizes of its models.

Input: the name of a preset. Output: the flags of a stage, as `lrm_pretrain.sh --dry-run` and
`lrm_finetune.sh --dry-run` print them, so that a plan and a run cannot differ; and the `ModelShape`
of the models, without loading or downloading them.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llava.errors import ConfigError
from llava.files import load_toml
from llava.model.checkpoint import read_json
from llava.train.flops import LanguageModelShape, ModelShape, TowerShape, TowersShape

ROOT = Path(__file__).parents[2]
PROCESSOR_FILE = "preprocessor_config.json"
STAGES = {"pretrain": "pre-training", "finetune": "fine-tuning"}
# variables that a user may have set for a run must not change the preset
_VARIABLES = (
    "PRESET NUM_GPUS OUTPUT_DIR REPORT_TO NNODES NODE_RANK MASTER_ADDR MASTER_PORT MIXTURE "
    "IMAGE_FOLDER DATA_PATH MODEL_NAME_OR_PATH VISION_TOWER DEEPSPEED"
).split()


def list_presets(root: Path = ROOT) -> list[str]:
    """Returns the names of the presets.

    Raises:
        ConfigError: The scripts are missing.
    """
    folder = root / "scripts" / "v1_5" / "presets"
    names = sorted(path.stem for path in folder.glob("*.sh"))
    if not names:
        raise ConfigError(
            f"{folder}: there are no presets. `lrm plan` reads them from the repository: run it "
            "from a clone (pip install -e .)"
        )
    return names


def stage_flags(
    preset: str, stage: str, num_gpus: int, extra: tuple[str, ...] = (), root: Path = ROOT
) -> dict[str, str]:
    """Returns the flags of a stage of a preset.

    Args:
        preset: Name of the preset.
        stage: "pretrain" or "finetune".
        num_gpus: GPUs of the machine; 0 means its CPU.
        extra: Further flags, which take precedence.
        root: Root of the repository.

    Returns:
        Values by the name of the flag, without dashes.

    Raises:
        ConfigError: The preset is unknown (the choices are listed), or the script fails.
    """
    if preset not in (known := list_presets(root)):
        raise ConfigError(f"unknown preset {preset!r}; choose from: {', '.join(known)}")
    bash = shutil.which("bash")
    if bash is None:
        raise ConfigError("bash is not found; presets are read by the training scripts")
    kept = {name: value for name, value in os.environ.items() if name not in _VARIABLES}
    result = subprocess.run(
        [bash, f"scripts/v1_5/lrm_{stage}.sh", "--dry-run", *extra],
        cwd=root,
        env={**kept, "PRESET": preset, "NUM_GPUS": str(num_gpus)},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
        check=False,
    )
    if result.returncode != 0:
        raise ConfigError(f"preset {preset}: {result.stderr.strip()}")
    return _parse(result.stdout)


def _parse(command: str) -> dict[str, str]:
    """Parses the flags of a printed command."""
    words = shlex.split(command.replace("\\\n", " "))
    start = len(words) - words[::-1].index("-m") + 1
    flags: dict[str, str] = {}
    name = ""
    for word in words[start:]:
        if word.startswith("--"):
            name, _, value = word[2:].replace("-", "_").partition("=")
            flags[name] = value
        else:
            flags[name] = f"{flags[name]} {word}".strip()
    return flags


def switch(flags: Mapping[str, str], name: str) -> bool:
    """Tells whether a flag is switched on."""
    return flags.get(name, "False").lower() in ("true", "1", "yes", "")


MODELS_FILE = Path(__file__).with_name("models.toml")


def load_shape(language_model: str, tower: str | None, select_layer: int = -2) -> ModelShape:
    """Reads the sizes of a language model and its vision tower.

    Args:
        language_model: Folder, or name on the Hugging Face Hub.
        tower: Folder or name of the tower, or two joined by `+`; None for a text-only model.
        select_layer: `--mm_vision_select_layer`.

    Raises:
        ConfigError: A model is neither local nor known, or a size is missing.
    """
    config = _config(language_model, "language_models")
    shape = LanguageModelShape.from_config(config, language_model)
    vision: TowerShape | TowersShape | None = None
    if tower is not None:
        names = [tower] if Path(tower).exists() else tower.split("+")
        parts = [_tower_shape(name, select_layer) for name in names]
        if len({part.num_patches for part in parts}) > 1:
            counts = ", ".join(f"{n}: {p.num_patches}" for n, p in zip(names, parts, strict=True))
            raise ConfigError(
                f"--vision_tower {tower}: towers side by side need the same number of patches; "
                f"found {counts}"
            )
        vision = parts[0] if len(parts) == 1 else TowersShape(tuple(parts))
    return ModelShape(shape, vision)


def _tower_shape(name: str, select_layer: int) -> TowerShape:
    path = Path(name) / PROCESSOR_FILE
    if not path.is_file():
        path = _cached(name, PROCESSOR_FILE)
    processor = read_json(path) if path.is_file() else None
    return TowerShape.from_config(_config(name, "towers"), name, select_layer, processor)


def _config(name: str, kind: str) -> Mapping[str, Any]:
    """Returns the `config.json` of a model, or its sizes in `models.toml`.

    Raises:
        ConfigError: The model is neither local nor known.
    """
    path = Path(name) / "config.json"
    if not path.is_file():
        path = _cached(name)
    if path.is_file():
        return read_json(path)
    known = load_toml(MODELS_FILE)[kind]
    if name in known:
        return dict(known[name])
    raise ConfigError(
        f"the sizes of {name} are not known: there is no such folder with a config.json. Name a "
        f"folder, or one of: {', '.join(known)}"
    )


def _cached(name: str, file: str = "config.json") -> Path:
    """Returns the path of a model's file in the Hub's cache, or a path that does not exist."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    with contextlib.suppress(HFValidationError):
        if isinstance(found := try_to_load_from_cache(name, file), str):
            return Path(found)
    return Path(name) / file
