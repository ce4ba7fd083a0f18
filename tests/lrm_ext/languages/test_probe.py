"""What a base model knows of a language: bits counted as transformers counts its loss."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from llava.errors import ConfigError, UserError
from lrm_ext.cli import app
from lrm_ext.languages import probe

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
PIECES = ["A dog is to the left of a cat.", "Two cats.", "Na slici je pas lijevo od mačke."]


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of random weights that reads bytes."""
    folder = tmp_path_factory.mktemp("bases") / "tiny"
    tokenizer = Tokenizer(models.BPE({b: i for i, b in enumerate(["<s>", *BYTES])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(BYTES) + 1, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=1024, initializer_range=0.4,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def base(base_folder: Path) -> probe.BaseModel:
    return probe.load_base(str(base_folder), "cpu")


def bits_of(base: probe.BaseModel, ids: list[int]) -> float:
    rows = torch.tensor([[base.tokenizer.bos_token_id, *ids]])
    loss: Any = base.model(input_ids=rows, labels=rows).loss
    return float(loss) * len(ids) / math.log(2)


def test_bits_are_those_of_transformers_loss(base: probe.BaseModel) -> None:
    encoded = [base.tokenizer(piece)["input_ids"] for piece in PIECES]
    bits, num_tokens = base.count_bits(PIECES)
    assert num_tokens == sum(map(len, encoded)) == sum(len(p.encode()) for p in PIECES)
    with torch.inference_mode():
        assert bits == pytest.approx(sum(bits_of(base, ids) for ids in encoded), rel=1e-5)


def test_long_text_is_cut_into_windows(
    base: probe.BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = " ".join(PIECES * 3)
    ids = base.tokenizer(text)["input_ids"]
    monkeypatch.setattr(probe, "MAX_WINDOW", 50)
    bits, num_tokens = base.count_bits([text])
    assert num_tokens == len(ids) > 100
    with torch.inference_mode():
        parts = [bits_of(base, ids[place : place + 50]) for place in range(0, len(ids), 50)]
    assert bits == pytest.approx(sum(parts), rel=1e-5)


def test_languages_are_compared_by_the_same_sentences(base: probe.BaseModel) -> None:
    """A model that knows nothing needs log2 of its vocabulary for each token."""
    base.model.lm_head.weight.data.zero_()
    pairs = {"en": [("a cat", "a cat")], "hr": [("a cat", "mačka")]}
    own = probe.ProbeText("hr", "news.txt", ["mačka i pas"])
    english, croatian, text = probe.measure(base, [*probe.parallel_texts(pairs), own])
    assert (english.relative_bits, english.relative_tokens) == (1, 1)
    assert croatian.relative_tokens == 6 / 5  # two bytes for č
    assert croatian.relative_bits == pytest.approx(6 / 5)
    assert croatian.bits_per_character == pytest.approx(math.log2(len(BYTES) + 1) * 6 / 5, rel=1e-5)
    assert (text.relative_bits, text.num_characters, text.num_tokens) == (None, 11, 12)


def test_command(base_folder: Path, tmp_path: Path) -> None:
    text, plot = tmp_path / "vijesti.txt", tmp_path / "probe.png"
    text.write_text("Jučer je padala kiša.\n\nDanas sja sunce.\n", encoding="utf-8")
    given = ["probe", "--base", str(base_folder), "--lang", "hr,cs", "--text", f"hr={text}"]
    given += ["--limit", "5", "--device", "cpu"]
    runner = CliRunner(env={"COLUMNS": "120"})
    shown = runner.invoke(app, [*given, "--out", str(plot)], catch_exceptions=False)
    assert shown.exit_code == 0
    lines = [line for line in shown.stdout.splitlines() if line.startswith("│")]
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]
    assert [row[1] for row in rows] == ["en", "hr", "cs", "hr"]
    assert [row[0] for row in rows] == [base_folder.name, "", "", ""]
    assert rows[3][2] == "vijesti.txt" and "1.00" in rows[0]
    with Image.open(plot) as image:
        assert image.width > 500
    found = json.loads(runner.invoke(app, [*given, "--json"], catch_exceptions=False).stdout)
    assert [one["text"] for one in found] == ["built-in"] * 3 + ["vijesti.txt"]
    assert found[0]["relative_bits"] == 1 and found[3]["relative_bits"] is None


def test_many_languages_are_rows_of_the_worst_and_of_scripts(
    base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lrm_ext.languages.grouping.MAX_ROWS", 3)
    monkeypatch.setattr("lrm_ext.languages.grouping.NUM_WORST", 1)
    given = ["probe", "--base", str(base_folder), "--lang", "hr,cs,ta", "--limit", "3"]
    runner = CliRunner(env={"COLUMNS": "120"})
    shown = runner.invoke(app, [*given, "--device", "cpu"], catch_exceptions=False).stdout
    lines = [line for line in shown.splitlines() if line.startswith("│")]
    assert [line.split("│")[2].strip() for line in lines] == ["en", "ta", "Latin: 2"]
    assert "--all shows every language" in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--base", "./nope"], "./nope is not a folder"),
        (["--base", "runs/nope"], "runs/nope is not a folder"),
        (["--base", "{empty}"], "cannot be loaded as a causal language model"),
        (["--base", "{base}", "--text", "news.txt"], "expected CODE=FILE"),
        (["--base", "{base}", "--text", "hr=nope.txt"], "nope.txt: cannot be read"),
        (["--base", "{base}", "--text", "hr={empty}/blank.txt"], "no text in it"),
        (["--base", "{base}", "--lang", "xx"], "xx"),
        (["--base", "{base}", "--out", "plot.gif"], ".svg"),
    ],
)
def test_bad_input(
    arguments: list[str],
    said: str,
    base_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "blank.txt").write_text(" \n", encoding="utf-8")
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    given = [a.format(base=base_folder, empty=tmp_path) for a in arguments]
    with pytest.raises(UserError, match=said):
        CliRunner().invoke(app, ["probe", *given], catch_exceptions=False, standalone_mode=False)


def test_a_tokenizer_without_a_first_token(base: probe.BaseModel) -> None:
    base.tokenizer.bos_token = None
    with pytest.raises(ConfigError, match="neither a BOS nor an EOS"):
        base.count_bits(PIECES)
