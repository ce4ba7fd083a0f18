"""Entry point: `python -m lrm_ext.training.train` with LLaVA's flags and `LrmArguments`.

Run it with `torchrun`, `deepspeed` or `python`; the scripts `lrm_pretrain.sh` and
`lrm_finetune.sh` in `scripts/v1_5/` set the flags of a preset.
"""

from __future__ import annotations

import sys

from llava.train.build import memory_efficient_attention
from llava.train.train import main, train
from lrm_ext.languages.templates import register_templates
from lrm_ext.training.arguments import LrmArguments
from lrm_ext.training.data_module import lrm_data_module


def train_mixture() -> None:
    """Trains on the mixture that the command line describes.

    Raises:
        UserError: See `llava.train.train.train`.
    """
    register_templates()
    train(
        attn_implementation=memory_efficient_attention(),
        data_module=lrm_data_module,
        extra_arguments=(LrmArguments,),
    )


if __name__ == "__main__":
    sys.exit(main(train_mixture))
