"""Remembers what the vision tower made of the last pictures, by their pixels.

In: a picture. Out: its features, if it was seen lately. People ask several questions about one
picture, and each round of a conversation sends it again. Bounded in bytes; the picture that was not
asked for longest is forgotten first.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict

from PIL import Image
from torch import Tensor


def picture_key(picture: Image.Image) -> str:
    """Return a hash of a picture's mode, size and pixels."""
    head = f"{picture.mode} {picture.width} {picture.height} ".encode()
    return hashlib.sha256(head + picture.tobytes()).hexdigest()


class FeatureCache:
    """A bounded map from pictures to features. All methods are thread-safe.

    Args:
        max_bytes: Memory of all features; 0 remembers nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[str, Tensor] = OrderedDict()
        self._lock = threading.Lock()
        self.num_bytes = 0
        self.num_hits = 0
        self.num_misses = 0

    def get(self, key: str) -> Tensor | None:
        """Return the features of a picture, or None."""
        with self._lock:
            found = self._entries.get(key)
            if found is None:
                self.num_misses += 1
            else:
                self.num_hits += 1
                self._entries.move_to_end(key)
            return found

    def put(self, key: str, features: Tensor) -> None:
        """Remember features; older ones go to make room."""
        size = features.element_size() * features.numel()
        if size > self._max_bytes:
            return
        with self._lock:
            if key in self._entries:
                return
            self._entries[key] = features
            self.num_bytes += size
            while self.num_bytes > self._max_bytes:
                _, oldest = self._entries.popitem(last=False)
                self.num_bytes -= oldest.element_size() * oldest.numel()
