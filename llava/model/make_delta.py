"""Make the delta of a model to its base.

Usage: python -m llava.model.make_delta --base-model-path BASE --target-model-path TARGET
       --delta-path FOLDER [--hub-repo-id OWNER/NAME]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

from llava.model.delta import add_base, load_for_delta, run
from llava.model.tokenizer import load_tokenizer


def make_delta(
    base_model_path: str, target_model_path: str, delta_path: str, hub_repo_id: str | None = None
) -> None:
    """Write target minus base, in float16, with the target's tokenizer.

    Args:
        base_model_path: the language model.
        target_model_path: the multimodal model that was trained from it.
        delta_path: folder to write.
        hub_repo_id: also upload to this Hub repository.

    Raises:
        CheckpointError: a model is missing or incomplete, or they do not belong together.
    """
    base = load_for_delta(base_model_path, torch.float16)
    target = load_for_delta(target_model_path, torch.float16)
    add_base(target, base, sign=-1)
    upload = {"push_to_hub": True, "repo_id": hub_repo_id} if hub_repo_id else {}
    target.save_pretrained(delta_path, **upload)
    load_tokenizer(target_model_path).save_pretrained(delta_path, **upload)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and make the delta."""
    parser = argparse.ArgumentParser(description=make_delta.__doc__)
    parser.add_argument("--base-model-path", required=True)
    parser.add_argument("--target-model-path", required=True)
    parser.add_argument("--delta-path", required=True)
    parser.add_argument("--hub-repo-id", default=None)
    args = parser.parse_args(argv)
    run(
        make_delta,
        args.base_model_path,
        args.target_model_path,
        args.delta_path,
        args.hub_repo_id,
    )


if __name__ == "__main__":
    main()
