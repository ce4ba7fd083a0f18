"""What must stay the same when a run goes on from a checkpoint.

Input: a run's arguments, data and tokenizer. Output: a small JSON file in each checkpoint, and a
refusal that names what changed. The number of ranks may change, as long as an optimizer step takes
as many samples.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from llava.errors import CheckpointError

log = logging.getLogger(__name__)

IDENTITY_FILE = "run_identity.json"


def identity_of(
    args: Any, dataset: Any, sampler: Any, tokenizer: Any, data_seed: int
) -> dict[str, Any]:
    """Describe a run.

    Args:
        args: Training arguments.
        dataset: The training samples; a method `identity`, if it has one, gives a dict of what
            decides them.
        sampler: Their order, with the same method; None for one that the arguments say.
        tokenizer: May be None.
        data_seed: Seed of the order.
    """
    return {
        "samples in an epoch": len(dataset),
        "samples in a step": args.train_batch_size
        * args.gradient_accumulation_steps
        * args.world_size,
        "seed": data_seed,
        "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "float32",
        "tokenizer": _fingerprint(tokenizer),
        **getattr(dataset, "identity", dict)(),
        **getattr(sampler, "identity", dict)(),
    }


def write_identity(folder: Path, identity: dict[str, Any]) -> None:
    """Put it into a checkpoint."""
    (folder / IDENTITY_FILE).write_text(json.dumps(identity, indent=1) + "\n", encoding="utf-8")


def check_identity(folder: Path, now: dict[str, Any], args: Any) -> None:
    """Refuse to go on from another run's checkpoint.

    Args:
        folder: The checkpoint. One without the file (of an older version) is not checked.
        now: What the run is.
        args: Training arguments; `allow_changed_run` turns the refusal into a warning.

    Raises:
        CheckpointError: It says what was and what is, and how to have it as it was.
    """
    path = folder / IDENTITY_FILE
    if not path.is_file():
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    changed = {
        key: (before.get(key), now.get(key))
        for key in (*before, *(now.keys() - before.keys()))
        if before.get(key) != now.get(key)
    }
    if not changed:
        return
    listed = ", ".join(f"{key} was {old}, is {new}" for key, (old, new) in changed.items())
    text = (
        f"{folder} is of a run with other settings: {listed}. Going on, samples of this epoch "
        "could come twice or not at all, and the losses would not continue"
    )
    if getattr(args, "allow_changed_run", False):
        log.warning("%s; --allow_changed_run was given", text)
        return
    raise CheckpointError(
        f"{text}. {_advice(changed, args)}, or go on all the same with --allow_changed_run True."
    )


def _advice(changed: dict[str, tuple[Any, Any]], args: Any) -> str:
    before, _ = changed.get("samples in a step", (None, None))
    per_pass = args.train_batch_size * args.world_size
    if before and before % per_pass == 0:
        steps = before // per_pass
        return f"--gradient_accumulation_steps {steps} gives {before} samples a step again"
    return "Give what it was before, name another --output_dir"


def _fingerprint(tokenizer: Any) -> str | None:
    """Hash of the vocabulary and the special tokens."""
    if tokenizer is None:
        return None
    content = [sorted(tokenizer.get_vocab().items()), tokenizer.all_special_tokens]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]
