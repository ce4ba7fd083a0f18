"""Both stages on other language models than Llama, from the command line to an answer."""

import json

import pytest
import torch

from llava.errors import ConfigError
from llava.model.builder import load_pretrained_model
from llava.model.families import model_type_of
from llava.model.language_model.causal_lm import get_family

SHORT = {"max_steps": 2, "save_steps": 50}


def answers(folder, base=None):
    _, model, processor, _ = load_pretrained_model(
        str(folder), base and str(base), "m", device="cpu"
    )
    side = processor.crop_size["height"]
    image = torch.ones(1, 3, side, side)
    ids = torch.tensor([[1, -200, 5, 6]])
    return model, model.generate(ids, images=image, do_sample=False, max_new_tokens=5)


@pytest.mark.parametrize(
    "name",
    [
        "qwen3",
        "gemma",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("qwen2", "mixtral", "gemma2", "gemma3_text", "cohere2", "phi3", "gpt2")
        ),
    ],
)
def test_both_stages_and_an_answer(name, make_base, run_train, flags, tmp_path):
    base, stage1, stage2 = make_base(name), tmp_path / "stage1", tmp_path / "stage2"
    shared = {"model_name_or_path": base, **SHORT}
    run_train(flags(**shared, tune_mm_mlp_adapter=True, output_dir=stage1))
    adapter = stage1 / "mm_projector.bin"
    run_train(flags(**shared, pretrain_mm_mlp_adapter=adapter, output_dir=stage2))
    config = json.loads((stage2 / "config.json").read_text())
    family = get_family(name)
    assert config["model_type"] == model_type_of(name)
    assert config["architectures"] == [family.model_class.__name__]
    model, found = answers(stage2)
    assert type(model) is family.model_class and found.shape[1] <= 5
    # the projector alone answers, too, on its base
    assert type(answers(stage1, base)[0]) is family.model_class


@pytest.mark.parametrize("name", ["qwen3", pytest.param("gemma2", marks=pytest.mark.slow)])
def test_adapters_and_packing(name, make_base, run_train, flags, tmp_path):
    base = make_base(name)
    lora = {"lora_enable": True, "lora_r": 4, "packing": True, "gradient_checkpointing": True}
    run_train(flags(model_name_or_path=base, **SHORT, **lora))
    model, _ = answers(tmp_path / "out", base)
    assert type(model) is get_family(name).model_class


def test_a_family_that_does_not_work_is_refused(make_base, run_train, flags):
    base = make_base("qwen3")
    path = base / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "bert"}))
    with pytest.raises(ConfigError, match=r"'bert' does not work: .*docs/models.md.*qwen3"):
        run_train(flags(model_name_or_path=base))
