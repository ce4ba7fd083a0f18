"""What a preset trains with: the flags that the training scripts themselves resolve.

Input: the name of a preset. Output: the flags of a stage, as `lrm_pretrain.sh --dry-run` and
`lrm_finetune.sh --dry-run` print them, so that a plan and a run cannot differ.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from llava.errors import ConfigError

ROOT = Path(__file__).parents[2]
STAGES = {"pretrain": "pre-training", "finetune": "fine-tuning"}
# what a user may have set for a run must not change what a preset means
_VARIABLES = (
    "PRESET NUM_GPUS OUTPUT_DIR REPORT_TO NNODES NODE_RANK MASTER_ADDR MASTER_PORT MIXTURE "
    "IMAGE_FOLDER DATA_PATH MODEL_NAME_OR_PATH VISION_TOWER DEEPSPEED"
).split()


def list_presets(root: Path = ROOT) -> list[str]:
    """The names of the presets.

    Raises:
        ConfigError: The scripts are not there.
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
    """The flags of a stage of a preset.

    Args:
        preset: Its name.
        stage: "pretrain" or "finetune".
        num_gpus: GPUs of the machine; 0 is its CPU.
        extra: Further flags, which win.
        root: The repository.

    Returns:
        Values by name, without dashes.

    Raises:
        ConfigError: There is no such preset, the choices are listed; or the script fails.
    """
    if preset not in list_presets(root):
        raise ConfigError(f"unknown preset {preset!r}; choose from: {', '.join(list_presets())}")
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
    """The flags of a printed command."""
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
    """Whether a flag is switched on."""
    return flags.get(name, "False").lower() in ("true", "1", "yes", "")
