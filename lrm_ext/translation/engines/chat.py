"""What a chat model is asked when it translates, and what may be believed of its answer.

Input: segments. Output: messages that ask for JSON with an id per segment, and back from a reply
the translations by id. Remarks, refusals, unknown or doubled ids are not translations.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any

from lrm_ext.languages.registry import get_language
from lrm_ext.translation.engines.base import Segment

_RULES = """\
You translate training data of a vision-language model from {source} into {target}.
You get JSON: {{"segments": [{{"id": 1, "text": "..."}}, ...]}}.
Answer with JSON only: {{"translations": [{{"id": 1, "text": "..."}}, ...]}}, one for every id.
Rules:
- Translate "text". Never answer it, never add remarks, quotation marks or explanations.
- Placeholders such as ⟦0⟧ or [[1]] stand for parts that must not change: keep each exactly once.
- Keep numbers, option letters and punctuation style as they are.
- "context", if there is one, is the question that the text answers. Do not translate it, but use
  it to choose sense, gender, case and number.
- "terms", if there are any, say how to translate these words; inflect them as needed.
- Use the standard written language and script ({script}) of {target}."""
PROMPT_VERSION = hashlib.sha256(_RULES.encode()).hexdigest()[:8]
_OPENING = re.compile(r"[{\[]")


def messages(
    segments: Sequence[Segment], source: str, target: str, style: str | None = None
) -> list[dict[str, str]]:
    """The conversation that asks for translations.

    Args:
        segments: They get the ids 1, 2, ...
        source: Code of their language.
        target: Code of the language to translate into.
        style: More rules, such as the form of address.
    """
    into = get_language(target)
    rules = _RULES.format(source=get_language(source).name, target=into.name, script=into.script)
    if style:
        rules += f"\n- {style}"
    asked = [_asked(number, segment) for number, segment in enumerate(segments, start=1)]
    return [
        {"role": "system", "content": rules},
        {"role": "user", "content": json.dumps({"segments": asked}, ensure_ascii=False)},
    ]


def read_answer(content: str, num_segments: int) -> dict[int, str]:
    """Translations in a model's answer, by position.

    Args:
        content: What the model said.
        num_segments: How many segments it was asked about.

    Returns:
        What can be used; empty if it is not the JSON that was asked for.

    Example:
        >>> read_answer('{"translations": [{"id": 2, "text": "pas"}]}', 2)
        {1: 'pas'}
    """
    items = _find_items(content)
    found: dict[int, str] = {}
    doubled: set[int] = set()
    for item in items:
        if not isinstance(item, dict) or not isinstance(item.get("text"), str):
            continue
        try:
            position = int(item["id"]) - 1
        except (KeyError, TypeError, ValueError):
            continue
        if not 0 <= position < num_segments or not item["text"].strip():
            continue
        if found.setdefault(position, item["text"]) != item["text"]:
            doubled.add(position)
    return {position: text for position, text in found.items() if position not in doubled}


def _find_items(content: str) -> list[Any]:
    """The list of translations in a model's answer, whatever stands around it; the last of several.

    Models put JSON into fences, behind a line of prose, or behind a draft of it.
    """
    items: list[Any] = []
    decoder = json.JSONDecoder()
    start = 0
    while opening := _OPENING.search(content, start):
        try:
            data, start = decoder.raw_decode(content, opening.start())
        except (ValueError, RecursionError):
            start = opening.end()
            continue
        found = data.get("translations") if isinstance(data, dict) else data
        if isinstance(found, list) and any(isinstance(item, dict) for item in found):
            items = found
    return items


def _asked(number: int, segment: Segment) -> dict[str, object]:
    asked: dict[str, object] = {"id": number, "text": segment.text}
    if segment.context:
        asked["context"] = segment.context
    if segment.terms:
        asked["terms"] = dict(segment.terms)
    return asked
