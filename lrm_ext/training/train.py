"""The entry point: `python -m lrm_ext.training.train` with LLaVA's flags and `LrmArguments`.

Run by `torchrun`, `deepspeed` or `python`; `scripts/v1_5/lrm_pretrain.sh` and `lrm_finetune.sh`
fill in the flags of a preset.
"""

from __future__ import annotations

import sys

from llava.train.train import main, train
from llava.train.train_mem import memory_efficient_attention
from lrm_ext.languages.templates import register_templates
from lrm_ext.training.arguments import LrmArguments
from lrm_ext.training.data_module import lrm_data_module


def train_mixture() -> None:
    """Train on the mixture that the command line describes.

    Raises:
        UserError: As `llava.train.train.train`.
    """
    register_templates()
    train(
        attn_implementation=memory_efficient_attention(),
        data_module=lrm_data_module,
        extra_arguments=(LrmArguments,),
    )


if __name__ == "__main__":
    sys.exit(main(train_mixture))
