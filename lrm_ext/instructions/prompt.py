"""Takes a human turn apart and puts an instruction into it.

A human turn is, in this order: `<image>` (or at the very end), the question, a response-format
prompt such as "Answer the question using a single word or phrase." The format prompt stays last,
as LLaVA trains it, so an instruction goes before it; the picture stays where it was.
Input and output: text. No files, no tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace

_HEAD = re.compile(r"\A<image>\n?")
_TAIL = re.compile(r"\n?<image>\Z")


@dataclass(frozen=True)
class HumanText:
    """The parts of a human turn; `str()` puts them together again.

    Attributes:
        head: `<image>` with its newline if the turn begins with it, else "".
        question: What is asked; may have several lines.
        format_prompt: The response-format prompt, "" if there is none.
        tail: `<image>` with the newline before it if the turn ends with it, else "".
    """

    head: str
    question: str
    format_prompt: str
    tail: str

    def __str__(self) -> str:
        lines = [part for part in (self.question, self.format_prompt) if part]
        return self.head + "\n".join(lines) + self.tail


def split_human_text(text: str, format_prompts: Collection[str]) -> HumanText:
    r"""Take a human turn apart.

    Args:
        text: The turn's text.
        format_prompts: The response-format prompts of the turn's language. One is recognised only
            if it is the whole last line and something is asked before it.

    Example:
        >>> split_human_text("<image>\nA duck?\nYes or no.", ["Yes or no."]).question
        'A duck?'
    """
    head = match.group() if (match := _HEAD.search(text)) else ""
    body = text[len(head) :]
    tail = match.group() if (match := _TAIL.search(body)) else ""
    body = body[: len(body) - len(tail)]
    question, newline, last = body.rpartition("\n")
    if newline and question and last in format_prompts:
        return HumanText(head, question, last, tail)
    return HumanText(head, body, "", tail)


def insert_instruction(text: str, instruction: str, format_prompts: Collection[str]) -> str:
    r"""Put an instruction on its own line after the question, before a response-format prompt.

    Example:
        >>> insert_instruction("<image>\nA duck?\nOne word.", "In Czech.", ["One word."])
        '<image>\nA duck?\nIn Czech.\nOne word.'
    """
    parts = split_human_text(text, format_prompts)
    question = f"{parts.question}\n{instruction}" if parts.question else instruction
    return str(replace(parts, question=question))
