"""Make a model from its base and a delta.

Usage: python -m llava.model.apply_delta --base-model-path BASE --target-model-path FOLDER
       --delta-path DELTA
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

from llava.model.make_delta import add_base, load_for_delta, run
from llava.model.tokenizer import load_tokenizer


def apply_delta(base_model_path: str, target_model_path: str, delta_path: str) -> None:
    """Write base plus delta, in float16, with the delta's tokenizer.

    Args:
        base_model_path: the language model.
        target_model_path: folder to write.
        delta_path: the delta, as `make_delta` wrote it.

    Raises:
        CheckpointError: a model is missing or incomplete, or they do not belong together.
    """
    base = load_for_delta(base_model_path, torch.float16)
    delta = load_for_delta(delta_path, torch.float16)
    add_base(delta, base, sign=+1)
    delta.save_pretrained(target_model_path)
    load_tokenizer(delta_path).save_pretrained(target_model_path)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and apply the delta."""
    parser = argparse.ArgumentParser(description=apply_delta.__doc__)
    parser.add_argument("--base-model-path", required=True)
    parser.add_argument("--target-model-path", required=True)
    parser.add_argument("--delta-path", required=True)
    args = parser.parse_args(argv)
    run(apply_delta, args.base_model_path, args.target_model_path, args.delta_path)


if __name__ == "__main__":
    main()
