"""`--version auto`, from a base with a chat template to the answers of the trained model."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from llava.conversation import ChatConversation, select_conversation
from llava.errors import DataError, TemplateError
from lrm_ext.corpus.store import Corpus
from lrm_ext.evaluate.answerer import load_answerer
from lrm_ext.evaluate.items import Request
from lrm_ext.instructions.inspection import conversation_for
from lrm_ext.languages import get_language
from lrm_ext.languages.templates import Templates
from lrm_ext.mixture.order import Mixture
from lrm_ext.mixture.spec import MixtureSpec
from lrm_ext.training.dataset import MixtureDataset, SampleLimits

GOLDEN = Path(__file__).parents[2] / "golden" / "llava"


@pytest.fixture(scope="module")
def make_base(tmp_path_factory):
    """A tiny Llama whose tokenizer has the tokens of ChatML and a published template."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from llava.model.tokenizer import load_tokenizer

    def make(template):
        folder = tmp_path_factory.mktemp("base")
        tokenizer = load_tokenizer(GOLDEN / "model" / "tiny-llava")
        tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
        tokenizer.eos_token = "<|im_end|>"
        if template:
            source = GOLDEN / "chat_templates" / f"{template}.jinja"
            tokenizer.chat_template = source.read_text(encoding="utf-8")
        tokenizer.save_pretrained(folder)
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            num_attention_heads=4,
            max_position_embeddings=512,
            eos_token_id=tokenizer.eos_token_id,
            **sizes,
        )
        LlamaForCausalLM(config).save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="module")
def base(make_base):
    return make_base("qwen_2_5")


def test_trained_stored_and_asked_in_the_same_format(base, run_lrm, corpus_path):
    out = run_lrm(model_name_or_path=base, version="auto", max_steps=2)
    config = json.loads((out / "config.json").read_text())
    stored = config["conversation"]
    assert (stored["name"], stored["sep"]) == ("auto", "<|im_end|>")
    assert stored["system"] == get_language("en").system
    assert stored["chat_template"]["bos"] == ""
    _, conv = select_conversation(config, "any")
    assert isinstance(conv, ChatConversation)

    templates = Templates.of_checkpoint(out, None)
    answerer = load_answerer(out, None, templates, 4, device="cpu")
    image = corpus_path.parent / "images" / "0.png"
    requests = [Request("Što je to?", lang, (image,)) for lang in ("hr", "en")]
    assert len(answerer.answer(requests)) == 2
    for request in requests:
        said = answerer._tokenizer.decode([i for i in answerer._encode(request) if i >= 0])
        assert get_language(request.lang).system in said
        assert "<s>" not in said  # the template writes none
        assert said.endswith("<|im_start|> assistant\n")
    (losses,) = answerer.token_losses(requests[:1], ["Pas"])
    assert len(losses) >= 1


def test_a_sample_is_encoded_in_the_language_of_its_answers(base, corpus_path):
    from llava.conversation import chat_conversation
    from llava.model.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(base, model_max_length=512)
    corpus = Corpus.open(corpus_path)
    mixture = Mixture(MixtureSpec(), corpus)
    conv = chat_conversation(tokenizer)
    dataset = MixtureDataset(mixture, tokenizer, "auto", SampleLimits(512, 4), conversation=conv)
    systems = set()
    for i in range(len(dataset)):
        item = dataset.encoded(i)
        text = tokenizer.decode([x for x in item.input_ids if x >= 0])
        answers = tokenizer.decode([x for x in item.labels if x >= 0])
        assert answers.endswith("<|im_end|>")
        assert "system" not in answers
        assert "user" not in answers
        systems.update(x for x in corpus.languages if get_language(x).system in text)
    assert systems >= {"en", "hr"}
    template = dataset.identity()["template"]
    assert template.startswith("auto ")
    other = conv.copy()
    other.chat_format = type(conv.chat_format)(conv.chat_format.source + " ")
    changed = MixtureDataset(mixture, tokenizer, "auto", dataset.limits, conversation=other)
    assert changed.identity()["template"] != template
    sample = mixture.make_sample(mixture.draw(0, 0))
    name, own = conversation_for(sample, "auto", tokenizer)
    assert (name, own.system) == ("auto", get_language(sample.lang).system)


def test_a_base_without_a_template_is_refused_before_the_first_step(make_base, run_lrm, tmp_path):
    with pytest.raises(TemplateError, match="has no chat template.*--version"):
        run_lrm(model_name_or_path=make_base(None), version="auto")
    assert not (tmp_path / "out").exists()


def test_an_answer_that_the_template_changes_is_named_before_the_first_step(
    make_base, run_lrm, tmp_path
):
    turns = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "<think>hm</think>A"}]
    path = tmp_path / "data.jsonl"
    good = [turns[0], {"from": "gpt", "value": "A"}]
    records = [{"id": str(i), "conversations": each} for i, each in enumerate((good, turns))]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(DataError, match=r"data.jsonl:2, sample '1'.*not write turn 2 as it is"):
        run_lrm(
            model_name_or_path=make_base("qwen_3"),
            version="auto",
            corpus_path=None,
            data_path=path,
            image_folder=tmp_path,
        )


def test_the_exported_template_gives_the_ids_that_the_model_was_trained_with(base, tmp_path):
    from llava.conversation import chat_conversation
    from llava.model.tokenizer import load_tokenizer
    from lrm_ext.export.chat_template import chat_template
    from lrm_ext.export.transformers_checkpoint import add_image_token
    from lrm_ext.languages.templates import in_language

    shutil.copytree(base, tmp_path / "base")
    tokenizer = load_tokenizer(tmp_path / "base")
    conv = in_language("auto", chat_conversation(tokenizer), "hr")
    add_image_token(tokenizer)
    source = chat_template(conv, tokenizer)  # compares the ids of prompts itself
    parts = [{"type": "image"}, {"type": "text", "text": "Što?"}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": parts}], chat_template=source, tokenize=False
    )
    system = get_language("hr").system
    assert text == f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n<image>\nŠto?" + (
        "<|im_end|>\n"
    )
