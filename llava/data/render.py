"""Renders turns with a template into the training text and its supervised character ranges.

Role: the text side of label masking. Output: `Rendered`. The text of the styles TWO, MPT and
LLAMA_2 is exactly `Conversation.get_prompt()`, made from the same segments, so a template is data
and needs no code here. PLAIN (stage 1) and SINGLE (LLaVA v0) are trained on other texts than they
prompt with; LLaVA does so too.
Non-goals: tokens (`tokenize.py`), reading records (`sample.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from llava.constants import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_TOKEN,
)
from llava.conversation import Conversation, SeparatorStyle
from llava.data.sample import SampleError, Turn
from llava.errors import TemplateError

GENERIC_SIGNAL = "### "
"""What begins each turn of a v0 training text, and ends the text."""


class Span(NamedTuple):
    """A half-open range of characters of the rendered text."""

    start: int
    end: int


class V0Piece(NamedTuple):
    """A part of a v0 training text.

    Attributes:
        text: The part; all parts and a last `### ` are the text.
        is_masked: Whether LLaVA's v0 rule masks it. The header is masked by a rule of its own.
    """

    text: str
    is_masked: bool


@dataclass(frozen=True)
class Rendered:
    """A rendered conversation.

    Attributes:
        text: The text, with `<image>` where the image goes.
        spans: What to supervise: each answer with its terminator, and with the blank between a
            role's tag and the answer, because tokenizers make it part of the answer's first token.
        v0_pieces: Header and turns of a v0 text, whose labels LLaVA finds by counting tokens piece
            by piece; empty for the other styles.
    """

    text: str
    spans: tuple[Span, ...]
    v0_pieces: tuple[V0Piece, ...] = ()


def render(turns: Sequence[Turn], conv: Conversation) -> Rendered:
    """Renders a conversation for training.

    Args:
        turns: `human` first and alternating. No text is empty.
        conv: The template. Its own messages are left out, as in LLaVA's training.

    Raises:
        SampleError: The turns do not fit the template.
        TemplateError: The template lacks a separator that it needs.

    Example:
        >>> from llava.conversation import conv_templates
        >>> r = render([Turn("human", "Hi"), Turn("gpt", "Yes")], conv_templates["v1"])
        >>> r.text[r.spans[0].start : r.spans[0].end]
        ' Yes</s>'
    """
    _check(turns)
    if conv.sep_style is SeparatorStyle.PLAIN:
        return _render_plain(turns, conv)
    if conv.sep_style is SeparatorStyle.SINGLE:
        return _render_v0(turns, conv)
    return _render_prompt(turns, conv)


def place_image(text: str, conv: Conversation, mm_use_im_start_end: bool = False) -> str:
    """Moves a text's `<image>` to where the model expects it: its beginning.

    Several placeholders become one. A text without one is returned unchanged.

    Args:
        text: What a turn says.
        conv: A template with `mmtag` in its version wants `<Image>...</Image>` around it.
        mm_use_im_start_end: Put `<im_start>` and `<im_end>` around the placeholder.
    """
    if DEFAULT_IMAGE_TOKEN not in text:
        return text
    rest = text.replace(DEFAULT_IMAGE_TOKEN, "").strip()
    text = f"{DEFAULT_IMAGE_TOKEN}\n{rest}".strip()
    if "mmtag" in conv.version:
        text = text.replace(DEFAULT_IMAGE_TOKEN, f"<Image>{DEFAULT_IMAGE_TOKEN}</Image>")
    if mm_use_im_start_end:
        wrapped = DEFAULT_IM_START_TOKEN + DEFAULT_IMAGE_TOKEN + DEFAULT_IM_END_TOKEN
        text = text.replace(DEFAULT_IMAGE_TOKEN, wrapped)
    return text


def place_images(
    turns: Sequence[Turn], conv: Conversation, mm_use_im_start_end: bool = False
) -> tuple[Turn, ...]:
    """Applies `place_image` to every turn."""
    return tuple(
        Turn(turn.role, place_image(turn.text, conv, mm_use_im_start_end), turn.supervised)
        for turn in turns
    )


def _check(turns: Sequence[Turn]) -> None:
    for i, turn in enumerate(turns):
        expected = ("human", "gpt")[i % 2]
        if turn.role != expected or not turn.text:
            found = "an empty turn" if not turn.text else f"a turn from {turn.role!r}"
            raise SampleError(
                f"turn {i + 1} is {found}; expected text from {expected!r}. "
                "Turns alternate, beginning with 'human', and none is empty.",
                "empty_turn" if not turn.text else "turn_order",
            )


def _render_prompt(turns: Sequence[Turn], conv: Conversation) -> Rendered:
    if conv.sep_style in (SeparatorStyle.TWO, SeparatorStyle.LLAMA_2) and conv.sep2 is None:
        raise TemplateError(
            f"A template of style {conv.sep_style.name} needs `sep2`, which ends an answer."
        )
    messages = [(conv.roles[i % 2], turn.text) for i, turn in enumerate(turns)]
    segments = conv.segments(messages)
    spans = []
    position = 0
    for segment in segments:
        end = position + len(segment.text)
        if segment.message is not None and segment.is_body:
            turn = turns[segment.message]
            if turn.role == "gpt" and turn.supervised:
                spans.append(Span(position, end))
        position = end
    return Rendered("".join(segment.text for segment in segments), tuple(spans))


def _render_plain(turns: Sequence[Turn], conv: Conversation) -> Rendered:
    """Renders stage 1 as LLaVA does: the question is dropped, only its image stays."""
    if len(turns) != 2 or DEFAULT_IMAGE_TOKEN not in turns[0].text:
        raise SampleError(
            f"the plain template got {len(turns)} turns; expected a question with "
            f"{DEFAULT_IMAGE_TOKEN} and its answer. Use another template for chats and text.",
            "structure",
        )
    text = DEFAULT_IMAGE_TOKEN + turns[1].text + conv.sep
    span = Span(len(DEFAULT_IMAGE_TOKEN), len(text))
    return Rendered(text, (span,) if turns[1].supervised else ())


def _render_v0(turns: Sequence[Turn], conv: Conversation) -> Rendered:
    pieces = [V0Piece(v0_header(conv), True)]
    spans = []
    position = len(pieces[0].text)
    for i, turn in enumerate(turns):
        text = generic_turn(conv.roles[i % 2], turn.text)
        is_supervised = turn.role == "gpt" and turn.supervised
        if is_supervised:
            end = position + len(text)
            spans.append(Span(end - len(turn.text) - 2, end))
        pieces.append(V0Piece(text, not is_supervised))
        position += len(text)
    text = "".join(piece.text for piece in pieces) + GENERIC_SIGNAL
    return Rendered(text, tuple(spans), tuple(pieces))


def v0_header(conv: Conversation) -> str:
    """Returns what a v0 training text begins with."""
    return f"{conv.system}\n\n"


def generic_turn(role: str, text: str) -> str:
    """Returns one turn of a v0 training text."""
    return f"{GENERIC_SIGNAL}{role}: {text}\n"
