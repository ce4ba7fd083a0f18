"""Take the projector out of a whole model.

In: a folder with `model.safetensors` or `pytorch_model.bin`, perhaps in shards. Out: a file that
`--pretrain_mm_mlp_adapter` reads. Usage:
python scripts/extract_mm_projector.py --model-path checkpoints/m --output mm_projector.bin
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
import typer
from safetensors import safe_open
from torch import Tensor

from llava.errors import CheckpointError, run_script
from llava.model.checkpoint import check_complete, weight_paths

KEY_PART = "mm_projector"


def read_projector(model_path: str) -> dict[str, Tensor]:
    """The projector's tensors, under the names that they have in the model.

    Raises:
        CheckpointError: the folder is incomplete, or its model has no projector.
    """
    check_complete(Path(model_path))
    tensors: dict[str, Tensor] = {}
    for path in weight_paths(model_path):
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                names = [name for name in file.keys() if KEY_PART in name]
                tensors.update({name: file.get_tensor(name) for name in names})
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
            tensors.update({name: weights[name] for name in weights if KEY_PART in name})
    if not tensors:
        raise CheckpointError(
            f"{model_path}: no weights named {KEY_PART}; expected a whole LLaVA model"
        )
    return tensors


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and extract."""
    parser = argparse.ArgumentParser(description="Extract a model's projector.")
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--output", required=True)

    def run(args: argparse.Namespace) -> None:
        tensors = read_projector(args.model_path)
        Path(args.output).parent.mkdir(parents=True, exist_ok=True)
        torch.save(tensors, args.output)
        typer.echo(f"{len(tensors)} tensors: {args.output}")

    run_script(run, parser, argv)


if __name__ == "__main__":
    main()
