"""Training says where a template and a tokenizer speak different chat formats."""

import logging
from pathlib import Path

import pytest

from llava.conversation import get_conversation
from llava.model.tokenizer import load_tokenizer
from llava.train.build import warn_of_template

GOLDEN = Path(__file__).parents[2] / "golden" / "llava" / "model"
LLAMA_2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + "
    "' [/INST]' }}{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + "
    "' [/INST]' }}{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
    "{% endfor %}"
)


@pytest.mark.parametrize(
    ("version", "template", "added", "named"),
    [
        ("v1", None, [], None),
        ("plain", CHATML, [], None),
        ("llava_llama_2", LLAMA_2, [], None),
        ("mistral_instruct", MISTRAL, [], None),
        ("chatml_direct", CHATML, ["<|im_start|>", "<|im_end|>"], None),
        ("v1", LLAMA_2, [], "chat template as '<s>[INST] Why?"),
        ("v1", "{{ raise_exception('no') }}", [], None),
        ("chatml_direct", None, [], "'<|im_end|>', which is"),
    ],
)
def test_what_does_not_fit_is_named_once(version, template, added, named, caplog):
    tokenizer = load_tokenizer(GOLDEN / "tiny-llava")
    tokenizer.add_tokens(added, special_tokens=True)
    tokenizer.chat_template = template
    with caplog.at_level(logging.WARNING):
        warn_of_template(get_conversation(version), tokenizer, version)
    told = [r.getMessage() for r in caplog.records if r.name == "llava.train.build"]
    assert len(told) == (named is not None)
    assert named is None or named in told[0]
