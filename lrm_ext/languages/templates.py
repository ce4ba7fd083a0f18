"""Conversation templates of the project, registered with `llava.conversation`.

    lrm_bare                 Vicuna v1's format without a system sentence, for small models
    lrm_v1, lrm_v1_<lang>    Vicuna v1's format; the system sentence states the answer language
    llama_3                  Meta's Llama 3 chat format, which LLaVA lacks
    lrm_llama_3[_<lang>]     the same with a system sentence

A tokenizer's own chat template (`auto`) is not registered: `in_language` gives it the sentence.
`register_templates()` adds them; importing this module does not. Two details come from LLaVA's
styles: in style TWO an empty system sentence leaves a leading space (`" USER: ..."`), and in style
MPT the roles contain the header tokens. The tokenizer adds BOS, so no template contains
`<|begin_of_text|>`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

from llava.conversation import (
    ChatConversation,
    Conversation,
    SeparatorStyle,
    conv_templates,
    get_conversation,
    register_conversation,
    select_conversation,
)
from llava.errors import CheckpointError
from llava.files import get_model_name_from_path
from lrm_ext.languages.registry import ENGLISH, get_language, list_languages

LLAMA_3_END = "<|eot_id|>"
_LLAMA_3_HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"
_LLAMA_3_PLAIN_SYSTEM = "You are a helpful assistant."


def register_templates() -> None:
    """Registers all templates; a second call changes nothing.

    Raises:
        TemplateError: Another template has one of the names.
    """
    for name, conversation in _templates().items():
        known = conv_templates.get(name)
        if known is None or known.copy() != conversation:
            register_conversation(name, conversation)  # refuses to overwrite


def template_for(version: str, lang: str | None) -> str:
    """Returns the name of a template in a language.

    Args:
        version: Template name without a language, such as "lrm_v1".
        lang: Language of the answer; None for `version` itself.

    Returns:
        `<version>_<lang>` where that is registered, else `version`.

    Raises:
        TemplateError: `version` is not registered.
        ConfigError: There is no such language.
    """
    get_conversation(version)  # its error lists the choices
    name = f"{version}_{get_language(lang).code}" if lang is not None else version
    return name if name in conv_templates else version


def in_language(name: str, conversation: Conversation, lang: str | None) -> Conversation:
    """Returns a fresh conversation in a template, with the system sentence of a language.

    Args:
        name: Name of the template.
        conversation: The template. A tokenizer's own chat template (`auto`) gets the system
            sentence, if it takes one; another gets it if its family has the language.
        lang: Language of the answer; None for the template as it is.

    Raises:
        ConfigError: There is no such language.
    """
    if isinstance(conversation, ChatConversation):
        if lang is None or not conversation.chat_format.takes_system:
            return conversation.copy()
        return replace(conversation.copy(), system=get_language(lang).system)
    if name not in conv_templates:
        return conversation.copy()
    found = template_for(name, lang)
    return conversation.copy() if found == name else get_conversation(found)


def _templates() -> dict[str, Conversation]:
    english = get_language("en").system
    templates = {
        "lrm_bare": _vicuna(""),
        "lrm_v1": _vicuna(english),
        "llama_3": _llama_3(_LLAMA_3_PLAIN_SYSTEM),
        "lrm_llama_3": _llama_3(english),
    }
    for code in list_languages():
        system = get_language(code).system
        templates[f"lrm_v1_{code}"] = _vicuna(system)
        templates[f"lrm_llama_3_{code}"] = _llama_3(system)
    return templates


def _vicuna(system: str) -> Conversation:
    return Conversation(
        system=system,
        roles=("USER", "ASSISTANT"),
        messages=[],
        offset=0,
        sep_style=SeparatorStyle.TWO,
        sep=" ",
        sep2="</s>",
        version="v1",
    )


def _llama_3(system: str) -> Conversation:
    return Conversation(
        system=_LLAMA_3_HEADER.format("system") + system,
        roles=(_LLAMA_3_HEADER.format("user"), _LLAMA_3_HEADER.format("assistant")),
        messages=[],
        offset=0,
        sep_style=SeparatorStyle.MPT,
        sep=LLAMA_3_END,
        version="mpt",
    )


@dataclass(frozen=True)
class Templates:
    """The template of a checkpoint, in the language of each question where it has languages.

    Attributes:
        name: Its name.
        conversation: The template itself.
    """

    name: str
    conversation: Conversation

    @classmethod
    def of_checkpoint(cls, model_path: Path, conv_mode: str | None) -> Templates:
        """Chooses by a checkpoint's `config.json`, without loading the model.

        Raises:
            CheckpointError: There is no such file.
            TemplateError: `conv_mode` is unknown.
        """
        path = model_path / "config.json"
        if not path.is_file():
            raise CheckpointError(
                f"{model_path} holds no config.json; expected the folder of a finished training, "
                "such as runs/mini after `bash scripts/quickstart.sh`"
            )
        register_templates()
        config = SimpleNamespace(**json.loads(path.read_text(encoding="utf-8")))
        name = get_model_name_from_path(str(model_path))
        return cls(*select_conversation(config, name, conv_mode))

    def in_language(self, lang: str) -> Conversation:
        """Returns a fresh conversation for a question in a language, English if it has no file."""
        known = lang if lang in list_languages() else ENGLISH
        return in_language(self.name, self.conversation, known)
