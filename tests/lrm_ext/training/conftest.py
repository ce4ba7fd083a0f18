"""A parallel corpus of twelve rows in three languages, and tiny base models."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from llava.data.sample import Turn
from lrm_ext.corpus.store import Corpus, CorpusRow
from lrm_ext.corpus.writer import CorpusWriter
from lrm_ext.languages.templates import register_templates

GOLDEN = Path(__file__).parents[2] / "golden" / "llava" / "model"
WORDS = {
    "en": ("What is it?", "It is number {}."),
    "hr": ("Što je to?", "To je broj {}."),
    "zh": ("这是什么？", "这是第{}号。"),
}


@pytest.fixture(autouse=True, scope="session")
def templates():
    register_templates()


@pytest.fixture(scope="session")
def corpus_path(tmp_path_factory) -> Path:
    """Rows 3, 7 and 11 have no picture; answers grow longer."""
    root = tmp_path_factory.mktemp("corpus")
    (root / "images").mkdir()
    rng = np.random.default_rng(0)
    with CorpusWriter(root / "small", ("hr", "zh"), image_root="../images") as writer:
        for i in range(12):
            has_image = i % 4 != 3
            if has_image:
                pixels = rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / "images" / f"{i}.png")
            texts = {lang: _turns(lang, i, has_image) for lang in WORDS}
            row = CorpusRow(
                id=f"r{i}",
                image=f"{i}.png" if has_image else None,
                source="made up",
                task="naming",
                translatable=True,
                turns=texts.pop("en"),
            )
            writer.append(row, texts)
    return root / "small"


def _turns(lang: str, number: int, has_image: bool) -> tuple[Turn, ...]:
    question, answer = WORDS[lang]
    placeholder = "<image>\n" if has_image else ""
    text = " ".join([answer.format(number)] * (1 + number % 3))
    return (Turn("human", placeholder + question), Turn("gpt", text))


@pytest.fixture(scope="session")
def corpus(corpus_path) -> Corpus:
    return Corpus.open(corpus_path)


@pytest.fixture(scope="session")
def tiny_tokenizer():
    from llava.model.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(GOLDEN / "tiny-llava", model_max_length=256, padding_side="right")
    tokenizer.pad_token = tokenizer.unk_token
    return tokenizer


@pytest.fixture(scope="session")
def tiny_tower_path() -> Path:
    return GOLDEN / "tiny-clip"


@pytest.fixture(scope="session")
def tiny_tower(tiny_tower_path):
    from types import SimpleNamespace

    from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower

    return CLIPVisionTower(str(tiny_tower_path), SimpleNamespace(mm_vision_select_layer=-2))


@pytest.fixture(scope="session")
def tiny_llm(tmp_path_factory, tiny_tokenizer) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models") / "tiny-llm"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for path in (GOLDEN / "tiny-llava").glob("*token*"):
        shutil.copy(path, folder)
    return folder


@pytest.fixture
def lrm_flags(tiny_llm, tiny_tower_path, corpus_path, tmp_path):
    """The words of a command line; keyword arguments replace or add flags."""

    def words(**changes) -> list[str]:
        values = {
            "model_name_or_path": tiny_llm,
            "vision_tower": tiny_tower_path,
            "version": "lrm_v1",
            "corpus_path": corpus_path,
            "image_aspect_ratio": "pad",
            "mm_projector_type": "mlp2x_gelu",
            "mm_vision_select_layer": -2,
            "mm_use_im_patch_token": False,
            "output_dir": tmp_path / "out",
            "use_cpu": True,
            "per_device_train_batch_size": 4,
            "max_steps": 4,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "model_max_length": 512,
            "report_to": "none",
            **changes,
        }
        pairs = [(f"--{name}", str(value)) for name, value in values.items() if value is not None]
        return [word for pair in pairs for word in pair]

    return words


@pytest.fixture
def run_lrm(monkeypatch, lrm_flags, tmp_path):
    """Run the entry point in this process; keyword arguments replace or add flags."""

    def run(**changes) -> Path:
        from lrm_ext.training.train import train_mixture

        monkeypatch.setattr(sys, "argv", ["train", *lrm_flags(**changes)])
        train_mixture()
        return Path(changes.get("output_dir", tmp_path / "out"))

    return run
