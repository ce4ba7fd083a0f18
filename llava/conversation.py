"""Defines conversations and their templates, which make one prompt string of turns.

Role: LLaVA's template registry with its names, fields and exact prompts. A prompt is a list of
`PromptSegment`s, of which training takes its character spans, too (`llava/data/tokenize.py`).
The templates are data: `conversation_templates.json`, in the form that `config.json` carries. The
template `auto` is a tokenizer's own (`chat_format.py`).
Input: roles and messages. Output: prompt text, images, chat pairs, plain data.
Non-goals: tokenisation and label masks. `conv_templates` holds constants: take a copy
(`get_conversation`) before adding messages.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from pathlib import Path
from typing import Any, Final, NamedTuple

from PIL import Image

from llava.chat_format import ROLES, ChatFormat
from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.errors import TemplateError
from llava.images import fit_image, shrink_image, to_base64

log = logging.getLogger(__name__)


class SeparatorStyle(Enum):
    """The way in which a template joins its messages."""

    SINGLE = auto()
    TWO = auto()
    MPT = auto()
    PLAIN = auto()
    LLAMA_2 = auto()
    CHATML = auto()  # LLaVA-NeXT's


class PromptSegment(NamedTuple):
    """A segment of a prompt.

    Attributes:
        text: The text.
        message: Position of the message that it belongs to, or None (the system text).
        is_body: Whether it is what the role says, with its terminator, and not the role's tag.
    """

    text: str
    message: int | None
    is_body: bool


class _Layout(NamedTuple):
    """The format strings with which a style writes a conversation.

    Attributes:
        start: Before all messages, of `system` and `sep`.
        tag: Before each message, of `role`; empty where there is none.
        body: A message of `text`, which a separator follows.
        alternates: Whether `sep` and `sep2` follow by turns, and not `sep` alone.
        after: After each separator; it does not belong to the message.
        may_start_empty: Whether a template without a system text begins with the first message.
    """

    start: str
    tag: str
    body: str
    alternates: bool
    after: str = ""
    may_start_empty: bool = False


_LAYOUTS: Final = {
    SeparatorStyle.SINGLE: _Layout("{system}{sep}", "{role}:", " {text}", alternates=False),
    SeparatorStyle.TWO: _Layout("{system}{sep}", "{role}:", " {text}", alternates=True),
    SeparatorStyle.MPT: _Layout("{system}{sep}", "{role}", "{text}", alternates=False),
    SeparatorStyle.PLAIN: _Layout("{system}", "", "{text}", alternates=True),
    SeparatorStyle.CHATML: _Layout(
        "{system}{sep}\n", "{role}\n", "{text}", False, after="\n", may_start_empty=True
    ),
}


@dataclass
class Conversation:
    """A template together with the messages of one conversation.

    Attributes:
        system: System text, in the template's own markup.
        roles: Names (or tags) of the asking and of the answering side.
        messages: `[role, content]` pairs. Content is a string, None (to be generated) or
            `(text, PIL image or list of them, how to fit them)`.
        offset: Number of leading messages that are examples.
        sep_style: How the messages are joined.
        sep: Separator, see `SeparatorStyle`.
        sep2: Separator after answers, where the style has two.
        version: Tag by which LLaVA chooses how to mask labels and to mark images.
        skip_next: Scratch flag of chat pages.
    """

    system: str
    roles: Sequence[str]
    messages: Sequence[Any]
    offset: int
    sep_style: SeparatorStyle = SeparatorStyle.SINGLE
    sep: str = "###"
    sep2: str | None = None
    version: str = "Unknown"
    skip_next: bool = False

    def get_prompt(self) -> str:
        """Returns the prompt of the messages so far.

        Raises:
            AssertionError: A Llama-2 prompt does not begin with a question.
            TypeError: A plain prompt has a second message and the template no `sep2`.
            ValueError: The separator style is unknown.
        """
        return "".join(segment.text for segment in self.segments(self._prompt_messages()))

    def segments(self, messages: Iterable[Sequence[Any]]) -> list[PromptSegment]:
        """Returns the segments of the prompt of `messages`; concatenated they are the prompt.

        Args:
            messages: `[role, content]` pairs to use in place of the conversation's own.
        """
        texts = [(role, _text_of(content)) for role, content in messages]
        if self.sep_style is SeparatorStyle.LLAMA_2:
            return self._llama_2_segments(texts)
        if self.sep_style not in _LAYOUTS:
            raise ValueError(f"Invalid style: {self.sep_style}")
        layout = _LAYOUTS[self.sep_style]
        seps = (self.sep, self.sep2 if layout.alternates else self.sep)
        begins = bool(self.system) or not layout.may_start_empty
        start = layout.start.format(system=self.system, sep=self.sep) if begins else ""
        segments = [PromptSegment(start, None, False)]
        for i, (role, text) in enumerate(texts):
            if layout.tag:
                segments.append(PromptSegment(layout.tag.format(role=role), i, False))
            if text:
                body = layout.body.format(text=text) + seps[i % 2]  # type: ignore[operator]
                segments.append(PromptSegment(body, i, True))
                if layout.after:
                    segments.append(PromptSegment(layout.after, i, False))
        return segments

    @property
    def answer_end(self) -> str | None:
        """What ends an answer; None for a template without such a text."""
        ends_with_sep2 = (SeparatorStyle.TWO, SeparatorStyle.PLAIN, SeparatorStyle.LLAMA_2)
        return self.sep2 if self.sep_style in ends_with_sep2 else self.sep

    def _llama_2_segments(self, texts: list[tuple[str, str | None]]) -> list[PromptSegment]:
        segments: list[PromptSegment] = []
        for i, (role, text) in enumerate(texts):
            if i == 0:
                assert text, "first message should not be none"
                assert role == self.roles[0], "first message should come from user"
                if self.system:
                    text = f"<<SYS>>\n{self.system}\n<</SYS>>\n\n{text}"
            if text and i % 2 == 0:
                segments.append(PromptSegment(f"{self.sep}[INST] {text} [/INST]", i, False))
            elif text:
                body = f" {text} " + self.sep2  # type: ignore[operator]
                segments.append(PromptSegment(body, i, True))
        if segments:
            # The tokenizer writes the first BOS. LLaVA strips the separator's characters, not the
            # separator; "[" always stops that within the first segment.
            segments[0] = segments[0]._replace(text=segments[0].text.lstrip(self.sep))
        return segments

    def append_message(self, role: str, message: Any) -> None:
        """Adds a message.

        Raises:
            TemplateError: The conversation is a registered template and thus a constant.
        """
        if not isinstance(self.messages, list):
            raise TemplateError(
                "This conversation is a registered template, which must not change. "
                "Add messages to its copy()."
            )
        self.messages.append([role, message])

    def process_image(
        self,
        image: Image.Image,
        image_process_mode: str,
        return_pil: bool = False,
        image_format: str = "PNG",
        max_len: int = 1344,
        min_len: int = 672,
    ) -> Image.Image | str:
        """Fits an image for sending.

        Args:
            image: The image.
            image_process_mode: `Pad` (to a square), `Resize` (to 336 x 336), `Default` or `Crop`
                (leave as it is).
            return_pil: Return the image and not its base64 text.
            image_format: File format of the base64 text.
            max_len: Longest side in pixels that is sent without shrinking.
            min_len: Largest short side in pixels after shrinking.

        Raises:
            ValueError: The mode is unknown.
        """
        fitted = shrink_image(fit_image(image, image_process_mode), max_len, min_len)
        return fitted if return_pil else to_base64(fitted, image_format)

    def get_images(self, return_pil: bool = False) -> list[Image.Image | str]:
        """Returns the images of the questions, in order, as base64 PNG or as PIL images."""
        return [
            self.process_image(image, content[2], return_pil=return_pil)
            for _, content in self.messages[self.offset :][::2]
            for image in images_of(content)
        ]

    def to_gradio_chatbot(self) -> list[list[str | None]]:
        """Returns `[question, answer]` pairs; images become inline `<img>` tags."""
        pairs: list[list[str | None]] = []
        for i, (_, content) in enumerate(self.messages[self.offset :]):
            if i % 2:
                pairs[-1][1] = content
            else:
                pairs.append([self._chat_html(content), None])
        return pairs

    def copy(self) -> Conversation:
        """Returns a conversation that can grow without touching this one."""
        return replace(self, messages=[list(pair) for pair in self.messages], skip_next=False)

    def dict(self) -> dict[str, Any]:
        """Returns the conversation as plain data for logs; images are left out."""
        return {
            "system": self.system,
            "roles": self.roles,
            "messages": [
                [role, content[0] if isinstance(content, tuple) else content]
                for role, content in self.messages
            ],
            "offset": self.offset,
            "sep": self.sep,
            "sep2": self.sep2,
        }

    def _prompt_messages(self) -> list[Sequence[Any]]:
        """Returns the messages with the first one's images written as placeholders before it."""
        messages = list(self.messages)
        if not messages or not isinstance(messages[0][1], tuple):
            return messages
        role, content = messages[0]
        text = content[0].replace(DEFAULT_IMAGE_TOKEN, "").strip()
        num_images = len(images_of(content))
        if "mmtag" in self.version:
            return [
                (self.roles[0], f"<Image>{DEFAULT_IMAGE_TOKEN}</Image>" * num_images),
                (self.roles[1], "Received."),
                (role, text),
                *messages[1:],
            ]
        return [(role, f"{DEFAULT_IMAGE_TOKEN}\n" * num_images + text), *messages[1:]]

    def _chat_html(self, content: Any) -> str | None:
        if not isinstance(content, tuple):
            return content
        encoded = (
            self.process_image(image, content[2], image_format="JPEG")
            for image in images_of(content)
        )
        tags = (
            f'<img src="data:image/jpeg;base64,{each}" alt="user upload image" />'
            for each in encoded
        )
        return "".join(tags) + content[0].replace(DEFAULT_IMAGE_TOKEN, "").strip()


@dataclass
class ChatConversation(Conversation):
    """A conversation that a tokenizer's own chat template writes.

    `system` is a text without markup, empty for the template's own. `sep` is what ends an answer.

    Attributes:
        chat_format: The template.
    """

    chat_format: ChatFormat = ChatFormat("")

    def segments(self, messages: Iterable[Sequence[Any]]) -> list[PromptSegment]:
        """See `Conversation`.

        Raises:
            TemplateError: The template refuses the messages, or does not write them as they are.
        """
        messages = list(messages)
        roles = [role for role, _ in messages]
        if roles != [self.roles[i % 2] for i in range(len(roles))]:
            raise TemplateError(
                f"The messages are from {', '.join(roles)}; the chat template expects "
                f"{' and '.join(self.roles)} by turns."
            )
        texts = [_text_of(content) for _, content in messages]
        return [PromptSegment(*piece) for piece in self.chat_format.split(self.system, texts)]


def chat_conversation(tokenizer: Any) -> ChatConversation:
    """Returns the template `auto`: the chat template of a tokenizer.

    Raises:
        TemplateError: There is none, or training cannot use it.
    """
    return _of_format(ChatFormat.of_tokenizer(tokenizer))


def _of_format(chat_format: ChatFormat, system: str = "") -> ChatConversation:
    return ChatConversation(
        system=system,
        roles=ROLES,
        messages=[],
        offset=0,
        sep_style=SeparatorStyle.MPT,  # one text ends all answers
        sep=chat_format.terminator,
        version=_CHAT_VERSION,
        chat_format=chat_format,
    )


def _text_of(content: Any) -> str | None:
    return content[0] if isinstance(content, tuple) else content


def images_of(content: Any) -> list[Image.Image]:
    """Returns the images of a message's content, in order."""
    if not isinstance(content, tuple):
        return []
    return list(content[1]) if isinstance(content[1], list | tuple) else [content[1]]


def _constant(conv: Conversation) -> Conversation:
    """Returns a copy whose messages are a tuple, which `append_message` refuses to extend."""
    return replace(conv.copy(), messages=tuple((role, text) for role, text in conv.messages))


def conversation_from_dict(data: Mapping[str, Any]) -> Conversation:
    """Returns the template that `conversation_to_dict` wrote, ready for messages.

    Raises:
        TemplateError: A key is missing or unknown, or a value is invalid.
    """
    needed = {"system", "roles", "sep_style", "sep", "sep2", "version"}
    optional = {"name", "messages", _CHAT_KEY}
    missing, unknown = needed - data.keys(), data.keys() - needed - optional
    if missing or unknown:
        raise TemplateError(
            f"The stored conversation template {data.get('name')!r} lacks {sorted(missing)} and "
            f"has the unknown keys {sorted(unknown)}. Expected: {sorted(needed)}, "
            f"and where wanted {', '.join(sorted(optional))}."
        )
    styles = SeparatorStyle.__members__
    if data["sep_style"] not in styles or len(data["roles"]) != 2:
        raise TemplateError(
            f"The stored conversation template {data.get('name')!r} has sep_style "
            f"{data['sep_style']!r} and roles {data['roles']!r}; expected one of "
            f"{', '.join(styles)} and two roles."
        )
    if _CHAT_KEY in data:
        return _of_format(ChatFormat.from_dict(data[_CHAT_KEY]), data["system"])
    messages = [[role, content] for role, content in data.get("messages", ())]
    return Conversation(
        system=data["system"],
        roles=tuple(data["roles"]),
        messages=messages,
        offset=len(messages),
        sep_style=styles[data["sep_style"]],
        sep=data["sep"],
        sep2=data["sep2"],
        version=data["version"],
    )


AUTO: Final = "auto"
"""The name of a tokenizer's own chat template, which is no template of the registry."""
_CHAT_VERSION: Final = "chat_template"
_CHAT_KEY: Final = "chat_template"

# Every character of a prompt counts: checkpoints were trained with it.
_TEMPLATES: Final = {
    name: _constant(conversation_from_dict(data))
    for name, data in json.loads(
        Path(__file__).with_name("conversation_templates.json").read_text(encoding="utf-8")
    ).items()
}


def __getattr__(name: str) -> Conversation:
    """Returns a template by LLaVA's name for its constant, such as `conv_vicuna_v1` (PEP 562)."""
    if name in _TEMPLATES:
        return _TEMPLATES[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


default_conversation: Conversation = _TEMPLATES["conv_vicuna_v1"]
"""What is used where no template is given. LLaVA's training code and its forks assign to it, so
callers look it up in this module when they need it."""

conv_templates: Final[dict[str, Conversation]] = {
    "default": _TEMPLATES["conv_vicuna_v0"],
    "v0": _TEMPLATES["conv_vicuna_v0"],
    "v1": _TEMPLATES["conv_vicuna_v1"],
    "vicuna_v1": _TEMPLATES["conv_vicuna_v1"],
    "llama_2": _TEMPLATES["conv_llama_2"],
    "mistral_instruct": _TEMPLATES["conv_mistral_instruct"],
    "chatml_direct": _TEMPLATES["conv_chatml_direct"],
    "mistral_direct": _TEMPLATES["conv_chatml_direct"],
    "plain": _TEMPLATES["conv_llava_plain"],
    "v0_plain": _TEMPLATES["conv_llava_plain"],
    "llava_v0": _TEMPLATES["conv_llava_v0"],
    "v0_mmtag": _TEMPLATES["conv_llava_v0_mmtag"],
    "llava_v1": _TEMPLATES["conv_llava_v1"],
    "v1_mmtag": _TEMPLATES["conv_llava_v1_mmtag"],
    "llava_llama_2": _TEMPLATES["conv_llava_llama_2"],
    "mpt": _TEMPLATES["conv_mpt"],
    # those of LLaVA-NeXT, Maya and TinyLLaVA
    "qwen_1_5": _TEMPLATES["conv_qwen_1_5"],
    "qwen_2": _TEMPLATES["conv_qwen_1_5"],
    "qwen_2_5": _TEMPLATES["conv_qwen_2_5"],
    "llava_llama_3": _TEMPLATES["conv_llava_llama_3"],
    "gemma_instruct": _TEMPLATES["conv_gemma_instruct"],
    "aya": _TEMPLATES["conv_aya"],
    "phi": _TEMPLATES["conv_phi"],
}
"""All templates by name. Read it freely; add to it through `register_conversation`."""


def register_conversation(name: str, conversation: Conversation) -> None:
    """Adds a template under a new name.

    A constant copy is kept, so later changes of `conversation` do not reach the registry.

    Raises:
        TemplateError: The name is taken.
    """
    if name in conv_templates:
        raise TemplateError(
            f"A conversation template {name!r} is registered already. Choose another name."
        )
    conv_templates[name] = _constant(conversation)


def get_conversation(name: str) -> Conversation:
    """Returns a fresh copy of a template, ready for messages.

    Raises:
        TemplateError: No template has the name; the text lists those there are.
    """
    try:
        return conv_templates[name].copy()
    except KeyError:
        if name == AUTO:
            raise TemplateError(
                f"The template {AUTO!r} is a tokenizer's own chat template. Training chooses it, "
                "and a model that was trained in it keeps it in its config.json. Choose one of: "
                f"{', '.join(sorted(conv_templates))}."
            ) from None
        raise TemplateError(
            f"Unknown conversation template {name!r}. Choose one of: "
            f"{', '.join(sorted(conv_templates))}."
        ) from None


def conversation_to_dict(conv: Conversation, name: str | None = None) -> dict[str, Any]:
    """Returns a template as plain data, as `config.json` carries it.

    Args:
        conv: The template. Only its leading examples (`offset`) are kept of the messages.
        name: Name to write; by default the first registered name of an equal template, or
            `custom`.
    """
    examples = [[role, content] for role, content in conv.messages[: conv.offset]]
    return {
        "name": name or _name_of(conv),
        "system": conv.system,
        "roles": list(conv.roles),
        "sep_style": conv.sep_style.name,
        "sep": conv.sep,
        "sep2": conv.sep2,
        "version": conv.version,
        **({"messages": examples} if examples else {}),
        **({_CHAT_KEY: conv.chat_format.to_dict()} if isinstance(conv, ChatConversation) else {}),
    }


_KEY: Final = "conversation"
_NAME_RULE: Final = (
    ("llama-2", "llava_llama_2"),
    ("mistral", "mistral_instruct"),
    ("v1.6-34b", "chatml_direct"),
    ("v1", "llava_v1"),
    ("mpt", "mpt"),
)


class _ConfigRule(NamedTuple):
    """The template of published checkpoints whose `config.json` names none.

    Attributes:
        template: Its name.
        names: `model_type` or architecture, of which the checkpoint has one.
        token: A special token of the language model that tells it from others of its class, as key
            and id; None where the class is enough.
    """

    template: str
    names: tuple[str, ...]
    token: tuple[str, int] | None = None


_LLAMA: Final = ("llava", "llava_llama", "LlavaLlamaForCausalLM")
_CONFIG_RULES: Final = (
    _ConfigRule(
        "qwen_1_5",
        ("llava_qwen", "llava_qwen_moe", "llava_qwen2", "LlavaQwenForCausalLM",
         "LlavaQwenMoeForCausalLM", "LlavaQwen2ForCausalLM"),
    ),
    _ConfigRule("aya", ("llava_cohere", "LlavaCohereForCausalLM")),
    _ConfigRule("v1", ("palo", "PaloForCausalLM")),
    _ConfigRule("mistral_instruct", ("llava_mistral", "LlavaMistralForCausalLM")),
    _ConfigRule("gemma_instruct", ("llava_gemma", "LlavaGemmaForCausalLM")),
    _ConfigRule("mpt", ("llava_mpt", "LlavaMptForCausalLM")),
    _ConfigRule("chatml_direct", _LLAMA, ("eos_token_id", 7)),  # Yi's <|im_end|>
    _ConfigRule("llava_llama_3", _LLAMA, ("bos_token_id", 128000)),
)  # fmt: skip


def template_of_config(config: Any) -> Any:
    """Returns the template that a checkpoint's configuration stands for.

    Args:
        config: The model's configuration (object or mapping) or None.

    Returns:
        `conversation` as training wrote it, plain data or a name; else the name of the template
        that the code of published checkpoints of this class asks with; None if neither is known.
    """
    keys = (_KEY, "model_type", "architectures")
    stored, model_type, architectures = (_config_value(config, key) for key in keys)
    names = {model_type, *(architectures or ())}
    by_class = (
        rule.template
        for rule in _CONFIG_RULES
        if names & {*rule.names}
        and (rule.token is None or _config_value(config, rule.token[0]) == rule.token[1])
    )
    return stored or next(by_class, None)


def _config_value(config: Any, key: str) -> Any:
    return config.get(key) if isinstance(config, Mapping) else getattr(config, key, None)


def select_conversation(
    config: Any, model_name: str, conv_mode: str | None = None
) -> tuple[str, Conversation]:
    """Chooses the template for a model.

    Args:
        config: The model's configuration (object or mapping) or None; see `template_of_config`.
        model_name: Name of the model, by which LLaVA tells its own checkpoints on Llama apart. It
            is asked only where the configuration leaves the template open.
        conv_mode: Name of a template; it wins over the two others.

    Returns:
        The template's name and a fresh conversation.

    Raises:
        TemplateError: A name is unknown or the stored template is broken.
    """
    stored = template_of_config(config)
    if isinstance(stored, Mapping):
        name, found = str(stored.get("name", "custom")), conversation_from_dict(stored)
    else:
        by_model = (template for part, template in _NAME_RULE if part in model_name.lower())
        name = stored or next(by_model, "llava_v0")
        found = get_conversation(name)
    if conv_mode is None or conv_mode == name:
        return name, found
    log.warning("The model's conversation template is %r; %r is used as asked.", name, conv_mode)
    return conv_mode, get_conversation(conv_mode)


def _name_of(conv: Conversation) -> str:
    if isinstance(conv, ChatConversation):
        return AUTO

    def key(c: Conversation) -> tuple[Any, ...]:
        return (c.system, tuple(c.roles), c.sep_style, c.sep, c.sep2, c.version, c.offset)

    return next((name for name, c in conv_templates.items() if key(c) == key(conv)), "custom")
