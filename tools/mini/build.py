"""Builds the base models of the `mini` preset and records how they were built.

Output: `playground/models/mini/{vision_tower,llm}` and `build.json` with the recipe, the seeds, the
versions and the SHA-256 of every file. Weights repeat exactly on the same processor with the same
library versions and number of threads; elsewhere the last bits may differ. The check therefore
compares the committed files with the hashes in `build.json`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import shutil
import time
from pathlib import Path

import torch
import transformers

from llava.errors import CheckpointError
from tools.mini.language_model import train_language_model, train_tokenizer
from tools.mini.recipe import BaseRecipe
from tools.mini.tower import train_tower

COMMAND = "lrm mini build-base"
PARTS = ("vision_tower", "llm")


def models_dir() -> Path:
    """Returns the folder of the committed base models."""
    return Path(__file__).resolve().parents[2] / "playground" / "models" / "mini"


def build_base(recipe: BaseRecipe, out_dir: Path) -> None:
    """Trains tokenizer, language model and tower; replaces the contents of `out_dir` at the end."""
    work = out_dir.with_name(out_dir.name + ".partial")
    started = time.monotonic()
    if not (work / "llm" / "tokenizer.model").exists():
        train_tokenizer(recipe.tokenizer, recipe.language_model, work / "llm")
    if not (work / "vision_tower" / "config.json").exists():
        train_tower(recipe.tower, work / "vision_tower")
    if not (work / "llm" / "config.json").exists():
        train_language_model(recipe.language_model, work / "llm")
    record = {
        "command": COMMAND,
        "recipe": dataclasses.asdict(recipe),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "processor": platform.machine(),
        "num_threads": torch.get_num_threads(),
        "last_run_s": round(time.monotonic() - started),
        "sha256": hash_files(work),
    }
    (work / "build.json").write_text(json.dumps(record, indent=2) + "\n")
    for part in PARTS:
        shutil.rmtree(out_dir / part, ignore_errors=True)
    shutil.copytree(work, out_dir, dirs_exist_ok=True)
    shutil.rmtree(work)


def hash_files(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of every file of the base models, by its path below `folder`."""
    files = sorted(path for part in PARTS for path in (folder / part).rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def check_base(folder: Path) -> None:
    """Compares the files with their hashes in `build.json`.

    Raises:
        CheckpointError: A file is missing, changed or not listed.
    """
    record = json.loads((folder / "build.json").read_text())
    expected, found = record["sha256"], hash_files(folder)
    wrong = sorted(
        name for name in expected.keys() | found if expected.get(name) != found.get(name)
    )
    if wrong:
        raise CheckpointError(
            f"{folder}: {', '.join(wrong)} do not match build.json; restore them with "
            f"`git checkout -- playground/models/mini` or run `{COMMAND}` again."
        )
