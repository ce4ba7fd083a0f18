"""Converts a conversation template to Jinja, the form in which tokenizers store chat templates.

Input: a `Conversation` of `llava`. Output: a template whose text, tokenized by transformers without
special tokens, gives the ids of LLaVA's prompt. The content of a message may be a string or a list
of parts, as processors pass it; each image becomes `<image>` and a line break. Answers and their
terminators stand between `{% generation %}` marks, from which TRL builds its label masks; a model
that was trained in its tokenizer's own template (`auto`) keeps that, with or without such marks.
"""

from __future__ import annotations

import json
from typing import Any

from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from llava.conversation import ChatConversation, Conversation, SeparatorStyle
from llava.errors import ConfigError
from llava.mm_utils import tokenizer_image_token

# Tried after special tokens, so that the text behind them is tokenized as in LLaVA.
_PREFIXES = ("", " ")

# Converts a list of parts to text, images first as in LLaVA's prompts.
_CONTENT = (
    "{%- macro text_of(content) -%}"
    "{%- if content is string -%}{{ content | replace('<image>', image_mark) }}"
    "{%- else -%}"
    "{%- for part in content if part['type'] == 'image' -%}{{ image_mark + '\\n' }}{%- endfor -%}"
    "{%- for part in content -%}"
    "{%- if part['type'] == 'text' -%}{{ part['text'] }}"
    "{%- elif part['type'] != 'image' -%}"
    "{{ raise_exception('a part of type ' ~ part['type'] ~ ': this model reads text and image') }}"
    "{%- endif -%}{%- endfor -%}"
    "{%- endif -%}{%- endmacro -%}"
)
_REFUSE_ROLE = (
    "{{- raise_exception('a message from ' ~ message['role'] ~ ': expected user or assistant, "
    "after a first message from system or none') -}}"
)


def chat_template(conv: Conversation, tokenizer: Any) -> str:
    """Returns the Jinja template of a conversation.

    Args:
        conv: The conversation template; its initial messages are kept.
        tokenizer: LLaVA's tokenizer with the token `<image>`. If it adds BOS, the template writes
            BOS, and the tokenizer that is saved with it must not add another one.

    Raises:
        ConfigError: The style has no chats, or no template gives LLaVA's token ids.
    """
    if conv.sep_style is SeparatorStyle.PLAIN:
        raise ConfigError(
            "the template 'plain' drops the question: export with another --conv-mode"
        )
    for prefix in _PREFIXES:
        source = _source(conv, tokenizer, prefix)
        if all(_same_ids(source, conv, tokenizer, turns) for turns in _PROBES):
            return source
    raise ConfigError(
        f"the tokenizer ({type(tokenizer).__name__}) splits text beside special tokens in a way "
        "that a chat template cannot make up for: the exported model would see other tokens"
    )


def _source(conv: Conversation, tokenizer: Any, prefix: str) -> str:
    if isinstance(conv, ChatConversation):
        return _own(conv, tokenizer, prefix)
    begin = tokenizer.bos_token + prefix if adds_bos(tokenizer) else ""
    head = (
        f"{{%- set image_mark = {_quote(DEFAULT_IMAGE_TOKEN + prefix)} -%}}{_CONTENT}"
        "{%- if messages and messages[0]['role'] == 'system' -%}"
        "{%- set system = text_of(messages[0]['content']) -%}{%- set turns = messages[1:] -%}"
        "{%- else -%}"
        f"{{%- set system = {_quote(conv.system)} -%}}{{%- set turns = messages -%}}"
        "{%- endif -%}"
        "{%- if not turns -%}{{- raise_exception('there is no message from user') -}}{%- endif -%}"
    )
    if conv.sep_style is SeparatorStyle.LLAMA_2:
        return head + _llama_2(conv, begin)
    return head + _tagged(conv, begin)


def _own(conv: ChatConversation, tokenizer: Any, prefix: str) -> str:
    """Returns the template that the model was trained in, its contents made texts before it."""
    source = conv.chat_format.source
    first = tokenizer.apply_chat_template(
        [{"role": "user", "content": "a"}], chat_template=source, tokenize=False
    )
    bos = tokenizer.bos_token if adds_bos(tokenizer) else ""
    begin = "" if first.startswith(bos) else f"{{{{- {_quote(bos)} -}}}}"
    system = ""
    if conv.system:
        own = f"[{{'role': 'system', 'content': {_quote(conv.system)}}}]"
        system = (
            "{%- if not chat.turns or chat.turns[0]['role'] != 'system' -%}"
            f"{{%- set chat.turns = {own} + chat.turns -%}}{{%- endif -%}}"
        )
    return (
        f"{{%- set image_mark = {_quote(DEFAULT_IMAGE_TOKEN + prefix)} -%}}{_CONTENT}"
        "{%- set chat = namespace(turns=[]) -%}{%- for message in messages -%}"
        "{%- set turn = {'role': message['role'], 'content': text_of(message['content'])} -%}"
        "{%- set chat.turns = chat.turns + [turn] -%}{%- endfor -%}"
        f"{system}{{%- set messages = chat.turns -%}}{{%- set enable_thinking = false -%}}"
        f"{begin}{source}"
    )


def _tagged(conv: Conversation, begin: str) -> str:
    """Returns the template of all other styles: system text, then tag, text and separator."""
    is_chatml = conv.sep_style is SeparatorStyle.CHATML
    line = "\n" if is_chatml else ""
    own = conv.copy().get_prompt()  # system text, and examples if there are any
    examples = own.removeprefix(conv.system + conv.sep + line)
    has_colon = conv.sep_style in (SeparatorStyle.SINGLE, SeparatorStyle.TWO)
    colon, blank = (":", " ") if has_colon else (line, "")
    answer_end = conv.answer_end or ""
    if_system = ("{%- if system -%}", "{%- endif -%}") if is_chatml else ("", "")
    tags = [_quote(role + colon) for role in conv.roles]
    return (
        f"{{{{- {_quote(begin)} -}}}}{if_system[0]}"
        f"{{{{- system + {_quote(conv.sep + line + examples)} -}}}}{if_system[1]}"
        "{%- for message in turns -%}"
        "{%- if message['role'] == 'user' -%}"
        f"{{{{- {tags[0]} + {_quote(blank)} + text_of(message['content'])"
        f" + {_quote(conv.sep + line)} -}}}}"
        "{%- elif message['role'] == 'assistant' -%}"
        f"{{{{- {tags[1]} -}}}}{{%- generation -%}}"
        f"{{{{- {_quote(blank)} + text_of(message['content']) + {_quote(answer_end)} -}}}}"
        f"{{%- endgeneration -%}}{{{{- {_quote(line)} -}}}}"
        f"{{%- else -%}}{_REFUSE_ROLE}{{%- endif -%}}{{%- endfor -%}}"
        f"{{%- if add_generation_prompt -%}}{{{{- {tags[1]} -}}}}{{%- endif -%}}"
    )


def _llama_2(conv: Conversation, begin: str) -> str:
    """Returns the template for LLAMA_2, whose system text is part of the first question."""
    # as in `llava.conversation`: the tokenizer's BOS stands for the first separator
    return (
        "{%- if turns[0]['role'] == 'assistant' -%}"
        "{{- raise_exception('the first message is from assistant, expected user') -}}{%- endif -%}"
        f"{{{{- {_quote(begin)} -}}}}"
        "{%- for message in turns -%}"
        "{%- if message['role'] == 'user' -%}"
        "{%- set text = text_of(message['content']) -%}"
        "{%- if loop.first and system -%}"
        "{%- set text = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + text -%}"
        "{%- endif -%}"
        f"{{{{- ('' if loop.first else {_quote(conv.sep)}) + '[INST] ' + text + ' [/INST]' -}}}}"
        "{%- elif message['role'] == 'assistant' -%}{%- generation -%}"
        f"{{{{- ' ' + text_of(message['content']) + ' ' + {_quote(conv.sep2 or '')} -}}}}"
        "{%- endgeneration -%}"
        f"{{%- else -%}}{_REFUSE_ROLE}{{%- endif -%}}{{%- endfor -%}}"
    )


_PROBES: tuple[tuple[str, ...], ...] = (
    ("<image>\nWhat is this?",),
    ("Hello.",),
    ("<image>\nČije je ovo?", "Moje.", "And 这个？"),
)


def _same_ids(source: str, conv: Conversation, tokenizer: Any, turns: tuple[str, ...]) -> bool:
    """Tells whether the text of a template gives the ids of LLaVA's prompt."""
    copy = conv.copy()
    messages = []
    for index, text in enumerate(turns):
        copy.append_message(copy.roles[index % 2], text)
        messages.append({"role": ("user", "assistant")[index % 2], "content": text})
    copy.append_message(copy.roles[1], None)
    text = tokenizer.apply_chat_template(
        messages, chat_template=source, tokenize=False, add_generation_prompt=True
    )
    image = tokenizer.convert_tokens_to_ids(DEFAULT_IMAGE_TOKEN)
    wanted = [
        image if token == IMAGE_TOKEN_INDEX else token
        for token in tokenizer_image_token(copy.get_prompt(), tokenizer)
    ]
    return bool(tokenizer(text, add_special_tokens=False).input_ids == wanted)


def adds_bos(tokenizer: Any) -> bool:
    """Tells whether a tokenizer adds BOS to a text."""
    return bool(tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id])


def _quote(text: str) -> str:
    """Returns a Jinja string literal, whose escapes are those of JSON."""
    return json.dumps(text, ensure_ascii=False)
