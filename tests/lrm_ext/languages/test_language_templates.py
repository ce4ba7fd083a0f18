from __future__ import annotations

import subprocess
import sys

import pytest

from llava.conversation import conv_templates, get_conversation, register_conversation
from llava.data.sample import Turn
from llava.data.tokenize import render
from llava.errors import ConfigError, TemplateError
from lrm_ext.languages import get_language, list_languages
from lrm_ext.languages.templates import register_templates, template_for

TURNS = [Turn("human", "<image>\nQ1"), Turn("gpt", "A1"), Turn("human", "Q2"), Turn("gpt", "A2")]


@pytest.fixture(autouse=True)
def _registered() -> None:
    register_templates()


def rendered(name: str) -> tuple[str, list[str]]:
    result = render(TURNS, get_conversation(name))
    return result.text, [result.text[start:end] for start, end in result.spans]


def test_bare_is_vicuna_without_a_system_sentence() -> None:
    text, supervised = rendered("lrm_bare")
    # One leading blank is what LLaVA's style TWO makes of an empty system sentence.
    assert text == " USER: <image>\nQ1 ASSISTANT: A1</s>USER: Q2 ASSISTANT: A2</s>"
    assert supervised == [" A1</s>", " A2</s>"]


def test_llama_3_is_metas_format() -> None:
    text, supervised = rendered("llama_3")
    assert text == (
        "<|start_header_id|>system<|end_header_id|>\n\nYou are a helpful assistant.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n<image>\nQ1<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nA1<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nQ2<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nA2<|eot_id|>"
    )
    assert supervised == ["A1<|eot_id|>", "A2<|eot_id|>"]


def test_open_turn_ends_where_the_answer_begins() -> None:
    for name, end in (("lrm_bare", "ASSISTANT:"), ("llama_3", "assistant<|end_header_id|>\n\n")):
        conv = get_conversation(name)
        conv.append_message(conv.roles[0], "Q")
        conv.append_message(conv.roles[1], None)
        assert conv.get_prompt().endswith(end)


@pytest.mark.parametrize("version", ["lrm_v1", "lrm_llama_3"])
def test_every_language_states_itself(version: str) -> None:
    for code in list_languages():
        name = template_for(version, code)
        assert name == f"{version}_{code}"
        assert get_language(code).system in rendered(name)[0]
        plain = conv_templates[version]
        assert (conv_templates[name] == plain) == (code == "en")


def test_template_without_languages_stays_as_it_is() -> None:
    assert template_for("lrm_bare", "cs") == "lrm_bare"
    assert template_for("llama_3", "zh") == "llama_3"
    assert template_for("v1", "hr") == "v1"
    assert template_for("lrm_v1", None) == "lrm_v1"


def test_unknown_names_list_the_choices() -> None:
    with pytest.raises(TemplateError, match="lrm_bare"):
        template_for("lrm_v9", "cs")
    with pytest.raises(ConfigError, match="en, cs"):
        template_for("lrm_v1", "xx")


def test_registering_again_is_harmless_but_not_over_another_template() -> None:
    before = dict(conv_templates)
    register_templates()
    assert conv_templates == before
    with pytest.raises(TemplateError):
        register_conversation("llama_3", get_conversation("v1"))


def test_importing_has_no_effect() -> None:
    code = (
        "import lrm_ext.languages.templates, llava.conversation as c;"
        "assert 'llama_3' not in c.conv_templates"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
