"""Tokenizers whose BOS token is what a chat prompt begins with (SmolLM2: `<|im_start|>`)."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import get_conversation
from llava.data.batching import token_lengths
from llava.data.sample import Sample, Turn
from llava.data.tokenize import encode_prompt, encode_turns
from llava.mm_utils import tokenizer_image_token

START, END = "<|im_start|>", "<|im_end|>"
TURNS = [Turn("human", "<image>\nWhat?"), Turn("gpt", "A dog."), Turn("human", "Sure?"),
         Turn("gpt", "Yes.")]  # fmt: skip


def build(adds_bos):
    """One token a byte, with SmolLM2's special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=START, eos_token=END, pad_token=END
    )
    if adds_bos:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{START} $A", special_tokens=[(START, tokenizer.bos_token_id)]
        )
    return tokenizer


@pytest.mark.parametrize("adds_bos", [False, True])
def test_no_token_is_lost(adds_bos):
    tokenizer = build(adds_bos)
    prompt = f"{START}user\n<image>\nWhat?{END}{START}assistant\n"
    ids = tokenizer_image_token(prompt, tokenizer)
    text = prompt.replace("<image>", "")
    assert tokenizer.decode([i for i in ids if i >= 0]) == START * adds_bos + text
    assert ids.count(IMAGE_TOKEN_INDEX) == 1
    # a prompt that begins with something else
    plain = tokenizer_image_token("a<image>b", tokenizer)
    assert tokenizer.decode([i for i in plain if i >= 0]) == START * adds_bos + "ab"


@pytest.mark.parametrize("adds_bos", [False, True])
def test_labels_are_the_answers_and_lengths_agree(adds_bos):
    tokenizer, conv = build(adds_bos), get_conversation("chatml_direct")
    encoded = encode_turns(TURNS, conv, tokenizer)
    learnt = [label for label in encoded.labels if label != IGNORE_INDEX]
    assert tokenizer.decode(learnt) == f"A dog.{END}Yes.{END}"
    everything = [i for i in encoded.input_ids if i >= 0]
    assert tokenizer.decode(everything).count(START) == 5 + adds_bos
    sample = Sample("s", "a.png", tuple(TURNS))
    assert list(token_lengths([sample], conv, tokenizer)) == [len(encoded.input_ids)]


def test_llama_drops_the_bos_of_each_chunk_as_before(llama_tokenizer):
    tokenizer = llama_tokenizer()
    ids = encode_prompt("<s>a<image>b<image>c", tokenizer)
    assert ids.count(tokenizer.bos_token_id) == 2  # the tokenizer's and the written one
    assert ids.count(IMAGE_TOKEN_INDEX) == 2
