"""A tokenizer's own chat template: exact texts, and exactly the answers learnt."""

import re
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from llava.chat_format import ChatFormat
from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import (
    chat_conversation,
    conversation_from_dict,
    conversation_to_dict,
    get_conversation,
)
from llava.data.sample import SampleError, Turn
from llava.data.tokenize import encode_turns, place_images
from llava.errors import TemplateError
from llava.mm_utils import tokenizer_image_token
from llava.model.tokenizer import load_tokenizer

SOURCES = Path(__file__).parents[2] / "golden" / "llava" / "chat_templates"
SYSTEM = "Odgovaraj na hrvatskom."
TURNS = (
    Turn("human", "<image>\nŠto je to?"),
    Turn("gpt", "Pas."),
    Turn("human", "A ovo?"),
    Turn("gpt", "Mačka 猫."),
)
# special tokens of each template: the first ends answers
TOKENS = {
    "qwen_2_5": ("<|im_end|>", "<|im_start|>"),
    "qwen_3": ("<|im_end|>", "<|im_start|>", "<think>", "</think>"),
    "gemma_3": ("<end_of_turn>", "<start_of_turn>"),
    "llama_3": ("<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
    "mistral_v0_3": ("</s>", "[INST]", "[/INST]"),
    "zephyr_tinyllama": ("</s>",),
    "aya_expanse": (
        "<|END_OF_TURN_TOKEN|>", "<|START_OF_TURN_TOKEN|>", "<|SYSTEM_TOKEN|>", "<|USER_TOKEN|>",
        "<|CHATBOT_TOKEN|>",
    ),
    "phi_4": ("<|im_end|>", "<|im_start|>", "<|im_sep|>"),
    "smollm_3": ("<|im_end|>", "<|im_start|>"),
    "eurollm": ("<|im_end|>", "<|im_start|>"),
}  # fmt: skip
BOS = {
    "gemma_3": "<bos>",
    "llama_3": "<|begin_of_text|>",
    "mistral_v0_3": "<s>",
    "aya_expanse": "<BOS_TOKEN>",
}
# the whole training text of TURNS, with what is learnt between [[ and ]]
TEXTS = {
    "qwen_2_5": "<|im_start|>system\n@system@<|im_end|>\n<|im_start|>user\n<image>\nŠto je to?"
    "<|im_end|>\n<|im_start|>assistant\n[[Pas.<|im_end|>]]\n<|im_start|>user\nA ovo?<|im_end|>\n"
    "<|im_start|>assistant\n[[Mačka 猫.<|im_end|>]]\n",
    "qwen_3": "<|im_start|>system\n@system@<|im_end|>\n<|im_start|>user\n<image>\nŠto je to?"
    "<|im_end|>\n<|im_start|>assistant\n[[Pas.<|im_end|>]]\n<|im_start|>user\nA ovo?<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n[[Mačka 猫.<|im_end|>]]\n",
    "gemma_3": "<start_of_turn>user\n@system@\n\n<image>\nŠto je to?<end_of_turn>\n"
    "<start_of_turn>model\n[[Pas.<end_of_turn>]]\n<start_of_turn>user\nA ovo?<end_of_turn>\n"
    "<start_of_turn>model\n[[Mačka 猫.<end_of_turn>]]\n",
    "llama_3": "<|start_header_id|>system<|end_header_id|>\n\n@system@<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n<image>\nŠto je to?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n[[Pas.<|eot_id|>]]"
    "<|start_header_id|>user<|end_header_id|>\n\nA ovo?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n[[Mačka 猫.<|eot_id|>]]",
    # it writes a system text only where no answer follows, so it is trained without one
    "mistral_v0_3": "[INST] <image>\nŠto je to?[/INST][[ Pas.</s>]][INST] A ovo?[/INST]"
    "[[ Mačka 猫.</s>]]",
    "zephyr_tinyllama": "<|system|>\n@system@</s>\n<|user|>\n<image>\nŠto je to?</s>\n"
    "<|assistant|>\n[[Pas.</s>]]\n<|user|>\nA ovo?</s>\n<|assistant|>\n[[Mačka 猫.</s>]]\n",
    "aya_expanse": "<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>@system@<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|USER_TOKEN|><image>\nŠto je to?<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>[[Pas.<|END_OF_TURN_TOKEN|>]]"
    "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>A ovo?<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>[[Mačka 猫.<|END_OF_TURN_TOKEN|>]]",
    "phi_4": "<|im_start|>system<|im_sep|>@system@<|im_end|><|im_start|>user<|im_sep|><image>\n"
    "Što je to?<|im_end|><|im_start|>assistant<|im_sep|>[[Pas.<|im_end|>]]"
    "<|im_start|>user<|im_sep|>A ovo?<|im_end|><|im_start|>assistant<|im_sep|>"
    "[[Mačka 猫.<|im_end|>]]",
    "eurollm": "<|im_start|>system\n@system@<|im_end|>\n<|im_start|>user\n<image>\nŠto je to?"
    "<|im_end|>\n<|im_start|>assistant\n[[Pas.<|im_end|>]]\n<|im_start|>user\nA ovo?<|im_end|>\n"
    "<|im_start|>assistant\n[[Mačka 猫.<|im_end|>]]\n",
    # its own generation marks hold the role's tag, too; the day is fixed
    "smollm_3": "<|im_start|>system\n## Metadata\n\nKnowledge Cutoff Date: June 2025\n"
    "Today Date: 26 July 2024\nReasoning Mode: /no_think\n\n## Custom Instructions\n\n@system@\n\n"
    "<|im_start|>user\n<image>\nŠto je to?<|im_end|>\n"
    "[[<|im_start|>assistant\n<think>\n\n</think>\nPas.<|im_end|>\n]]"
    "<|im_start|>user\nA ovo?<|im_end|>\n"
    "[[<|im_start|>assistant\n<think>\n\n</think>\nMačka 猫.<|im_end|>\n]]",
}
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def make_tokenizer(template, end="<|im_end|>", others=("<|im_start|>",), bos=None):
    """One token a byte, and the special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {text: i for i, text in enumerate(alphabet)}
    backend = Tokenizer(models.BPE(vocab=words, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([*([bos] if bos else []), end, *others])
    if bos:
        pair = (bos, backend.token_to_id(bos))
        backend.post_processor = processors.Sequence(
            [processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[pair])]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=end)
    tokenizer.chat_template = template
    return tokenizer


def published(name):
    end, *others = TOKENS[name]
    source = (SOURCES / f"{name}.jinja").read_text(encoding="utf-8")
    return make_tokenizer(source, end, others, BOS.get(name))


def with_system(conv):
    conv.system = SYSTEM if conv.chat_format.takes_system else ""
    return conv


def learnt(encoded, tokenizer):
    """The texts of the runs of labels."""
    runs, last = [], IGNORE_INDEX
    for label in encoded.labels:
        if label != IGNORE_INDEX:
            runs.extend([[]] if last == IGNORE_INDEX else [])
            runs[-1].append(label)
        last = label
    return [tokenizer.decode(run) for run in runs]


@pytest.mark.parametrize("name", TEXTS)
def test_published_templates(name):
    tokenizer = published(name)
    conv = with_system(chat_conversation(tokenizer))
    wanted = TEXTS[name].replace("@system@", SYSTEM)
    text = re.sub(r"\[\[|\]\]", "", wanted)
    turns = place_images(TURNS, conv)

    encoded = encode_turns(turns, conv, tokenizer)
    bos = [tokenizer.bos_token_id] if name in BOS else []
    before, after = text.split("<image>")
    ids = [tokenizer(part, add_special_tokens=False).input_ids for part in (before, after)]
    assert encoded.input_ids == [*bos, *ids[0], IMAGE_TOKEN_INDEX, *ids[1]]
    assert learnt(encoded, tokenizer) == re.findall(r"\[\[(.*?)\]\]", wanted, re.DOTALL)
    assert all(
        x in (IGNORE_INDEX, y) for x, y in zip(encoded.labels, encoded.input_ids, strict=True)
    )

    # asked in the format it is trained in: the prompt is the text before the last answer
    for turn, role in zip(turns[:3], (0, 1, 0), strict=True):
        conv.append_message(conv.roles[role], turn.text)
    conv.append_message(conv.roles[1], None)
    tag = "<|im_start|>assistant\n<think>\n\n</think>\n" if name == "smollm_3" else ""
    assert (
        conv.get_prompt() == re.sub(r"\[\[", "", wanted.rpartition("[[")[0]).replace("]]", "") + tag
    )
    assert conv.sep == TOKENS[name][0]


@pytest.mark.parametrize("name", [name for name in TEXTS if name != "smollm_3"])
def test_ids_are_those_of_the_tokenizer_itself(name):
    tokenizer = published(name)
    conv = with_system(chat_conversation(tokenizer))
    turns = [Turn(turn.role, turn.text.removeprefix("<image>\n")) for turn in TURNS]
    messages = [{"role": "system", "content": SYSTEM}] if conv.system else []
    roles = {"human": "user", "gpt": "assistant"}
    messages += [{"role": roles[turn.role], "content": turn.text} for turn in turns]
    wanted = tokenizer.apply_chat_template(messages, enable_thinking=False)["input_ids"]
    assert encode_turns(turns, conv, tokenizer).input_ids == wanted


@pytest.mark.parametrize("name", TEXTS)
def test_a_bos_that_the_template_does_not_write_is_left_out(name, tmp_path):
    """Every tokenizer adds BOS here; `apply_chat_template` adds none, and so do its users."""
    end, *others = TOKENS[name]
    bos = BOS.get(name, "<s>")
    source = (SOURCES / f"{name}.jinja").read_text(encoding="utf-8")
    tokenizer = make_tokenizer(source, end, others, bos)
    conv = chat_conversation(tokenizer)
    assert conv.chat_format.bos == (bos if name in BOS else "")
    tokenizer.save_pretrained(tmp_path)
    turns = [Turn("human", "Što?"), Turn("gpt", "Pas.")]
    messages = [{"role": "user", "content": "Što?"}, {"role": "assistant", "content": "Pas."}]
    wanted = tokenizer.apply_chat_template(messages, enable_thinking=False)["input_ids"]
    for each in (tokenizer, load_tokenizer(tmp_path)):
        found = encode_turns(turns, conv, each).input_ids
        if name == "smollm_3":  # it writes today's date
            found, wanted = found[:20], wanted[:20]
        assert found == wanted
        prompt = conv.copy()
        prompt.append_message("user", "Što?")
        prompt.append_message("assistant", None)
        asked = tokenizer_image_token(prompt.get_prompt(), each)
        assert asked.count(tokenizer.bos_token_id) == (name in BOS)


def test_a_checkpoint_keeps_the_bos_that_it_was_trained_with():
    tokenizer = make_tokenizer(CHATML, bos="<s>")
    old = ChatFormat(CHATML, (("bos_token", "<s>"),), bos="<s>")
    old.apply_to(tokenizer)
    assert tokenizer("a").input_ids[0] == tokenizer.bos_token_id
    ChatFormat(CHATML).apply_to(tokenizer)
    assert tokenizer("a").input_ids[0] != tokenizer.bos_token_id


def test_marks_of_the_template_decide_what_is_learnt():
    marked = CHATML.replace(
        "m.content + '<|im_end|>\\n' }}",
        "'' }}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>"
        "{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}{{ '\\n' }}",
    )
    for source in (CHATML, marked):
        tokenizer = make_tokenizer(source)
        encoded = encode_turns(TURNS, chat_conversation(tokenizer), tokenizer)
        assert learnt(encoded, tokenizer) == ["Pas.<|im_end|>", "Mačka 猫.<|im_end|>"]
    short = marked.replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>")
    tokenizer = make_tokenizer(short)
    encoded = encode_turns(TURNS, chat_conversation(tokenizer), tokenizer)
    assert learnt(encoded, tokenizer) == ["Pas.", "Mačka 猫."]


def test_an_answer_without_its_blanks_is_found():
    tokenizer = published("gemma_3")
    turns = [Turn("human", " Q \n"), Turn("gpt", " A. \n")]
    encoded = encode_turns(turns, chat_conversation(tokenizer), tokenizer)
    assert learnt(encoded, tokenizer) == ["A.<end_of_turn>"]


def test_an_answer_that_looks_like_a_question_or_occurs_twice():
    tokenizer = make_tokenizer(CHATML)
    turns = [Turn("human", "a"), Turn("gpt", "a"), Turn("human", "user\na"), Turn("gpt", "a")]
    encoded = encode_turns(turns, chat_conversation(tokenizer), tokenizer)
    assert learnt(encoded, tokenizer) == ["a<|im_end|>", "a<|im_end|>"]
    masked = [*turns[:1], Turn("gpt", "a", supervised=False), *turns[2:]]
    assert learnt(encode_turns(masked, chat_conversation(tokenizer), tokenizer), tokenizer) == [
        "a<|im_end|>"
    ]


def test_thoughts_in_an_answer_are_an_error_in_training_and_left_out_when_asked():
    tokenizer = published("qwen_3")
    conv = chat_conversation(tokenizer)
    turns = [Turn("human", "Q"), Turn("gpt", "<think>\nhm\n</think>\nA")]
    with pytest.raises(SampleError, match="turn 2 as it is.*</think>"):
        encode_turns([*turns, Turn("human", "Q"), Turn("gpt", "A")], conv, tokenizer)
    for i, text in enumerate(("Q", turns[1].text, "Q", None)):
        conv.append_message(conv.roles[i % 2], text)
    assert "hm" not in conv.get_prompt()
    assert conv.get_prompt().endswith("assistant\n<think>\n\n</think>\n\n")


IF_LAST = "{% if loop.last %}{{ m.content }}{% endif %}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "has no chat template.*--version"),
        (CHATML.replace("m.content", "(m.content if loop.index < 4 else '')"), "turn 4 of 4"),
        (CHATML.replace("m.content", "m.content + m.content"), "turn 1 of 1 2 times"),
        (CHATML.replace("m.content", "m.content|upper"), "turn 1 as it is"),
        (CHATML.replace("m.content", "m.content|e"), "does not write turn 1 as it is"),
        (CHATML.replace("in messages", "in messages|reverse"), "not in its place|asks for"),
        (CHATML.replace("<|im_end|>\\n", ""), "expected its end|after answer 1"),
        (CHATML.partition("{% if add")[0], "asks for an answer with"),
        (CHATML.replace("assistant\\n' }}", "assistant\\n<think>\\n' }}"), "asks for an answer"),
        ("{{ raise_exception('no chats') }}", "refuses a conversation of user: no chats"),
        (CHATML + "{{ strftime_now(fmt) }}", "today's date"),
        ("{% for %}", "refuses"),
        ({"tool_use": CHATML}, "tool_use"),
        (
            "{% for m in messages %}{% if m.role == 'assistant' %}{{ raise_exception('role') }}"
            "{% endif %}{{ m.content }}{% endfor %}",
            "user, assistant.*role",
        ),
        (
            CHATML.replace("{{ '<|im_start|>' + m", "{% generation %}{% endgeneration %}{{ '' + m"),
            "generation marks|asks for",
        ),
    ],
)
def test_a_template_that_cannot_be_learnt_is_refused(template, message):
    with pytest.raises(TemplateError, match=f"(?s){message}") as caught:
        chat_conversation(make_tokenizer(template))
    assert "--version" in str(caught.value)


def test_a_system_text_that_is_not_taken():
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + CHATML
    drops = CHATML.replace("{{ '<|im", "{% if m.role != 'system' %}{{ '<|im", 1).replace(
        "{% endfor", "{% endif %}{% endfor"
    )
    for template in (refuses, drops):
        conv = chat_conversation(make_tokenizer(template))
        assert not conv.chat_format.takes_system
        conv.system = "Be brief."
        conv.append_message("user", "Hi")
        with pytest.raises(TemplateError, match="takes no system text"):
            conv.get_prompt()


def test_config_json_carries_it():
    tokenizer = published("llama_3")
    conv = with_system(chat_conversation(tokenizer))
    data = conversation_to_dict(conv)
    assert data["name"] == "auto"
    assert data["chat_template"]["bos"] == "<|begin_of_text|>"
    assert conversation_from_dict(data) == conv
    with pytest.raises(TemplateError, match="special_tokens"):
        conversation_from_dict({**data, "chat_template": {"source": "x"}})
    with pytest.raises(TemplateError, match="tokenizer's own"):
        get_conversation("auto")


def test_roles_by_turns():
    conv = chat_conversation(make_tokenizer(CHATML))
    conv.append_message("assistant", "Hi")
    with pytest.raises(TemplateError, match="user and assistant by turns"):
        conv.get_prompt()
    assert ChatFormat(CHATML).split("", []) == []
