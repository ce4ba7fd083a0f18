"""Defines names and numbers that LLaVA's files, prompts and wire protocol fix.

Role: one place for the sentinels and special tokens. Input: none. Output: constants.
Non-goals: anything that a flag or a configuration can change.
"""

from typing import Final

CONTROLLER_HEART_BEAT_EXPIRATION: Final = 30
"""Seconds of silence after which the controller forgets a worker."""

WORKER_HEART_BEAT_INTERVAL: Final = 15
"""Seconds between two beats of a worker."""

LOGDIR: Final = "."
"""Folder of server logs, conversation logs and received images."""

IGNORE_INDEX: Final = -100
"""Label of a position that does not count in the loss."""

IMAGE_TOKEN_INDEX: Final = -200
"""Sentinel inside `input_ids` where image features go; never a row of the embedding."""

DEFAULT_IMAGE_TOKEN: Final = "<image>"
"""Placeholder of an image in text; not a token of the vocabulary."""

DEFAULT_IMAGE_PATCH_TOKEN: Final = "<im_patch>"
DEFAULT_IM_START_TOKEN: Final = "<im_start>"
DEFAULT_IM_END_TOKEN: Final = "<im_end>"

IMAGE_PLACEHOLDER: Final = "<image-placeholder>"
"""What a user of `llava.eval.run_llava` writes where the image should go."""
