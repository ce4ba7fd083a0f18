"""A model that was trained in its tokenizer's own chat template is asked in it."""

import io

import pytest

from llava.chat_format import ChatFormat
from llava.conversation import conversation_from_dict, conversation_to_dict, get_conversation
from llava.serve import cli
from llava.serve.openai_chat import ApiError, Message, build_prompt
from llava.serve.protocol import template_from_status

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def stored(source=CHATML, system="Be brief."):
    """What config.json and a worker's status hold."""
    conv = conversation_to_dict(get_conversation("chatml_direct"), "auto")
    chat = ChatFormat(source).to_dict()
    return {**conv, "system": system, "version": "chat_template", "chat_template": chat}


def messages(*pairs):
    return [Message(role=role, content=text) for role, text in pairs]


def test_the_workers_template_is_used(monkeypatch):
    monkeypatch.setattr(
        "llava.serve.protocol.model_details", lambda status, name: {"conversation": stored()}
    )
    conv = template_from_status({}, "m")
    assert conv.answer_end == "<|im_end|>"
    assert build_prompt(conv, messages(("user", "Hi"))) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_a_system_message_replaces_the_models_own():
    conv = conversation_from_dict(stored(system="One\nline."))
    prompt = build_prompt(conv, messages(("system", "Rhyme."), ("user", "Hi")))
    assert prompt.startswith("<|im_start|>system\nRhyme.<|im_end|>\n<|im_start|>user\nHi<|im_end|>")


def test_history_that_begins_with_an_answer_keeps_the_system_text():
    conv = conversation_from_dict(stored())
    prompt = build_prompt(conv, messages(("assistant", "A"), ("user", "Hi")))
    assert prompt.startswith("<|im_start|>system\nBe brief.<|im_end|>\n")
    assert prompt.endswith("assistant\nA<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
                           "<|im_start|>assistant\n")  # fmt: skip


def test_a_system_message_that_the_template_does_not_take_is_the_clients_mistake():
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + CHATML
    conv = conversation_from_dict(stored(refuses, ""))
    with pytest.raises(ApiError, match="takes no system text") as caught:
        build_prompt(conv, messages(("system", "Rhyme."), ("user", "Hi")))
    assert caught.value.status == 400


def test_the_command_line_keeps_the_history(make_engine, picture):
    engine = make_engine([*b"Yes.", 257, *b"ignored"])
    args = cli.build_parser().parse_args(["--image-file", "x"])
    conv = conversation_from_dict(stored())
    cli.chat(engine, conv, picture, args, io.StringIO("One?\nTwo?\n"), io.StringIO())
    assert engine.model.calls[1]["prompt"].endswith(
        "assistant\nYes.<|im_end|>\n<|im_start|>user\nTwo?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_several_images_stay_among_the_texts_of_a_message():
    url = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}

    def prompt_of(*parts):
        content = [url if part is None else {"type": "text", "text": part} for part in parts]
        conv = get_conversation("vicuna_v1")
        prompt = build_prompt(conv, [Message(role="user", content=content)])
        return prompt.partition("USER: ")[2].removesuffix(" ASSISTANT:")

    assert prompt_of("What?", None) == "<image>\nWhat?", "a single one comes first, as in training"
    assert prompt_of(None, None, "Equal?") == "<image>\n<image>\nEqual?"
    assert prompt_of("First:", None, "Second:", None) == "First:\n<image>\nSecond:\n<image>"
    assert prompt_of("Is ", None, " as dark as ", None, " here?") == (
        "Is <image> as dark as <image> here?"
    )
