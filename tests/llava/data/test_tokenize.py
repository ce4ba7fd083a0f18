import re

import pytest

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import Conversation, SeparatorStyle, get_conversation
from llava.data.sample import SampleError, Turn
from llava.data.tokenize import encode_turns
from llava.mm_utils import tokenizer_image_token

CONVERSATIONS = {
    "latin": ["What is this?", "A dog.", "And this?", "A cat"],
    "czech": ["Jaké zvíře je na obrázku?", "Je to kůň.", "A toto?", "Žába"],
    "chinese": ["图片里有什么？", "图片里有一匹马。", "还有呢？", "狗"],
    "arabic": ["ماذا في الصورة؟", "حصان.", "وهذا؟", "كلب"],
    "hindi": ["चित्र में क्या है?", "घोड़ा।", "और यह?", "कुत्ता"],
    "thai": ["ในภาพมีอะไร", "ม้า", "แล้วนี่ล่ะ", "หมา"],
}
TERMINATORS = {
    "v1": "</s>",
    "llava_v1": "</s>",
    "llava_llama_2": " </s>",
    "mistral_instruct": " </s>",
    "chatml_direct": "<|im_end|>",
    "mpt": "<|im_end|>",
}


def _turns(texts: list[str], image: bool) -> list[Turn]:
    texts = [f"<image>\n{texts[0]}" if image else texts[0], *texts[1:]]
    return [Turn("gpt" if i % 2 else "human", text) for i, text in enumerate(texts)]


def _runs(encoded) -> list[list[int]]:
    runs: list[list[int]] = []
    for previous, label in zip([IGNORE_INDEX, *encoded.labels], encoded.labels, strict=False):
        if label != IGNORE_INDEX:
            if previous == IGNORE_INDEX:
                runs.append([])
            runs[-1].append(label)
    return runs


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("image", [True, False])
@pytest.mark.parametrize("script", CONVERSATIONS)
@pytest.mark.parametrize("template", TERMINATORS)
def test_what_is_learnt_is_the_answers_and_their_terminators(
    llama_tokenizer, template, script, image, legacy
):
    tokenizer = llama_tokenizer(legacy)
    texts = CONVERSATIONS[script]
    encoded = encode_turns(_turns(texts, image), get_conversation(template), tokenizer)
    assert len(encoded.input_ids) == len(encoded.labels)
    assert encoded.input_ids[0] == tokenizer.bos_token_id
    assert encoded.input_ids.count(IMAGE_TOKEN_INDEX) == image
    decoded = [tokenizer.decode(run).lstrip() for run in _runs(encoded)]
    end = TERMINATORS[template]
    assert [text.replace(" ", "") for text in decoded] == [
        (answer + end).replace(" ", "") for answer in texts[1::2]
    ]
    assert all(label in (IGNORE_INDEX, id_) for label, id_ in zip(
        encoded.labels, encoded.input_ids, strict=True
    ))  # fmt: skip


def test_turns_that_are_not_supervised_are_masked(llama_tokenizer):
    turns = _turns(CONVERSATIONS["latin"], image=True)
    turns[1] = Turn("gpt", turns[1].text, supervised=False)
    encoded = encode_turns(turns, get_conversation("v1"), llama_tokenizer())
    assert [llama_tokenizer().decode(run) for run in _runs(encoded)] == ["A cat</s>"]


@pytest.mark.parametrize("script", CONVERSATIONS)
def test_ids_are_those_of_tokenizer_image_token(llama_tokenizer, script):
    from llava.data.tokenize import render

    turns, conv = _turns(CONVERSATIONS[script], image=True), get_conversation("v1")
    encoded = encode_turns(turns, conv, llama_tokenizer())
    assert encoded.input_ids == tokenizer_image_token(render(turns, conv).text, llama_tokenizer())


class ChatTokenizer:
    """Tokens are words, marks and blanks; the template's own tags are single tokens."""

    is_fast = True
    bos_token_id = None
    pattern = re.compile(r"<\|\w+\|>|\w+|\s|.", re.DOTALL)

    def __call__(self, texts, return_offsets_mapping=False, **options):
        found = [list(self.pattern.finditer(text)) for text in texts]
        encoding = {"input_ids": [[hash(m.group()) for m in each] for each in found]}
        if return_offsets_mapping:
            encoding["offset_mapping"] = [[m.span() for m in each] for each in found]
        return encoding


def test_a_template_is_data():
    """A template in the shape of Llama 3's, which LLaVA does not know, needs no code."""
    conv = Conversation(
        "<|bos|><|header|>system<|end|>\n\nBe brief.",
        ("<|header|>user<|end|>\n\n", "<|header|>assistant<|end|>\n\n"),
        (),
        0,
        SeparatorStyle.MPT,
        "<|eot|>",
        version="llama_3",
    )
    turns = _turns(["What is this?", "A dog.", "And this?", "A cat"], image=True)
    encoded = encode_turns(turns, conv, ChatTokenizer())
    pattern = ChatTokenizer.pattern
    learnt = [
        token for text in ("A dog.<|eot|>", "A cat<|eot|>") for token in pattern.findall(text)
    ]
    assert [x for x in encoded.labels if x != IGNORE_INDEX] == [hash(token) for token in learnt]
    assert encoded.input_ids.count(IMAGE_TOKEN_INDEX) == 1


def test_a_placeholder_is_text_where_there_is_no_picture(llama_tokenizer):
    turns = _turns(CONVERSATIONS["latin"], image=True)
    encoded = encode_turns(turns, get_conversation("v1"), llama_tokenizer(), has_image=False)
    assert IMAGE_TOKEN_INDEX not in encoded.input_ids


def test_roles_must_alternate_and_plain_wants_a_picture(llama_tokenizer):
    with pytest.raises(SampleError, match="turn 1"):
        encode_turns([Turn("gpt", "Hi")], get_conversation("v1"), llama_tokenizer())
    with pytest.raises(SampleError, match="plain"):
        encode_turns(
            [Turn("human", "Hi"), Turn("gpt", "a")], get_conversation("plain"), llama_tokenizer()
        )
