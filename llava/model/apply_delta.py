"""Makes a model from its base and a delta.

Usage: python -m llava.model.apply_delta --base-model-path BASE --target-model-path FOLDER
       --delta-path DELTA
"""

from __future__ import annotations

import torch

from llava.errors import make_main
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


main = make_main(
    "Make a model from its base and a delta.", lambda a: apply_delta(**vars(a)), *FLAGS
)

if __name__ == "__main__":
    main()
