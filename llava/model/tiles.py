"""Lay the feature grids of an image's tiles together (`mm_patch_merge_type`).

In: the projected features of one image, [tiles, P, D]; tile 0 is the overview, the others are
row-major. Out: one sequence [N, D]. The geometry (which tiles an image gets) is `llava.mm_utils`.

Legend: P features of a tile (S x S), D hidden, R and C the tile rows and columns of the grid.
"""

from __future__ import annotations

import torch
from torch import Tensor


def unpad_image(tensor: Tensor, original_size: tuple[int, int]) -> Tensor:
    """Cut the padding off the feature map of an image that was letterboxed.

    The same floor is cut from both ends, so one padding line may survive; checkpoints were
    trained so (LLaVA-NeXT).

    Args:
        tensor: [D, H, W] features of the padded image.
        original_size: (width, height) of the image before padding, in pixels.

    Returns:
        [D, H', W'] with H' < H or W' < W where padding was found.
    """
    width, height = original_size
    map_height, map_width = tensor.shape[1:]
    if width / height > map_width / map_height:
        cut = (map_height - int(height * (map_width / width))) // 2
        return tensor[:, cut : map_height - cut, :]
    cut = (map_width - int(width * (map_height / height))) // 2
    return tensor[:, :, cut : map_width - cut]


def merge_flat(features: Tensor) -> Tensor:
    """Put the tiles one after the other: [tiles, P, D] -> [tiles * P, D]."""
    return features.flatten(0, 1)


def merge_spatial(
    features: Tensor,
    grid: tuple[int, int],
    original_size: tuple[int, int],
    image_newline: Tensor | None,
) -> Tensor:
    """Lay the tiles out as one picture, row by row, after the overview.

    Args:
        features: [1 + R * C, P, D]; tile 0 is the overview.
        grid: (C, R), columns first.
        original_size: (width, height) of the image in pixels.
        image_newline: [D] appended to each line after unpadding; None keeps the padding.

    Returns:
        [P + N, D]: the overview, then the picture's lines.
    """
    overview, tiles = features[0], features[1:]
    side = round(len(overview) ** 0.5)
    assert side * side == len(overview), f"{len(overview)} overview features are no square"
    columns, rows = grid
    # [R, C, S, S, D] -> [R, S, C, S, D] -> [R*S, C*S, D]
    picture = tiles.reshape(rows, columns, side, side, -1).transpose(1, 2)
    picture = picture.reshape(rows * side, columns * side, -1)
    if image_newline is not None:
        picture = unpad_image(picture.permute(2, 0, 1), original_size).permute(1, 2, 0)
        newline = image_newline.to(picture).expand(len(picture), 1, -1)
        picture = torch.cat([picture, newline], dim=1)
    return torch.cat([overview, picture.flatten(0, 1)])


def merge_single(features: Tensor, image_newline: Tensor | None) -> Tensor:
    """Return the only tile's features, closed by a newline if there is one: [1, P, D] -> [P, D]."""
    if image_newline is None:
        return features[0]
    return torch.cat([features[0], image_newline.to(features)[None]])
