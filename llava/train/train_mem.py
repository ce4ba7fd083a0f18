"""Entry point of LLaVA's recipes; uses flash-attention if it is installed, else SDPA.

Run it with `deepspeed`, `torchrun` or `python` and the flags of `llava.train.arguments`.
"""

from __future__ import annotations

import sys

from llava.train.build import memory_efficient_attention
from llava.train.train import main, train

if __name__ == "__main__":
    sys.exit(main(lambda: train(attn_implementation=memory_efficient_attention())))
