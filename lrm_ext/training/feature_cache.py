"""Loads training images as pixels, or as the frozen vision tower's features from a cache.

Pixels: [3, S, S] for a path, upright and shaped for the tower; as bytes if the tower can convert
them to the same floats as LLaVA's dataset and inference, else as those floats. Where images are cut
into tiles, [tiles, 3, S, S].

Cache: [P, D] per image or tile, computed once and memory-mapped. A folder, named by everything that
the features depend on (weights, layer, preprocessing, dtype), has shards `<name>.npy` [n, P, D]
with `<name>.json`, the paths, sizes and times of the images, and their rows. A shard counts once
its list exists, so an interrupted run resumes, and a larger corpus adds shards. The cache pays off
for small models only: 24 x 24 features of a large tower are 1.2 MB per image, or per tile.

Legend: N images, P patches, D the tower's hidden size.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from llava.errors import ConfigError, DataError
from llava.files import writing
from llava.images import image_size, open_image
from llava.model.multimodal_encoder.families import processor_side
from llava.model.tiles import Tiling, keeps_bytes
from llava.progress import Progress

log = logging.getLogger(__name__)

ASPECT_RATIOS = ("square", "pad")
# in draft mode a side of an image keeps at least this many times the tower's pixels
DRAFT_MARGIN = 2


class ImageLoader:
    """Opens images for an image processor.

    Args:
        processor: The vision tower's image processor.
        aspect_ratio: `pad` (to a square) or `square` (crop the center), or how images are cut into
            tiles.
        uses_draft: Decode large JPEG files at a half, a quarter or an eighth of their size if at
            least twice the tower's side remains. Pixels differ slightly, so it is off by default.

    Raises:
        ConfigError: The aspect ratio is unknown, or tiles are to be cut from shrunken images.
    """

    # name of the entry in items and batches
    entry = "image"

    def __init__(
        self, processor: Any, aspect_ratio: str | Tiling, uses_draft: bool = False
    ) -> None:
        if isinstance(aspect_ratio, str):
            aspect_ratio = Tiling(aspect_ratio, (), "flat", 0, 0)
        if not aspect_ratio.pinpoints and aspect_ratio.aspect_ratio not in ASPECT_RATIOS:
            raise ConfigError(
                f"--image_aspect_ratio is {aspect_ratio.aspect_ratio!r}; training on a mixture "
                f"knows: {', '.join(ASPECT_RATIOS)}, anyres, anyres_max_N"
            )
        if aspect_ratio.pinpoints and uses_draft:
            raise ConfigError(
                "--jpeg_draft shrinks images before they are cut into tiles: leave it out with "
                f"--image_aspect_ratio {aspect_ratio.aspect_ratio}"
            )
        self.processor, self.tiling = processor, aspect_ratio
        self.uses_draft, self.gives_bytes = uses_draft, keeps_bytes(processor)

    @property
    def empty(self) -> Tensor:
        """Zeros [3, S, S], or [1, 3, S, S] with tiles, for a sample without an image."""
        dtype = torch.uint8 if self.gives_bytes else torch.float32
        return self.tiling.empty(self.processor, dtype)

    def size(self, path: Path) -> tuple[int, int]:
        """Returns the (width, height) in pixels of an image, upright.

        Raises:
            DataError: The image is missing or cannot be read.
        """
        with _explained(path):
            return _size(path)

    def __call__(self, path: Path, is_alone: bool = True) -> Tensor:
        """Returns the pixels of an image, [3, S, S], or [tiles, 3, S, S] where images are cut.

        Args:
            path: The image.
            is_alone: See `Tiling.prepare`.

        Raises:
            DataError: The image is missing or cannot be read.
        """
        side = processor_side(self.processor)
        with _explained(path):
            image = open_image(path, least_side=DRAFT_MARGIN * side if self.uses_draft else None)
        return self.tiling.prepare(image, self.processor, is_alone, self.gives_bytes)


# a sample asks twice: for its length, and with its pixels
_size = lru_cache(maxsize=2**16)(image_size)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Adds to the error for a missing image what to do."""
    try:
        yield
    except DataError as error:
        if path.exists():
            raise
        raise DataError(
            f"{error}. Unpack or copy the images of the corpus, or give --image_folder."
        ) from error


# Increase it when the same tower and image give other numbers.
FORMAT = 2
ROWS_PER_SHARD = 2048
BATCH_SIZE = 64
# ends the name of an image that is not cut into tiles, because it is one of several of its sample
_SQUARE = "\0square"


class FeatureCache:
    """Features of images, computed on demand.

    Example:
        >>> cache = FeatureCache(folder, tower, loader, dtype="float16")
        >>> cache.add(paths, tower)
        24000
        >>> cache(paths[0]).shape
        torch.Size([16, 160])
    """

    entry = "image_features"

    def __init__(self, root: Path, tower: Any, loader: ImageLoader, dtype: str) -> None:
        """Opens the cache of a tower.

        Args:
            root: Folder of caches, in which each has its key as name.
            tower: A loaded, frozen tower.
            loader: Opens the images.
            dtype: `float16` or `float32`.
        """
        self.dtype = dtype
        self.folder = root / cache_key(tower, loader, dtype)
        self.feature_shape = (tower.num_image_tokens, int(tower.hidden_size))
        self._loader = loader
        # by path: shard, rows, and size and time of the file when it was read
        self._places: dict[str, tuple[str, range, tuple[int, int]]] = {}
        self._shards: dict[str, npt.NDArray[Any]] = {}
        # kept in memory only, so that the next run tries again
        self._broken: dict[str, str] = {}
        for path in sorted(self.folder.glob("*.json")):
            self._enter(path.stem, json.loads(path.read_text(encoding="utf-8"))["pictures"])

    def __getstate__(self) -> dict[str, Any]:
        # each worker maps the shards itself
        return {**self.__dict__, "_shards": {}}

    def __len__(self) -> int:
        return len(self._places)

    @property
    def empty(self) -> Tensor:
        """Zeros [P, D], or [1, P, D] with tiles, for a sample without an image."""
        shape = (1, *self.feature_shape) if self.tiling.pinpoints else self.feature_shape
        return torch.zeros(shape, dtype=getattr(torch, self.dtype))

    @property
    def tiling(self) -> Tiling:
        """How images are cut into tiles."""
        return self._loader.tiling

    def size(self, path: Path) -> tuple[int, int]:
        """Returns the (width, height) of an image; see `ImageLoader.size`."""
        return self._loader.size(path)

    def __call__(self, path: Path, is_alone: bool = True) -> Tensor:
        """Returns the features of an image, [P, D], or [tiles, P, D] where images are cut.

        Args:
            path: The image.
            is_alone: As its features were computed.

        Raises:
            DataError: The image could not be read.
            KeyError: The features were not computed.
        """
        key = self._key(path, is_alone)
        if key in self._broken:
            raise DataError(self._broken[key])
        name, rows, _ = self._places[key]
        if name not in self._shards:
            self._shards[name] = np.load(self.folder / f"{name}.npy", mmap_mode="r")
        features = torch.from_numpy(np.array(self._shards[name][rows.start : rows.stop]))
        return features if self.tiling.pinpoints else features[0]

    def _key(self, path: Path, is_alone: bool) -> str:
        """Returns the name of an image's features; one of several is not cut into tiles."""
        return _name(path) + ("" if is_alone or not self.tiling.pinpoints else _SQUARE)

    def missing(self, paths: Sequence[Path], is_alone: bool = True) -> list[Path]:
        """Returns the images that are new or have changed since their features were computed."""
        return [
            path
            for path in paths
            if (place := self._places.get(self._key(path, is_alone))) is None
            or place[2] != _state(path)
        ]

    def add(
        self,
        paths: Sequence[Path],
        tower: Any,
        num_workers: int = 0,
        tolerates_broken: bool = False,
        is_alone: bool = True,
    ) -> int:
        """Computes the missing features.

        Args:
            paths: Images; duplicates are computed once.
            tower: The tower that the cache was opened for.
            num_workers: Processes that open images.
            tolerates_broken: Raise an error for a broken image when its features are requested,
                not now.
            is_alone: Each is the only image of its sample; see `Tiling.prepare`.

        Returns:
            The number of images whose features were computed.

        Raises:
            DataError: An image cannot be read, or features overflow the dtype.
        """
        todo = self.missing(list({_name(path): path for path in paths}.values()), is_alone)
        if not todo:
            return 0
        self.folder.mkdir(parents=True, exist_ok=True)
        log.info("computing the vision tower's output for %d images", len(todo))
        batches: DataLoader[Any] = DataLoader(
            todo,  # type: ignore[arg-type]
            batch_size=BATCH_SIZE,
            num_workers=num_workers,
            collate_fn=partial(self._open, is_alone=is_alone),
        )
        with Progress("vision tower", len(todo), "images") as progress:
            features: list[npt.NDArray[Any]] = []
            whole: list[Path] = []
            for paths, pixels, reasons in batches:
                keys = [self._key(path, is_alone) for path in paths]
                broken = {key: why for key, why in zip(keys, reasons, strict=True) if why}
                if broken and not tolerates_broken:
                    raise DataError(next(iter(broken.values())))
                self._broken |= broken
                kept = [i for i, reason in enumerate(reasons) if not reason]
                found = self._encode(tower, pixels)
                features += [found[i] for i in kept]
                whole += [paths[i] for i in kept]
                progress.advance(len(paths))
                num_rows = sum(map(len, features))
                if num_rows >= ROWS_PER_SHARD or (whole and paths[-1] == todo[-1]):
                    self._write(whole, features, is_alone)
                    whole, features = [], []
        return sum(self._key(path, is_alone) not in self._broken for path in todo)

    def _open(
        self, paths: list[Path], is_alone: bool
    ) -> tuple[list[Path], list[Tensor], list[str]]:
        """Returns pixels and reasons: zeros and an error text for an image that is unreadable."""
        pixels, reasons = [], []
        for path in paths:
            try:
                pixels.append(self._loader(path, is_alone))
                reasons.append("")
            except DataError as error:
                pixels.append(self._loader.empty)
                reasons.append(str(error))
        return paths, pixels, reasons

    def _encode(self, tower: Any, pixels: list[Tensor]) -> list[npt.NDArray[Any]]:
        """Returns features [rows, P, D] of each image, a row for each of its tiles."""
        tiles = [each if self.tiling.pinpoints else each[None] for each in pixels]
        with torch.no_grad(), np.errstate(over="ignore"):
            features = np.concatenate(
                [
                    tower(batch).float().cpu().numpy().astype(self.dtype)
                    for batch in torch.cat(tiles).split(BATCH_SIZE)
                ]
            )
        if not np.isfinite(features).all():
            raise DataError(
                f"the vision tower's output does not fit into {self.dtype}; use "
                "--feature_cache_dtype float32"
            )
        return np.split(features, np.cumsum([len(each) for each in tiles])[:-1])

    def _write(
        self, paths: Sequence[Path], features: Sequence[npt.NDArray[Any]], is_alone: bool
    ) -> None:
        """Writes a shard; its list is written last and makes it count."""
        name = uuid.uuid4().hex[:16]
        entries = [
            [self._key(path, is_alone), *(_state(path) or (0, 0)), len(rows)]
            for path, rows in zip(paths, features, strict=True)
        ]
        whole = np.concatenate(features)
        _write_whole(self.folder / f"{name}.npy", lambda file: np.save(file, whole))
        text = json.dumps({"pictures": entries}, ensure_ascii=False).encode()
        _write_whole(self.folder / f"{name}.json", lambda file: file.write(text))
        self._enter(name, entries)

    def _enter(self, name: str, entries: Sequence[Sequence[Any]]) -> None:
        start = 0
        # lists from before images were cut into tiles have a row for each image
        for path, size, mtime_ns, *num_rows in entries:
            rows = range(start, start + (num_rows[0] if num_rows else 1))
            self._places[path] = (name, rows, (size, mtime_ns))
            self._broken.pop(path, None)
            start = rows.stop


def cache_key(tower: Any, loader: ImageLoader, dtype: str) -> str:
    """Returns a digest of everything that features depend on."""
    digest = hashlib.sha256()
    # how features are merged afterwards makes no difference
    pinpoints = loader.tiling.pinpoints
    settings = {
        "format": FORMAT,
        "layer": tower.select_layer,
        "feature": tower.select_feature,
        "processor": loader.processor.to_dict(),
        "aspect_ratio": "tiles" if pinpoints else loader.tiling.aspect_ratio,
        **({"pinpoints": pinpoints} if pinpoints else {}),
        "dtype": dtype,
        **({"draft": True} if loader.uses_draft else {}),
        **({} if tower.deviation is None else {"dropped": tower.deviation.num_dropped}),
    }
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, value in sorted(tower.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _name(path: Path) -> str:
    """Returns one spelling of a path, because corpora may share images."""
    return os.path.abspath(path)


def _state(path: Path) -> tuple[int, int] | None:
    """Returns size and time of a file, which detect changes; None if there is no such file."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


def _write_whole(path: Path, write: Any) -> None:
    with writing(path, flush=True) as partial, partial.open("wb") as file:
        write(file)
