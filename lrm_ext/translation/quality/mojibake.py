"""Check `mojibake`: text that was decoded in the wrong way.

The proof is that it can be undone: letters that, written in an old encoding, are valid UTF-8.
Text that a person wrote practically never is. Lost letters ("?ervená", U+FFFD) count as well.
"""

from __future__ import annotations

import re

from lrm_ext.translation.quality.pair import Pair
from lrm_ext.translation.quality.thresholds import Thresholds
from lrm_ext.translation.quality.verdict import Measured

_ENCODINGS = ("cp1252", "latin-1", "cp1250", "cp1251")
# what any of them can have made of a byte
_MADE = frozenset(
    bytes([byte]).decode(encoding, "ignore") or chr(byte)
    for encoding in _ENCODINGS
    for byte in range(0x80, 0x100)
)
_RUN = re.compile(r"[^\x00-\x7f]{2,}")
_LOST = re.compile(r"\ufffd|[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]|\?(?=[^\W\d_])")


def check_mojibake(pair: Pair, thresholds: Thresholds) -> Measured | None:
    """How many places of a translation are broken."""
    if pair.target.isascii() and "?" not in pair.target:
        return None
    target = pair.target_prose
    faults = [match[0] for match in _LOST.finditer(target)] if _LOST.search(target) else []
    if not target.isascii():
        faults += [run for run in _RUN.findall(target) if undo(run) and run not in pair.source]
    listed = ", ".join(map(repr, dict.fromkeys(faults[:5])))
    return Measured(len(faults), f"broken characters: {listed}")


def undo(run: str) -> str | None:
    """What was meant by characters that are UTF-8 decoded in another way; None if they are fine.

    Example:
        >>> undo("Ã¨")
        'è'
    """
    if not _MADE.issuperset(run):
        return None
    for encoding in _ENCODINGS:
        raw = _encoded(run, encoding)
        if raw is None:
            continue
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            continue
        if not text.isascii() and len(text) < len(run):
            return text
    return None


def _encoded(run: str, encoding: str) -> bytes | None:
    """As bytes; what the encoding has no letter for is taken as the byte itself."""
    pieces: list[bytes] = []
    for character in run:
        try:
            pieces.append(character.encode(encoding))
        except UnicodeEncodeError:
            if ord(character) > 0xFF:
                return None
            pieces.append(bytes([ord(character)]))
    return b"".join(pieces)
