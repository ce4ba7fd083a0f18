"""The five ways in which a template joins its messages to a prompt.

Role: one small writer a style. Input: a template and (role, text) pairs, where an empty text is a
turn still to be written. Output: the prompt's `Segment`s, in order.
Non-goals: pictures, the templates themselves (`conversation.py`), label masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import Final, NamedTuple, Protocol

Texts = list[tuple[str, str | None]]


class SeparatorStyle(Enum):
    """How a template joins its messages."""

    SINGLE = auto()
    TWO = auto()
    MPT = auto()
    PLAIN = auto()
    LLAMA_2 = auto()


class Segment(NamedTuple):
    """A piece of a prompt.

    Attributes:
        text: The piece.
        message: Position of the message that it belongs to, or None (the system text).
        is_body: Whether it is what the role says, with its terminator, and not the role's tag.
    """

    text: str
    message: int | None
    is_body: bool


class Template(Protocol):
    """What a writer reads of a `llava.conversation.Conversation`."""

    system: str
    roles: Sequence[str]
    sep: str
    sep2: str | None


def _write_tagged(conv: Template, texts: Texts, seps: Sequence[str | None]) -> list[Segment]:
    """`role: text` with the separators by turns; shared by SINGLE and TWO."""
    segments = [Segment(f"{conv.system}{conv.sep}", None, False)]
    for i, (role, text) in enumerate(texts):
        segments.append(Segment(f"{role}:", i, False))
        if text:
            segments.append(Segment(f" {text}" + seps[i % 2], i, True))
    return segments


def _write_single(conv: Template, texts: Texts) -> list[Segment]:
    return _write_tagged(conv, texts, (conv.sep, conv.sep))


def _write_two(conv: Template, texts: Texts) -> list[Segment]:
    return _write_tagged(conv, texts, (conv.sep, conv.sep2))


def _write_mpt(conv: Template, texts: Texts) -> list[Segment]:
    segments = [Segment(conv.system + conv.sep, None, False)]
    for i, (role, text) in enumerate(texts):
        segments.append(Segment(role, i, False))
        if text:
            segments.append(Segment(text + conv.sep, i, True))
    return segments


def _write_plain(conv: Template, texts: Texts) -> list[Segment]:
    seps = (conv.sep, conv.sep2)
    segments = [Segment(conv.system, None, False)]
    segments += [Segment(text + seps[i % 2], i, True) for i, (_, text) in enumerate(texts) if text]
    return segments


def _write_llama_2(conv: Template, texts: Texts) -> list[Segment]:
    segments: list[Segment] = []
    for i, (role, text) in enumerate(texts):
        if i == 0:
            assert text, "first message should not be none"
            assert role == conv.roles[0], "first message should come from user"
            if conv.system:
                text = f"<<SYS>>\n{conv.system}\n<</SYS>>\n\n{text}"
        if not text:
            continue
        if i % 2 == 0:
            segments.append(Segment(f"{conv.sep}[INST] {text} [/INST]", i, False))
        else:
            segments.append(Segment(f" {text} " + conv.sep2, i, True))
    if segments:
        # The tokenizer writes the first BOS. LLaVA strips the separator's characters, not the
        # separator; "[" always stops that within the first segment.
        segments[0] = segments[0]._replace(text=segments[0].text.lstrip(conv.sep))
    return segments


WRITERS: Final[dict[SeparatorStyle, Callable[[Template, Texts], list[Segment]]]] = {
    SeparatorStyle.SINGLE: _write_single,
    SeparatorStyle.TWO: _write_two,
    SeparatorStyle.MPT: _write_mpt,
    SeparatorStyle.PLAIN: _write_plain,
    SeparatorStyle.LLAMA_2: _write_llama_2,
}
