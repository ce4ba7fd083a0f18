"""Refuses a model folder that does not exist, at once: before anything heavy is imported.

In: what the user gave as a model. Out: nothing, or an error that says what to do. Whether the
checkpoint is complete is for `llava.model.builder` to say.
"""

from __future__ import annotations

from pathlib import Path

from llava.errors import CheckpointError


def check_model_path(model_path: str) -> None:
    """Refuse a model folder that does not exist, before anything slow is done.

    A name such as `org/model` may be on the Hub; what begins like a path here may not.

    Raises:
        CheckpointError: The folder is missing or holds no configuration.
    """
    path = Path(model_path).expanduser()
    if path.is_dir():
        if not any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
            raise CheckpointError(
                f"{model_path} holds neither config.json nor adapter_config.json: "
                "is the training finished, and is this the folder that it wrote?"
            )
        return
    looks_local = model_path.startswith(("/", ".", "~")) or model_path.count("/") != 1
    if looks_local or Path(path.parts[0]).is_dir() or path.parts[0] == "runs":
        raise CheckpointError(
            f"no model folder {model_path} (from {Path.cwd()}): give the folder that a training "
            "wrote, such as runs/mini after `bash scripts/quickstart.sh`"
        )
