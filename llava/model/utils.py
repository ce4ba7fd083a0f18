"""Rewrites the configuration of a LLaVA v0 checkpoint for v1 readers.

In: a checkpoint folder whose `config.json` still says `llama`. Out: the file rewritten, once the
user has agreed on the terminal.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from llava.files import write_atomically
from llava.model.checkpoint import read_json


def auto_upgrade(config: str | Path) -> None:
    """Asks, then turns a v0 `config.json` into one of v1.

    Does nothing unless `llava` is in the path and the model type is `llama`. A refusal ends the
    program with status 1.

    Args:
        config: The checkpoint folder.

    Raises:
        CheckpointError: There is no readable `config.json`.
    """
    path = Path(config) / "config.json"
    content = read_json(path)
    if "llava" not in str(config).lower() or content.get("model_type") != "llama":
        return
    sys.stderr.write(
        f"{path} is of LLaVA v0. To be loaded by this version it must be rewritten\n"
        "(model_type and architectures).\n"
    )
    if input("Rewrite it? [Y/N] ").strip().lower() not in ("y", "yes"):
        sys.stderr.write("The checkpoint was left as it is.\n")
        sys.exit(1)
    content["model_type"] = "llava"
    content["architectures"] = ["LlavaLlamaForCausalLM", *content.get("architectures", [])[1:]]
    write_atomically(path, json.dumps(content, indent=2))
