"""The entry point of LLaVA's recipes: flash-attention where it is installed, else SDPA.

Run by `deepspeed`, `torchrun` or `python`, with the flags of `llava.train.arguments`.
"""

from __future__ import annotations

import importlib.util
import logging
import sys

from llava.train.train import main, train

log = logging.getLogger(__name__)


def memory_efficient_attention() -> str:
    """`flash_attention_2` where the package flash-attn and a GPU are there, else `sdpa`."""
    import torch

    if importlib.util.find_spec("flash_attn") is None or not torch.cuda.is_available():
        log.info("attention: sdpa (flash-attn or a GPU is missing)")
        return "sdpa"
    return "flash_attention_2"


if __name__ == "__main__":
    sys.exit(main(lambda: train(attn_implementation=memory_efficient_attention())))
