"""Entry point of LLaVA's recipe for GPUs without flash-attention, such as V100.

torch's own attention (SDPA) has the memory-efficient kernel that once required xformers.
"""

from __future__ import annotations

import sys

from llava.train.train import main, train

if __name__ == "__main__":
    sys.exit(main(lambda: train(attn_implementation="sdpa")))
