"""Pictures that come inside a table: as bytes, base64, or a name in a folder.

In: a cell. Out: a file named by its content, so that a picture that serves many questions is
written once, and a path relative to the folder. Several pictures of one question become one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from PIL import Image

from llava.errors import DataError
from llava.files import writing
from llava.images import open_image
from lrm_ext.files import leaves_folder

_MAGIC: Final = (
    (b"\xff\xd8\xff", ".jpg"),
    (b"\x89PNG\r\n\x1a\n", ".png"),
    (b"GIF8", ".gif"),
    (b"RIFF", ".webp"),
    (b"BM", ".bmp"),
)
_HASH_CHARS: Final = 20
GAP_PX: Final = 8


@dataclass(frozen=True)
class PictureStore:
    """Where pictures go.

    Attributes:
        folder: The folder; None to name them only, when nothing is to be asked.
        source: A folder that names in cells are relative to.
    """

    folder: Path | None
    source: Path | None = None

    def put(self, cell: Any, where: str) -> str:
        """Store the picture of a cell.

        Args:
            cell: Bytes, base64 text, a name, an object of `bytes` and `path` as Parquet has, or a
                list of one of these.
            where: For messages.

        Returns:
            Path relative to the folder; for a name, its absolute path.

        Raises:
            DataError: The cell holds no picture, or several.
        """
        if isinstance(cell, (list, tuple)):
            if len(cell) != 1:
                raise DataError(f"{where}: {len(cell)} pictures; expected one")
            return self.put(cell[0], where)
        if isinstance(cell, dict):
            if cell.get("bytes"):
                return self._write(cell["bytes"])
            return self.put(cell.get("path"), where)
        if isinstance(cell, bytes) and cell:
            return self._write(cell)
        if not isinstance(cell, str) or not cell.strip():
            raise DataError(f"{where}: no picture, found {str(cell)[:40]!r}")
        if named := self._named(cell):
            return named
        return self._write(self._decode(cell, where))

    def _decode(self, cell: str, where: str) -> bytes:
        try:
            return base64.b64decode(cell, validate=True)
        except binascii.Error as error:
            raise DataError(
                f"{where}: the picture {cell[:40]!r} is neither a file in "
                f"{self.source or 'the folder of pictures (--images)'} nor base64 ({error})"
            ) from error

    def put_joined(self, cells: Sequence[Any], where: str) -> str:
        """Store the pictures of several cells as one, side by side, at the height of the highest.

        Args:
            cells: See `put`; a single one is stored as it is.
            where: For messages.

        Raises:
            DataError: A cell holds no picture.
        """
        contents = [self._content(cell, where) for cell in cells]
        if len(contents) == 1:
            return self._write(contents[0])
        opened = [open_image(content, where) for content in contents]
        height = max(picture.height for picture in opened)
        sizes = [max(1, round(picture.width * height / picture.height)) for picture in opened]
        canvas = Image.new("RGB", (sum(sizes) + GAP_PX * (len(opened) - 1), height), "white")
        left = 0
        for picture, width in zip(opened, sizes, strict=True):
            canvas.paste(picture.resize((width, height)), (left, 0))
            left += width + GAP_PX
        joined = io.BytesIO()
        canvas.save(joined, format="PNG")
        return self._write(joined.getvalue())

    def _content(self, cell: Any, where: str) -> bytes:
        """The bytes of a picture, wherever they are."""
        if isinstance(cell, dict):
            cell = cell.get("bytes") or cell.get("path")
        if isinstance(cell, bytes) and cell:
            return cell
        if not isinstance(cell, str) or not cell.strip():
            raise DataError(f"{where}: no picture, found {str(cell)[:40]!r}")
        if named := self._named(cell):
            return Path(named).read_bytes()
        return self._decode(cell, where)

    def _named(self, name: str) -> str | None:
        if self.source is None or len(name) > 255 or "://" in name:
            return None
        path = Path(os.path.abspath(self.source / name))
        return str(path) if not leaves_folder(name) and path.is_file() else None

    def _write(self, content: bytes) -> str:
        suffix = next((s for magic, s in _MAGIC if content.startswith(magic)), ".img")
        name = hashlib.sha256(content).hexdigest()[:_HASH_CHARS] + suffix
        if self.folder is not None:
            path = self.folder / name
            if not path.is_file():
                with writing(path) as partial:
                    partial.write_bytes(content)
        return name
