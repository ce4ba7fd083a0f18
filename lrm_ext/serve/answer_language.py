"""The page's languages and its choice of how to answer: the paper's three instructions.

In: the user's question, and replies. Out: the question with the instruction in its own language, as
training puts it; a reply with the pivot's translation folded; the page's words. Used through
`llava.serve.chat_state.PromptControl`.
"""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

from lrm_ext.instructions.registry import get_instruction, insert_instruction
from lrm_ext.languages.registry import (
    ENGLISH,
    answer_request,
    get_language,
    list_languages,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import gradio as gr

    from llava.serve.chat_state import PromptControl
    from llava.serve.page_text import PageText

DIRECT, PIVOT, BILINGUAL = "mvqa", "epvqa", "bvqa"
_WAYS = {DIRECT: "way_direct", PIVOT: "way_pivot", BILINGUAL: "way_bilingual"}
_CURSOR = "\u258c"


def page_languages() -> Mapping[str, PageText]:
    """Return the page's words in all languages; what one lacks is English."""
    from llava.serve.page_text import PageText

    def texts(code: str) -> dict[str, str]:
        language = get_language(code)
        return {**language.ui, "example_question": language.fixed_prompts["image_what"]}

    english = texts(ENGLISH)
    return {
        code: PageText(code, get_language(code).native_name, {**english, **texts(code)})
        for code in list_languages()
    }


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
    if answer_lang in ("", question_lang):
        return text
    request = answer_request(question_lang, answer_lang)
    return insert_instruction(text, request, get_language(question_lang).format_prompts)


def with_instruction(text: str, question_lang: str, way: str, answer_lang: str) -> str:
    """Turn a question into the prompt of an instruction.

    Args:
        text: The user's question.
        question_lang: Code of the language that it is in.
        way: Name of the instruction.
        answer_lang: Code of the language to answer in; for BVQA, which here knows any two
            languages that have words for each other.

    Raises:
        PageError: A question in English is to be translated into English.
        ConfigError: A language or an instruction is unknown.
    """
    from llava.serve.page_text import PageError

    if way == BILINGUAL:
        return with_answer_language(text, question_lang, answer_lang)
    if way == PIVOT and question_lang == ENGLISH:
        raise PageError("pivot_needs_other")
    return get_instruction(way).ask(text, question_lang)


def show_reply(reply: str, text: PageText, question_lang: str, way: str, _: str) -> str:
    """Return a reply as Markdown, with the pivot's translation folded.

    A reply without a translation is shown as it is; so is one that still comes.
    """
    if way != PIVOT:
        return reply
    parsed = get_instruction(PIVOT).parse(reply.removesuffix(_CURSOR), question_lang)
    if parsed.translation is None or (not parsed.answer and reply.endswith(_CURSOR)):
        return reply
    cursor = _CURSOR if reply.endswith(_CURSOR) else ""
    answer = parsed.answer or f"*{text.say('empty_answer')}*"
    return (
        f"<details><summary>{html.escape(text.say('translation'))}</summary>"
        f"{html.escape(parsed.translation)}</details>\n\n{answer}{cursor}"
    )


def answer_language_control() -> PromptControl:
    """Return the three lists for the page."""
    from llava.serve.chat_state import PromptControl

    return PromptControl(build=_build, apply=with_instruction, relabel=_relabel, show=show_reply)


def _build() -> Sequence[gr.components.Component]:
    import gradio as gr

    text = page_languages()[ENGLISH]
    names = [(get_language(code).native_name, code) for code in list_languages()]
    # one below the other: half a column cuts what some languages say
    question = gr.Dropdown(names, value=ENGLISH, label=text.say("ask_in"), elem_id="ask-in")
    way = gr.Dropdown(_ways(text), value=DIRECT, label=text.say("way"), elem_id="way")
    answer = gr.Dropdown(
        names, value=ENGLISH, label=text.say("answer_in"), visible=False, elem_id="answer-in"
    )
    way.change(
        lambda chosen: gr.update(visible=chosen == BILINGUAL), way, answer, show_progress="hidden"
    )
    return question, way, answer


def _ways(text: PageText) -> list[tuple[str, str]]:
    return [(text.say(key), way) for way, key in _WAYS.items()]


def _relabel(text: PageText) -> list[Any]:
    """Say the lists' words in another language; who reads it is taken to ask in it."""
    import gradio as gr

    return [
        gr.update(label=text.say("ask_in"), value=text.code),
        gr.update(label=text.say("way"), choices=_ways(text)),
        gr.update(label=text.say("answer_in")),
    ]
