"""The page's choice of languages: what the question is in, and what the answer shall be in.

In: the user's question. Out: the question with the languages' own instruction, as bilingual
training puts it. Used through `llava.serve.chat_state.PromptControl`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lrm_ext.instructions.prompt import insert_instruction
from lrm_ext.languages.registry import (
    ENGLISH,
    answer_request,
    get_language,
    list_languages,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import gradio as gr

    from llava.serve.chat_state import PromptControl

SAME = ""


def with_answer_language(text: str, question_lang: str, answer_lang: str) -> str:
    """Add the instruction to answer in another language.

    Args:
        text: The user's question.
        question_lang: Code of the language that it is in.
        answer_lang: Code of the language to answer in; "" or the same adds nothing.

    Returns:
        The question with the instruction in its own language, where training puts it.

    Raises:
        ConfigError: A language is unknown.
    """
    if answer_lang in (SAME, question_lang):
        return text
    request = answer_request(question_lang, answer_lang)
    return insert_instruction(text, request, get_language(question_lang).format_prompts)


def answer_language_control() -> PromptControl:
    """Return the two lists for the page."""
    from llava.serve.chat_state import PromptControl

    return PromptControl(build=_build, apply=with_answer_language)


def _build() -> Sequence[gr.components.Component]:
    import gradio as gr

    names = [(get_language(code).native_name, code) for code in list_languages()]
    texts = get_language(ENGLISH).ui  # the page is in English
    with gr.Row():
        question = gr.Dropdown(names, value=ENGLISH, label=texts["ask_in"], min_width=120)
        answer = gr.Dropdown(
            [(texts["same_language"], SAME), *names],
            value=SAME,
            label=texts["answer_in"],
            min_width=120,
        )
    return question, answer
