"""Makes a model from its base and a delta.

Usage: python -m llava.model.apply_delta --base-model-path BASE --target-model-path FOLDER
       --delta-path DELTA
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from llava.errors import make_parser, run_script
from llava.model.make_delta import FLAGS, add_base, load_for_delta
from llava.model.tokenizer import load_tokenizer


def apply_delta(base_model_path: str, target_model_path: str, delta_path: str) -> None:
    """Writes base plus delta, in float16, with the delta's tokenizer.

    Args:
        base_model_path: The language model.
        target_model_path: Folder to write.
        delta_path: The delta, as `make_delta` wrote it.

    Raises:
        CheckpointError: A model is missing or incomplete, or they do not belong together.
    """
    base = load_for_delta(base_model_path, torch.float16)
    delta = load_for_delta(delta_path, torch.float16)
    add_base(delta, base, sign=+1)
    delta.save_pretrained(target_model_path)
    load_tokenizer(delta_path).save_pretrained(target_model_path)


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line and runs the script."""
    run_script(
        lambda a: apply_delta(**vars(a)),
        make_parser("Make a model from its base and a delta.", *FLAGS),
        argv,
    )


if __name__ == "__main__":
    main()
