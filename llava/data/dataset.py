"""LLaVA's training dataset: a data file and a folder of images in, one encoded sample out.

Role: read once and check everything (`file:line` and sample id in every error), keep only where
the records are, then for each item: parse, open the image, render, tokenise.
Input: a JSON array or JSON Lines in LLaVA's format. Output: dicts with `input_ids`, `labels` and
`image`. Non-goals: padding (`batching.py`), several languages (`lrm_ext.mixture`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

import llava.conversation as conversation_lib
from llava.constants import IMAGE_TOKEN_INDEX
from llava.conversation import ChatConversation, Conversation, SeparatorStyle
from llava.data.batching import EventCounts, token_lengths
from llava.data.records import Entry, RecordIndex, scan_records
from llava.data.sample import (
    UNKNOWN_LANG,
    DropPolicy,
    LlavaRecord,
    Sample,
    SampleError,
    has_leading_answer,
)
from llava.data.tokenize import encode_turns, is_labelled, place_images, render
from llava.errors import ConfigError, DataError
from llava.images import image_size, open_image
from llava.model.tiles import Tiling, is_tiled

log = logging.getLogger(__name__)

_MAX_REMEMBERED = 1 << 16  # of paths of images, which recur where a data set is translated
_EVENTS = ("truncated", "truncated_answer", "nothing_learnt", "corrupt_image")


def num_ids_within(input_ids: Sequence[int], positions: Sequence[int], limit: int) -> int:
    """Returns how many ids lie within the first positions of a sample.

    Args:
        input_ids: Its ids with sentinels.
        positions: Positions that each of its images takes.
        limit: Positions that are kept.
    """
    if len(input_ids) - len(positions) + sum(positions) <= limit:
        return len(input_ids)
    widths = iter(positions)
    ends = accumulate(next(widths, 1) if each == IMAGE_TOKEN_INDEX else 1 for each in input_ids)
    return sum(end <= limit for end in ends)


class LazySupervisedDataset(Dataset[dict[str, Any]]):
    """Samples of one LLaVA data file.

    Args:
        data_path: JSON array or JSON Lines of LLaVA records.
        tokenizer: Its `model_max_length` is where ids are cut; cut samples are counted.
        data_args: With `image_folder`, `is_multimodal`, `image_aspect_ratio` (`pad`, `square`,
            `anyres` or `anyres_max_N`), `image_processor` and `mm_use_im_start_end`, as LLaVA's
            training sets them; for tiles also `image_grid_pinpoints` and `mm_patch_merge_type`;
            for videos `video_frames`, perhaps with `mm_spatial_pool_stride`.
        conversation: The template; by default `llava.conversation.default_conversation` as it is
            now.
        drop_policy: What a bad sample does; by default it raises.
        num_image_tokens: Positions that a square takes in the model. By default what the vision
            tower noted in its `image_processor`; 576, as in LLaVA-1.5, for another processor.
        orient_images: Turn images as their metadata says; LLaVA does not.

    Raises:
        DataError: The file cannot be read, a sample cannot be used, or too many cannot.
        ConfigError: A setting is missing or unknown.
    """

    def __init__(
        self,
        data_path: str,
        tokenizer: Any,
        data_args: Any,
        conversation: Conversation | None = None,
        drop_policy: DropPolicy | None = None,
        num_image_tokens: int | None = None,
        orient_images: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self._orient_images = orient_images
        self.data_args = data_args
        self.conversation = conversation or conversation_lib.default_conversation
        self.tiling: Tiling | None = None
        if data_args.is_multimodal:
            ratio = data_args.image_aspect_ratio
            if ratio not in ("pad", "square") and not is_tiled(ratio):
                raise ConfigError(
                    f"image_aspect_ratio is {ratio!r}; training knows 'pad', 'square', 'anyres' "
                    "and 'anyres_max_N'."
                )
            self.tiling = Tiling.of_training(data_args)
            if num_image_tokens is not None:
                self.tiling = replace(self.tiling, num_tokens=num_image_tokens)
        self._drops = drop_policy or DropPolicy()
        self._index = self._scan(data_path)
        self._events = EventCounts(sorted(self._drops.report.read), _EVENTS)
        log.info("%s: %s", data_path, self.report())

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Returns `input_ids` [T], `labels` [T] (not shifted), `id` and, with a tower, `image`.

        `image` is [3, H, W], [tiles, 3, H, W] where images are cut into tiles, a list of several,
        or [1, frames, 3, H, W] of a video; a text-only sample carries zeros, because each row of a
        batch owns an image slot. With tiles or videos, `image_sizes` and `image_positions` are what
        the collator wants. `id` is that of the sample, also where the next one replaces it.

        Raises:
            SampleError: The sample or one of its images cannot be read.
        """
        sample = self.sample(i)
        try:
            images = [self._open(sample, path, i) for path in self._image_paths(sample)]
        except SampleError as error:
            return self._replace(i, sample, error)
        is_video = sample.video is not None
        positions = self._positions([image.size for image in images], is_video)
        item: dict[str, Any] = {**self._encode(sample, positions), "id": sample.id}
        if self.tiling is not None:
            item |= self._slots(images, positions, item["input_ids"], is_video)
        return item

    def sample(self, i: int) -> Sample:
        """Returns the sample as written, before any template."""
        return self._read(self._index[i], self._index.where(i))

    def _read(self, record: Any, where: str) -> Sample:
        takes_video = bool(getattr(self.data_args, "video_frames", 0))
        return Sample.from_record(record, where, takes_video)

    @property
    def list_data_dict(self) -> Sequence[dict[str, Any]]:
        """The raw records, each read from the file on access."""
        return self._index

    @property
    def lengths(self) -> list[int]:
        """Number of positions that each sample takes in the model, images included."""
        extra = self.num_image_tokens - 1
        return [length + extra if length > 0 else -length for length in self.modality_lengths]

    @cached_property
    def modality_lengths(self) -> list[int]:
        """Number of positions of each sample; negative for text only.

        A sample with images counts as if one square took a single position (LLaVA counts ids). The
        first use reads all samples and, where images are cut into tiles, the sizes of all images.
        """
        beyond: list[int] = []

        def samples() -> Iterator[Sample]:
            for i in range(len(self)):
                sample = self.sample(i)
                positions = self._positions(self._sizes(sample), sample.video is not None)
                beyond.append(sum(positions) - len(positions))
                yield sample

        lengths = token_lengths(
            samples(), self.conversation, self.tokenizer, self._uses_start_end()
        )
        extra = self.num_image_tokens - 1
        return [
            n + beyond[i] - extra if self._index.has_image(i) else -n for i, n in enumerate(lengths)
        ]

    @property
    def num_image_tokens(self) -> int:
        """Positions that a square takes in the model; 1 without a tower."""
        return 1 if self.tiling is None else self.tiling.num_tokens

    @property
    def has_images(self) -> bool:
        """Whether any sample has an image."""
        return any(map(self._index.has_image, range(len(self))))

    def report(self) -> str:
        """Returns a text of counts: read, kept, dropped by reason and language, cut, unreadable."""
        lines = [self._drops.report.table()]
        counts = self._events.counts.sum(0).tolist()
        for lang, row in zip(self._events.languages, counts, strict=True):
            lines += [
                f"  in use   {event:<16} {lang:<4} {count:>8}"
                for event, count in zip(_EVENTS, row, strict=True)
                if count
            ]
        return "\n".join(lines)

    def _scan(self, data_path: str) -> RecordIndex:
        index = RecordIndex(data_path)
        is_file = lru_cache(_MAX_REMEMBERED)(os.path.isfile)
        for entry in scan_records(data_path):
            # the first one is rendered, too, which shows whether the template is complete
            if len(index) and entry.record and self._is_usable(entry.record, is_file):
                self._drops.keep(entry.record.lang)
                index.add(entry, entry.record.image is not None)
                continue
            try:
                sample = self._check(entry, f"{data_path}:{entry.line}", is_file)
            except SampleError as error:
                self._drops.drop(error)
                continue
            self._drops.keep(sample.lang)
            if has_leading_answer(entry.load()):
                self._drops.note("leading_answer", sample.lang)
            index.add(entry, sample.num_places > 0)
        self._drops.finish()
        return index

    def _is_usable(self, record: LlavaRecord, is_file: Callable[[str], bool]) -> bool:
        """Tells quickly whether `_check` surely accepts a record; it decides on all others."""
        folder: Any = getattr(self.data_args, "image_folder", None)
        image = record.image
        if image is not None and (self.tiling is None or folder is None):
            return False
        if self.conversation.sep_style is SeparatorStyle.PLAIN:
            renders = len(record.turns) == 2 and image is not None
        else:  # a chat template is a program, which may refuse any text
            renders = not isinstance(self.conversation, ChatConversation)
        return (
            renders
            and record.is_plain()
            and (image is None or is_file(os.path.join(folder, str(image))))
        )

    def _check(self, entry: Entry, where: str, is_file: Callable[[str], bool]) -> Sample:
        sample = self._read(entry.load(), where)
        try:
            render(sample.turns, self.conversation)
        except SampleError as error:
            raise SampleError(
                f"{where}, sample {sample.id!r}: {error}", error.reason, sample.lang
            ) from None
        for path in self._image_paths(sample):
            if not is_file(path):
                raise SampleError(
                    f"{where}, sample {sample.id!r}: the image {path} does not exist. Check "
                    "--image_folder.",
                    "missing_image",
                    sample.lang,
                )
        # where a sample has several, each is a square
        limit, num_images = self.tokenizer.model_max_length, len(sample.images)
        if num_images > 1 and num_images * self.num_image_tokens >= limit:
            raise SampleError(
                f"{where}, sample {sample.id!r}: its {num_images} images take "
                f"{num_images * self.num_image_tokens:,} positions, but --model_max_length is "
                f"{limit:,}: raise it, split the sample, or leave it out.",
                "too_many_images",
                sample.lang,
            )
        return sample

    def _image_paths(self, sample: Sample) -> list[str]:
        if not sample.num_places:
            return []
        folder = self.data_args.image_folder
        if self.tiling is None:
            raise ConfigError(
                f"Sample {sample.id!r} has an image, but the run has no vision tower. Give "
                "--vision_tower, or train on text only."
            )
        images = self.tiling.sample_frames(sample.video) if sample.video else sample.images
        for image in images:
            if folder is None and not os.path.isabs(image):
                raise ConfigError(
                    f"Sample {sample.id!r} has the image {image}; give --image_folder, the "
                    "folder that it is in."
                )
        return [os.path.join(folder or "", image) for image in images]

    def _sizes(self, sample: Sample) -> list[tuple[int, int]]:
        """Returns (width, height) of the images; zeros where the positions do not depend on it."""
        paths = self._image_paths(sample)
        if self.tiling is None or not self.tiling.pinpoints or len(sample.images) != 1:
            return [(0, 0)] * len(paths)
        try:
            return [image_size(paths[0], orient=self._orient_images)]
        except DataError:  # opening it for training will say so
            return [(self.tiling.side_px, self.tiling.side_px)]

    def _positions(self, sizes: Sequence[tuple[int, int]], is_video: bool = False) -> list[int]:
        """Returns the positions of the images or the video of a sample, which have these sizes."""
        if self.tiling is None:
            return []
        if is_video:
            return [self.tiling.num_video_positions(len(sizes))]
        is_alone = len(sizes) == 1
        return [self.tiling.num_positions(size if is_alone else None) for size in sizes]

    def _open(self, sample: Sample, path: str, i: int) -> Image.Image:
        try:
            return open_image(path, orient=self._orient_images)
        except DataError as error:
            raise SampleError(
                f"{self._index.where(i)}, sample {sample.id!r}: {error}. Replace it, or allow "
                "drops with max_drop_rate.",
                "corrupt_image",
                sample.lang,
            ) from error

    def _slots(
        self,
        images: Sequence[Image.Image],
        positions: Sequence[int],
        input_ids: Tensor,
        is_video: bool,
    ) -> dict[str, Any]:
        """Returns an item's entries for the images, or the video, whose places its ids have."""
        assert self.tiling is not None
        processor, is_alone = self.data_args.image_processor, len(images) == 1
        if is_video:
            pixels, sizes = [self.tiling.prepare_video(images, processor)], [(0, 0)]
        else:
            # a place that was cut off takes its image along, but each row owns one
            images = images[: max(int((input_ids == IMAGE_TOKEN_INDEX).sum()), 1)]
            pixels = [self.tiling.prepare(image, processor, is_alone) for image in images]
            sizes = [image.size for image in images]
        slots = pixels or [self.tiling.empty(processor)]
        item: dict[str, Any] = {"image": slots[0] if len(slots) == 1 else slots}
        if self.tiling.varies:
            item["image_sizes"] = sizes or [(0, 0)]
            num_tiles = sum(each.shape[:-3].numel() for each in pixels)
            item["image_positions"] = sum(positions[: len(pixels)]), num_tiles
        return item

    def _encode(self, sample: Sample, positions: Sequence[int]) -> dict[str, Tensor]:
        """Encodes a sample whose images take so many positions each."""
        num_images = sample.num_places
        # a text without a placeholder stays as it is
        turns = place_images(sample.turns, self.conversation, self._uses_start_end(), num_images)
        encoded = encode_turns(turns, self.conversation, self.tokenizer, num_images > 0)
        limit = self.tokenizer.model_max_length
        input_ids, labels = encoded.input_ids[:limit], encoded.labels[:limit]
        # The model truncates after the images have taken their positions.
        num_kept = num_ids_within(encoded.input_ids, positions, limit)
        if len(encoded.input_ids) > num_kept:
            lost = is_labelled(encoded.labels[num_kept:])
            lang = sample.lang or UNKNOWN_LANG
            self._events.count("truncated_answer" if lost else "truncated", lang)
            if lost and not is_labelled(encoded.labels[:num_kept]):
                self._events.count("nothing_learnt", lang)
                text = "nothing is learnt from sample %r: its first answer lies beyond %d tokens"
                log.warning(text, sample.id, num_kept)
        return {"input_ids": torch.tensor(input_ids), "labels": torch.tensor(labels)}

    def _uses_start_end(self) -> bool:
        # LLaVA's training sets this attribute late, so a run without images does not have it.
        return bool(getattr(self.data_args, "mm_use_im_start_end", False))

    def _replace(self, i: int, sample: Sample, error: SampleError) -> dict[str, Any]:
        """Returns the next sample for one with a broken image, if the drop rate allows it."""
        self._events.count("corrupt_image", sample.lang or UNKNOWN_LANG)
        num_broken = int(self._events.counts[..., _EVENTS.index("corrupt_image")].sum())
        if num_broken > self._drops.max_drop_rate * len(self):
            raise error
        return {**self[(i + 1) % len(self)], "id": sample.id}
