"""Validation while training: rows that are held out, samples in every language, and when to stop.

Input: a corpus and a share; a mixture of held-out rows. Output: two corpora, one to train on and
one to validate on; a dataset for the trainer's validation loss; callbacks that stop a run and mark
its best checkpoint. A hash of the picture's path decides which rows are held out, so that all rows
about a picture are on the same side, on every machine and whatever else the corpus holds. A row
without a picture goes by its id. Non-goals: the loss itself (`llava.train.metrics`), questions that
are asked at a validation (`questions.py`).
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset
from transformers import TrainerCallback
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from llava.data.sample import Turn
from llava.errors import ConfigError
from llava.files import write_atomically
from lrm_ext.corpus.store import AnyCorpus, Corpus, CorpusRow, CorpusText, JoinedCorpus, parts_of
from lrm_ext.training.arguments import LrmArguments
from lrm_ext.training.dataset import MixtureDataset

log = logging.getLogger(__name__)

_SCALE = 2**64


class CorpusPart(Corpus):
    """Some rows of a corpus, numbered anew.

    Args:
        whole: The corpus.
        share: Share of the pictures that are held out.
        is_held_out: Whether this is the part that is held out, or the rest.
    """

    def __init__(self, whole: Corpus, share: float, is_held_out: bool) -> None:
        self.whole, self.share, self.is_held_out = whole, share, is_held_out
        self.path, self.image_root = whole.path, whole.image_root

    def __reduce__(self) -> tuple[Any, ...]:
        return (CorpusPart, (self.whole, self.share, self.is_held_out))

    def __repr__(self) -> str:
        kind = "held out" if self.is_held_out else "trained on"
        return f"CorpusPart({self.whole!r}, {len(self)} rows {kind})"

    @cached_property
    def rows(self) -> npt.NDArray[np.uint32]:
        """The rows of the whole corpus that are in this part, ascending."""
        chosen = [
            is_held_out(image if image is not None else row_id, self.share) == self.is_held_out
            for batch in self.whole.row_batches()
            for image, row_id in zip(
                batch.column("image").to_pylist(), batch.column("id").to_pylist(), strict=True
            )
        ]
        return np.flatnonzero(chosen).astype(np.uint32)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def languages(self) -> tuple[str, ...]:
        """As of the whole corpus."""
        return self.whole.languages

    def fingerprint(self) -> str:
        """Differs from the whole's, and for another share."""
        name = f"{self.whole.fingerprint()} {self.share!r} {self.is_held_out}"
        return hashlib.sha256(name.encode()).hexdigest()[:12]

    def row(self, index: int) -> CorpusRow:
        """See `Corpus`."""
        return self.whole.row(int(self.rows[index]))

    def text(self, lang: str, index: int) -> CorpusText | None:
        """See `Corpus`."""
        return self.whole.text(lang, int(self.rows[index]))

    def turns(self, lang: str, index: int) -> tuple[Turn, ...] | None:
        """See `Corpus`."""
        return self.whole.turns(lang, int(self.rows[index]))

    def usable_rows(self, lang: str) -> npt.NDArray[np.uint32]:
        """See `Corpus`; numbers of this part."""
        usable = np.isin(self.rows, self.whole.usable_rows(lang))
        return np.flatnonzero(usable).astype(np.uint32)

    def usable(self, lang: str) -> Sequence[int]:
        """See `Corpus`."""
        return list(map(int, self.usable_rows(lang)))

    def image_path(self, index: int) -> Path | None:
        """See `Corpus`."""
        return self.whole.image_path(int(self.rows[index]))


def is_held_out(name: str, share: float) -> bool:
    """Whether a picture is among the share that is held out."""
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * _SCALE


def split_corpus(corpus: AnyCorpus, share: float) -> tuple[AnyCorpus, AnyCorpus]:
    """Split a corpus, or each of several, into what is trained on and what is held out.

    Raises:
        ConfigError: One of the parts has no rows.
    """
    trained, held_out = [], []
    for part in parts_of(corpus):
        ours, others = (CorpusPart(part, share, is_held) for is_held in (False, True))
        if not len(ours) or not len(others):
            raise ConfigError(
                f"--eval_share {share:g} of the pictures of {part.path} ({len(part)} rows) leaves "
                f"{len(ours)} rows for training and {len(others)} for validation; choose another"
            )
        trained.append(ours)
        held_out.append(others)
    if len(trained) == 1:
        return trained[0], held_out[0]
    return JoinedCorpus(trained), JoinedCorpus(held_out)


BEST_FILE = "best.json"


class ValidationSet(Dataset[dict[str, Any]]):
    """A fixed choice of a mixture's samples: as many of every language, sorted by length.

    Args:
        dataset: Of held-out rows.
        num_samples: About how many, all languages together.
    """

    def __init__(self, dataset: MixtureDataset, num_samples: int) -> None:
        self.dataset = dataset
        wanted = -(-num_samples // len(dataset.mixture.corpus.languages))
        by_language: Counter[str] = Counter()
        chosen = []
        for index in range(len(dataset)):
            lang = dataset.mixture.draw(index).lang
            if by_language[lang] < wanted:
                by_language[lang] += 1
                chosen.append(index)
        self.counts = dict(by_language)
        self.indices = sorted(chosen, key=lambda index: (dataset.length(index), index))

    @property
    def has_features(self) -> bool:
        """As of the training set."""
        return self.dataset.has_features

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.dataset[self.indices[index]]


class StopEarly(TrainerCallback):
    """Ends a run whose validation loss has not improved for a while.

    It goes by the run's logged history, so a run that was interrupted counts on.

    Args:
        patience: Validations without a better loss.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look back."""
        logged = [(e["step"], e["eval_loss"]) for e in state.log_history if "eval_loss" in e]
        losses = [loss for _, loss in dict(logged).items()]
        if not losses:
            return
        since_best = len(losses) - 1 - losses.index(min(losses))
        if since_best >= self.patience:
            log.info(
                "stopped early in step %d: the validation loss has not fallen for %d validations",
                state.global_step,
                since_best,
            )
            control.should_training_stop = True


class MarkBest(TrainerCallback):
    """Writes which checkpoint is the best one into `best.json`."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the file, if the best checkpoint is there, or is being written right now."""
        best = state.best_model_checkpoint
        if not state.is_world_process_zero or not best:
            return
        if state.best_global_step != state.global_step and not Path(best).is_dir():
            return
        record = {
            "checkpoint": Path(best).name,
            "step": state.best_global_step,
            f"eval_{args.metric_for_best_model.removeprefix('eval_')}": state.best_metric,
        }
        path = Path(args.output_dir) / BEST_FILE
        write_atomically(path, json.dumps(record))


def check_validation_flags(arguments: LrmArguments, args: Any) -> None:
    """Find contradictions between what is validated on and when.

    Args:
        arguments: Ours.
        args: transformers' training arguments.

    Raises:
        ConfigError: naming the flags.
    """
    is_on = args.eval_strategy != "no"
    if is_on and not arguments.validates:
        raise ConfigError(
            "--eval_strategy: there is nothing to validate on; hold rows out with --eval_share "
            "0.01, or name a corpus with --eval_corpus_path"
        )
    if arguments.validates and not is_on:
        raise ConfigError("--eval_share and --eval_corpus_path need --eval_strategy steps")
    if (arguments.eval_questions or arguments.early_stop_patience) and not arguments.validates:
        raise ConfigError("--eval_questions and --early_stop_patience need --eval_share")
    if arguments.eval_questions and (args.fsdp or is_deepspeed_zero3_enabled()):
        raise ConfigError(
            "--eval_questions does not work where weights are dealt out (ZeRO-3, FSDP): leave it "
            "out, and measure checkpoints with `lrm eval`"
        )
