"""Warns of a stage's data where published experiments found that it costs quality.

Input: the mixture of a fine-tuning stage, or what is known of its data. Output: log entries at the
start of training; nothing is refused. `docs/training.md` has the figures and their sources. A
projector-only stage may stay in English (TowerVision found English captions best there), so callers
leave it out.
"""

from __future__ import annotations

import logging

from lrm_ext.corpus.store import AnyCorpus, num_images, parts_of
from lrm_ext.mixture.order import Mixture

log = logging.getLogger(__name__)

# Centurio, RQ2: share of English in instruction tuning
LOWEST_ENGLISH, HIGHEST_ENGLISH = 0.25, 0.90
_WHERE = 'docs/training.md, "What the literature found"'


def warn_of_mixture(mixture: Mixture) -> None:
    """Warns of a fine-tuning stage with too little or too much English, or without images."""
    share = mixture.num_english / len(mixture)
    ratio = f"non_english_ratio {float(mixture.spec.non_english_ratio):g}"
    if share < LOWEST_ENGLISH:
        log.warning(
            "English is %.0f %% of the samples (%s), less than %.0f %%: others lost quality there, "
            "in English and in most other languages (%s)",
            *(100 * share, ratio, 100 * LOWEST_ENGLISH, _WHERE),
        )
    elif share > HIGHEST_ENGLISH:
        log.warning(
            "English is %.0f %% of the samples (%s), more than %.0f %%: others lost quality there "
            "in languages with little data, and with English alone the model answers in English "
            "(%s)",
            *(100 * share, ratio, 100 * HIGHEST_ENGLISH, _WHERE),
        )
    warn_of_no_images(_has_images(mixture.corpus), str(mixture.corpus.path))


def warn_of_no_images(has_images: bool, where: str) -> None:
    """Warns of a fine-tuning stage on text only."""
    if not has_images:
        log.warning(
            "%s has no images: fine-tuning on text alone cost several models much of what they "
            "knew of images (%s)",
            where,
            _WHERE,
        )


def _has_images(corpus: AnyCorpus) -> bool:
    return any(num_images(batch).any() for part in parts_of(corpus) for batch in part.row_batches())
