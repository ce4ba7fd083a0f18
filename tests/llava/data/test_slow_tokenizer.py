"""Labels with a tokenizer that gives no offsets: SentencePiece itself, as LLaVA's slow one."""

import re
from types import SimpleNamespace

import pytest
import sentencepiece

from llava.conversation import get_conversation
from llava.data.sample import Sample, Turn
from llava.data.tokenize import encode_prompt, encode_turns, place_images
from llava.errors import TemplateError


class SlowLlama:
    """What a slow Llama tokenizer does: special tokens apart, SentencePiece between them."""

    is_fast = False
    bos_token_id = 1

    def __init__(self, model_file, legacy):
        self.model = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
        self.legacy = legacy

    def __call__(self, texts, **options):
        return {"input_ids": [[1, *self._encode(text)] for text in texts]}

    def _encode(self, text):
        ids = []
        for i, part in enumerate(re.split(r"(<s>|</s>|<unk>)", text)):
            if i % 2:
                ids.append(self.model.piece_to_id(part))
            elif part:
                ids += self.model.encode(part) if self.legacy or i == 0 else self._inner(part)
        return ids

    def _inner(self, part):
        """Encode without the dummy blank, by way of a first piece that is taken off again."""
        unk = self.model.encode("<unk>")
        return self.model.encode("<unk>" + part)[len(unk) :]


@pytest.fixture(params=[True, False])
def slow(request, golden_dir):
    return SlowLlama(golden_dir / "llava" / "tokenizer.model", request.param)


def test_ids_and_labels_equal_llava(slow, load_golden):
    cases = [c for c in load_golden("preprocess") if c["legacy"] == slow.legacy]
    for case in cases:
        record = {"conversations": case["conversations"]}
        if case["has_image"]:
            record["image"] = "a.png"
        turns, conv = Sample.from_record(record, "f:1").turns, get_conversation(case["version"])
        if case["has_image"]:
            turns = place_images(turns, conv)
        encoded = encode_turns(turns, conv, slow, case["has_image"])
        assert encoded.input_ids == case["input_ids"], case["conversations"]
        assert encoded.labels == case["labels"], (case["version"], case["conversations"])
    assert len(cases) == 70


def test_image_token_ids_equal_llava(slow, load_golden):
    for case in load_golden("tokenizer_image_token"):
        if case["legacy"] == slow.legacy:
            assert encode_prompt(case["text"], slow) == case["ids"]


@pytest.mark.parametrize("template", ["chatml_direct", "mistral_instruct", "v1_mmtag"])
def test_other_templates_agree_with_the_fast_tokenizer(slow, llama_tokenizer, template):
    turns = [
        Turn("human", "<image>\nCo je na obrázku?"),
        Turn("gpt", "Kůň.", supervised=False),
        Turn("human", "图片里有什么?"),
        Turn("gpt", "有一匹马。"),
    ]
    conv = get_conversation(template)
    fast = encode_turns(turns, conv, llama_tokenizer(slow.legacy))
    assert encode_turns(turns, conv, slow) == fast
    assert "Kůň" not in llama_tokenizer(slow.legacy).decode([x for x in fast.labels if x > 0])


def test_a_tokenizer_that_reads_ahead_is_refused():
    def reversed_ids(texts, **options):
        return {"input_ids": [[ord(c) for c in reversed(text)] for text in texts]}

    class ReadsAhead(SimpleNamespace):
        __call__ = staticmethod(reversed_ids)

    with pytest.raises(TemplateError, match="ReadsAhead"):
        encode_turns(
            [Turn("human", "What?"), Turn("gpt", "Yes")],
            get_conversation("v1"),
            ReadsAhead(bos_token_id=None, is_fast=False),
        )
