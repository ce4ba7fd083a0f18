"""The ids that workers send to vLLM and SGLang, against LLaVA's own."""

import copy

import pytest

from llava.conversation import conv_templates, get_conversation
from llava.mm_utils import tokenizer_image_token
from llava.serve.remote_worker import engine_ids
from lrm_ext.export.chat_template import chat_template
from lrm_ext.export.transformers_checkpoint import add_image_token

CHATS = [name for name, conv in conv_templates.items() if conv.sep_style.name != "PLAIN"]
TURNS = (
    ("Hello.",),
    ("<image>\nWhat is this?",),
    (" <image>\n\nTo?  ", "A dog, čičak.", "Where <is> it?\n", "Here.", "这里？"),
    ("<image>\n<image>\nWhich?", "The first.", "Why <image> now?"),
)


@pytest.fixture(scope="module", params=["tokenizer adds BOS", "template alone adds BOS"])
def tokenizers(request, llama_tokenizer):
    """Make a tokenizer of a base and what its export would have: `tokenizers(conv, legacy)`."""

    def make(conv, legacy):
        base = llama_tokenizer(legacy)
        exported = copy.deepcopy(base)
        add_image_token(exported)
        exported.chat_template = chat_template(conv, exported)
        exported.add_bos_token = request.param == "tokenizer adds BOS"
        exported.update_post_processor()
        return base, exported

    return make


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("name", CHATS)
def test_engines_get_llavas_ids(name, legacy, tokenizers):
    conv = get_conversation(name)
    base, exported = tokenizers(conv, legacy)
    image = exported.convert_tokens_to_ids("<image>")
    for turns in TURNS:
        asked = conv.copy()
        for index, text in enumerate((*turns, None)):
            asked.append_message(conv.roles[index % 2], text)
        prompt = asked.get_prompt()
        wanted = tokenizer_image_token(prompt, base, image)
        assert wanted[0] == base.bos_token_id
        assert engine_ids(prompt, exported) == wanted
