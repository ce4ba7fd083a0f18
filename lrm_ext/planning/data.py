"""How many samples a stage sees and how long they are: measured where its data is, else assumed.

Input: the flags of a stage. Output: a `StageData` that says where its numbers are from.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lrm_ext.planning.presets import ROOT

log = logging.getLogger(__name__)

# The paper's abstract: 4.8 million in all, half of them in each stage.
PAPER_SAMPLES = 2_400_000
# An assumption: translated captions of ShareGPT4V in Llama's tokens, prompt included.
ASSUMED_TEXT_TOKENS = 254
_NUM_MEASURED = 200


class _Wishes(Protocol):
    @property
    def num_samples(self) -> int | None: ...
    @property
    def text_tokens(self) -> float | None: ...
    @property
    def supervised_tokens(self) -> float | None: ...


@dataclass(frozen=True)
class StageData:
    """What a stage is trained on.

    Attributes:
        num_samples: Samples in all, epochs counted.
        num_positions: Mean of a sample, its picture included.
        num_supervised: Mean of those that are learnt.
        source_of_samples: Where their number is from.
        source_of_lengths: Where their length is from.
    """

    num_samples: int
    num_positions: float
    num_supervised: float
    source_of_samples: str
    source_of_lengths: str


def measure_data(
    stage: str,
    flags: Mapping[str, str],
    num_image_tokens: int,
    samples_a_step: int,
    wishes: _Wishes,
) -> StageData:
    """Find out what a stage is trained on.

    Args:
        stage: "pretrain" or "finetune".
        flags: Of the stage.
        num_image_tokens: Positions of a picture.
        samples_a_step: The global batch, where flags give the number of steps.
        wishes: What the user says.

    Raises:
        UserError: The corpus or the mixture that is there cannot be read.
    """
    measured = _measure(stage, flags)
    text, supervised, lengths = ASSUMED_TEXT_TOKENS * 1.0, None, "assumed, the corpus is not here"
    if measured is not None:
        text, supervised, lengths = measured.text_tokens, measured.supervised, measured.source
    if wishes.text_tokens is not None:
        text, supervised, lengths = wishes.text_tokens, None, "as given"
    if wishes.supervised_tokens is not None:
        supervised = wishes.supervised_tokens
    if supervised is None:
        supervised = text  # more it cannot be
        lengths += "; all of the text learnt"
    num_samples, source = PAPER_SAMPLES, "the paper's"
    if wishes.num_samples is not None:
        num_samples, source = wishes.num_samples, "as given"
    elif int(flags.get("max_steps", -1)) > 0:
        num_samples, source = int(flags["max_steps"]) * samples_a_step, "--max_steps"
    elif measured is not None:
        epochs = float(flags.get("num_train_epochs", 1))
        num_samples, source = round(measured.num_samples * epochs), measured.source
    return StageData(num_samples, text + num_image_tokens, supervised, source, lengths)


@dataclass(frozen=True)
class _Measured:
    num_samples: int
    text_tokens: float
    supervised: float
    source: str


def _measure(stage: str, flags: Mapping[str, str]) -> _Measured | None:
    """Lengths in the mixture of a stage; None if corpus or tokenizer are not here."""
    corpus_path, mixture_path = _find(flags.get("corpus_path")), _find(flags.get("mixture_path"))
    model_path = _find(flags.get("model_name_or_path"))
    if corpus_path is None or model_path is None or not (corpus_path / "corpus.toml").is_file():
        return None
    if not any(model_path.glob("token*")):
        return None
    from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
    from lrm_ext.corpus.store import Corpus
    from lrm_ext.instructions.inspection import encode_sample, load_tokenizer
    from lrm_ext.mixture import Mixture, MixtureSpec

    spec = MixtureSpec() if mixture_path is None else MixtureSpec.from_toml(mixture_path)
    mixture = Mixture(spec, Corpus.open(corpus_path))
    tokenizer = load_tokenizer(model_path)
    count = min(_NUM_MEASURED, len(mixture))
    num_text = num_supervised = 0
    for index in range(count):
        sample = mixture.sample(index)
        encoded = encode_sample(sample, flags["version"], tokenizer)
        num_text += sum(token != IMAGE_TOKEN_INDEX for token in encoded.input_ids)
        num_supervised += sum(label != IGNORE_INDEX for label in encoded.labels)
    source = f"{count} samples of {flags['corpus_path']}"
    return _Measured(len(mixture), num_text / count, num_supervised / count, source)


def _find(name: str | None) -> Path | None:
    """A path that exists, as given or relative to the repository."""
    if name is None:
        return None
    for path in (Path(name), ROOT / name):
        if path.exists():
            return path
    return None
