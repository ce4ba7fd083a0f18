import dataclasses
from types import SimpleNamespace

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
    template_of_config,
)
from llava.data.sample import Turn
from llava.data.tokenize import render
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


def test_several_images_of_one_question():
    def with_images(name, text):
        conv = get_conversation(name)
        images = [Image.new("RGB", (width, 4)) for width in (5, 6)]
        conv.append_message(conv.roles[0], (text, images, "Default"))
        conv.append_message(conv.roles[1], None)
        return conv

    conv = with_images("v1", "Which one?")
    assert conv.get_prompt() == f"{conv.system} USER: <image>\n<image>\nWhich one? ASSISTANT:"
    assert [image.size for image in conv.get_images(return_pil=True)] == [(5, 4), (6, 4)]
    ((user, _),) = conv.to_gradio_chatbot()
    assert user.count("<img ") == 2 and user.endswith("/>Which one?")
    # a place that the user wrote is not a third one
    assert with_images("v1", "This <image> one?").get_prompt().count("<image>") == 2
    assert "USER: <Image><image></Image><Image><image></Image> ASSISTANT: Received." in (
        with_images("v1_mmtag", "Which one?").get_prompt()
    )


def test_unknown_style_is_an_error():
    conv = Conversation("", ("a", "b"), [], 0, sep_style="other")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="style"):
        conv.get_prompt()


def test_styles_are_numbered_as_in_llava():
    names = ["SINGLE", "TWO", "MPT", "PLAIN", "LLAMA_2", "CHATML"]
    assert [style.name for style in SeparatorStyle] == names
    assert [style.value for style in SeparatorStyle] == [1, 2, 3, 4, 5, 6]


# by hand: transformers' pages of LLaVA-NeXT and LLaVA-OneVision, and the model cards of the bases,
# show these formats; Maya's is LLaVA's v1 with the end token of Aya
USER = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
)
FORKS = {
    "qwen_1_5": (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<image>\nWhat?<|im_end|>\n<|im_start|>assistant\nA cat.<|im_end|>\n"
        "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>",
    ),
    "qwen_2_5": (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant."
        "<|im_end|>\n"
        "<|im_start|>user\n<image>\nWhat?<|im_end|>\n<|im_start|>assistant\nA cat.<|im_end|>\n"
        "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>",
    ),
    "chatml_direct": (
        "<|im_start|>system\nAnswer the questions.<|im_end|>"
        "<|im_start|>user\n<image>\nWhat?<|im_end|><|im_start|>assistant\nA cat.<|im_end|>"
        "<|im_start|>user\nWhy?<|im_end|><|im_start|>assistant\n",
        "<|im_end|>",
    ),
    "llava_llama_3": (
        "<|start_header_id|>system<|end_header_id|>\n\nYou are a helpful language and vision "
        "assistant. You are able to understand the visual content that the user provides, and "
        "assist the user with a variety of tasks using natural language.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n<image>\nWhat?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nA cat.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|>",
    ),
    "gemma_instruct": (
        "<start_of_turn>user\n<image>\nWhat?<end_of_turn>\n"
        "<start_of_turn>model\nA cat.<end_of_turn>\n"
        "<start_of_turn>user\nWhy?<end_of_turn>\n<start_of_turn>model\n",
        "<end_of_turn>",
    ),
    "aya": (
        USER + "helpful, detailed, and polite answers to the user's questions. "
        "USER: <image>\nWhat? ASSISTANT: A cat.<|END_OF_TURN_TOKEN|>USER: Why? ASSISTANT:",
        "<|END_OF_TURN_TOKEN|>",
    ),
    "phi": (
        USER + "helpful, detailed, and polite answers to the user's questions. "
        "USER: <image>\nWhat? ASSISTANT: A cat.<|endoftext|>USER: Why? ASSISTANT:",
        "<|endoftext|>",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORKS)
def test_templates_of_forks(name):
    conv = get_conversation(name)
    for i, text in enumerate(("<image>\nWhat?", "A cat.", "Why?", None)):
        conv.append_message(conv.roles[i % 2], text)
    prompt, end = FORKS[name]
    assert (conv.get_prompt(), conv.answer_end) == (prompt, end)
    # what is learnt is the answer with its end, and not the line break after it
    turns = [Turn("human", "<image>\nWhat?"), Turn("gpt", "A cat.")]
    rendered = render(turns, conv)
    learnt = [rendered.text[span.start : span.end] for span in rendered.spans]
    assert learnt == [" " * (name in ("aya", "phi")) + "A cat." + end]
    assert conversation_from_dict(conversation_to_dict(get_conversation(name))) == (
        get_conversation(name)
    )


YI, LLAMA_3 = {"eos_token_id": 7}, {"bos_token_id": 128000}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "qwen2", "architectures": ["LlavaQwenForCausalLM"]}, "qwen_1_5"),
        ({"model_type": "llava_qwen"}, "qwen_1_5"),
        ({"model_type": "llava", "architectures": ["LlavaQwenForCausalLM"]}, "qwen_1_5"),
        ({"model_type": "llava_cohere", "architectures": ["LlavaCohereForCausalLM"]}, "aya"),
        ({"model_type": "palo", "architectures": ["PaloForCausalLM"]}, "v1"),
        ({"model_type": "llava", "architectures": ["LlavaMistralForCausalLM"]}, "mistral_instruct"),
        ({"model_type": "llava_gemma"}, "gemma_instruct"),
        (
            {"model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"], **YI},
            "chatml_direct",
        ),
        ({"model_type": "llava_llama", **LLAMA_3}, "llava_llama_3"),
        ({"model_type": "llava_qwen", "conversation": "plain"}, "plain"),
        # LLaVA's own on Vicuna: its rule by name
        ({"model_type": "llava_llama", "mm_projector_type": "mlp2x_gelu"}, "llava_v0"),
    ],
)
def test_the_template_of_a_published_checkpoint(config, expected):
    """Whatever the folder is called, and whether read from a file or from a model."""
    for given in (config, SimpleNamespace(**config)):
        assert select_conversation(given, "mini")[0] == expected
    assert template_of_config({"model_type": "llava_llama"}) is None


def test_llavas_own_names_decide_where_the_configuration_does_not():
    config = {"model_type": "llava_llama", "mm_projector_type": "mlp2x_gelu"}
    assert select_conversation(config, "llava-llama-2-13b")[0] == "llava_llama_2"
