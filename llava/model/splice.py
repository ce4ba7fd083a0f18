"""Arranges image features and inserts them at the image sentinels of a batch of token ids.

In: token ids with the sentinel `IMAGE_TOKEN_INDEX`, their mask and labels, and one feature
sequence per image slot. Out: padded embeddings with matching labels, mask and positions.
Four pure functions, applied in this order: `strip_padding`, `splice_rows`, `truncate_rows`, and
`pad_rows` or, to train without padding, `pack_rows`. They know no model and read no configuration;
encoding images is not done here.
The `merge_...` functions (`mm_patch_merge_type`) make an image's sequence [N, D] of the projected
features of its tiles, [tiles, P, D]; tile 0 is the overview, the others are row-major; or that of a
video of its frames'. The geometry (which tiles an image gets, and how large its map is) is
`llava.model.tiles`.

Legend: B rows, T tokens of a row, P features of an image or tile (S x S), L positions of a spliced
row, D hidden, R and C the tile rows and columns of the grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.errors import DataError
from llava.model.tiles import Tiling, unpadded_margins


class PaddedRows(NamedTuple):
    """A spliced batch, padded to its longest row."""

    embeds: Tensor  # [B, L, D]
    labels: Tensor  # [B, L] long, IGNORE_INDEX on pads
    attention_mask: Tensor  # [B, L] bool, True on real positions
    position_ids: Tensor  # [B, L] long, 0..len-1 on real positions, 0 on pads


class PackedRows(NamedTuple):
    """A spliced batch as one row, sample after sample; L is the sum of their lengths."""

    embeds: Tensor  # [1, L, D]
    labels: Tensor  # [1, L] long, IGNORE_INDEX on the first position of each sample
    position_ids: Tensor  # [1, L] long, from 0 in each sample
    cu_seq_lens: Tensor  # [B + 1] int32, where samples begin, and L
    max_length: int  # of the longest sample


def strip_padding(
    input_ids: Tensor, attention_mask: Tensor, labels: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Drops the positions whose mask is false, so that both padding sides give the same rows.

    Args:
        input_ids: [B, T] long.
        attention_mask: [B, T] bool.
        labels: [B, T] long.

    Returns:
        B rows of ids and B rows of labels, each [T_b].
    """
    ids = [row[mask] for row, mask in zip(input_ids, attention_mask, strict=True)]
    return ids, [row[mask] for row, mask in zip(labels, attention_mask, strict=True)]


def splice_rows(
    ids: Sequence[Tensor],
    labels: Sequence[Tensor],
    features: Sequence[Tensor],
    embed: Callable[[Tensor], Tensor],
) -> tuple[list[Tensor], list[Tensor]]:
    """Embeds the text of each row and replaces its sentinels by image features.

    One index over `features` walks the whole batch, row by row: a row with k sentinels takes the
    next k. A row without one owns a single dummy slot, of which a slice of length zero is
    attached, so that projector and tower stay in the graph (DDP and ZeRO wait for their gradient).

    Args:
        ids: B rows, each [T_b] long.
        labels: B rows, each [T_b] long.
        features: One [P_i, D] sequence per image slot.
        embed: Token ids [N] -> embeddings [N, D].

    Returns:
        B rows of embeddings [L_b, D] and B rows of labels [L_b]; image positions are IGNORE_INDEX.

    Raises:
        DataError: The number of features is not the number of image slots.
    """
    is_text = [row != IMAGE_TOKEN_INDEX for row in ids]
    sentinels = [(~text).nonzero().flatten().tolist() for text in is_text]
    _check_image_count([len(positions) for positions in sentinels], len(features))
    text_ids = [row[text] for row, text in zip(ids, is_text, strict=True)]
    text_embeds = embed(torch.cat(text_ids)).split([len(row) for row in text_ids])
    spliced_embeds, spliced_labels, slot = [], [], 0
    for row_embeds, row_labels, text, positions in zip(
        text_embeds, labels, is_text, sentinels, strict=True
    ):
        num_slots = max(len(positions), 1)
        row_features = [f.to(row_embeds) for f in features[slot : slot + num_slots]]
        slot += num_slots
        if not positions:
            row_features = [row_features[0][:0]]
        # a sentinel at position p that follows j others has p - j text tokens before it
        cuts = [position - j for j, position in enumerate(positions)] or [len(row_embeds)]
        ignored = [row_labels.new_full((len(f),), IGNORE_INDEX) for f in row_features]
        spliced_embeds.append(_interleave(row_embeds.tensor_split(cuts), row_features))
        spliced_labels.append(_interleave(row_labels[text].tensor_split(cuts), ignored))
    return spliced_embeds, spliced_labels


def truncate_rows(
    embeds: Sequence[Tensor], labels: Sequence[Tensor], max_length: int | None
) -> tuple[list[Tensor], list[Tensor], int]:
    """Cuts every row to `max_length` positions from the right, even inside an image.

    Args:
        embeds: B rows [L_b, D].
        labels: B rows [L_b].
        max_length: Positions to keep; None keeps all.

    Returns:
        The rows, and how many positions were cut off in all.
    """
    if max_length is None:
        return list(embeds), list(labels), 0
    num_cut = sum(max(len(row) - max_length, 0) for row in embeds)
    return [row[:max_length] for row in embeds], [row[:max_length] for row in labels], num_cut


def pad_rows(embeds: Sequence[Tensor], labels: Sequence[Tensor], side: str) -> PaddedRows:
    """Pads the rows to the longest with zero embeddings.

    Args:
        embeds: B rows [L_b, D].
        labels: B rows [L_b] long.
        side: "left" or "right", where the padding goes.

    Returns:
        The batch; its mask and positions are made new from the rows' lengths.
    """
    lengths = torch.tensor([len(row) for row in embeds], device=labels[0].device)
    longest = max(len(row) for row in embeds)
    columns = torch.arange(longest, device=lengths.device).expand(len(embeds), longest)
    offset = (longest - lengths if side == "left" else torch.zeros_like(lengths)).unsqueeze(1)
    position_ids = columns - offset
    mask = (position_ids >= 0) & (position_ids < lengths.unsqueeze(1))

    def pad(row: Tensor, value: float) -> Tensor:
        fill = row.new_full((longest - len(row), *row.shape[1:]), value)
        return torch.cat([fill, row] if side == "left" else [row, fill])

    return PaddedRows(
        embeds=torch.stack([pad(row, 0.0) for row in embeds]),
        labels=torch.stack([pad(row, IGNORE_INDEX) for row in labels]),
        attention_mask=mask,
        position_ids=position_ids.masked_fill(~mask, 0),
    )


def pack_rows(embeds: Sequence[Tensor], labels: Sequence[Tensor]) -> PackedRows:
    """Puts the rows one after the other; nothing is padded.

    Args:
        embeds: B rows [L_b, D].
        labels: B rows [L_b] long. What follows the last position of a sample is the next sample's
            first, which no loss may ask for: that label is ignored.

    Returns:
        One row, and where its samples are, as attention within samples needs it.
    """
    device = labels[0].device
    lengths = [len(row) for row in embeds]
    packed_labels = torch.cat(list(labels)).clone()
    cu_seq_lens = F.pad(torch.tensor(lengths, device=device).cumsum(0), (1, 0))
    packed_labels[cu_seq_lens[:-1]] = IGNORE_INDEX
    positions = torch.cat([torch.arange(length, device=device) for length in lengths])
    return PackedRows(
        embeds=torch.cat(list(embeds)).unsqueeze(0),
        labels=packed_labels.unsqueeze(0),
        position_ids=positions.unsqueeze(0),
        cu_seq_lens=cu_seq_lens.to(torch.int32),
        max_length=max(lengths),
    )


def _interleave(texts: Sequence[Tensor], images: Sequence[Tensor]) -> Tensor:
    """Concatenates text, image, text, ...: one text more than images, on dim 0."""
    pieces = [piece for pair in zip(texts, images, strict=False) for piece in pair]
    return torch.cat([*pieces, *texts[len(images) :]])


def _check_image_count(sentinels: Sequence[int], num_images: int) -> None:
    """Refuses a batch whose images do not match its sentinels.

    Raises:
        DataError: With both numbers and the sentinels of each row.
    """
    num_slots = sum(max(count, 1) for count in sentinels)
    if num_slots != num_images:
        without = sum(count == 0 for count in sentinels)
        raise DataError(
            f"{num_images} image(s) for {sum(sentinels)} <image> placeholder(s), expected "
            f"{num_slots}: the rows hold {list(sentinels)} placeholder(s), and each of the "
            f"{without} row(s) without one takes one dummy image. Give one image per "
            "placeholder, in order."
        )


def unpad_image(tensor: Tensor, original_size: tuple[int, int]) -> Tensor:
    """Cuts the padding off the feature map of an image that was letterboxed.

    Args:
        tensor: [D, H, W] features of the padded image.
        original_size: (width, height) of the image before padding, in pixels.

    Returns:
        [D, H', W'] with H' < H or W' < W where padding was found; see `unpadded_margins`.
    """
    height, width = tensor.shape[1:]
    x, y = unpadded_margins((width, height), original_size)
    return tensor[:, y : height - y, x : width - x]


def merge_flat(features: Tensor) -> Tensor:
    """Puts the tiles one after the other: [tiles, P, D] -> [tiles * P, D]."""
    return features.flatten(0, 1)


def merge_spatial(
    features: Tensor, tiling: Tiling, original_size: tuple[int, int], image_newline: Tensor | None
) -> Tensor:
    """Arranges the tiles as one image, row by row, after the overview.

    Args:
        features: [1 + R * C, P, D]; tile 0 is the overview.
        tiling: Cut the image into its tiles, and says how large its map becomes.
        original_size: (width, height) of the image in pixels.
        image_newline: [D] appended to each line after unpadding; None keeps the padding.

    Returns:
        [P + N, D]: the overview, then the image's lines.
    """
    overview, tiles = features[0], features[1:]
    side = round(len(overview) ** 0.5)
    assert side * side == len(overview), f"{len(overview)} overview features are no square"
    columns, rows = tiling.grid(original_size)
    image = rearrange(tiles, "(r c) (h w) d -> d (r h) (c w)", r=rows, c=columns, h=side)
    if image_newline is not None:
        image = unpad_image(image, original_size)
        width, height = tiling.map_size(original_size)
        if image.shape[1:] != (height, width):
            image = F.interpolate(image[None], (height, width), mode="bilinear")[0]
        newline = image_newline.to(image)[:, None, None].expand(-1, height, 1)
        image = torch.cat([image, newline], dim=2)
    return torch.cat([overview, rearrange(image, "d h w -> (h w) d")])


def merge_frames(features: Tensor, pool_stride: int) -> Tensor:
    """Puts the frames of a video one after the other: [frames, P, D] -> [frames * P', D].

    Args:
        features: Projected features of the frames.
        pool_stride: The map of each frame, S x S, is averaged over squares of so many positions a
            side, without what is left over at its right and lower edge; 1: it is not.
    """
    if pool_stride > 1:
        maps = rearrange(features, "f (h w) d -> f d h w", h=math.isqrt(features.shape[1]))
        features = rearrange(F.avg_pool2d(maps, pool_stride), "f d h w -> f (h w) d")
    return features.flatten(0, 1)


def merge_single(features: Tensor, image_newline: Tensor | None) -> Tensor:
    """Returns the only tile's features, with a newline if there is one: [1, P, D] -> [P, D]."""
    if image_newline is None:
        return features[0]
    return torch.cat([features[0], image_newline.to(features)[None]])
