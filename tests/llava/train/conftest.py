"""A made-up data set and tiny base models, small enough that a training run takes a second."""

import functools
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

GOLDEN = Path(__file__).parents[2] / "golden" / "llava" / "model"

COLORS = {"red": (255, 0, 0), "green": (0, 160, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}


@pytest.fixture(scope="session")
def tiny_tower() -> Path:
    return GOLDEN / "tiny-clip"


@pytest.fixture(scope="session")
def tiny_llm(tmp_path_factory) -> Path:
    """A Llama with random weights and the golden tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from llava.model.tokenizer import load_tokenizer

    folder = tmp_path_factory.mktemp("models") / "tiny-llm"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        rope_theta=5e5,
    )
    source = GOLDEN / "tiny-llava"
    tokenizer = load_tokenizer(source)
    config.vocab_size = len(tokenizer)
    LlamaForCausalLM(config).save_pretrained(folder)
    for path in source.glob("*token*"):
        shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    """`data.json` and `images/`: 16 samples, every fourth without a picture."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    records = []
    for i in range(16):
        name = list(COLORS)[i % 4]
        pixels = np.full((20, 30, 3), COLORS[name], dtype=np.uint8)
        pixels[:4] = rng.integers(0, 255, (4, 30, 3))
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
        question, answer = "Which colour is it?", f"It is {name}{' indeed' * (i % 3)}."
        record = {
            "id": f"s{i}",
            "image": f"{i}.png",
            "conversations": [
                {"from": "human", "value": f"<image>\n{question}"},
                {"from": "gpt", "value": answer},
            ],
        }
        if i % 4 == 3:
            del record["image"]
            record["conversations"][0]["value"] = f"What is {i}?"
        records.append(record)
    (folder / "data.json").write_text(json.dumps(records), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def make_flags(tiny_llm, tiny_tower, tiny_data):
    """The command line of a short run; keyword arguments replace or add flags."""

    def make(**changes) -> list[str]:
        values = {
            "model_name_or_path": tiny_llm,
            "vision_tower": tiny_tower,
            "version": "v1",
            "data_path": tiny_data / "data.json",
            "image_folder": tiny_data / "images",
            "image_aspect_ratio": "pad",
            "mm_projector_type": "mlp2x_gelu",
            "mm_vision_select_layer": -2,
            "mm_use_im_start_end": False,
            "mm_use_im_patch_token": False,
            "use_cpu": True,
            "bf16": False,
            "per_device_train_batch_size": 4,
            "max_steps": 4,
            "save_steps": 2,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "model_max_length": 256,
            "report_to": "none",
            **changes,
        }
        pairs = [(f"--{name}", str(value)) for name, value in values.items() if value is not None]
        return [word for pair in pairs for word in pair]

    return make


@pytest.fixture
def flags(make_flags, tmp_path):
    """`make_flags` with an output folder."""
    return functools.partial(make_flags, output_dir=tmp_path / "out")


@pytest.fixture
def run_train(monkeypatch):
    """Run `train()` in this process with a command line."""

    def run(args: list[str], **kwargs) -> None:
        from llava.train.train import train

        monkeypatch.setattr(sys, "argv", ["train", *args])
        train(**kwargs)

    return run


@pytest.fixture
def make_base(tiny_llm, tmp_path):
    """Makes a base model of a family with random weights and the golden tokenizer."""

    def make(name):
        from transformers import AutoConfig, AutoModelForCausalLM

        from tools.families import spread, tiny_config

        folder = tmp_path / name
        torch.manual_seed(0)
        vocab_size = json.loads((tiny_llm / "config.json").read_text())["vocab_size"]
        content = {**tiny_config(name), "vocab_size": vocab_size}
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**content))
        spread(model)
        model.save_pretrained(folder)
        for path in tiny_llm.glob("*token*"):
            shutil.copy(path, folder)
        return folder

    return make


@pytest.fixture
def trained(flags, monkeypatch):
    """Run a training of one step, or of more, in this process; returns its trainer."""
    from llava.train.llava_trainer import LLaVATrainer
    from llava.train.train import train

    def run(**changes):
        seen = []
        save = LLaVATrainer.save_result

        def spy(self):
            seen.append(self)
            save(self)

        monkeypatch.setattr(LLaVATrainer, "save_result", spy)
        if "save_steps" not in changes:
            changes = {"save_strategy": "no", "max_steps": 1, **changes}
        monkeypatch.setattr(sys, "argv", ["train", *flags(**changes)])
        train()
        return seen[0]

    return run
