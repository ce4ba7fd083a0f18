import copy
from types import SimpleNamespace

import pytest
import torch

from llava import conversation as conversation_lib
from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import conv_templates, get_conversation
from llava.data import preprocess as pre

ARGS = SimpleNamespace(is_multimodal=True, mm_use_im_start_end=False)


def test_ids_and_labels_equal_llava(llama_tokenizer, load_golden):
    """No golden case is one that LLaVA masked for a wrong count, so all must be equal."""
    cases = load_golden("preprocess")
    assert len(cases) == 140 and not any(case["warned"] for case in cases)
    for case in cases:
        conv = get_conversation(case["version"])
        sources = copy.deepcopy([case["conversations"]])
        if case["has_image"]:
            pre.preprocess_multimodal(sources, ARGS, conv)
        if case["version"] in ("v1", "llava_llama_2"):  # the others are rewritten by LLaVA later on
            assert sources[0] == case["after_multimodal"]
        found = pre.preprocess(sources, llama_tokenizer(case["legacy"]), case["has_image"], conv)
        assert found["input_ids"][0].tolist() == case["input_ids"], case["conversations"]
        assert found["labels"][0].tolist() == case["labels"], case["conversations"]


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("has_image", [True, False])
def test_mpt_labels_answers_with_their_end(llama_tokenizer, legacy, has_image):
    """LLaVA masks every such sample: it forgets to count `<|im_end|>`."""
    tokenizer = llama_tokenizer(legacy)
    start = "<image>\n" if has_image else ""
    source = _source(f"{start}Was ist das?", "Ein Hund.", "Und das?", "Ein Kůň\nund 马。")
    found = pre.preprocess_mpt([source], tokenizer, has_image)
    labels = found["labels"][0]
    assert tokenizer.decode(labels[labels != IGNORE_INDEX]) == (
        "Ein Hund.<|im_end|>Ein Kůň\nund 马。<|im_end|>"
    )


def _source(*texts):
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def test_named_wrappers_use_their_templates(llama_tokenizer):
    tokenizer = llama_tokenizer()
    source = _source("<image>\nWhat?", "A dog.")
    for wrapper, name in (
        (pre.preprocess_v1, "vicuna_v1"),
        (pre.preprocess_llama_2, "llava_llama_2"),
        (pre.preprocess_mpt, "mpt"),
    ):
        found = wrapper([source], tokenizer, has_image=True)
        expected = pre.preprocess([source], tokenizer, True, get_conversation(name))
        assert torch.equal(found["input_ids"], expected["input_ids"])
        assert torch.equal(found["labels"], expected["labels"])
    plain = pre.preprocess_plain([source], tokenizer)
    assert plain["labels"][0].tolist()[:2] == [IGNORE_INDEX] * 2
    assert tokenizer.decode(plain["labels"][0][2:]) == "A dog.\n"
    assert "What" not in tokenizer.decode([i for i in plain["input_ids"][0].tolist() if i >= 0])


@pytest.mark.parametrize("name", ["mistral_instruct", "chatml_direct", "llava_v1"])
def test_an_assigned_default_template_is_used(name, llama_tokenizer, monkeypatch):
    """LLaVA's training code chooses its template by assigning to the module."""
    monkeypatch.setattr(conversation_lib, "default_conversation", conv_templates[name])
    tokenizer, conv = llama_tokenizer(), conv_templates[name]
    source = _source("<image>\nWhat?", "A dog.")
    expected = pre.preprocess([source], tokenizer, True, conv)
    style = {"mistral_instruct": "llama_2", "chatml_direct": "mpt", "llava_v1": "v1"}[name]
    for function in (pre.preprocess, getattr(pre, f"preprocess_{style}")):
        found = function([source], tokenizer, has_image=True)
        assert torch.equal(found["input_ids"], expected["input_ids"])
        assert torch.equal(found["labels"], expected["labels"])


def test_an_assigned_template_marks_its_images(monkeypatch):
    monkeypatch.setattr(conversation_lib, "default_conversation", conv_templates["v1_mmtag"])
    sources = pre.preprocess_multimodal([_source("What? <image>", "A dog.")], ARGS)
    assert sources[0][0]["value"] == "<Image><image></Image>\nWhat?"


def test_text_only_is_cut_and_padded(llama_tokenizer):
    tokenizer = llama_tokenizer()
    sources = [_source("Hi", "A" * 50), _source("Hi", "Yes")]
    tokenizer.model_max_length = 130
    try:
        found = pre.preprocess(sources, tokenizer)
    finally:
        tokenizer.model_max_length = 2048
    length = len(pre.preprocess([sources[1]], tokenizer)["input_ids"][0])
    assert found["input_ids"].shape == (2, 130)
    assert (found["input_ids"][1, length:] == tokenizer.pad_token_id).all()
    assert (found["labels"][1, length:] == IGNORE_INDEX).all()


@pytest.mark.parametrize(
    ("text", "version", "start_end", "expected"),
    [
        ("What?\n<image>", "v1", False, "<image>\nWhat?"),
        ("<image> a <image>", "v1", False, "<image>\na"),
        ("<image>", "v1", False, "<image>"),
        ("no picture", "v1", True, "no picture"),
        ("<image>\nWhat?", "v1", True, "<im_start><image><im_end>\nWhat?"),
        ("<image>\nWhat?", "v1_mmtag", False, "<Image><image></Image>\nWhat?"),
        ("<image>", "v0_mmtag", True, "<Image><im_start><image><im_end></Image>"),
    ],
)
def test_where_the_placeholder_goes(text, version, start_end, expected):
    args = SimpleNamespace(is_multimodal=True, mm_use_im_start_end=start_end)
    sources = [_source(text, "answer")]
    pre.preprocess_multimodal(sources, args, get_conversation(version))
    assert sources[0][0]["value"] == expected
    args.is_multimodal = False
    untouched = [_source("a <image>", "answer")]
    assert pre.preprocess_multimodal(untouched, args) == [_source("a <image>", "answer")]


def test_v0_helpers_put_together_what_preprocess_does(llama_tokenizer, load_golden):
    tokenizer, conv = llama_tokenizer(), get_conversation("v0")
    case = next(
        c for c in load_golden("preprocess")
        if c["version"] == "v0" and c["legacy"] and not c["has_image"]
    )  # fmt: skip
    source, header = copy.deepcopy(case["conversations"]), f"{conv.system}\n\n"
    text = pre._add_speaker_and_signal(header, source, conv=conv)
    assert source == case["after_multimodal"]
    labels = pre._tokenize_fn([text], tokenizer)["labels"][0]
    pieces = pre._tokenize_fn([header] + [s["value"] for s in source], tokenizer)
    pre._mask_targets(labels, pieces["input_ids_lens"], [s["from"] for s in source])
    assert labels.tolist() == case["labels"]


def test_a_data_module_is_what_the_trainer_wants(tmp_path, llama_tokenizer):
    path = tmp_path / "data.jsonl"
    path.write_text('{"id": 1, "conversations": [{"from": "human", "value": "Hi"}, '
                    '{"from": "gpt", "value": "Yes"}]}')  # fmt: skip
    args = SimpleNamespace(data_path=str(path), is_multimodal=False)
    module = pre.make_supervised_data_module(llama_tokenizer(), args, get_conversation("mpt"))
    assert set(module) == {"train_dataset", "eval_dataset", "data_collator"}
    batch = module["data_collator"]([module["train_dataset"][0]])
    assert IMAGE_TOKEN_INDEX not in batch["input_ids"] and "images" not in batch
    assert llama_tokenizer().decode(batch["input_ids"][0]).endswith("Yes<|im_end|>")
