"""What a model is asked: LLaVA's prompts, in the language of the question (EVAL_SPEC 6).

The request at the end is looked up in the language's file, never translated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from lrm_ext.benchmarks.items import LETTERS
from lrm_ext.languages.registry import Language

LLAVA: Final = "llava"
QUESTION: Final = "question"
PROMPT_STYLES: Final = {
    LLAVA: "question, options and request, as LLaVA asks",
    QUESTION: "the question alone, for models that were never trained on those requests",
}


def short_answer_prompt(
    question: str, hint: str, options: Sequence[str], language: Language
) -> str:
    """The question and LLaVA's request for a short answer, in its language."""
    return f"{question}\n{language.short_answer}"


def option_prompt(question: str, hint: str, options: Sequence[str], language: Language) -> str:
    """Hint, question, lettered options and LLaVA's request for a letter, in its language."""
    lines = [f"{letter}. {text}" for letter, text in zip(LETTERS, options, strict=False)]
    first = [hint] if hint else []
    return "\n".join([*first, question, *lines, language.option_letter])


def prompt_for(question: str, hint: str, options: Sequence[str], language: Language) -> str:
    """LLaVA's prompt for a question with options, or without."""
    make = option_prompt if options else short_answer_prompt
    return make(question, hint, options, language)
