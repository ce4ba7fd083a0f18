"""Saves a checkpoint again, sharded or in old formats, as safetensors with its tokenizer.

Usage: python -m llava.model.consolidate --src CHECKPOINT --dst FOLDER
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from llava.errors import flag, make_parser, run_script
from llava.model.checkpoint import add_rope_theta
from llava.model.make_delta import load_for_delta
from llava.model.tokenizer import load_tokenizer

log = logging.getLogger(__name__)


def consolidate_ckpt(src_path: str, dst_path: str) -> None:
    """Reads the checkpoint at `src_path` in float16 and writes it to `dst_path`.

    Raises:
        CheckpointError: The source is missing or incomplete.
    """
    model = load_for_delta(src_path, torch.float16)
    tokenizer = load_tokenizer(src_path)
    model.save_pretrained(dst_path)
    add_rope_theta(dst_path)
    tokenizer.save_pretrained(dst_path)
    log.info("wrote %s", dst_path)


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line and runs the script."""
    run_script(
        lambda args: consolidate_ckpt(args.src, args.dst),
        make_parser(
            "Save a checkpoint again as safetensors.",
            flag("--src", required=True, help="checkpoint folder or Hub id"),
            flag("--dst", required=True, help="folder to write"),
        ),
        argv,
    )


if __name__ == "__main__":
    main()
