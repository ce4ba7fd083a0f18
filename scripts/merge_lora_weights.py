"""Merge LoRA adapters into their base model and save a whole one.

In: a folder of adapters and its base model. Out: model and tokenizer, in half precision as LLaVA's.
Usage: python scripts/merge_lora_weights.py --model-path L --model-base B --save-model-path M
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

from llava.errors import run_script
from llava.files import get_model_name_from_path
from llava.model.builder import load_pretrained_model


def merge_lora(model_path: str, model_base: str | None, save_model_path: str) -> None:
    """Merge and save, on the CPU.

    Raises:
        CheckpointError: adapters or base are incomplete, or do not fit.
        ConfigError: the base is not named, or peft is not installed.
    """
    tokenizer, model, _, _ = load_pretrained_model(
        model_path,
        model_base,
        get_model_name_from_path(model_path),
        device="cpu",
        dtype=torch.float16,
    )
    model.save_pretrained(save_model_path)
    tokenizer.save_pretrained(save_model_path)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and merge."""
    parser = argparse.ArgumentParser(description="Merge LoRA adapters into their base model.")
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--model-base", required=True)
    parser.add_argument("--save-model-path", required=True)
    run_script(
        lambda args: merge_lora(args.model_path, args.model_base, args.save_model_path),
        parser,
        argv,
    )


if __name__ == "__main__":
    main()
