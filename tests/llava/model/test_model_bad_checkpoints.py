"""Checkpoints that are cut short or another model's: the error names file, weights and remedy."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava.errors import CheckpointError, ConfigError
from llava.mm_utils import tokenizer_image_token
from llava.model.builder import load_pretrained_model

PROJECTOR = "model.mm_projector.2.bias"


@pytest.fixture
def checkpoint(models, tmp_path):
    shutil.copytree(models / "tiny-clip", tmp_path / "tiny-clip")
    return shutil.copytree(models / "tiny-llava", tmp_path / "c")


def load(path, base=None):
    return load_pretrained_model(str(path), base and str(base), "c", device="cpu")


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def shard(folder, move=()):
    """Write the weights as two shards and an index; `move` swaps weights without telling it."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    place = {key: files["mm_projector" in key] for key in weights}
    index = {"metadata": {}, "weight_map": place}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for file in files:
        held = {k: v for k, v in weights.items() if (place[k] == file) != (k in move)}
        save_file(held, folder / file, metadata={"format": "pt"})
    return files


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def cut(name, num_bytes):
    return lambda folder: write(name, (folder / name).read_bytes()[:num_bytes])(folder)


def foreign(folder):
    tensors = {"bert.encoder.weight": torch.zeros(3)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def pickled_and_cut(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    cut("pytorch_model.bin", 5000)(folder)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 3\n"
CASES = {
    "weights cut short": (
        cut("model.safetensors", 9000),
        r"c/model\.safetensors: not readable.*incomplete",
    ),
    "weights empty": (write("model.safetensors", b""), r"c/model\.safetensors: not readable"),
    "weights are a pointer": (write("model.safetensors", LFS), r"Git LFS.*git lfs pull"),
    "pickle cut short": (pickled_and_cut, r"c/pytorch_model\.bin: not readable"),
    "another model's weights": (
        foreign,
        r"\(model\.safetensors\): \d+ weights are missing.*lm_head\.weight.*1 others.*"
        r"bert\.encoder\.weight.*another model's",
    ),
    "another depth": (
        lambda folder: edit_config(folder, num_hidden_layers=3),
        r"\(model\.safetensors\): 9 weights are missing.*model\.layers\.2\.",
    ),
    "another width": (
        lambda folder: edit_config(folder, intermediate_size=64),
        r"6 weights do not fit.*mlp\.down_proj\.weight: \(48, 96\), expected \(48, 64\)",
    ),
    "another tower's projector": (
        lambda folder: edit_config(folder, mm_hidden_size=64),
        r"1 weights do not fit.*mm_projector\.0\.weight: \(48, 32\), expected \(48, 64\)",
    ),
    "another projector": (
        lambda folder: edit_config(folder, mm_projector_type="linear"),
        r"mm_projector\.bias.*4 others.*mm_projector\.0\.bias",
    ),
    "configuration of wrong types": (
        lambda folder: edit_config(folder, hidden_size="wide"),
        r"c/config\.json: .*hidden_size",
    ),
    "configuration cut short": (cut("config.json", 100), r"c/config\.json: not readable as JSON"),
    "no vocabulary": (
        lambda folder: (folder / "tokenizer.model").unlink(),
        r"neither tokenizer\.model nor tokenizer\.json",
    ),
    "vocabulary cut short": (
        cut("tokenizer.model", 5000),
        r"c/tokenizer\.model: no SentencePiece model",
    ),
    "tokenizer.json cut short": (
        write("tokenizer.json", b'{"version": "1.0", "tr'),
        r"c: cannot load its tokenizer",
    ),
    "tower's processor cut short": (
        lambda folder: write("preprocessor_config.json", b"{")(folder.parent / "tiny-clip"),
        r"vision tower .*tiny-clip.*preprocessor_config\.json",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_error_names_what_is_wrong(name, checkpoint):
    spoil, message = CASES[name]
    spoil(checkpoint)
    with pytest.raises(CheckpointError, match=message):
        load(checkpoint)


def test_another_language_model(checkpoint):
    edit_config(checkpoint, model_type="bert", architectures=["LlavaBertForCausalLM"])
    with pytest.raises(ConfigError, match="'bert' does not work.*docs/models.md.*llama, .*mpt"):
        load(checkpoint)


def test_shards_load_and_a_swapped_one_is_named(checkpoint, models):
    again = shutil.copytree(checkpoint, checkpoint.parent / "again")
    shard(again)
    loaded = load(again)[1].state_dict()
    assert all(
        torch.equal(loaded[key], value) for key, value in load(checkpoint)[1].state_dict().items()
    )
    files = shard(checkpoint, move=[PROJECTOR])
    message = (
        rf"{files[1]}: 1 weights are missing that the index places here.*mm_projector\.2\.bias"
    )
    with pytest.raises(CheckpointError, match=message):
        load(checkpoint)


def test_buffers_of_old_checkpoints_are_left_out_quietly(checkpoint, caplog):
    weights = load_file(checkpoint / "model.safetensors")
    tower = "model.vision_tower.vision_tower.vision_model.embeddings.position_ids"
    weights[tower] = torch.arange(17)[None]
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(6)
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    load(checkpoint)
    assert "not used" not in caplog.text
    weights["model.layers.0.extra"] = torch.ones(6)
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    load(checkpoint)
    assert "1 weights not used" in caplog.text and "model.layers.0.extra" in caplog.text


@pytest.mark.parametrize("rows", [2000, 2002])
def test_a_tokenizer_that_lacks_the_image_tokens_gets_them(checkpoint, rows):
    """As in LLaVA; rows that the checkpoint has for them stay, others are the mean."""
    weights = load_file(checkpoint / "model.safetensors")
    old = weights["model.embed_tokens.weight"]
    if rows > len(old):
        for key in ("model.embed_tokens.weight", "lm_head.weight"):
            weights[key] = torch.cat([weights[key], torch.ones(rows - len(old), 48)])
        save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    edit_config(checkpoint, mm_use_im_start_end=True, vocab_size=rows)
    tokenizer, model, *_ = load(checkpoint)
    assert tokenizer.convert_tokens_to_ids(["<im_start>", "<im_end>"]) == [2000, 2001]
    ids = tokenizer_image_token("<im_start><image><im_end>a", tokenizer)
    assert ids[1:4] == [2000, -200, 2001]
    new = model.get_input_embeddings().weight[2000:]
    expected = torch.ones(2, 48) if rows > len(old) else old.mean(dim=0).expand(2, 48)
    torch.testing.assert_close(new, expected)
