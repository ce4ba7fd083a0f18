"""Renders turns with a template, tokenises the text and labels it: the one place that masks labels.

Role: `render` makes the training text and its supervised character ranges; `encode_turns` is what
datasets call; `encode_prompt` turns text with `<image>` into ids with the sentinel -200 and is also
what `llava.mm_utils.tokenizer_image_token` returns.
The text of the styles TWO, MPT and LLAMA_2 is exactly `Conversation.get_prompt()`, made from the
same segments, so a template is data and needs no code here; a tokenizer's own chat template
(`--version auto`) is one of them. PLAIN (stage 1) and SINGLE (LLaVA v0)
are trained on other texts than they prompt with; LLaVA does so too.
A text is tokenised once, as LLaVA does it (the chunks between images apart), and its supervised
character ranges are mapped to tokens: by the offsets of a fast tokenizer, by common prefixes for a
slow one. The text before the first image is mostly the same, so its tokens are cached. Labels
are not shifted.
Non-goals: truncation and padding (`dataset.py`, `batching.py`), reading records (`sample.py`).
"""

from __future__ import annotations

import os
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, islice
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from llava.constants import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_TOKEN,
    IGNORE_INDEX,
    IMAGE_TOKEN_INDEX,
)
from llava.conversation import Conversation, SeparatorStyle
from llava.data.sample import SampleError, Turn
from llava.errors import TemplateError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

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


def place_image(
    text: str, conv: Conversation, mm_use_im_start_end: bool = False, keeps_place: bool = False
) -> str:
    """Moves a text's `<image>` to where the model expects it: its beginning.

    Several placeholders become one. A text without one is returned unchanged.

    Args:
        text: What a turn says.
        conv: A template with `mmtag` in its version wants `<Image>...</Image>` around it.
        mm_use_im_start_end: Put `<im_start>` and `<im_end>` around the placeholder.
        keeps_place: Leave placeholders where they are: each is that of an image.
    """
    if DEFAULT_IMAGE_TOKEN not in text:
        return text
    if not keeps_place:
        rest = text.replace(DEFAULT_IMAGE_TOKEN, "").strip()
        text = f"{DEFAULT_IMAGE_TOKEN}\n{rest}".strip()
    if "mmtag" in conv.version:
        text = text.replace(DEFAULT_IMAGE_TOKEN, f"<Image>{DEFAULT_IMAGE_TOKEN}</Image>")
    if mm_use_im_start_end:
        wrapped = DEFAULT_IM_START_TOKEN + DEFAULT_IMAGE_TOKEN + DEFAULT_IM_END_TOKEN
        text = text.replace(DEFAULT_IMAGE_TOKEN, wrapped)
    return text


def place_images(
    turns: Sequence[Turn],
    conv: Conversation,
    mm_use_im_start_end: bool = False,
    num_images: int = 1,
) -> tuple[Turn, ...]:
    """Applies `place_image` to every turn.

    Args:
        turns: The turns of a sample.
        conv: See `place_image`.
        mm_use_im_start_end: See `place_image`.
        num_images: Images of the sample; the places of several stay as they are written.
    """
    settings = (conv, mm_use_im_start_end, num_images > 1)
    return tuple(
        Turn(turn.role, place_image(turn.text, *settings), turn.supervised) for turn in turns
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
    try:
        segments = conv.segments(messages)
    except TemplateError as error:  # only a chat template looks at what turns say
        raise SampleError(str(error), "chat_template") from None
    ends = accumulate(len(segment.text) for segment in segments)
    spans = tuple(
        Span(end - len(text), end)
        for end, (text, message, is_body) in zip(ends, segments, strict=True)
        if is_body and message is not None and _is_learned(turns[message])
    )
    return Rendered("".join(segment.text for segment in segments), spans)


def _is_learned(turn: Turn) -> bool:
    return turn.role == "gpt" and turn.supervised


def _render_plain(turns: Sequence[Turn], conv: Conversation) -> Rendered:
    """Renders stage 1 as LLaVA does: the question is dropped, only its images stay."""
    if len(turns) != 2 or DEFAULT_IMAGE_TOKEN not in turns[0].text:
        raise SampleError(
            f"the plain template got {len(turns)} turns; expected a question with "
            f"{DEFAULT_IMAGE_TOKEN} and its answer. Use another template for chats and text.",
            "structure",
        )
    images = DEFAULT_IMAGE_TOKEN * turns[0].text.count(DEFAULT_IMAGE_TOKEN)
    text = images + turns[1].text + conv.sep
    span = Span(len(images), len(text))
    return Rendered(text, (span,) if turns[1].supervised else ())


def _render_v0(turns: Sequence[Turn], conv: Conversation) -> Rendered:
    pieces = [V0Piece(f"{conv.system}\n\n", True)]
    for i, turn in enumerate(turns):
        pieces.append(V0Piece(generic_turn(conv.roles[i % 2], turn.text), not _is_learned(turn)))
    ends = islice(accumulate(len(piece.text) for piece in pieces), 1, None)
    spans = tuple(
        Span(end - len(turn.text) - 2, end)  # with the blank before it and the line end
        for turn, end in zip(turns, ends, strict=True)
        if _is_learned(turn)
    )
    text = "".join(piece.text for piece in pieces) + GENERIC_SIGNAL
    return Rendered(text, spans, tuple(pieces))


def generic_turn(role: str, text: str) -> str:
    """Returns one turn of a v0 training text."""
    return f"{GENERIC_SIGNAL}{role}: {text}\n"


@dataclass(frozen=True)
class Encoded:
    """Token ids and labels of one sample, equally long.

    Attributes:
        input_ids: Ids; -200 marks the place of an image.
        labels: The id where the token counts in the loss, else -100. Not shifted: the label of a
            position is the token at that position.
    """

    input_ids: list[int]
    labels: list[int]


def encode_turns(
    turns: Sequence[Turn], conv: Conversation, tokenizer: Any, has_image: bool = True
) -> Encoded:
    r"""Encodes a conversation for training.

    Args:
        turns: `human` first and alternating; only answers with `supervised` count in the loss.
        conv: The template.
        tokenizer: A Hugging Face tokenizer.
        has_image: Whether `<image>` is an image's placeholder. Otherwise it is text like any.

    Returns:
        Ids and labels. Each supervised answer is labelled with its terminator. The v0 template's
        labels lie where LLaVA puts them, which is up to a few tokens beside the answers.

    Raises:
        SampleError: The turns do not fit the template.
        TemplateError: A slow tokenizer merges across an answer's border.

    Example:
        >>> encode_turns([Turn("human", "<image>\nWhat?"), Turn("gpt", "A cat.")],
        ...              conv_templates["v1"], tokenizer).input_ids.count(-200)
        1
    """
    rendered = render(turns, conv)
    if not rendered.v0_pieces:
        return _encode_spans(rendered.text, rendered.spans, tokenizer, has_image)
    input_ids = encode_prompt(rendered.text, tokenizer, has_image=has_image)
    lengths = [
        len(encode_prompt(piece.text, tokenizer, has_image=has_image))
        for piece in rendered.v0_pieces
    ]
    labels = [IGNORE_INDEX if each == IMAGE_TOKEN_INDEX else each for each in input_ids]
    mask_v0_lengths(labels, lengths, [piece.is_masked for piece in rendered.v0_pieces[1:]])
    return Encoded(input_ids, labels)


def encode_prompt(
    text: str,
    tokenizer: Any,
    image_token_index: int = IMAGE_TOKEN_INDEX,
    has_image: bool = True,
) -> list[int]:
    """Encodes text, with `image_token_index` for each `<image>`.

    The chunks between placeholders are tokenised apart; the tokenizer's BOS is kept once.
    """
    chunks = text.split(DEFAULT_IMAGE_TOKEN) if has_image else [text]
    ids, _ = encode_chunks(chunks, tokenizer, with_offsets=False)
    drop = num_bos(ids, tokenizer, chunks[0])
    input_ids = ids[0][:drop]
    for i, chunk_ids in enumerate(ids):
        if i:
            input_ids.append(image_token_index)
        input_ids.extend(chunk_ids[drop:])
    return input_ids


def mask_v0_lengths(labels: Any, lengths: Sequence[int], is_masked: Sequence[bool]) -> None:
    """Masks labels in place by LLaVA's v0 rule.

    The rule adds up the lengths of the pieces tokenised alone, each with a BOS that the whole text
    does not have, so it drifts to the right by a token or so a turn; and it leaves a masked turn's
    first two tokens labelled. LLaVA's v0 checkpoints were trained so.

    Args:
        labels: Sequence of labels, [T].
        lengths: Number of tokens of the header and of each turn.
        is_masked: Whether a turn is masked, one for each turn.
    """
    first, *rest = lengths
    ranges, cursor = [range(first)], first
    for length, masked in zip(rest, is_masked, strict=True):
        if masked:
            ranges.append(range(cursor + 2, cursor + length))
        cursor += length
    for i in chain.from_iterable(ranges):
        if i < len(labels):
            labels[i] = IGNORE_INDEX


def is_labelled(labels: Sequence[int]) -> bool:
    """Tells whether any position counts in the loss."""
    return any(label != IGNORE_INDEX for label in labels)


def _encode_spans(text: str, spans: Sequence[Span], tokenizer: Any, has_image: bool) -> Encoded:
    """Tokenises a text and labels the tokens that share a character with a span."""
    chunks = text.split(DEFAULT_IMAGE_TOKEN) if has_image else [text]
    ids, offsets = _encode_and_keep_first(chunks, tokenizer)
    drop = num_bos(ids, tokenizer, chunks[0])
    input_ids, labels = ids[0][:drop], [IGNORE_INDEX] * drop
    starts = accumulate((len(chunk) + len(DEFAULT_IMAGE_TOKEN) for chunk in chunks), initial=0)
    for i, (start, chunk) in enumerate(zip(starts, chunks, strict=False)):
        if i:
            input_ids.append(IMAGE_TOKEN_INDEX)
            labels.append(IGNORE_INDEX)
        end = start + len(chunk)
        inner = [
            (max(span.start - start, 0), min(span.end, end) - start)
            for span in spans
            if span.start < end and span.end > start
        ]
        in_chunk = [] if offsets is None else offsets[i]
        if offsets is None and inner:
            in_chunk = _offsets_by_prefix(chunk, ids[i], list(chain(*inner)), tokenizer)
        input_ids += ids[i][drop:]
        labels += _labels_in_chunk(ids[i], in_chunk, inner)[drop:]
    return Encoded(input_ids, labels)


def _labels_in_chunk(
    ids: Sequence[int], offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]
) -> list[int]:
    """Returns the labels of a chunk's tokens, each of which covers a range of characters."""
    labels = [IGNORE_INDEX] * len(ids)
    if not spans:
        return labels
    starts, ends = zip(*offsets, strict=True)
    if list(ends) == sorted(ends) and list(starts) == sorted(starts):
        for start, end in spans:
            first, last = bisect_right(ends, start), bisect_left(starts, end)
            labels[first:last] = ids[first:last]
        return labels
    # a token without text (an EOS that the tokenizer adds) has the range (0, 0)
    for i, (start, end) in enumerate(offsets):
        if any(start < span[1] and end > span[0] for span in spans):
            labels[i] = ids[i]
    return labels


# for each tokenizer: the text before the first image -> its ids and offsets
_FIRST_CHUNKS: WeakKeyDictionary[Any, dict[Any, Any]] = WeakKeyDictionary()
_MAX_FIRST_CHUNKS = 256


def _encode_and_keep_first(
    chunks: Sequence[str], tokenizer: Any
) -> tuple[list[list[int]], list[list[tuple[int, int]]] | None]:
    """Encodes chunks as `encode_chunks` does, with a cache for the first of several."""
    if len(chunks) == 1 or _backend(tokenizer) is None:
        return encode_chunks(chunks, tokenizer, with_offsets=True)
    known = _FIRST_CHUNKS.setdefault(tokenizer, {})
    # tokens may be added to it, and its settings may change
    settings = (tokenizer.split_special_tokens, getattr(tokenizer, "add_bos_token", None))
    key = (chunks[0], len(tokenizer), *settings)
    if key not in known:
        if len(known) >= _MAX_FIRST_CHUNKS:
            known.clear()
        known[key] = encode_chunks(chunks[:1], tokenizer, with_offsets=True)
    (first_ids,), (first_offsets,) = known[key]
    ids, offsets = encode_chunks(chunks[1:], tokenizer, with_offsets=True)
    assert offsets is not None
    return [first_ids, *ids], [first_offsets, *offsets]


def encode_chunks(
    chunks: Sequence[str], tokenizer: Any, with_offsets: bool
) -> tuple[list[list[int]], list[list[tuple[int, int]]] | None]:
    """Encodes chunks in one call, each as the tokenizer encodes a text by default."""
    shift = _prefix_shift(tokenizer)
    texts = [" " + chunk if shift and chunk[:1] == " " else chunk for chunk in chunks]
    with_offsets = with_offsets and bool(getattr(tokenizer, "is_fast", False))
    backend = _backend(tokenizer)
    if backend is None:
        options = {"return_offsets_mapping": True} if with_offsets else {}
        encoding = tokenizer(texts, return_attention_mask=False, verbose=False, **options)
        ids = [list(chunk_ids) for chunk_ids in encoding["input_ids"]]
        found = encoding["offset_mapping"] if with_offsets else None
    else:
        encode = backend.encode_batch if with_offsets else backend.encode_batch_fast
        encodings = [backend.encode(texts[0])] if len(texts) == 1 else encode(texts)
        ids = [each.ids for each in encodings]
        found = [each.offsets for each in encodings] if with_offsets else None
    if found is None:
        return ids, None
    offsets = [
        [(max(start - 1, 0), max(end - 1, 0)) for start, end in spans] if text != chunk else spans
        for spans, text, chunk in zip(found, texts, chunks, strict=True)
    ]
    return ids, offsets


def _backend(tokenizer: Any) -> Tokenizer | None:
    """Returns a fast tokenizer's backend, with the settings of a plain call.

    Calling it directly saves a fifth of the time. None for a tokenizer with its own `_encode_plus`.
    """
    # not imported here, as it takes seconds; without it there is no such tokenizer
    module = sys.modules.get("transformers.tokenization_utils_tokenizers")
    encode = getattr(type(tokenizer), "_encode_plus", None)
    if module is None or encode is not module.TokenizersBackend._encode_plus:
        return None
    backend: Tokenizer = tokenizer.backend_tokenizer
    if backend.truncation is not None:
        backend.no_truncation()
    if backend.padding is not None:
        backend.no_padding()
    if backend.encode_special_tokens != tokenizer.split_special_tokens:
        backend.encode_special_tokens = tokenizer.split_special_tokens
    return backend


def _prefix_shift(tokenizer: Any) -> bool:
    """Tells whether a text's leading blank must be doubled.

    SentencePiece puts its dummy blank before any text. The `Metaspace` of the tokenizers library
    leaves it out where a text begins with a blank already; checkpoints were trained with the
    former.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    scheme = getattr(getattr(backend, "pre_tokenizer", None), "prepend_scheme", "never")
    return scheme != "never"


def num_bos(ids: Sequence[Sequence[int]], tokenizer: Any, text: str) -> int:
    """Returns 1 if the tokenizer begins a text with BOS, else 0.

    A first id that is BOS need not be one that the tokenizer added: the BOS of some chat models
    (SmolLM2) is `<|im_start|>`, with which their prompts begin. Such a tokenizer shows itself on a
    text without it.

    Args:
        ids: The ids of a text's chunks.
        tokenizer: The tokenizer.
        text: The first chunk.
    """
    bos = tokenizer.bos_token_id
    if bos is None or not ids[0] or ids[0][0] != bos:
        return 0
    written = getattr(tokenizer, "bos_token", None)
    if not written or not text.lstrip().startswith(written):
        return 1
    probe, _ = encode_chunks(["a"], tokenizer, with_offsets=False)
    return int(probe[0][:1] == [bos])


def _offsets_by_prefix(
    chunk: str, ids: Sequence[int], borders: Sequence[int], tokenizer: Any
) -> list[tuple[int, int]]:
    """Places a slow tokenizer's tokens, as exactly as `borders` demands.

    The text before a border is encoded alone; the ids that it shares with the whole are the tokens
    before the border. Tokens between two borders get the range between them.

    Raises:
        TemplateError: The ids before a border change with what follows by more than the one token
            that may lie across it.
    """
    cuts = sorted({0, len(chunk), *borders})
    counts = [0]
    for border in cuts[1:-1]:
        prefix, _ = encode_chunks([chunk[:border]], tokenizer, with_offsets=False)
        shared = len(os.path.commonprefix([prefix[0], list(ids)]))
        if len(prefix[0]) - shared > _MAX_MERGED:
            raise TemplateError(
                f"The tokenizer {type(tokenizer).__name__} encodes the text before "
                f"{chunk[border : border + 20]!r} differently with and without it, so the answer's "
                "first token cannot be found. Use the fast tokenizer."
            )
        counts.append(max(shared, counts[-1]))
    counts.append(len(ids))
    offsets: list[tuple[int, int]] = []
    for i in range(len(cuts) - 1):
        offsets += [(cuts[i], cuts[i + 1])] * (counts[i + 1] - counts[i])
    return offsets


_MAX_MERGED = 4
"""Tokens of a prefix that may merge into the one token across its end."""
