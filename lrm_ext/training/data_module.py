"""The data module with which llava's `train()` trains on a mixture and validates on held-out rows.

Input: a `DataContext` with `LrmArguments`. Output: dataset, collator, sampler and the template for
`config.json`; for validation a dataset with samples in every language, and callbacks that stop a
run and mark its best checkpoint. Without a corpus, LLaVA's own data module reads `--data_path`.
A hash of the image's path, or of the id of a row without an image, decides whether a row is held
out. So all rows with an image are on the same side, on every machine and whatever else is in the
corpus. Non-goals: the validation loss (`llava.train.metrics`), questions (`questions.py`).
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from torch.utils.data import Dataset
from transformers import TrainerCallback
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from llava.conversation import ChatConversation, Conversation
from llava.errors import ConfigError, DataError, refuse
from llava.files import write_atomically
from llava.model.tiles import Tiling, is_tiled
from llava.train.arguments import DataContext
from llava.train.train import NamedCollator, default_data_module
from lrm_ext.corpus.store import (
    ENGLISH,
    AnyCorpus,
    Corpus,
    JoinedCorpus,
    batch_images,
    num_images,
    parts_of,
)
from lrm_ext.languages.templates import in_language
from lrm_ext.mixture.order import Mixture
from lrm_ext.mixture.spec import MixtureSpec
from lrm_ext.training.arguments import AUTO_CACHE, NO_CACHE, WITH_CACHE, LrmArguments
from lrm_ext.training.contrastive_loss import AlignmentLoss, Renderings, collate_renderings
from lrm_ext.training.dataset import (
    LengthWindowSampler,
    MixtureDataset,
    PackedSampler,
    SampleLimits,
)
from lrm_ext.training.feature_cache import FeatureCache, ImageLoader

log = logging.getLogger(__name__)

FEATURE_DIR = "features"
# Centurio, RQ2: share of English in instruction tuning
LOWEST_ENGLISH, HIGHEST_ENGLISH = 0.25, 0.90
_LITERATURE = 'docs/training.md, "What the literature found"'


class MixtureCollator(NamedCollator):
    """Adds the samples' ids, groups and units to LLaVA's batches.

    The trainer removes `sample_ids`, which messages name, and `groups` and `units`, by which it
    measures languages, instructions, characters and bytes.
    """

    def __call__(self, instances: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Builds a batch."""
        batch = super().__call__(instances)
        batch["groups"] = [item["groups"] for item in instances]
        batch["units"] = {
            unit: [item["units"][unit] for item in instances] for unit in instances[0]["units"]
        }
        return batch | collate_renderings(instances) if "english" in instances[0] else batch


def lrm_data_module(context: DataContext) -> dict[str, Any]:
    """Makes what `train()` needs to train on a mixture.

    Args:
        context: The context; `extra` has one `LrmArguments`.

    Returns:
        `train_dataset`, `eval_dataset`, `data_collator`, `train_sampler`, `conversation`.

    Raises:
        ConfigError: Flags contradict each other, or the mixture does not fit the corpus.
        DataError: The corpus or an image cannot be read.
    """
    (arguments,) = (extra for extra in context.extra if isinstance(extra, LrmArguments))
    has_data_path = context.data_args.data_path is not None
    if arguments.corpus_path is None and (has_data_path or arguments.mixture_path is None):
        return _plain_data_module(context, arguments)
    if context.data_args.video_frames:
        raise ConfigError(
            f"--video_frames {context.data_args.video_frames}: a parallel corpus has no videos. "
            "Train on them with --data_path (LLaVA JSON), or leave the flag out"
        )
    if has_data_path:
        raise ConfigError(
            "--corpus_path and --data_path exclude each other: a mixture is drawn from a corpus"
        )
    spec = MixtureSpec()
    if arguments.mixture_path is not None:
        spec = MixtureSpec.from_toml(arguments.mixture_path)
    spec = spec.in_languages(arguments.languages)
    images = context.data_args.image_folder
    given = arguments.corpus_path and Corpus.open(arguments.corpus_path, image_root=images)
    mixture = Mixture.open(spec, given or None, images)
    corpus = mixture.corpus
    held_out: AnyCorpus | None = None
    if arguments.eval_share:
        corpus, held_out = split_corpus(corpus, arguments.eval_share)
        mixture = Mixture(spec, corpus)
    elif arguments.eval_corpus_path is not None:
        held_out = Corpus.open(arguments.eval_corpus_path, image_root=images)
        spec = msgspec.structs.replace(spec, corpora=())
    dataset = _dataset(context, arguments, mixture)
    log.info("%s: %d samples an epoch from %d rows", corpus.path, len(mixture), len(corpus))
    if mixture.left_out and arguments.languages is None:
        log.warning(
            "%s: the mixture leaves %s out, which the corpus has; add them to its [languages]",
            corpus.path,
            ", ".join(mixture.left_out),
        )
    if _tunes_multimodal_model(context):
        warn_of_mixture(mixture)
    return {
        "train_dataset": dataset,
        "data_collator": MixtureCollator(context.tokenizer),
        "train_sampler": _sampler(context.training_args, dataset, arguments),
        "conversation": _conversation(context),
        **_validation(context, arguments, spec, held_out),
        **_alignment(context, arguments, dataset),
    }


def _alignment(
    context: DataContext, arguments: LrmArguments, dataset: MixtureDataset
) -> dict[str, Any]:
    """Makes the alignment loss, if its flag is set.

    Raises:
        ConfigError: The model has no images, they are cut into tiles, or its weights are sharded.
    """
    if not arguments.alignment_loss:
        return {}
    if not context.data_args.is_multimodal:
        raise ConfigError("--alignment_loss needs a --vision_tower: there is nothing to align")
    if is_tiled(context.data_args.image_aspect_ratio):
        raise ConfigError(
            "--alignment_loss compares whole images with texts: leave it out with "
            f"--image_aspect_ratio {context.data_args.image_aspect_ratio}"
        )
    dataset.extend = Renderings(dataset.mixture.corpus, context.tokenizer)
    projector = context.model.get_model().mm_projector
    return {"extra_loss": AlignmentLoss(arguments.alignment_loss, projector, context.training_args)}


def _validation(
    context: DataContext, arguments: LrmArguments, spec: MixtureSpec, corpus: AnyCorpus | None
) -> dict[str, Any]:
    """Makes the validation set, and the callbacks and questions of validation.

    Raises:
        ConfigError: Flags contradict each other.
    """
    _check_validation(arguments, context.training_args)
    if corpus is None:
        return {"eval_dataset": None}
    dataset = ValidationSet(
        _dataset(context, arguments, Mixture(spec, corpus)), arguments.eval_samples
    )
    counts = ", ".join(f"{lang} {count}" for lang, count in dataset.counts.items())
    log.info("validation on %d samples of %s: %s", len(dataset), corpus.path, counts)
    result: dict[str, Any] = {"eval_dataset": dataset, "callbacks": [MarkBest()]}
    if arguments.early_stop_patience:
        result["callbacks"].append(StopEarly(arguments.early_stop_patience))
    if arguments.eval_questions:
        # these import the evaluation
        from lrm_ext.languages.templates import Templates
        from lrm_ext.training.questions import ValidationQuestions

        result["extra_evaluation"] = ValidationQuestions(
            arguments.eval_benchmark,
            arguments.eval_questions,
            corpus.languages,
            context.tokenizer,
            context.image_processor,
            Templates(str(context.model_args.version), context.conversation),
        )
    return result


def _check_validation(arguments: LrmArguments, args: Any) -> None:
    """Checks the flags of validation.

    Raises:
        ConfigError: Flags contradict each other; the message names them.
    """
    is_on, validates = args.eval_strategy != "no", arguments.validates
    is_sharded = args.fsdp or is_deepspeed_zero3_enabled()
    refuse(
        {
            "--eval_strategy: there is nothing to validate on; hold rows out with --eval_share "
            "0.01, or name a corpus with --eval_corpus_path": is_on and not validates,
            "--eval_share and --eval_corpus_path need --eval_strategy steps": validates
            and not is_on,
            "--eval_questions and --early_stop_patience need --eval_share": (
                not validates and (arguments.eval_questions or arguments.early_stop_patience)
            ),
            "--eval_questions does not work with sharded weights (ZeRO-3, FSDP): leave it out, "
            "and measure checkpoints with `lrm eval`": arguments.eval_questions and is_sharded,
        }
    )


def _plain_data_module(context: DataContext, arguments: LrmArguments) -> dict[str, Any]:
    """Returns LLaVA's own data module, with images turned upright.

    Raises:
        ConfigError: There is no data, or a flag needs a corpus.
    """
    if context.data_args.data_path is None:
        raise ConfigError(
            "no data: give --corpus_path (a parallel corpus), --mixture_path with [[corpora]] in "
            "it, or --data_path (LLaVA JSON)"
        )
    wants_cache = arguments.feature_cache not in (NO_CACHE, AUTO_CACHE)
    is_mixed = arguments.mixture_path is not None or arguments.languages is not None
    if wants_cache or is_mixed or arguments.validates:
        raise ConfigError(
            "--mixture_path, --languages, --feature_cache and --eval_share need a parallel corpus: "
            "import the data of --data_path into one, or train on it without these flags"
        )
    # the demo, the API and `lrm eval` turn images upright, so training does, too
    data = default_data_module(context, orient_images=True)
    if _tunes_multimodal_model(context):
        warn_of_no_images(data["train_dataset"].has_images, str(context.data_args.data_path))
    return data


def _tunes_multimodal_model(context: DataContext) -> bool:
    """Tells a fine-tuning stage of a model with images from a projector-only stage."""
    return bool(context.data_args.is_multimodal) and not context.model_args.tune_mm_mlp_adapter


def warn_of_mixture(mixture: Mixture) -> None:
    """Warns of a fine-tuning stage with too little or too much English, or without images.

    Published experiments found that these cost quality. A projector-only stage may stay in English
    (TowerVision found English captions best there), so it is not asked about.
    """
    share = mixture.num_english / len(mixture)
    ratio = f"non_english_ratio {float(mixture.spec.non_english_ratio):g}"
    if share < LOWEST_ENGLISH:
        log.warning(
            "English is %.0f %% of the samples (%s), less than %.0f %%: others lost quality there, "
            "in English and in most other languages (%s)",
            *(100 * share, ratio, 100 * LOWEST_ENGLISH, _LITERATURE),
        )
    elif share > HIGHEST_ENGLISH:
        log.warning(
            "English is %.0f %% of the samples (%s), more than %.0f %%: others lost quality there "
            "in languages with little data, and with English alone the model answers in English "
            "(%s)",
            *(100 * share, ratio, 100 * HIGHEST_ENGLISH, _LITERATURE),
        )
    has_images = any(
        num_images(batch).any() for part in parts_of(mixture.corpus) for batch in part.row_batches()
    )
    warn_of_no_images(has_images, str(mixture.corpus.path))


def warn_of_no_images(has_images: bool, where: str) -> None:
    """Warns of a fine-tuning stage on text only."""
    if not has_images:
        log.warning(
            "%s has no images: fine-tuning on text alone cost several models much of what they "
            "knew of images (%s)",
            where,
            _LITERATURE,
        )


def _sampler(args: Any, dataset: MixtureDataset, arguments: LrmArguments) -> LengthWindowSampler:
    step_size = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
    seed = args.seed if args.data_seed is None else args.data_seed
    common = (len(dataset), step_size, dataset.length)
    if args.packing:
        return PackedSampler(*common, args.train_batch_size, arguments.pack_window, seed)
    return LengthWindowSampler(*common, arguments.length_window, seed)


def _dataset(context: DataContext, arguments: LrmArguments, mixture: Mixture) -> MixtureDataset:
    tower = context.model.get_vision_tower() if context.data_args.is_multimodal else None
    images: ImageLoader | FeatureCache | None = None
    if tower is not None:
        tiling = Tiling.of_training(context.data_args)
        images = ImageLoader(context.image_processor, tiling, arguments.jpeg_draft)
        if _caches_features(arguments, tower):
            images = _features(context, arguments, mixture.corpus, tower, images)
    limits = SampleLimits(
        max_length=context.training_args.model_max_length,
        num_image_tokens=0 if tower is None else tower.num_image_tokens,
        max_drop_rate=context.data_args.max_drop_rate,
    )
    _check_images(mixture.corpus, limits)
    return MixtureDataset(
        mixture,
        context.tokenizer,
        str(context.model_args.version),
        limits,
        images,
        context.model_args.mm_use_im_start_end,
        arguments.encode_cache,
        context.conversation,
    )


def _check_images(corpus: AnyCorpus, limits: SampleLimits) -> None:
    """Refuses rows with more images than a sample has room for, before the first step.

    Raises:
        DataError: There is one, and no sample may be lost.
    """
    for part in parts_of(corpus) if not limits.max_drop_rate else ():
        for batch in part.row_batches():
            counts = num_images(batch)
            num_positions = counts * limits.num_image_tokens
            for i in np.flatnonzero((counts > 1) & (num_positions >= limits.max_length)).tolist():
                raise DataError(
                    f"{part.path}: sample {batch.column('id')[i].as_py()!r}: its {counts[i]} "
                    f"images take {num_positions[i]:,} positions, but --model_max_length is "
                    f"{limits.max_length:,}: raise it, split the sample, or tolerate a share of "
                    "such samples with --max_drop_rate."
                )


def _conversation(context: DataContext) -> Conversation:
    """Returns the template that the model is asked with where no language is known: English."""
    conversation: Conversation = context.conversation
    if not isinstance(conversation, ChatConversation):
        return conversation
    if not conversation.chat_format.takes_system:
        log.warning(
            "the tokenizer's chat template takes no system text, so samples do not say the "
            "language of their answers"
        )
    return in_language(str(context.model_args.version), conversation, ENGLISH)


def _caches_features(arguments: LrmArguments, tower: Any) -> bool:
    """Decides whether the tower's features are read from the cache.

    Raises:
        ConfigError: A cache is asked for, but the tower is trained.
    """
    if arguments.feature_cache == NO_CACHE or tower.is_frozen:
        return arguments.feature_cache != NO_CACHE
    if arguments.feature_cache != AUTO_CACHE:
        raise ConfigError(
            f"--feature_cache {arguments.feature_cache} needs a frozen vision tower, but "
            "--mm_tunable_parts trains it, so its features change with every step: give "
            "--feature_cache off"
        )
    log.info("--feature_cache auto: off, because the vision tower is trained")
    return False


def _features(
    context: DataContext,
    arguments: LrmArguments,
    corpus: AnyCorpus,
    tower: Any,
    loader: ImageLoader,
) -> FeatureCache:
    """Opens the feature cache and computes the features of all images of the corpus."""
    root = Path(arguments.feature_cache)
    if arguments.feature_cache in (WITH_CACHE, AUTO_CACHE):
        root = corpus.path.resolve().parent / FEATURE_DIR
    args = context.training_args
    rows = [corpus.image_paths(i) for i in range(len(corpus))]
    # the first process of a machine computes them, the others read them
    with args.main_process_first(desc="vision features"):
        cache = FeatureCache(root, tower, loader, arguments.feature_cache_dtype)
        for is_alone in (True, False):
            cache.add(
                [path for row in rows if (len(row) == 1) == is_alone for path in row],
                tower,
                args.dataloader_num_workers,
                tolerates_broken=context.data_args.max_drop_rate > 0,
                is_alone=is_alone,
            )
    return cache


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
            # of several images the first decides
            is_held_out(images[0] if images else row_id, self.share) == self.is_held_out
            for batch in self.whole.row_batches()
            for images, row_id in zip(
                batch_images(batch), batch.column("id").to_pylist(), strict=True
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
    return int.from_bytes(digest[:8], "big") < share * 2**64


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
        best, step = state.best_model_checkpoint, state.best_global_step
        is_there = best and (step == state.global_step or Path(best).is_dir())
        if state.is_world_process_zero and is_there:
            record = {
                "checkpoint": Path(best).name,
                "step": step,
                f"eval_{args.metric_for_best_model.removeprefix('eval_')}": state.best_metric,
            }
            write_atomically(Path(args.output_dir) / BEST_FILE, json.dumps(record))
