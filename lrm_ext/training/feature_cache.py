"""Loads training images as pixels, or as the frozen vision tower's features from a cache.

Pixels: [3, S, S] for a path, upright and shaped for the tower; as bytes if the tower can convert
them to the same floats as LLaVA's dataset and inference, else as those floats.

Cache: [P, D] per image, computed once and memory-mapped. A folder, named by everything that the
features depend on (weights, layer, preprocessing, dtype), has shards `<name>.npy` [n, P, D] with
`<name>.json`, the paths, sizes and times of the images. A shard counts once its list exists, so an
interrupted run resumes, and a larger corpus adds shards. The cache pays off for small models only:
24 x 24 features of a large tower are 1.2 MB per image.

Legend: N images, P patches, D the tower's hidden size.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from llava.errors import ConfigError, DataError
from llava.files import writing
from llava.images import open_image, shape_image
from llava.mm_utils import process_images
from llava.model.multimodal_encoder.families import processor_side
from llava.model.tiles import keeps_bytes, num_channels, preprocess_bytes
from llava.progress import Progress

log = logging.getLogger(__name__)

ASPECT_RATIOS = ("square", "pad")
# in draft mode a side of an image keeps at least this many times the tower's pixels
DRAFT_MARGIN = 2


class ImageLoader:
    """Opens images for an image processor.

    Args:
        processor: The vision tower's image processor.
        aspect_ratio: `pad` (to a square) or `square` (crop the center).
        uses_draft: Decode large JPEG files at a half, a quarter or an eighth of their size if at
            least twice the tower's side remains. Pixels differ slightly, so it is off by default.

    Raises:
        ConfigError: The aspect ratio is unknown.
    """

    # name of the entry in items and batches
    entry = "image"

    def __init__(self, processor: Any, aspect_ratio: str, uses_draft: bool = False) -> None:
        if aspect_ratio not in ASPECT_RATIOS:
            raise ConfigError(
                f"--image_aspect_ratio is {aspect_ratio!r}; training on a mixture knows: "
                f"{', '.join(ASPECT_RATIOS)}"
            )
        self.processor, self.aspect_ratio = processor, aspect_ratio
        self.uses_draft, self.gives_bytes = uses_draft, keeps_bytes(processor)

    @property
    def empty(self) -> Tensor:
        """Zeros [3, S, S], for a sample without an image."""
        side = processor_side(self.processor)
        dtype = torch.uint8 if self.gives_bytes else torch.float32
        return torch.zeros(num_channels(self.processor), side, side, dtype=dtype)

    def __call__(self, path: Path) -> Tensor:
        """Returns the pixels of an image, [3, S, S].

        Raises:
            DataError: The image is missing or cannot be read.
        """
        side = processor_side(self.processor)
        try:
            image = open_image(path, least_side=DRAFT_MARGIN * side if self.uses_draft else None)
        except DataError as error:
            if path.exists():
                raise
            raise DataError(
                f"{error}. Unpack or copy the images of the corpus, or give --image_folder."
            ) from error
        if not self.gives_bytes:
            settings = SimpleNamespace(image_aspect_ratio=self.aspect_ratio)
            return process_images([image], self.processor, settings)[0]
        return preprocess_bytes(
            shape_image(image, self.processor, self.aspect_ratio), self.processor
        )


# Increase it when the same tower and image give other numbers.
FORMAT = 2
IMAGES_PER_SHARD = 2048
BATCH_SIZE = 64


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
        # by path: shard, row, and size and time of the file when it was read
        self._places: dict[str, tuple[str, int, tuple[int, int]]] = {}
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
        """Zeros [P, D], for a sample without an image."""
        return torch.zeros(self.feature_shape, dtype=getattr(torch, self.dtype))

    def __call__(self, path: Path) -> Tensor:
        """Returns the features of an image, [P, D].

        Raises:
            DataError: The image could not be read.
            KeyError: The features were not computed.
        """
        if _name(path) in self._broken:
            raise DataError(self._broken[_name(path)])
        name, row, _ = self._places[_name(path)]
        if name not in self._shards:
            self._shards[name] = np.load(self.folder / f"{name}.npy", mmap_mode="r")
        return torch.from_numpy(np.array(self._shards[name][row]))

    def missing(self, paths: Sequence[Path]) -> list[Path]:
        """Returns the images that are new or have changed since their features were computed."""
        return [
            path
            for path in paths
            if (place := self._places.get(_name(path))) is None or place[2] != _state(path)
        ]

    def add(
        self,
        paths: Sequence[Path],
        tower: Any,
        num_workers: int = 0,
        tolerates_broken: bool = False,
    ) -> int:
        """Computes the missing features.

        Args:
            paths: Images; duplicates are computed once.
            tower: The tower that the cache was opened for.
            num_workers: Processes that open images.
            tolerates_broken: Raise an error for a broken image when its features are requested,
                not now.

        Returns:
            The number of images whose features were computed.

        Raises:
            DataError: An image cannot be read, or features overflow the dtype.
        """
        todo = self.missing(list({_name(path): path for path in paths}.values()))
        if not todo:
            return 0
        self.folder.mkdir(parents=True, exist_ok=True)
        log.info("computing the vision tower's output for %d images", len(todo))
        batches: DataLoader[Any] = DataLoader(
            todo,  # type: ignore[arg-type]
            batch_size=BATCH_SIZE,
            num_workers=num_workers,
            collate_fn=self._open,
        )
        with Progress("vision tower", len(todo), "images") as progress:
            rows: list[npt.NDArray[Any]] = []
            whole: list[Path] = []
            for paths, pixels, reasons in batches:
                broken = {_name(path): why for path, why in zip(paths, reasons, strict=True) if why}
                if broken and not tolerates_broken:
                    raise DataError(next(iter(broken.values())))
                self._broken |= broken
                kept = [i for i, reason in enumerate(reasons) if not reason]
                rows.append(self._encode(tower, pixels)[kept])
                whole += [paths[i] for i in kept]
                progress.advance(len(paths))
                if len(whole) >= IMAGES_PER_SHARD or (whole and paths[-1] == todo[-1]):
                    self._write(whole, np.concatenate(rows))
                    whole, rows = [], []
        return sum(_name(path) not in self._broken for path in todo)

    def _open(self, paths: list[Path]) -> tuple[list[Path], Tensor, list[str]]:
        """Returns pixels and reasons: zeros and an error text for an image that is unreadable."""
        pixels, reasons = [], []
        for path in paths:
            try:
                pixels.append(self._loader(path))
                reasons.append("")
            except DataError as error:
                pixels.append(self._loader.empty)
                reasons.append(str(error))
        return paths, torch.stack(pixels), reasons

    def _encode(self, tower: Any, pixels: Tensor) -> npt.NDArray[Any]:
        with torch.no_grad(), np.errstate(over="ignore"):
            features = tower(pixels).float().cpu().numpy().astype(self.dtype)
        if not np.isfinite(features).all():
            raise DataError(
                f"the vision tower's output does not fit into {self.dtype}; use "
                "--feature_cache_dtype float32"
            )
        return features

    def _write(self, paths: Sequence[Path], features: npt.NDArray[Any]) -> None:
        """Writes a shard; its list is written last and makes it count."""
        name = uuid.uuid4().hex[:16]
        entries = [[_name(path), *(_state(path) or (0, 0))] for path in paths]
        _write_whole(self.folder / f"{name}.npy", lambda file: np.save(file, features))
        text = json.dumps({"pictures": entries}, ensure_ascii=False).encode()
        _write_whole(self.folder / f"{name}.json", lambda file: file.write(text))
        self._enter(name, entries)

    def _enter(self, name: str, entries: Sequence[Sequence[Any]]) -> None:
        for row, (path, size, mtime_ns) in enumerate(entries):
            self._places[path] = (name, row, (size, mtime_ns))
            self._broken.pop(path, None)


def cache_key(tower: Any, loader: ImageLoader, dtype: str) -> str:
    """Returns a digest of everything that features depend on."""
    digest = hashlib.sha256()
    settings = {
        "format": FORMAT,
        "layer": tower.select_layer,
        "feature": tower.select_feature,
        "processor": loader.processor.to_dict(),
        "aspect_ratio": loader.aspect_ratio,
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
    with writing(path) as partial, partial.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
