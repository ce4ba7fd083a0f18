"""Cuts images into tiles, counts their positions, and carries pixels as bytes that lose nothing.

Input: PIL images, sizes in pixels, the tower's image processor. Output: sizes, images, pixel
tensors. `Tiling` is the only place that knows which tiles an image gets, which frames of a video
are shown, and how many positions they take in the model; `llava.model.splice` arranges features by
it. Non-goals: prompts (`llava.data`), what the tower does with the pixels.

Legend: S side of a tile in pixels, P positions of a tile.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from llava.errors import ConfigError, refuse
from llava.images import shape_image
from llava.model.multimodal_encoder.families import processor_side

Size = tuple[int, int]
_Frame = TypeVar("_Frame")

VIDEO_LAYOUT = {"mm_spatial_pool_mode": "average", "mm_newline_position": "no_token"}
"""How the frames of a video become positions, in LLaVA-NeXT's keys of `config.json`."""


def select_best_resolution(original_size: Size, possible_resolutions: Sequence[Size]) -> Size:
    """Chooses the grid resolution that keeps most of an image.

    Args:
        original_size: (width, height) in pixels.
        possible_resolutions: Candidates, (width, height) in pixels.

    Returns:
        The candidate with the most effective pixels; among equals the least wasted, then the first.
    """
    width, height = original_size

    def merit(candidate: Size) -> tuple[int, int]:
        scale = min(candidate[0] / width, candidate[1] / height)
        shown = int(width * scale) * int(height * scale)
        effective = min(shown, width * height)
        return effective, effective - candidate[0] * candidate[1]

    return max(possible_resolutions, key=merit)


def resize_and_pad_image(image: Image.Image, target_resolution: Size) -> Image.Image:
    """Fits an image into `target_resolution` (width, height), centred on black."""
    width, height = image.size
    target_width, target_height = target_resolution
    scale_x, scale_y = target_width / width, target_height / height
    if scale_x < scale_y:
        size = (target_width, min(math.ceil(height * scale_x), target_height))
    else:
        size = (min(math.ceil(width * scale_y), target_width), target_height)
    canvas = Image.new("RGB", target_resolution, (0, 0, 0))
    corner = ((target_width - size[0]) // 2, (target_height - size[1]) // 2)
    canvas.paste(image.resize(size), corner)
    return canvas


def divide_to_patches(image: Image.Image, patch_size: int) -> list[Image.Image]:
    """Cuts an image into squares of `patch_size` pixels, row by row."""
    return [
        image.crop((x, y, x + patch_size, y + patch_size))
        for y in range(0, image.height, patch_size)
        for x in range(0, image.width, patch_size)
    ]


_RANGE = re.compile(r"\(\s*(\d+)\s*x\s*(\d+)\s*\)")


def read_pinpoints(
    grid_pinpoints: str | Sequence[Sequence[int]] | None, side_px: int
) -> list[Size]:
    """Reads the resolutions that images may be cut to.

    Args:
        grid_pinpoints: A list of (width, height) in pixels or its text, or the text of a range of
            tiles such as `(1x1),...,(6x6)`: all grids between the first and the last (LLaVA-NeXT).
        side_px: Side of a tile in pixels, in which a range counts.

    Raises:
        ConfigError: It is neither.
    """
    pairs: list[Size] = []
    ends = _RANGE.findall(grid_pinpoints) if isinstance(grid_pinpoints, str) else []
    try:
        if ends:
            (columns, rows), (last_columns, last_rows) = (map(int, ends[i]) for i in (0, -1))
            grids = product(range(columns, last_columns + 1), range(rows, last_rows + 1))
            pairs = [(c * side_px, r * side_px) for c, r in grids]
        else:
            given: Any = grid_pinpoints
            if isinstance(grid_pinpoints, str):
                given = ast.literal_eval(grid_pinpoints)
            pairs = [(int(width), int(height)) for width, height in given]
    except (ValueError, TypeError, SyntaxError):
        pairs = []
    if not pairs or min(min(pair) for pair in pairs) < 1:
        raise ConfigError(
            f"image_grid_pinpoints is {grid_pinpoints!r}, which 'anyres' needs; expected a list of "
            "[width, height] in pixels, such as [[336, 672], [672, 336]], or a range of tiles, "
            "such as '(1x1),...,(6x6)' (--image_grid_pinpoints, or config.json)"
        )
    return pairs


def get_anyres_image_grid_shape(
    image_size: Size, grid_pinpoints: str | Sequence[Sequence[int]], patch_size: int
) -> Size:
    """Returns the number of (columns, rows) of tiles that an image is cut into.

    Args:
        image_size: (width, height) in pixels.
        grid_pinpoints: Allowed resolutions, see `read_pinpoints`.
        patch_size: Side of a tile in pixels.
    """
    width, height = select_best_resolution(image_size, read_pinpoints(grid_pinpoints, patch_size))
    return width // patch_size, height // patch_size


def unpadded_margins(map_size: Size, original_size: Size) -> Size:
    """Returns how much to cut off each end of the (width, height) of a letterboxed image's map.

    The same floor is cut from both ends, so one padding line may survive; checkpoints were trained
    so (LLaVA-NeXT).

    Args:
        map_size: (width, height) of the padded image's feature map.
        original_size: (width, height) of the image before padding, in pixels.
    """
    (map_width, map_height), (width, height) = map_size, original_size
    if width / height > map_width / map_height:
        return 0, (map_height - int(height * (map_width / width))) // 2
    return (map_width - int(width * (map_height / height))) // 2, 0


# LLaVA-NeXT leaves a map alone that is larger than N tiles by less than this, along a side
_TOLERATED = 1.1


@dataclass(frozen=True)
class Tiling:
    """How images are cut into tiles, and how many positions they take.

    Attributes:
        aspect_ratio: `image_aspect_ratio`. `anyres` cuts the only image of a sample into tiles,
            after the overview; `anyres_max_N` also shrinks the map of its features to about N
            tiles (LLaVA-NeXT). Any other makes one square of each image.
        pinpoints: (width, height) in pixels that images may be cut to; empty without tiles.
        merge_type: `mm_patch_merge_type`.
        side_px: S.
        num_tokens: P.
        video_frames: Frames of a video that are shown; 0: no videos.
        pool_stride: `mm_spatial_pool_stride`. The map of a frame's features is averaged over
            squares of so many positions a side; 1: it is not.
    """

    aspect_ratio: str
    pinpoints: tuple[Size, ...]
    merge_type: str
    side_px: int
    num_tokens: int
    video_frames: int = 0
    pool_stride: int = 1

    @classmethod
    def of(cls, settings: Any, side_px: int, num_tokens: int) -> Tiling:
        """Reads a model's configuration, or the arguments of a training.

        Raises:
            ConfigError: `image_grid_pinpoints` is missing or no list of resolutions.
        """
        ratio = getattr(settings, "image_aspect_ratio", None) or "square"
        given = getattr(settings, "image_grid_pinpoints", None)
        pinpoints = tuple(read_pinpoints(given, side_px)) if is_tiled(ratio) else ()
        merge_type = getattr(settings, "mm_patch_merge_type", None) or "flat"
        video_frames = int(getattr(settings, "video_frames", None) or 0)
        stride = int(getattr(settings, "mm_spatial_pool_stride", None) or 1)
        return cls(ratio, pinpoints, merge_type, side_px, num_tokens, video_frames, stride)

    @classmethod
    def of_training(cls, settings: Any) -> Tiling:
        """Reads the arguments of a training, whose `image_processor` is set.

        Raises:
            ConfigError: See `of`.
        """
        processor = settings.image_processor
        is_cut = is_tiled(settings.image_aspect_ratio)
        num_tokens = int(getattr(processor, "num_image_tokens", 576))
        return cls.of(settings, processor_side(processor) if is_cut else 0, num_tokens)

    def check(self, max_length: int) -> None:
        """Refuses settings that a training could not use.

        Args:
            max_length: Positions of the longest sample.

        Raises:
            ConfigError: They contradict each other, or an image or a video leaves no room for text.
        """
        problems = self._video_problems(max_length) if self.video_frames else {}
        if self.pinpoints:
            problems |= self._tile_problems(max_length)
        refuse(problems)

    def _tile_problems(self, max_length: int) -> dict[str, bool]:
        side = math.isqrt(self.num_tokens)
        uneven = [list(pair) for pair in self.pinpoints if any(n % self.side_px for n in pair)]
        size = self.largest_size
        num_positions = self.num_positions(size)
        return {
            f"--image_grid_pinpoints {uneven} are no multiples of {self.side_px}, the side of the "
            "tower's images": bool(uneven),
            f"--mm_patch_merge_type {self.merge_type} needs tiles of n x n positions, but the "
            f"tower gives {self.num_tokens}: give --mm_patch_merge_type flat": (
                self.merge_type != "flat" and side * side != self.num_tokens
            ),
            f"--image_aspect_ratio {self.aspect_ratio} needs --mm_patch_merge_type spatial_unpad, "
            "whose map it shrinks": self.aspect_ratio != "anyres" and not self.unpads,
            f"an image of {size[0]} x {size[1]} pixels takes {num_positions:,} positions, but "
            f"--model_max_length is {max_length:,}: raise it, or give fewer tiles "
            "(--image_grid_pinpoints, --image_aspect_ratio anyres_max_N)": (
                num_positions >= max_length
            ),
        }

    def _video_problems(self, max_length: int) -> dict[str, bool]:
        side = math.isqrt(self.num_tokens)
        num_positions = self.num_video_positions(self.video_frames)
        return {
            f"--mm_spatial_pool_stride {self.pool_stride} needs frames of n x n positions, n at "
            f"least {self.pool_stride}, but the tower gives {self.num_tokens}": (
                self.pool_stride > 1 and (side * side != self.num_tokens or self.pool_stride > side)
            ),
            f"--mm_patch_merge_type {self.merge_type} and --video_frames need --image_aspect_ratio "
            "anyres: without tiles, images take no newline": self.unpads and not self.pinpoints,
            f"a video of {self.video_frames} frames takes {num_positions:,} positions, but "
            f"--model_max_length is {max_length:,}: raise it, or give fewer --video_frames or a "
            "larger --mm_spatial_pool_stride": num_positions >= max_length,
        }

    def prepare(
        self, image: Image.Image, processor: Any, is_alone: bool = True, as_bytes: bool = False
    ) -> Tensor:
        """Prepares an RGB image for the tower.

        Args:
            image: The image.
            processor: The tower's image processor.
            is_alone: It is the only one of its sample, so it may be cut into tiles; one of several
                is filled up to a square (LLaVA-NeXT).
            as_bytes: See `preprocess_bytes`.

        Returns:
            [3, S, S]; where images are cut into tiles, [1 + tiles, 3, S, S] or [1, 3, S, S].
        """
        if self.pinpoints and not is_alone:
            return prepare_image(image, processor, "pad", (), as_bytes)[None]
        return prepare_image(image, processor, self.aspect_ratio, self.pinpoints, as_bytes)

    def sample_frames(self, frames: Sequence[_Frame]) -> Sequence[_Frame]:
        """Chooses those of a video's frames that are shown, evenly, with the first and the last."""
        last, num_shown = len(frames) - 1, self.video_frames
        if last < num_shown:
            return frames
        return [frames[i * last // max(num_shown - 1, 1)] for i in range(num_shown)]

    def prepare_video(self, frames: Sequence[Image.Image], processor: Any) -> Tensor:
        """Prepares the frames of a video, RGB images, each as one of several images is.

        Returns:
            [1, frames, 3, S, S], which the model takes in place of an image. Its number of
            dimensions says that it is a video.
        """
        pixels = [self.prepare(frame, processor, is_alone=False) for frame in frames]
        return torch.stack(pixels).flatten(0, -4)[None]

    def empty(self, processor: Any, dtype: torch.dtype = torch.float32) -> Tensor:
        """Returns the zeros that stand for the image of a sample without one: a single square."""
        side = processor_side(processor)
        pixels = torch.zeros(num_channels(processor), side, side, dtype=dtype)
        return pixels[None] if self.pinpoints else pixels

    @property
    def largest_size(self) -> Size:
        """(width, height) in pixels of an image that takes the most positions."""
        return max(self.pinpoints, key=self.num_positions)

    def num_tiles(self, size: Size | None) -> int:
        """Returns how many images of the tower's size an image becomes, with the overview."""
        columns, rows = (0, 0) if size is None or not self.pinpoints else self.grid(size)
        return 1 + columns * rows

    @property
    def varies(self) -> bool:
        """Whether images and videos differ in their positions."""
        return bool(self.pinpoints or self.video_frames)

    @property
    def max_tiles(self) -> int | None:
        """N of `anyres_max_N`; None without a limit. Only maps without padding are shrunk."""
        name, _, number = self.aspect_ratio.rpartition("_")
        return int(number) if name and self.unpads else None

    @property
    def unpads(self) -> bool:
        """Whether padding is cut off the map, and a newline ends each of its lines."""
        return "unpad" in self.merge_type

    def grid(self, size: Size) -> Size:
        """Returns the (columns, rows) of tiles of an image of (width, height) pixels."""
        width, height = select_best_resolution(size, self.pinpoints)
        return width // self.side_px, height // self.side_px

    def map_size(self, size: Size) -> Size:
        """Returns (width, height) in positions of an image's map, unpadded and shrunk.

        Args:
            size: (width, height) in pixels of an image that is cut into tiles.
        """
        side = math.isqrt(self.num_tokens)
        columns, rows = self.grid(size)
        width, height = columns * side, rows * side
        if not self.unpads:
            return width, height
        margins = unpadded_margins((width, height), size)
        width, height = width - 2 * margins[0], height - 2 * margins[1]
        if self.max_tiles is None:
            return width, height
        times = math.sqrt(height * width / (self.max_tiles * side**2))
        if times <= _TOLERATED:
            return width, height
        return max(int(width // times), 1), max(int(height // times), 1)

    def num_positions(self, size: Size | None) -> int:
        """Returns the positions that an image takes in the model.

        Args:
            size: (width, height) in pixels of an image that is cut into tiles; None for one that
                is made a square, as each is of a sample with several.
        """
        if not self.pinpoints:
            return self.num_tokens
        if self.merge_type == "flat":
            return self.num_tokens * self.num_tiles(size)
        if size is None:
            return self.num_tokens + self.unpads
        width, height = self.map_size(size)
        return self.num_tokens + height * (width + self.unpads)

    def num_video_positions(self, num_frames: int) -> int:
        """Returns the positions that a video takes of which so many frames are shown."""
        if self.pool_stride == 1:
            return num_frames * self.num_tokens
        return int(num_frames * (math.isqrt(self.num_tokens) // self.pool_stride) ** 2)


def is_tiled(aspect_ratio: str | None) -> bool:
    """Tells whether images are cut into tiles: `anyres` or `anyres_max_N`.

    Raises:
        ConfigError: N is no number above 0.
    """
    if aspect_ratio is None or not aspect_ratio.startswith("anyres"):
        return False
    if aspect_ratio != "anyres" and re.fullmatch("anyres_max_[1-9][0-9]*", aspect_ratio) is None:
        raise ConfigError(
            f"image_aspect_ratio is {aspect_ratio!r}; expected 'anyres', or 'anyres_max_N' with "
            "the number of tiles that the positions of an image should not exceed, such as "
            "'anyres_max_9'"
        )
    return True


def num_channels(processor: Any) -> int:
    """Returns the channels of an image processor's output: three for each tower."""
    return 3 * len(getattr(processor, "processors", (processor,)))


def preprocess_tile(image: Image.Image, processor: Any, as_bytes: bool = False) -> Tensor:
    """Prepares a square that is cut already, without losing a margin to a centre crop.

    Returns:
        [3, S, S]; see `preprocess_bytes` for bytes.
    """
    options: dict[str, Any] = dict(_UNSCALED) if as_bytes else {}
    if getattr(processor, "size", {}).get("shortest_edge") is not None:
        options["size"] = {"shortest_edge": processor_side(processor)}
    return _pixels(image, processor, **options)


def prepare_image(
    image: Image.Image,
    processor: Any,
    aspect_ratio: str | None,
    pinpoints: Sequence[Size] = (),
    as_bytes: bool = False,
) -> Tensor:
    """Prepares an image for a tower.

    Args:
        image: An RGB image.
        processor: The tower's.
        aspect_ratio: `pad` fills it up to a square; otherwise it is cropped.
        pinpoints: (width, height) in pixels that it may be cut to; none: it becomes one square.
        as_bytes: Leave the values unscaled.

    Returns:
        [3, S, S], or [1 + tiles, 3, S, S] with `pinpoints`: index 0 is the whole image, squeezed to
        a square.
    """
    if pinpoints:
        padded = resize_and_pad_image(image, select_best_resolution(image.size, pinpoints))
        side = processor_side(processor)
        tiles = [image.resize((side, side)), *divide_to_patches(padded, side)]
        return torch.stack([preprocess_tile(tile, processor, as_bytes) for tile in tiles])
    prepare = preprocess_bytes if as_bytes else _pixels
    return prepare(shape_image(image, processor, aspect_ratio), processor)


def _pixels(image: Image.Image, processor: Any, **options: Any) -> Tensor:
    """Returns what an image processor makes of an image: [3, S, S]."""
    pixels: Tensor = processor.preprocess(image, return_tensors="pt", **options)["pixel_values"][0]
    return pixels


_UNSCALED = {"do_rescale": False, "do_normalize": False}


def preprocess_bytes(image: Image.Image, processor: Any) -> Tensor:
    """Resizes and crops an image as the processor does, but leaves the values unscaled.

    Returns:
        [3, S, S] uint8.
    """
    return _pixels(image, processor, **_UNSCALED)


def byte_table(processor: Any) -> Tensor:
    """Returns what the processor makes of each byte: [3, 256] float32."""
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    pixels = _pixels(Image.fromarray(ramp), processor, do_resize=False, do_center_crop=False)
    return pixels[:, 0].float()


def to_floats(pixels: Tensor, table: Tensor) -> Tensor:
    """Converts bytes to what the processor would have given.

    Args:
        pixels: [..., C, S, S] uint8.
        table: [C, 256], on the same device.

    Returns:
        [..., C, S, S] float32.
    """
    flat = table.flatten()
    # channel c begins at 256 c
    starts = 256 * torch.arange(len(table), device=pixels.device).view(-1, 1, 1)
    return flat[pixels.to(torch.int64) + starts]


def keeps_bytes(processor: Any) -> bool:
    """Tests whether a processor's images can be sent as bytes without changing a bit."""
    values = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    image = Image.fromarray(values)
    try:
        pixels = preprocess_bytes(image, processor)
        expected = _pixels(image, processor)
        return pixels.dtype == torch.uint8 and torch.equal(
            to_floats(pixels, byte_table(processor)), expected
        )
    except (TypeError, ValueError, KeyError, RuntimeError):  # a processor without these switches
        return False
