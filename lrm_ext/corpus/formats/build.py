"""Makes LLaVA records of questions and answers.

Input: the parts of one sample. Output: a record as LLaVA's training data has it; the requests at a
question's end are those of LLaVA-1.5, from the English language file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.data.sample import SampleError
from lrm_ext.languages.registry import get_language

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def short_answer(
    sample_id: Any, image: str, question: str, answer: str, task: str
) -> dict[str, Any]:
    """A question that is answered in a word or phrase."""
    request = get_language("en").short_answer
    return _record(sample_id, image, f"{question.strip()}\n{request}", answer, task)


def choice(
    sample_id: Any,
    image: str,
    question: str,
    options: Sequence[str],
    right: int,
    task: str,
    where: str,
) -> dict[str, Any]:
    """A question that is answered by an option's letter.

    Raises:
        SampleError: The right answer is none of the options.
    """
    if not 0 <= right < len(options) <= len(_LETTERS):
        raise SampleError(
            f"{where}, sample {sample_id!r}: the answer is option {right} of {len(options)}.",
            "structure",
        )
    listed = [f"{letter}. {text}" for letter, text in zip(_LETTERS, options, strict=False)]
    request = get_language("en").option_letter
    text = "\n".join([question.strip(), *listed, request])
    return _record(sample_id, image, text, _LETTERS[right], task)


def caption(sample_id: Any, image: str, request: str, text: str) -> dict[str, Any]:
    """A picture's description."""
    return _record(sample_id, image, request, text, "caption")


def field(record: Any, name: str, where: str, kind: type | tuple[type, ...] = str) -> Any:
    """A value that a source must have.

    Raises:
        SampleError: It is missing or of another type.
    """
    value = record.get(name) if isinstance(record, dict) else None
    if not isinstance(value, kind):
        wanted = kind.__name__ if isinstance(kind, type) else " or ".join(k.__name__ for k in kind)
        raise SampleError(
            f"{where}: {name!r} is {value!r:.60}, expected {wanted}; is this the right format?",
            "structure",
        )
    return value


def _record(sample_id: Any, image: str, question: str, answer: str, task: str) -> dict[str, Any]:
    return {
        "id": str(sample_id),
        "image": image,
        "task": task,
        "conversations": [
            {"from": "human", "value": f"{DEFAULT_IMAGE_TOKEN}\n{question}"},
            {"from": "gpt", "value": answer},
        ],
    }
