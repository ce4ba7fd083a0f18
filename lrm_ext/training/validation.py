"""Validation during training: held-out rows, samples in every language, early stopping.

Input: a corpus and a share, or a mixture of held-out rows. Output: a corpus to train on and one to
validate on; a dataset for the trainer's validation loss; callbacks that stop a run and mark its
best checkpoint. A hash of the image's path, or of the id of a row without an image, decides whether
a row is held out. So all rows with an image are on the same side, on every machine and whatever
else is in the corpus. Non-goals: the loss (`llava.train.metrics`), questions (`questions.py`).
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from torch.utils.data import Dataset
from transformers import TrainerCallback

from llava.errors import ConfigError
from llava.files import write_atomically
from lrm_ext.corpus.store import AnyCorpus, Corpus, JoinedCorpus, parts_of
from lrm_ext.training.dataset import MixtureDataset

log = logging.getLogger(__name__)

_SCALE = 2**64


class CorpusPart(Corpus):
    """A renumbered subset of the rows of a corpus.

    Args:
        whole: The corpus.
        share: Share of the images that is held out.
        is_held_out: Whether this is the held-out part or the rest.
    """

    def __init__(self, whole: Corpus, share: float, is_held_out: bool) -> None:
        super().__init__(whole.path, whole._meta, whole.image_root)
        self.whole, self.share, self.is_held_out = whole, share, is_held_out

    def __reduce__(self) -> tuple[Any, ...]:
        return (CorpusPart, (self.whole, self.share, self.is_held_out))

    @cached_property
    def rows(self) -> npt.NDArray[np.uint32]:
        """Row numbers in the whole corpus, ascending."""
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

    def fingerprint(self) -> str:
        """See `Corpus`; it differs from the whole's and depends on the share."""
        name = f"{self.whole.fingerprint()} {self.share!r} {self.is_held_out}"
        return hashlib.sha256(name.encode()).hexdigest()[:12]

    def usable_rows(self, lang: str) -> npt.NDArray[np.uint32]:
        """See `Corpus`; the numbers are those of this part."""
        usable = np.isin(self.rows, self.whole.usable_rows(lang))
        return np.flatnonzero(usable).astype(np.uint32)

    def usable(self, lang: str) -> Sequence[int]:
        """See `Corpus`."""
        return self.usable_rows(lang).tolist()

    def _locate(self, folder: str, index: int) -> tuple[pa.RecordBatch, int]:
        return self.whole._locate(folder, int(self.rows[index]))


def is_held_out(name: str, share: float) -> bool:
    """Returns whether an image is held out."""
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * _SCALE


def split_corpus(corpus: AnyCorpus, share: float) -> tuple[AnyCorpus, AnyCorpus]:
    """Splits a corpus, or each of several, into a part to train on and a held-out part.

    Raises:
        ConfigError: One of the parts has no rows.
    """
    trained, held_out = [], []
    for part in parts_of(corpus):
        ours, others = (CorpusPart(part, share, is_held) for is_held in (False, True))
        if not len(ours) or not len(others):
            raise ConfigError(
                f"--eval_share {share:g} of the images of {part.path} ({len(part)} rows) leaves "
                f"{len(ours)} rows for training and {len(others)} for validation; choose another"
            )
        trained.append(ours)
        held_out.append(others)
    if len(trained) == 1:
        return trained[0], held_out[0]
    return JoinedCorpus(trained), JoinedCorpus(held_out)


BEST_FILE = "best.json"


class ValidationSet(Dataset[dict[str, Any]]):
    """A fixed subset of a mixture: the same number of samples per language, sorted by length.

    Args:
        dataset: Dataset of held-out rows.
        num_samples: Approximate number of samples, in all languages together.
    """

    def __init__(self, dataset: MixtureDataset, num_samples: int) -> None:
        self.dataset = dataset
        wanted = -(-num_samples // len(dataset.mixture.corpus.languages))
        chosen: dict[str, list[int]] = defaultdict(list)
        for index in range(len(dataset)):
            own = chosen[dataset.mixture.draw(index).lang]
            if len(own) < wanted:
                own.append(index)
        self.counts = {lang: len(own) for lang, own in chosen.items()}
        self.indices = sorted(chain(*chosen.values()), key=lambda i: (dataset.length(i), i))

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.dataset[self.indices[index]]


class StopEarly(TrainerCallback):
    """Ends a run whose validation loss no longer improves.

    It uses the logged history, so an interrupted run continues to count.

    Args:
        patience: Validations without a better loss.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ends the run if the best loss is too far back."""
        logged = [(e["step"], e["eval_loss"]) for e in state.log_history if "eval_loss" in e]
        losses = list(dict(logged).values())
        since_best = len(losses) - 1 - losses.index(min(losses)) if losses else -1
        if since_best >= self.patience:
            log.info(
                "stopped early in step %d: the validation loss has not fallen for %d validations",
                state.global_step,
                since_best,
            )
            control.should_training_stop = True


class MarkBest(TrainerCallback):
    """Writes the name of the best checkpoint to `best.json`."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Writes the file, if the best checkpoint exists or is being written."""
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
