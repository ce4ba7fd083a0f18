import dataclasses

import pytest
from PIL import Image

from llava.conversation import (
    Conversation,
    SeparatorStyle,
    conv_templates,
    conversation_from_dict,
    conversation_to_dict,
    default_conversation,
    get_conversation,
    register_conversation,
    select_conversation,
)
from llava.errors import TemplateError


def test_templates_equal_llava(load_golden):
    golden = load_golden("templates")
    assert list(golden) == [name for name in conv_templates if name in golden]
    for name, expected in golden.items():
        conv = conv_templates[name]
        found = {
            "system": conv.system,
            "roles": list(conv.roles),
            "sep_style": conv.sep_style.name,
            "sep": conv.sep,
            "sep2": conv.sep2,
            "version": conv.version,
            "offset": conv.offset,
            "messages": [list(message) for message in conv.messages],
        }
        assert found == {**expected, "messages": [list(m) for m in expected["messages"]]}, name


def test_prompts_equal_llava(load_golden):
    checked = errors = 0
    for case in load_golden("prompts"):
        conv = get_conversation(case["template"])
        if "turns" in case:
            for turn in case["turns"]:
                for role, text in zip(conv.roles, turn, strict=False):
                    conv.append_message(role, text)
        else:
            _append_image_case(conv, case)
        if "error" in case:
            errors += 1
            with pytest.raises(TypeError):
                conv.get_prompt()
        else:
            checked += 1
            assert conv.get_prompt() == case["prompt"], case
    assert checked > 60 and errors > 0


def _append_image_case(conv: Conversation, case: dict) -> None:
    image = Image.new("RGB", (4, 4))
    conv.append_message(conv.roles[0], (case["text"], image, "Default"))
    conv.append_message(conv.roles[1], None)


def test_register_refuses_to_overwrite_and_get_lists_choices():
    with pytest.raises(TemplateError, match="already"):
        register_conversation("v1", default_conversation)
    with pytest.raises(TemplateError, match="vicuna_v1"):
        get_conversation("nonsense")


def test_copies_do_not_touch_the_registry():
    conv = get_conversation("v1")
    conv.append_message(conv.roles[0], "Hi")
    assert not conv_templates["v1"].messages
    assert conv.copy().messages == conv.messages


def test_dict_round_trip_and_a_broken_one():
    conv = get_conversation("llava_llama_2")
    data = conversation_to_dict(conv, "llava_llama_2")
    assert conversation_from_dict(data) == conv
    with pytest.raises(TemplateError, match="sep_style"):
        conversation_from_dict({**data, "sep_style": "THREE"})


@dataclasses.dataclass
class _Config:
    conversation: dict | None = None


def test_select_conversation_prefers_the_users_choice_then_the_checkpoint_then_the_name():
    own = conversation_to_dict(get_conversation("mpt"), "mine")
    assert select_conversation(_Config(own), "llava-v1.5-7b", "plain")[0] == "plain"
    assert select_conversation(_Config(own), "llava-v1.5-7b")[0] == "mine"
    assert select_conversation(_Config(), "LLaVA-v1.5-7B")[0] == "llava_v1"
    assert select_conversation(_Config(), "llava-v1.6-mistral-7b")[0] == "mistral_instruct"
    assert select_conversation(_Config(), "llava-v1.6-34b")[0] == "chatml_direct"
    assert select_conversation(_Config(), "mini")[0] == "llava_v0"


def test_images_pairs_and_log():
    conv = get_conversation("v1")
    conv.append_message(conv.roles[0], ("<image>\nWhat?", Image.new("RGB", (2000, 500)), "Pad"))
    conv.append_message(conv.roles[1], "A line.")
    (image,) = conv.get_images(return_pil=True)
    assert image.size == (672, 672)  # padded to a square, then bounded by min_len
    ((user, bot),) = conv.to_gradio_chatbot()
    assert user.startswith('<img src="data:image/jpeg;base64,') and user.endswith("/>What?")
    assert bot == "A line."
    assert conv.dict()["messages"][0] == ["USER", "<image>\nWhat?"]
    with pytest.raises(ValueError, match="invalid"):
        conv.process_image(image, "Stretch")


def test_unknown_style_is_an_error():
    conv = Conversation("", ("a", "b"), [], 0, sep_style="other")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="style"):
        conv.get_prompt()


def test_styles_are_numbered_as_in_llava():
    assert [style.value for style in SeparatorStyle] == [1, 2, 3, 4, 5]
