import json
import shutil
from filecmp import cmp
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from llava.errors import CheckpointError, ConfigError
from llava.model import LlavaConfig, LlavaLlamaForCausalLM, LlavaMistralForCausalLM
from llava.model.builder import load_pretrained_model
from llava.model.checkpoint import save_tower
from llava.model.language_model.llava_mistral import LlavaMistralConfig
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.model.multimodal_encoder.families import resolve_tower
from llava.model.tokenizer import load_tokenizer

TOKENIZER_FILES = ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")


def edit_json(path, **changes):
    content = json.loads(path.read_text())
    for key, value in changes.items():
        if value is None:
            content.pop(key, None)
        else:
            content[key] = value
    path.write_text(json.dumps(content))


@pytest.fixture
def checkpoint(models, tmp_path):
    """A copy of tiny-llava called `runs/mini`, its tower beside it."""
    shutil.copytree(models / "tiny-clip", tmp_path / "runs" / "tiny-clip")
    return shutil.copytree(models / "tiny-llava", tmp_path / "runs" / "mini")


@pytest.fixture
def base(models, tmp_path):
    """The language model of tiny-llava without its multimodal parts."""
    folder = tmp_path / "base"
    folder.mkdir()
    for name in TOKENIZER_FILES:
        shutil.copy(models / "tiny-llava" / name, folder)
    weights = load_file(models / "tiny-llava" / "model.safetensors")
    weights = {k: v for k, v in weights.items() if "vision_tower" not in k and "mm_" not in k}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((models / "tiny-llava" / "config.json").read_text())
    config = {key: value for key, value in config.items() if not key.startswith("mm_")}
    config.update(model_type="llama", architectures=["LlamaForCausalLM"])
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def load(path, base=None, name="mini", **kwargs):
    return load_pretrained_model(str(path), base and str(base), name, device="cpu", **kwargs)


def answer(model, golden, pixels):
    case = golden["generate"][0]
    ids = torch.tensor([case["input_ids"]])
    return model.generate(ids, images=pixels[:1], do_sample=False, max_new_tokens=12).tolist()


def expected_answer(golden):
    return [golden["generate"][0]["output_ids"][1:]]


def test_nothing_missing_and_nothing_unexpected(models):
    for name in ("tiny-llava", "tiny-llava-linear", "tiny-llava-anyres-unpad"):
        _, info = LlavaLlamaForCausalLM.from_pretrained(models / name, output_loading_info=True)
        assert not any(info.values()), name


def test_whole_model_in_a_folder_of_any_name(checkpoint, golden, pixels):
    tokenizer, model, processor, context_len = load(checkpoint)
    assert isinstance(model, LlavaLlamaForCausalLM) and not model.training
    assert model.dtype == model.get_vision_tower().dtype == torch.float32
    assert processor.crop_size["height"] == 28 and context_len == 256
    assert tokenizer("a").input_ids[0] == tokenizer.bos_token_id
    assert answer(model, golden, pixels) == expected_answer(golden)


def test_released_checkpoints_call_themselves_llava(checkpoint, golden, pixels):
    edit_json(checkpoint / "config.json", model_type="llava")
    assert answer(load(checkpoint)[1], golden, pixels) == expected_answer(golden)


def test_native_llava_format_is_named(checkpoint):
    theirs = ["LlavaForConditionalGeneration"]
    edit_json(
        checkpoint / "config.json", model_type="llava", architectures=theirs, mm_vision_tower=None
    )
    with pytest.raises(ConfigError, match="transformers' own 'llava' model"):
        load(checkpoint)


def test_checkpoint_without_the_towers_weights_reads_the_tower(checkpoint, golden, pixels):
    weights = load_file(checkpoint / "model.safetensors")
    weights = {key: value for key, value in weights.items() if "vision_tower" not in key}
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    assert not LlavaLlamaForCausalLM.from_pretrained(checkpoint).get_vision_tower().is_loaded
    assert answer(load(checkpoint)[1], golden, pixels) == expected_answer(golden)


def test_trained_tower_comes_from_the_checkpoint(checkpoint):
    weights = load_file(checkpoint / "model.safetensors")
    key = "model.vision_tower.vision_tower.vision_model.pre_layrnorm.bias"
    weights[key] += 1
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    tower = load(checkpoint)[1].get_vision_tower()
    torch.testing.assert_close(tower.vision_tower.pre_layrnorm.bias, weights[key])
    assert tower.is_frozen


def test_projector_on_its_base(base, models, tmp_path, golden, pixels):
    folder = tmp_path / "stage1"
    folder.mkdir()
    shutil.copy(models / "tiny-llava" / "config.json", folder)
    shutil.copy(models / "tiny-llava-mm_projector.bin", folder / "mm_projector.bin")
    shutil.copytree(models / "tiny-clip", tmp_path / "tiny-clip")
    model = load(folder, base)[1]
    assert answer(model, golden, pixels) == expected_answer(golden)
    with pytest.raises(ConfigError, match="name its base"):
        load(folder)


def test_projector_of_another_shape(base, models, tmp_path):
    shutil.copytree(models / "tiny-clip", tmp_path / "tiny-clip")
    folder = tmp_path / "stage1"
    folder.mkdir()
    shutil.copy(models / "tiny-llava-linear" / "config.json", folder)
    shutil.copy(models / "tiny-llava-mm_projector.bin", folder / "mm_projector.bin")
    with pytest.raises(CheckpointError, match="projector does not fit"):
        load(folder, base)


def test_lora_on_its_base(base, checkpoint, models, tmp_path, golden, pixels):
    peft = pytest.importorskip("peft")
    model = LlavaLlamaForCausalLM.from_pretrained(checkpoint)
    config = peft.LoraConfig(r=2, target_modules=r"model\.layers\..*q_proj", task_type="CAUSAL_LM")
    torch.manual_seed(0)
    lora = peft.get_peft_model(model, config)
    for name, parameter in lora.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    folder = checkpoint.parent / "adapters"
    lora.save_pretrained(folder)
    model.config.save_pretrained(folder)
    kept = {k: v for k, v in lora.state_dict().items() if "mm_projector" in k}
    torch.save(kept, folder / "non_lora_trainables.bin")
    wanted = answer(lora.merge_and_unload(), golden, pixels)
    assert wanted != expected_answer(golden)

    assert answer(load(folder, base)[1], golden, pixels) == wanted
    (folder / "non_lora_trainables.bin").unlink()
    with pytest.raises(CheckpointError, match="non_lora_trainables"):
        load(folder, base)


def test_text_only_model(base, golden):
    tokenizer, model, processor, context_len = load(base, name="llava-by-name-only")
    assert isinstance(model, LlamaForCausalLM) and not isinstance(model, LlavaLlamaForCausalLM)
    assert processor is None and context_len == 256


def test_mistral(models, tmp_path, pixels, golden):
    shutil.copytree(models / "tiny-clip", tmp_path / "tiny-clip")
    folder = shutil.copytree(models / "tiny-llava", tmp_path / "m")
    edit_json(folder / "config.json", model_type="llava_mistral", sliding_window=4096)
    model = load(folder)[1]
    assert isinstance(model, LlavaMistralForCausalLM)
    # same weights, same arithmetic
    assert answer(model, golden, pixels) == expected_answer(golden)


@pytest.mark.parametrize("cut", ["weights", "no weights", "config", "shard", "tower"])
def test_half_written_checkpoint_is_refused(checkpoint, cut):
    weights = checkpoint / "model.safetensors"
    if cut == "weights":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif cut == "no weights":
        weights.unlink()
    elif cut == "config":
        path = checkpoint / "config.json"
        path.write_text(path.read_text()[:100])
    elif cut == "shard":
        weights.rename(checkpoint / "model-00001-of-00002.safetensors")
        names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
        index = checkpoint / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": names}))
    elif cut == "tower":
        tensors = load_file(weights)
        tensors.pop("model.vision_tower.vision_tower.vision_model.pre_layrnorm.bias")
        save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(CheckpointError):
        load(checkpoint)


def test_missing_weight_is_named(checkpoint):
    tensors = load_file(checkpoint / "model.safetensors")
    tensors.pop("model.mm_projector.2.bias")
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 weights are missing.*mm_projector\.2\.bias"):
        load(checkpoint)


def test_folder_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for name in ("runs/mini", "/nowhere/mini", "mini"):
        with pytest.raises(CheckpointError, match="no such folder"):
            load(name)


def test_quantised_loading_without_bitsandbytes(checkpoint, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install bitsandbytes"):
        load(checkpoint, load_4bit=True)


def test_tower_is_looked_for_in_order(tmp_path, models, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint = tmp_path / "run" / "checkpoint-5"
    checkpoint.mkdir(parents=True)
    places = [tmp_path, checkpoint, tmp_path / "run"]
    for place in reversed(places):
        shutil.copytree(models / "tiny-clip", place / "tower")
    for place in places:
        found = resolve_tower("tower", checkpoint)
        assert (tmp_path / found).samefile(place / "tower")
        shutil.rmtree(place / "tower")
    with pytest.raises(ConfigError, match="Unknown vision tower: 'tower'"):
        resolve_tower("tower", checkpoint)
    assert resolve_tower("openai/clip-vit-large-patch14") == "openai/clip-vit-large-patch14"


def test_tokenizer_defaults_of_old_folders(checkpoint):
    with_keys = load_tokenizer(checkpoint)
    for key in ("legacy", "add_bos_token", "add_eos_token", "padding_side"):
        edit_json(checkpoint / "tokenizer_config.json", **{key: None})
    tokenizer = load_tokenizer(checkpoint)
    probe = "a</s>USER"
    assert tokenizer(probe).input_ids == with_keys(probe).input_ids
    pieces = tokenizer.convert_ids_to_tokens(tokenizer(probe).input_ids)
    assert pieces[:4] == ["<s>", "\u2581a", "</s>", "\u2581"]
    assert tokenizer.padding_side == "right"
    assert load_tokenizer(checkpoint, padding_side="left").padding_side == "left"


def test_tokenizer_keys_that_are_written_win(checkpoint):
    edit_json(checkpoint / "tokenizer_config.json", legacy=False, add_bos_token=False)
    tokenizer = load_tokenizer(checkpoint)
    pieces = tokenizer.convert_ids_to_tokens(tokenizer("a</s>U").input_ids)
    assert pieces[:2] == ["\u2581a", "</s>"] and pieces[2] != "\u2581"


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("add_bos_token", [True, False])
def test_tokenizer_saved_again_gives_the_same_ids(checkpoint, tmp_path, legacy, add_bos_token):
    edit_json(checkpoint / "tokenizer_config.json", legacy=legacy, add_bos_token=add_bos_token)
    tokenizer = load_tokenizer(checkpoint)
    tokenizer.save_pretrained(tmp_path / "ours")
    # a tokenizer that somebody else loaded loses the keys when it is saved
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(tmp_path / "theirs")
    for folder in ("ours", "theirs"):
        again = load_tokenizer(tmp_path / folder)
        for text in ("a</s>USER", " b", "\nUSER: a"):
            assert again(text).input_ids == tokenizer(text).input_ids, folder
        assert again.padding_side == "right"


def test_a_saved_tokenizer_has_what_transformers_4_reads(checkpoint, tmp_path):
    edit_json(checkpoint / "tokenizer_config.json", add_bos_token=False)
    tokenizer = load_tokenizer(checkpoint)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.add_tokens(["<im_patch>"], special_tokens=True)
    tokenizer.save_pretrained(tmp_path / "first")
    again = load_tokenizer(tmp_path / "first")
    again.save_pretrained(tmp_path / "second")
    for folder in ("first", "second"):
        saved = tmp_path / folder
        assert cmp(saved / "tokenizer.model", checkpoint / "tokenizer.model", False)
        added = json.loads((saved / "added_tokens.json").read_text())
        assert added == {"[PAD]": 2000, "<im_patch>": 2001}
        settings = json.loads((saved / "tokenizer_config.json").read_text())
        assert settings["tokenizer_class"] == "LlamaTokenizer" and settings["legacy"] is True
        assert settings["add_bos_token"] is False and settings["add_eos_token"] is False
    probe = "a</s>USER<im_patch> b[PAD]"
    assert again(probe).input_ids == tokenizer(probe).input_ids


def test_a_tokenizer_whose_base_is_gone_is_saved_with_a_warning(checkpoint, tmp_path, caplog):
    tokenizer = load_tokenizer(checkpoint)
    (checkpoint / "tokenizer.model").unlink()
    tokenizer.save_pretrained(tmp_path / "out")
    assert "tokenizer.model is not written" in caplog.text
    assert load_tokenizer(tmp_path / "out")("a b").input_ids == tokenizer("a b").input_ids


@pytest.mark.parametrize("legacy", [True, False])
def test_a_mistral_folder_gives_the_ids_of_its_sentencepiece_model(checkpoint, legacy):
    edit_json(checkpoint / "tokenizer_config.json", legacy=legacy)
    probe = "a</s>USER: b"
    wanted = load_tokenizer(checkpoint)(probe).input_ids
    edit_json(checkpoint / "config.json", model_type="mistral")
    assert load_tokenizer(checkpoint)(probe).input_ids == wanted


def test_tokenizer_without_bos_is_refused(checkpoint, monkeypatch):
    from llava.model import tokenizer as module

    plain = module.LlamaTokenizer.from_pretrained(checkpoint, add_bos_token=False)
    monkeypatch.setattr(module.LlamaTokenizer, "from_pretrained", lambda *a, **k: plain)
    with pytest.raises(CheckpointError, match="expected BOS"):
        load_tokenizer(checkpoint)


@pytest.mark.parametrize("kind", [LlavaConfig, LlavaMistralConfig])
@pytest.mark.parametrize("scaling", [None, "linear", "dynamic", "llama3"])
def test_saved_rope_settings_are_read_by_transformers_4(kind, scaling, tmp_path):
    more = {"low_freq_factor": 1.0, "high_freq_factor": 4.0} if scaling == "llama3" else {}
    given = None if scaling is None else {"rope_type": scaling, "factor": 2.0, **more}
    config = kind(rope_theta=5e5, rope_scaling=given, max_position_embeddings=64)
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["rope_theta"] == 5e5
    if scaling == "llama3":
        more["original_max_position_embeddings"] = 64
        assert saved["rope_scaling"] == {"rope_type": scaling, "factor": 2.0, **more}
    else:
        wanted = None if scaling is None else {"type": scaling, "factor": 2.0}
        assert saved.get("rope_scaling") == wanted
    again = kind.from_pretrained(tmp_path)
    assert again.rope_parameters.items() >= config.rope_parameters.items()


@pytest.mark.parametrize("old", [True, False])
def test_a_tower_is_read_in_both_spellings_and_saved_in_the_old_one(old, models, tmp_path):
    before = load_file(models / "tiny-clip" / "model.safetensors")
    shutil.copytree(models / "tiny-clip", tmp_path / "tower")
    state = before if old else {k.removeprefix("vision_model."): v for k, v in before.items()}
    save_file(state, tmp_path / "tower" / "model.safetensors", metadata={"format": "pt"})
    args = SimpleNamespace(mm_vision_select_layer=-2)
    save_tower(CLIPVisionTower(str(tmp_path / "tower"), args).vision_tower, tmp_path / "out")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert after.keys() == {k for k in before if not k.endswith("position_ids")}
    assert all(torch.equal(before[key], value) for key, value in after.items())


def test_saved_keys_are_those_that_were_read(checkpoint, models, tmp_path):
    LlavaLlamaForCausalLM.from_pretrained(checkpoint).save_pretrained(tmp_path / "again")
    before = load_file(models / "tiny-llava" / "model.safetensors")
    after = load_file(tmp_path / "again" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_tower_loaded_later_is_saved_in_the_old_spelling(checkpoint, base, models, tmp_path):
    config = LlavaConfig.from_pretrained(checkpoint)
    config.mm_vision_tower = str(models / "tiny-clip")
    model = LlavaLlamaForCausalLM.from_pretrained(base, config=config)
    model.get_vision_tower().load_model()
    model.save_pretrained(tmp_path / "again", state_dict=model.state_dict())
    with (
        safe_open(tmp_path / "again" / "model.safetensors", "pt") as found,
        safe_open(models / "tiny-llava" / "model.safetensors", "pt") as expected,
    ):
        assert set(found.keys()) == set(expected.keys())


@pytest.mark.parametrize("old", [True, False])
def test_load_state_dict_reads_both_spellings(checkpoint, old):
    model = LlavaLlamaForCausalLM.from_pretrained(checkpoint)
    state = load_file(checkpoint / "model.safetensors") if old else model.state_dict()
    state = {key: torch.ones_like(value) for key, value in state.items()}
    result = model.load_state_dict(state)
    assert not result.missing_keys and not result.unexpected_keys
    assert (model.get_vision_tower().vision_tower.pre_layrnorm.bias == 1).all()


def test_auto_classes_know_the_model(checkpoint):
    from transformers import AutoConfig, AutoModelForCausalLM

    assert isinstance(AutoConfig.from_pretrained(checkpoint), LlavaConfig)
    assert isinstance(AutoModelForCausalLM.from_pretrained(checkpoint), LlavaLlamaForCausalLM)
    assert not hasattr(LlamaConfig(), "mm_vision_tower")
