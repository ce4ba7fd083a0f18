"""The page's choice of languages: what the question is in, and what the answer shall be in.

In: the user's question. Out: the question with the languages' own instruction, as bilingual
training puts it. Used through `llava.serve.chat_state.PromptControl`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lrm_ext.instructions.prompt import insert_instruction
from lrm_ext.languages.registry import get_language, list_languages

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
    get_language(answer_lang)
    asking = get_language(question_lang)
    return insert_instruction(text, asking.answer_in[answer_lang], asking.format_prompts)


def answer_language_control() -> PromptControl:
    """Return the two lists for the page."""
    from llava.serve.chat_state import PromptControl

    return PromptControl(build=_build, apply=with_answer_language)


def _build() -> Sequence[gr.components.Component]:
    import gradio as gr

    names = [(get_language(code).native_name, code) for code in list_languages()]
    with gr.Row():
        question = gr.Dropdown(names, value="en", label="I ask in", min_width=120)
        answer = gr.Dropdown(
            [("as I ask", SAME), *names], value=SAME, label="Answer in", min_width=120
        )
    return question, answer
