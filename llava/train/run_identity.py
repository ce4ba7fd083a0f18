"""What must stay the same when a run goes on from a checkpoint.

Input: a run's arguments, data and tokenizer. Output: a small JSON file in each checkpoint and
beside the result, and a refusal that names what changed. The number of ranks may change, as long as
an optimizer step takes as many samples; so may the folders of model and data.
"""

from __future__ import annotations

import hashlib
import json
import logging
import zlib
from pathlib import Path
from typing import Any

from llava.errors import CheckpointError

log = logging.getLogger(__name__)

IDENTITY_FILE = "run_identity.json"

# Flags that decide the result, besides those that `identity_of` reads.
_RESULT_FLAGS = (
    "learning_rate mm_projector_lr lr_scheduler_type lr_scheduler_kwargs warmup_steps weight_decay "
    "optim optim_args adam_beta1 adam_beta2 adam_epsilon max_grad_norm loss_normalization "
    "tune_mm_mlp_adapter freeze_mm_mlp_adapter freeze_backbone lora_enable lora_r lora_alpha "
    "lora_dropout lora_bias bits version mm_vision_select_layer mm_projector_type "
    "image_aspect_ratio alignment_loss"
).split()
_SETTINGS = "settings"
_PLACES = ("model_name_or_path", "vision_tower")
_FILES = ("pretrain_mm_mlp_adapter", "data_path")
_READ_BYTES = 2**22


def settings_of(*arguments: Any) -> dict[str, str]:
    """Describe what the flags ask for, as far as the result depends on it.

    Args:
        *arguments: Dataclasses of flags; a flag is looked up in each.

    Returns:
        Values by flag, without the dashes. Models are named by their folder's name, files by their
        name and CRC-32: both may move.
    """
    values = {name: value for each in arguments for name, value in vars(each).items()}
    found = {name: values[name] for name in _RESULT_FLAGS if name in values}
    if not str(getattr(values.get("lr_scheduler_type"), "value", "")).startswith("constant"):
        # by the length of the run the learning rate falls
        length = "max_steps" if values.get("max_steps", -1) > 0 else "num_train_epochs"
        found[length] = values.get(length)
    for name in _PLACES:
        found[name] = values.get(name) and Path(str(values[name])).name
    for name in _FILES:
        found[name] = values.get(name) and _describe_file(Path(str(values[name])))
    return {name: str(getattr(value, "value", value)) for name, value in found.items()}


def _describe_file(path: Path) -> str:
    if not path.is_file():
        return path.name
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            checksum = zlib.crc32(block, checksum)
    return f"{path.name} (CRC-32 {checksum:08x})"


def identity_of(
    args: Any,
    dataset: Any,
    sampler: Any,
    tokenizer: Any,
    data_seed: int,
    settings: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Describe a run.

    Args:
        args: Training arguments.
        dataset: The training samples; a method `identity`, if it has one, gives a dict of what
            decides them.
        sampler: Their order, with the same method; None for one that the arguments say.
        tokenizer: May be None.
        data_seed: Seed of the order.
        settings: Of `settings_of`; None leaves them out.
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
        **({} if settings is None else {_SETTINGS: settings}),
    }


def write_identity(folder: Path, identity: dict[str, Any]) -> None:
    """Put it into a checkpoint."""
    (folder / IDENTITY_FILE).write_text(json.dumps(identity, indent=1) + "\n", encoding="utf-8")


def check_identity(folder: Path, now: dict[str, Any], args: Any) -> bool:
    """Refuse to go on from another run's checkpoint.

    Args:
        folder: The checkpoint, or the folder of a result. One without the file (of an older
            version) is not checked; nor are settings that an older version did not record.
        now: What the run is.
        args: Training arguments; `allow_changed_run` and `overwrite_output_dir` turn the refusal
            into a warning.

    Returns:
        Whether to go on from it; False if it is of another run, which is to be overwritten.

    Raises:
        CheckpointError: It says what was and what is, and how to have it as it was.
    """
    path = folder / IDENTITY_FILE
    if not path.is_file():
        return True
    before = json.loads(path.read_text(encoding="utf-8"))
    changed = _differences(before, now)
    if not changed:
        return True
    listed = ", ".join(f"{key} was {old}, is {new}" for key, (old, new) in changed.items())
    text = f"{folder} is of a run with other settings: {listed}"
    if getattr(args, "allow_changed_run", False):
        log.warning("%s; --allow_changed_run was given", text)
        return True
    if getattr(args, "overwrite_output_dir", False):
        log.warning("%s; it is overwritten, as --overwrite_output_dir asks", text)
        return False
    raise CheckpointError(
        f"{text}. The result would be neither run's. {_advice(changed, args)}, begin anew in this "
        "folder with --overwrite_output_dir True, or go on all the same with --allow_changed_run "
        "True."
    )


def _differences(before: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Old and new value of what changed, flags with their dashes."""
    before, now = dict(before), dict(now)
    old, new = before.pop(_SETTINGS, {}), now.pop(_SETTINGS, {})
    changed = {
        key: (before.get(key), now.get(key))
        for key in (*before, *(now.keys() - before.keys()))
        if before.get(key) != now.get(key)
    }
    # a flag that only one of them has was not recorded by the other's version, but for the
    # length of the run, which has two names
    both = [name for name in new if name in old and old[name] != new[name]]
    lengths = [name for name in ("max_steps", "num_train_epochs") if (name in old) != (name in new)]
    if old and new and old.get("lr_scheduler_type") == new.get("lr_scheduler_type"):
        both += lengths
    return changed | {
        f"--{name}": (old.get(name, "unset"), new.get(name, "unset")) for name in both
    }


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
