"""A mixture as a torch dataset, from index to token ids, labels and image, and its order in steps.

Input: a `Mixture`, a tokenizer, a template family. Output: items for LLaVA's collator. Indices
continue over epochs (epoch * length + position), so workers do not need to know the epoch: item k
is a pure function of k. Lost samples are counted per language, over all worker processes.

The samplers order the samples, from optimizer steps to micro-batches of ranks. The samples of a
step are a pure function of (seed, epoch, step, samples per step), however they are distributed over
ranks, micro-batches and workers. So a run may resume with another number of ranks, as long as a
step takes as many samples, and still sees every sample of an epoch exactly once. The last step of
an epoch is filled up with repeats without labels (`~index`), because all ranks must take part in
it. Non-goals: padding (`llava.data.batching`).
"""

from __future__ import annotations

import heapq
import json
import logging
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset, Sampler

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import ChatConversation, Conversation, get_conversation
from llava.data.batching import EventCounts
from llava.data.sample import Sample, SampleError, Turn
from llava.data.tokenize import encode_turns, place_images
from llava.errors import DataError
from lrm_ext.languages.templates import in_language
from lrm_ext.mixture.order import Draw, Mixture
from lrm_ext.training.feature_cache import FeatureCache, ImageLoader

log = logging.getLogger(__name__)

ENCODED, CUT, TOO_LONG, READ, BROKEN = "encoded", "cut", "too long", "read", "broken image"
_EVENTS = (ENCODED, CUT, TOO_LONG, READ, BROKEN)
# encoding happens twice: in the process that plans steps, and in the workers
_OF_ENCODING = (ENCODED, CUT, TOO_LONG)
# rates of fewer samples are not meaningful
_MIN_SEEN = 200


class SampleLosses(EventCounts):
    """Counts the samples of a mixture, and raises if too many are lost.

    Args:
        languages: Languages of the mixture.
        max_drop_rate: Share of samples, overall and in each language, that may be lost.
    """

    def __init__(self, languages: Sequence[str], max_drop_rate: float) -> None:
        super().__init__(languages, _EVENTS)
        self.max_drop_rate = max_drop_rate

    def number(self, event: str, lang: str | None = None) -> int:
        """Returns the number of events, in one language or in all."""
        column = self.counts[:, :, _EVENTS.index(event)]
        by_lang = column.sum(0)
        if event in _OF_ENCODING:
            # both sides encode the same samples; the side with more of them counts
            encoded = self.counts[:, :, 0].sum(1)
            by_lang = column[0] if encoded[0] >= encoded[1:].sum() else column[1:].sum(0)
        return int(by_lang.sum() if lang is None else by_lang[self.languages.index(lang)])

    def lose(self, event: str, lang: str, what: str, advice: str) -> None:
        """Counts a lost sample.

        Args:
            event: `TOO_LONG` or `BROKEN`.
            lang: The sample's language.
            what: The sample and its problem.
            advice: How to fix it.

        Raises:
            DataError: No sample may be lost, or too many are.
        """
        self.count(event, lang)
        rate = self.max_drop_rate
        if rate == 0:
            raise DataError(
                f"{what}. {advice}, or tolerate a share of such samples with --max_drop_rate."
            )
        whole = ENCODED if event == TOO_LONG else READ
        of_all = self.number(event) / max(self.number(whole), 1)
        num_of_lang = self.number(whole, lang)
        of_lang = self.number(event, lang) / max(num_of_lang, 1)
        if num_of_lang >= _MIN_SEEN and max(of_all, of_lang) > rate:
            raise DataError(f"{what}; more than --max_drop_rate {rate:.1%}\n{self.report()}")

    def report(self) -> str:
        """Returns all counts, with a line for each language that has lost samples."""
        head = f"{self.number(ENCODED)} samples encoded"
        lines = [", ".join([head, *(f"{self.number(e)} {e}" for e in (CUT, TOO_LONG, BROKEN))])]
        for event in (CUT, TOO_LONG, BROKEN):
            whole = READ if event == BROKEN else ENCODED
            lines += [
                f"  {event:<14} {lang:<4} {count:>8} of {self.number(whole, lang)}"
                for lang in self.languages
                if (count := self.number(event, lang))
            ]
        return "\n".join(lines)


# after so many samples in a row that are too long, the dataset gives up
_MAX_IN_A_ROW = 1000


@dataclass(frozen=True)
class SampleLimits:
    """Limits of samples.

    Attributes:
        max_length: Positions in the model, including the images'.
        num_image_tokens: Positions that an image takes that is not cut into tiles.
        max_drop_rate: Share of samples, overall and in each language, that may be dropped because
            even their first round is too long or their image is broken; with 0 the first one is an
            error.
    """

    max_length: int
    num_image_tokens: int
    max_drop_rate: float = 0.0


@dataclass(frozen=True)
class EncodedItem:
    """A tokenized sample.

    Attributes:
        id: The sample's id.
        row: Its row in the corpus.
        lang: Its language in the mixture.
        image_positions: Positions that each of its images takes.
        input_ids: [T] int32, -200 for an image.
        labels: [T] int32, not shifted.
        length: Positions in the model, including the images'.
        groups: Names of the groups whose metrics it counts in.
        units: Number of characters and UTF-8 bytes of its answers.
    """

    id: str
    row: int
    lang: str
    image_positions: tuple[int, ...]
    input_ids: npt.NDArray[np.int32]
    labels: npt.NDArray[np.int32]
    length: int
    groups: tuple[str, ...] = ()
    units: Mapping[str, int] = field(default_factory=dict)


class MixtureDataset(Dataset[dict[str, Any]]):
    """The encoded samples of a mixture.

    Args:
        mixture: The mixture to draw from.
        tokenizer: A tokenizer with a pad token.
        version: Template family; a sample gets the template of its answers' language, if the
            family has one.
        limits: Limits of samples.
        images: Opens images, or reads the features of the frozen tower; None for a text-only model.
        mm_use_im_start_end: Put `<im_start>` and `<im_end>` around an image.
        cache_size: Number of encoded samples to keep, because the sampler needs a sample's length
            before the loader needs the sample.
        conversation: The template itself; by default the registered one of that name.
    """

    def __init__(
        self,
        mixture: Mixture,
        tokenizer: Any,
        version: str,
        limits: SampleLimits,
        images: ImageLoader | FeatureCache | None = None,
        mm_use_im_start_end: bool = False,
        cache_size: int = 100_000,
        conversation: Conversation | None = None,
    ) -> None:
        self.mixture = mixture
        self.tokenizer = tokenizer
        self.version = version
        self._conversation = conversation or get_conversation(version)
        self._in_language: dict[str | None, Conversation] = {}
        self.limits = limits
        self._images = images
        self._start_end = mm_use_im_start_end
        self._cache: OrderedDict[Draw, EncodedItem] = OrderedDict()
        self._cache_size = cache_size
        languages = dict.fromkeys(block.lang for block in mixture.layout().blocks)
        self.sample_losses = SampleLosses(tuple(languages), limits.max_drop_rate)
        # adds further entries to items
        self.extend: Callable[[EncodedItem], dict[str, Any]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # each worker fills its own cache
        return {**self.__dict__, "_cache": OrderedDict()}

    def __len__(self) -> int:
        """Samples per epoch."""
        return len(self.mixture)

    @property
    def has_features(self) -> bool:
        """Whether items have the tower's features in place of images."""
        return isinstance(self._images, FeatureCache)

    def identity(self) -> dict[str, Any]:
        """Returns what determines the samples and their order, for checkpoints."""
        return {
            "corpus": self.mixture.corpus.fingerprint(),
            "mixture": self.mixture.spec.fingerprint(),
            "template": self._template_id(),
            "longest sample": self.limits.max_length,
        }

    def _template_id(self) -> str:
        """Returns the template's name; with a checksum for a tokenizer's own, which may change."""
        if not isinstance(self._conversation, ChatConversation):
            return self.version
        source = json.dumps(self._conversation.chat_format.to_dict(), sort_keys=True)
        return f"{self.version} {zlib.crc32(source.encode()):08x}"

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns the item of an index that continues over epochs.

        `~index` is the same item without labels, which fills up a step.

        Returns:
            `input_ids` [T] and `labels` [T] (int64), `id`, and with a tower `image` [3, S, S]
            (bytes, if the processor allows it) or `image_features` [P, D], with tiles before them
            if images are cut, or a list of several; zeros for a text-only sample. With tiles also
            `image_sizes` and `image_positions`, see LLaVA's collator.

        Raises:
            DataError: The sample is too long, or its image is broken, and no sample may be lost.
        """
        is_fill = index < 0
        encoded = self.encoded(~index if is_fill else index)
        labels = torch.from_numpy(encoded.labels.astype(np.int64))
        item: dict[str, Any] = {
            "input_ids": torch.from_numpy(encoded.input_ids.astype(np.int64)),
            "labels": torch.full_like(labels, IGNORE_INDEX) if is_fill else labels,
            "id": encoded.id,
            "groups": encoded.groups,
            "units": encoded.units,
        }
        if self.extend is not None:
            item |= self.extend(encoded)
        if self._images is not None:
            self.sample_losses.count(READ, encoded.lang)
            try:
                item |= self._slots(self._images, encoded)
            except DataError as error:
                slots = [self._images.empty] * max(len(encoded.image_positions), 1)
                item |= self._entries(self._images, slots, [(0, 0)] * len(slots), (0, 0))
                # a replacement would come twice in the epoch
                what = f"{self._named(encoded.id, encoded.lang)}: {str(error).rstrip('.')}"
                self.sample_losses.lose(BROKEN, encoded.lang, what, "Fix it")
                log.warning("%s; nothing is learned from it", what)
                item["labels"] = torch.full_like(labels, IGNORE_INDEX)
        if not (item["labels"] != IGNORE_INDEX).any():
            item["units"] = dict.fromkeys(item["units"], 0)
            if "image_number" in item:
                item["image_number"] = -1
        return item

    def _slots(self, images: ImageLoader | FeatureCache, encoded: EncodedItem) -> dict[str, Any]:
        """Returns the entries of an item for its images.

        Raises:
            DataError: An image cannot be read.
        """
        paths = self.mixture.corpus.image_paths(encoded.row)
        positions = encoded.image_positions
        kept = paths[: len(positions)]
        slots = [images(path, is_alone=len(paths) == 1) for path in kept]
        sizes = [images.size(path) for path in kept] if images.tiling.pinpoints else []
        counts = sum(positions), sum(map(len, slots))
        return self._entries(images, slots or [images.empty], sizes or [(0, 0)], counts)

    @staticmethod
    def _entries(
        images: ImageLoader | FeatureCache,
        slots: list[torch.Tensor],
        sizes: list[tuple[int, int]],
        counts: tuple[int, int],
    ) -> dict[str, Any]:
        entries: dict[str, Any] = {images.entry: slots[0] if len(slots) == 1 else slots}
        if images.tiling.pinpoints:
            entries |= {"image_sizes": sizes, "image_positions": counts}
        return entries

    def _positions(self, row: int, num_images: int) -> tuple[int, ...]:
        """Returns the positions of the first images of a row."""
        if self._images is None or not self._images.tiling.pinpoints:
            return (self.limits.num_image_tokens,) * num_images
        paths, size = self.mixture.corpus.image_paths(row), None
        if len(paths) == 1:
            try:
                size = self._images.size(paths[0])
            except DataError:  # reading the image for training says so
                log.debug("%s: its size cannot be read", paths[0])
        return (self._images.tiling.num_positions(size),) * num_images

    def _named(self, sample_id: str, what: str) -> str:
        return f"{self.mixture.corpus.path}: sample {sample_id!r} ({what})"

    def length(self, index: int) -> int:
        """Returns the positions that the item of an index takes in the model."""
        return self.encoded(index).length

    def encoded(self, index: int) -> EncodedItem:
        """Returns the tokenized sample of an index.

        The last rounds of a sample that is too long are dropped; if even its first round is too
        long, the next sample takes its place.

        Raises:
            DataError: The sample is too long, and no more samples may be dropped.
        """
        assert index >= 0
        epoch, position = divmod(index, len(self))
        for step in range(_MAX_IN_A_ROW):
            draw = self.mixture.draw((position + step) % len(self), epoch)
            item = self._cache.get(draw) or self._encode(draw)
            if item.length <= self.limits.max_length:
                return item
        raise DataError(
            f"{_MAX_IN_A_ROW} samples in a row exceed --model_max_length {self.limits.max_length}\n"
            + self.report()
        )

    def report(self) -> str:
        """Returns counts of samples that were encoded, cut, too long or broken, per language."""
        return self.sample_losses.report()

    def _encode(self, draw: Draw) -> EncodedItem:
        sample, limit = self.mixture.make_sample(draw), self.limits.max_length
        if sample.lang not in self._in_language:
            own = in_language(self.version, self._conversation, sample.lang)
            self._in_language[sample.lang] = own
        conv = self._in_language[sample.lang]
        turns = place_images(sample.turns, conv, self._start_end, len(sample.images))
        item = whole = self._encode_turns(sample, draw, conv, turns)
        self.sample_losses.count(ENCODED, draw.lang)
        # keep as many of the first rounds as fit
        for end in range(len(turns) - 2, 0, -2):
            if item.length > limit:
                item = self._encode_turns(sample, draw, conv, turns[:end])
        if item is not whole and item.length <= limit and (item.labels != IGNORE_INDEX).any():
            self.sample_losses.count(CUT, draw.lang)
            log.debug("%s: its last rounds do not fit", self._named(sample.id, draw.lang))
        elif whole.length > limit:
            item = whole
            what = (
                f"{self._named(sample.id, f'{draw.lang}, {draw.instruction}')} takes "
                f"{item.length} positions with its images, --model_max_length is {limit}"
            )
            self.sample_losses.lose(TOO_LONG, draw.lang, what, "Raise it")
            log.debug("%s; left out", what)
        self._cache[draw] = item
        if len(self._cache) > self._cache_size:
            self._cache.popitem(last=False)
        return item

    def _encode_turns(
        self, sample: Sample, draw: Draw, conv: Conversation, turns: Sequence[Turn]
    ) -> EncodedItem:
        try:
            encoded = encode_turns(turns, conv, self.tokenizer, bool(sample.images))
        except SampleError as error:
            raise DataError(f"{self._named(sample.id, draw.lang)}: {error}") from None
        num_images = encoded.input_ids.count(IMAGE_TOKEN_INDEX) if sample.images else 0
        positions = self._positions(draw.row, num_images)
        answers = "".join(turn.text for turn in turns if turn.role == "gpt")
        return EncodedItem(
            id=sample.id,
            row=draw.row,
            lang=draw.lang,
            image_positions=positions,
            input_ids=np.asarray(encoded.input_ids, dtype=np.int32),
            labels=np.asarray(encoded.labels, dtype=np.int32),
            length=len(encoded.input_ids) + sum(positions) - num_images,
            groups=(draw.lang, draw.instruction, f"{draw.lang}/{draw.instruction}"),
            units={"character": len(answers), "byte": len(answers.encode())},
        )


Length = Callable[[int], int]


class LengthWindowSampler(Sampler[int]):
    """Yields indices of a mixture in steps of similar length, for padded batches.

    Samples of a window are sorted by length and split into steps in random order. So there is
    little padding, and the mixture's order holds from window to window.

    Args:
        num_samples: Samples per epoch.
        step_size: Samples per optimizer step, over all ranks.
        length: Returns the length of an index's sample in tokens.
        window: Steps that are sorted together; 0 keeps the mixture's order.
        seed: Seed of the order of steps in a window.
    """

    def __init__(
        self, num_samples: int, step_size: int, length: Length, window: int = 64, seed: int = 0
    ) -> None:
        self.num_samples, self.step_size, self._length = num_samples, step_size, length
        self.window, self._sorts = window or 1, window > 0
        self.seed, self.epoch = seed, 0
        self._num_skipped: dict[int, int] = {}

    def __len__(self) -> int:
        """Indices per epoch, with those that fill up its last step."""
        return -(-self.num_samples // self.step_size) * self.step_size

    def identity(self) -> dict[str, Any]:
        """Returns what determines the samples of a step, for checkpoints."""
        return {"sorted steps": self.window if self._sorts else 0}

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next iteration."""
        self.epoch = epoch

    def expect_skip(self, epoch: int, num_samples: int) -> None:
        """Announces that the first indices of an epoch will be discarded.

        Windows that contain no others are then yielded without planning, which is fast.
        """
        self._num_skipped = {epoch: num_samples}

    def __iter__(self) -> Iterator[int]:
        size = self.window * self.step_size
        num_skipped = self._num_skipped.pop(self.epoch, 0)
        first = self.epoch * self.num_samples
        for number, start in enumerate(range(0, self.num_samples, size)):
            end = min(start + size, self.num_samples)
            if end - start == size and end <= num_skipped:
                yield from range(first + start, first + end)
                continue
            for step in self._plan(range(first + start, first + end), number):
                # repeats of the shortest sample, the cheapest one, complete a short step
                missing = self.step_size - len(step)
                fill = [~min(step, key=self._length)] * missing if missing else []
                yield from self._deal([*step, *fill])

    def _plan(self, indices: range, number: int) -> Iterator[Sequence[int]]:
        """Splits window `number` into steps; only the last step of an epoch may be short."""
        if not self._sorts:
            yield indices
            return
        by_length = sorted(indices, key=self._length)
        num_whole, num_rest = divmod(len(by_length), self.step_size)
        rng = np.random.default_rng([self.seed, self.epoch, number])
        # the remainder is drawn from all lengths, not only from the longest samples
        rest = set(rng.choice(len(by_length), num_rest, replace=False).tolist())
        whole = [index for i, index in enumerate(by_length) if i not in rest]
        for step in rng.permutation(num_whole).tolist():
            yield whole[step * self.step_size : (step + 1) * self.step_size]
        if rest:
            yield [by_length[i] for i in sorted(rest)]

    def _deal(self, step: list[int]) -> list[int]:
        """Orders a step; it is then split into micro-batches, which go to the ranks in turn.

        Neighbors already have similar lengths and go to the ranks of one micro-step.
        """
        return step


class PackedSampler(LengthWindowSampler):
    """Balances the tokens of micro-batches, for packed samples.

    Packed samples have no padding, so lengths need not be similar, but no rank should wait for
    another. Steps keep the mixture's order by default. If micro-batches have few samples, they
    cannot be balanced; a window helps, because the samples of its steps have similar lengths.

    Args:
        num_samples: Samples per epoch.
        step_size: Samples per optimizer step, over all ranks.
        length: Returns the length of an index's sample in tokens.
        batch_size: Samples of one rank in one micro-batch; a divisor of `step_size`.
        window: Steps that are sorted together; 0 keeps the mixture's order.
        seed: Seed of the order of steps in a window.
    """

    def __init__(
        self,
        num_samples: int,
        step_size: int,
        length: Length,
        batch_size: int,
        window: int = 0,
        seed: int = 0,
    ) -> None:
        assert step_size % batch_size == 0
        super().__init__(num_samples, step_size, length, window, seed)
        self.batch_size = batch_size

    def _deal(self, step: list[int]) -> list[int]:
        """Assigns samples, longest first, to the micro-batch with the fewest tokens and room."""
        batches: list[list[int]] = [[] for _ in range(len(step) // self.batch_size)]
        lightest = [(0, number) for number in range(len(batches))]
        lengths = {index: self._length(max(index, ~index)) for index in step}
        for index in sorted(step, key=lambda index: (-lengths[index], index)):
            tokens, number = heapq.heappop(lightest)
            batches[number].append(index)
            if len(batches[number]) < self.batch_size:
                heapq.heappush(lightest, (tokens + lengths[index], number))
        return [index for batch in batches for index in batch]
