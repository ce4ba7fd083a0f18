"""Shows one sample as training uses it: as text, as prompt, as ids and labels.

Input: a sample, a template, a tokenizer. Output: text for a terminal. Samples are rendered and
encoded by the same functions as in training.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, cycle, groupby, pairwise
from pathlib import Path
from typing import Any

from rich.text import Text

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import AUTO, Conversation, chat_conversation, get_conversation
from llava.data.sample import Sample
from llava.data.tokenize import Encoded, encode_turns, place_images, render
from llava.errors import ConfigError
from lrm_ext.languages.templates import in_language, register_templates, template_for

SUPERVISED_STYLE = "bold green"
# Enclose supervised parts if there are no colours.
MARKS = ("[[", "]]")


def load_tokenizer(folder: Path) -> Any:
    """Loads a tokenizer from a folder as training does, without downloads.

    Raises:
        ConfigError: The folder does not exist.
        CheckpointError: It holds no tokenizer.
    """
    if not folder.is_dir():
        raise ConfigError(f"tokenizer: there is no folder {folder}.")
    from llava.model import tokenizer

    return tokenizer.load_tokenizer(folder)


def conversation_for(
    sample: Sample, template: str, tokenizer: Any = None
) -> tuple[str, Conversation]:
    """Returns the template of a sample, in the language of its answers if there is one.

    Args:
        sample: The sample.
        template: Its name; `auto` is the tokenizer's own.
        tokenizer: The tokenizer, which only `auto` needs.

    Returns:
        The name and a copy of the template.

    Raises:
        ConfigError: `auto` is given without a tokenizer.
        TemplateError: The template is unknown; the choices are listed. Or the tokenizer has none
            that training can use.
    """
    register_templates()
    if template == AUTO:
        if tokenizer is None:
            raise ConfigError("--template auto is the chat template of a --tokenizer: give one")
        return AUTO, in_language(AUTO, chat_conversation(tokenizer), sample.lang)
    name = template_for(template, sample.lang)
    return name, get_conversation(name)


def encode_sample(sample: Sample, template: str, tokenizer: Any) -> Encoded:
    """Encodes a sample as training does."""
    _, conv = conversation_for(sample, template, tokenizer)
    num_images = len(sample.images)
    turns = place_images(sample.turns, conv, num_images=num_images) if num_images else sample.turns
    return encode_turns(turns, conv, tokenizer, num_images > 0)


def describe_sample(sample: Sample) -> Text:
    """Returns the fields and turns of a sample."""
    fields = ("id", "image", "lang", "instruction", "task", "source")
    values = {**vars(sample), "image": ", ".join(sample.images) or None}
    lines = [(name, f"{values[name]}") for name in fields]
    lines += [(turn.role, turn.text.replace("\n", "\n" + " " * 12)) for turn in sample.turns]
    return Text.assemble(
        *(part for name, text in lines for part in ((f"{name:<12}", "dim"), f"{text}\n"))
    )


def describe_prompt(sample: Sample, conv: Conversation, color: bool) -> Text:
    """Returns the prompt of a sample in a template, with supervised parts marked."""
    rendered = render(place_images(sample.turns, conv, num_images=len(sample.images)), conv)
    # every second piece is a supervised span
    borders = [0, *chain.from_iterable(rendered.spans), len(rendered.text)]
    pieces = (rendered.text[start:end] for start, end in pairwise(borders))
    return _marked(zip(pieces, cycle((False, True)), strict=False), color)


def describe_tokens(encoded: Encoded, tokenizer: Any, color: bool) -> Text:
    """Returns tokens, ids and labels of an encoded sample."""
    pairs = list(zip(encoded.input_ids, encoded.labels, strict=True))
    styles = [SUPERVISED_STYLE if label != IGNORE_INDEX else "" for label in encoded.labels]
    num_supervised = sum(map(bool, styles))
    text = Text(f"{len(pairs)} tokens, {num_supervised} supervised\n\n", style="dim")
    text.append_text(_marked(_runs(pairs, tokenizer), color))
    for name, values in (("input_ids", encoded.input_ids), ("labels", encoded.labels)):
        text.append(f"\n\n{name}", style="dim")
        for value, style in zip(values, styles, strict=True):
            text.append(" ").append(str(value), style=style)
    return text


def _runs(pairs: Iterable[tuple[int, int]], tokenizer: Any) -> Iterator[tuple[str, bool]]:
    """Yields runs of tokens as text, each with whether it is supervised."""
    for is_supervised, run in groupby(pairs, key=lambda pair: pair[1] != IGNORE_INDEX):
        pieces = [
            "<image>" if token == IMAGE_TOKEN_INDEX else tokenizer.convert_ids_to_tokens(token)
            for token, _ in run
        ]
        yield "".join(f"{piece} " for piece in pieces), is_supervised


def _marked(pieces: Iterable[tuple[str, bool]], color: bool) -> Text:
    before, after = ("", "") if color else MARKS
    return Text.assemble(
        *(
            (before + piece + after, SUPERVISED_STYLE) if is_supervised else piece
            for piece, is_supervised in pieces
        )
    )
