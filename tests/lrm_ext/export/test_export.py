import copy
import json
import shutil
from filecmp import cmp

import pytest
import torch
from jinja2 import TemplateError
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoProcessor,
    LlavaForConditionalGeneration,
    LlavaNextForConditionalGeneration,
)
from transformers.utils.chat_template_utils import render_jinja_template

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import conv_templates, get_conversation
from llava.data.sample import Turn
from llava.data.tokenize import encode_turns
from llava.errors import CheckpointError, ConfigError
from llava.mm_utils import process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model
from lrm_ext.export.chat_template import chat_template
from lrm_ext.export.check import check_folder, check_servers
from lrm_ext.export.transformers_checkpoint import add_image_token, export_hf, import_hf

PLAIN = [name for name, conv in conv_templates.items() if conv.sep_style.name == "PLAIN"]


@pytest.fixture(scope="module")
def checkpoint(golden_dir, tmp_path_factory):
    """A golden model as a LLaVA folder with tokenizer and tower: `checkpoint("tiny-llava")`."""
    golden = golden_dir / "llava"

    def make(name, **settings):
        folder = tmp_path_factory.mktemp("checkpoints") / name
        shutil.copytree(golden / "model" / name, folder)
        shutil.copytree(golden / "model" / "tiny-clip", folder / "tiny-clip")
        shutil.copy(golden / "tokenizer.model", folder)
        tokenizer = {"tokenizer_class": "LlamaTokenizer", "legacy": False}
        (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
        config = json.loads((folder / "config.json").read_text())
        config.update(mm_vision_tower="tiny-clip", **settings)
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return make


@pytest.fixture(scope="module")
def pictures(golden_dir):
    folder = golden_dir / "llava" / "model"
    return [Image.open(folder / f"image{i}.png").convert("RGB") for i in range(3)]


def logits_here(folder, text, picture):
    """The checkpoint's own logits for a question on a picture, and its token ids."""
    tokenizer, model, processor, _ = load_pretrained_model(str(folder), None, "llava", device="cpu")
    conv = get_conversation("v1")
    conv.append_message(conv.roles[0], f"<image>\n{text}" if picture else text)
    conv.append_message(conv.roles[1], None)
    ids = tokenizer_image_token(conv.get_prompt(), tokenizer, return_tensors="pt")[None]
    keywords = {}
    if picture:
        keywords["images"] = process_images([picture], processor, model.config)
        keywords["image_sizes"] = [picture.size]
    with torch.no_grad():
        logits = model(input_ids=ids, **keywords).logits[0]
        answer = model.generate(ids, do_sample=False, max_new_tokens=8, **keywords)[0]
    return logits, answer.tolist()


def logits_there(folder, kind, text, picture):
    """The same by plain transformers."""
    model, processor = kind.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    parts = [{"type": "image"}] if picture else []
    message = {"role": "user", "content": [*parts, {"type": "text", "text": text}]}
    prompt = processor.apply_chat_template([message], add_generation_prompt=True)
    inputs = processor(text=prompt, images=picture, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits[0]
        output = model.generate(**inputs, do_sample=False, max_new_tokens=8)[0]
    return logits, output[inputs.input_ids.shape[1] :].tolist()


@pytest.mark.parametrize(
    ("name", "ratio", "kind"),
    [
        ("tiny-llava", "pad", LlavaForConditionalGeneration),
        ("tiny-llava", "square", LlavaForConditionalGeneration),
        ("tiny-llava-anyres-unpad", "anyres", LlavaNextForConditionalGeneration),
    ],
)
def test_plain_transformers_gives_the_same_logits_and_answers(
    name, ratio, kind, checkpoint, pictures, tmp_path
):
    folder = checkpoint(name, image_aspect_ratio=ratio)
    export_hf(folder, tmp_path / "out", conv_mode="v1")
    assert all(finding.ok for finding in check_folder(tmp_path / "out"))
    for picture in (*pictures, None):
        ours, our_answer = logits_here(folder, "What is this?", picture)
        theirs, their_answer = logits_there(tmp_path / "out", kind, "What is this?", picture)
        assert ours.shape[0] == theirs.shape[0]
        torch.testing.assert_close(theirs[:, : ours.shape[1]], ours, atol=1e-5, rtol=1e-5)
        assert their_answer == our_answer


@pytest.mark.parametrize("name", ["tiny-llava", "tiny-llava-anyres-unpad"])
def test_what_was_exported_comes_back_bit_for_bit(name, checkpoint, tmp_path):
    folder = checkpoint(name)
    export_hf(folder, tmp_path / "hf", conv_mode="v1")
    import_hf(tmp_path / "hf", tmp_path / "back")
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "back"))
    assert before.keys() == after.keys()  # the tower's, too, which this checkpoint carries
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    towers = [
        load_pretrained_model(str(p), None, "llava", device="cpu")
        for p in (folder, tmp_path / "back")
    ]
    assert towers[0][0]("Wie geht's?").input_ids == towers[1][0]("Wie geht's?").input_ids
    assert len(towers[0][0]) == len(towers[1][0])
    for side in ("padding_side", "pad_token", "add_bos_token"):
        assert getattr(towers[0][0], side) == getattr(towers[1][0], side)
    assert cmp(folder / "tokenizer.model", tmp_path / "back" / "tokenizer.model", False)
    assert not (tmp_path / "back" / "added_tokens.json").exists()
    assert json.loads((tmp_path / "back" / "config.json").read_text())["rope_theta"] == 10000.0
    assert not (tmp_path / "back" / "vision_tower" / "model.safetensors").exists()
    first, second = (t[1].get_vision_tower().state_dict() for t in towers)
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[key]) for key, value in first.items())


@pytest.mark.parametrize("level", ["", "vision_model.", "vision_model.vision_model."])
def test_a_folder_of_someone_else_is_imported(level, checkpoint, pictures, tmp_path):
    folder = checkpoint("tiny-llava", image_aspect_ratio="pad")
    export_hf(folder, tmp_path / "hf", conv_mode="v1")
    (tmp_path / "hf" / "llava_config.json").unlink()
    path = tmp_path / "hf" / "model.safetensors"
    weights = {k.replace("vision_model.", level): v for k, v in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})
    import_hf(tmp_path / "hf", tmp_path / "back")
    ours, answer = logits_here(folder, "What is this?", pictures[0])
    theirs, their_answer = logits_here(tmp_path / "back", "What is this?", pictures[0])
    torch.testing.assert_close(theirs[:, : ours.shape[1]], ours, atol=1e-5, rtol=1e-5)
    assert answer == their_answer


def test_an_export_has_what_servers_read(checkpoint, tmp_path):
    ratio = {"image_aspect_ratio": "pad"}
    folder = checkpoint("tiny-llava", rope_theta=5e5, **ratio)
    export_hf(folder, tmp_path / "hf", conv_mode="v1")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (config["image_aspect_ratio"], config["mm_patch_merge_type"]) == ("pad", "flat")
    assert config["text_config"]["architectures"] == ["LlamaForCausalLM"]
    assert config["text_config"]["rope_theta"] == 5e5
    assert str(tmp_path) not in (tmp_path / "hf" / "config.json").read_text()
    keys = load_file(tmp_path / "hf" / "model.safetensors")
    tower = [key for key in keys if "vision_tower" in key]
    assert tower and all(key.startswith("vision_tower.vision_model.") for key in tower)
    _, info = LlavaForConditionalGeneration.from_pretrained(
        tmp_path / "hf", output_loading_info=True
    )
    assert not any(info.values())


def test_the_usual_call_of_a_processor_writes_bos_once(checkpoint, pictures, tmp_path):
    export_hf(checkpoint("tiny-llava"), tmp_path / "hf", conv_mode="v1")
    processor = AutoProcessor.from_pretrained(tmp_path / "hf")
    content = [{"type": "image"}, {"type": "text", "text": "What?"}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    ids = processor(images=pictures[0], text=prompt).input_ids[0]
    assert ids.count(processor.tokenizer.bos_token_id) == 1 and prompt.startswith("<s>")


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("name", [name for name in conv_templates if name not in PLAIN])
def test_chat_templates_give_llavas_prompts(name, legacy, llama_tokenizer):
    tokenizer = copy.deepcopy(llama_tokenizer(legacy))
    image = add_image_token(tokenizer)
    conv = get_conversation(name)
    source = chat_template(conv, tokenizer)
    turns = ["<image>\nWhat?", "A dog, čičak.", "Where <is> it?", "Here."]
    messages = []
    for index, text in enumerate(turns):
        conv.append_message(conv.roles[index % 2], text)
        messages.append({"role": ("user", "assistant")[index % 2], "content": text})
    text = tokenizer.apply_chat_template(messages, chat_template=source, tokenize=False)
    wanted = tokenizer_image_token(conv.get_prompt(), llama_tokenizer(legacy))
    wanted = [image if token == IMAGE_TOKEN_INDEX else token for token in wanted]
    assert tokenizer(text, add_special_tokens=False).input_ids == wanted


# the labels of v0 lie beside the answers, as in LLaVA
TRAINED = [n for n, c in conv_templates.items() if c.sep_style.name in ("TWO", "MPT", "LLAMA_2")]


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("name", TRAINED)
def test_generation_marks_are_the_supervised_labels(name, legacy, llama_tokenizer):
    tokenizer = copy.deepcopy(llama_tokenizer(legacy))
    image = add_image_token(tokenizer)
    tokenizer.chat_template = chat_template(get_conversation(name), tokenizer)
    turns = ["<image>\nWhat?", "A dog, čičak.", "Where <is> it?", "Here."]
    messages = [
        {"role": ("user", "assistant")[index % 2], "content": text}
        for index, text in enumerate(turns)
    ]
    found = tokenizer.apply_chat_template(
        messages, return_assistant_tokens_mask=True, return_dict=True
    )
    said = [Turn(("human", "gpt")[index % 2], text) for index, text in enumerate(turns)]
    wanted = encode_turns(said, get_conversation(name), llama_tokenizer(legacy))
    ids = [image if token == IMAGE_TOKEN_INDEX else token for token in wanted.input_ids]
    assert found["input_ids"] == ids
    assert found["assistant_masks"] == [int(label != IGNORE_INDEX) for label in wanted.labels]


@pytest.mark.parametrize("name", ["v0", "v1", "llama_2", "mpt"])  # one of each style
@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "no message from user"),
        ([{"role": "system", "content": "Be brief."}], "no message from user"),
        ([{"role": "user", "content": "Hi"}, {"role": "tool", "content": "3"}], "from tool"),
        ([{"role": "user", "content": "Hi"}, {"role": "system", "content": "3"}], "from system"),
        ([{"role": "user", "content": [{"type": "video"}]}], "type video"),
    ],
)
def test_what_a_template_cannot_say_is_refused(name, messages, message, llama_tokenizer):
    tokenizer = copy.deepcopy(llama_tokenizer())
    add_image_token(tokenizer)
    source = chat_template(get_conversation(name), tokenizer)
    with pytest.raises(TemplateError, match=message):
        # not by the tokenizer, which refuses an empty list itself
        render_jinja_template(conversations=[messages], chat_template=source)


@pytest.mark.parametrize("name", PLAIN)
def test_a_template_without_chats_is_refused(name, llama_tokenizer):
    with pytest.raises(ConfigError, match="--conv-mode"):
        chat_template(get_conversation(name), llama_tokenizer())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end"),
        ({"image_aspect_ratio": "anyres", "image_grid_pinpoints": [[28, 56]]}, "'flat'"),
    ],
)
def test_what_transformers_cannot_hold_is_refused(settings, message, checkpoint, tmp_path):
    with pytest.raises(ConfigError, match=message):
        export_hf(checkpoint("tiny-llava", **settings), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_projector_is_refused(checkpoint, tmp_path):
    with pytest.raises(ConfigError, match="projector 'linear'"):
        export_hf(checkpoint("tiny-llava-linear"), tmp_path / "out")


def test_folders_are_neither_overwritten_nor_guessed(checkpoint, tmp_path):
    folder = checkpoint("tiny-llava")
    with pytest.raises(ConfigError, match="exists"):
        export_hf(folder, tmp_path)
    with pytest.raises(ConfigError, match="exists"):
        import_hf(folder, tmp_path)
    with pytest.raises(ConfigError, match="'llava_llama'; expected one of transformers' own"):
        import_hf(folder, tmp_path / "new")
    hf = tmp_path / "hf"
    hf.mkdir()
    (hf / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(CheckpointError, match="hf holds no weights; expected model.safetensors"):
        import_hf(hf, tmp_path / "new")


def test_the_check_names_what_is_missing(checkpoint, tmp_path):
    export_hf(checkpoint("tiny-llava"), tmp_path / "out", conv_mode="v1")
    (tmp_path / "out" / "chat_template.jinja").unlink()
    (tmp_path / "out" / "model.safetensors").unlink()
    wrong = {finding.item for finding in check_folder(tmp_path / "out") if not finding.ok}
    assert wrong == {"chat template", "weights", "vision tower", "vocabulary"}


def test_the_check_says_which_servers_load_a_folder(checkpoint, tmp_path):
    out = tmp_path / "out"
    export_hf(checkpoint("tiny-llava"), out, conv_mode="v1")
    loads = {server.item.split()[0]: server.ok for server in check_servers(check_folder(out))}
    assert loads == {"transformers": True, "vLLM": True, "SGLang": False}
    config = json.loads((out / "config.json").read_text())
    for tiles in (4, 9):  # vLLM's class counts with nine
        config["vision_aspect_ratio"] = f"anyres_max_{tiles}"
        (out / "config.json").write_text(json.dumps(config))
        _, vllm, _ = check_servers(check_folder(out))
        assert vllm.ok == (tiles == 9)
        assert ("anyres_max_4 for anyres_max_9" in vllm.found) == (tiles == 4)
    weights = load_file(out / "model.safetensors")
    weights = {key.replace("vision_model.", ""): value for key, value in weights.items()}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    wrong = [finding for finding in check_folder(out) if not finding.ok]
    assert [finding.item for finding in wrong] == ["vision tower"]
    assert "vision_tower.embeddings.class_embedding and 54 more keys" in wrong[0].found
    servers = {server.item.split()[0]: server for server in check_servers(wrong)}
    assert servers["transformers"].ok and not servers["vLLM"].ok
    assert "vision tower" in servers["vLLM"].found
