from __future__ import annotations

import re
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from typer.testing import CliRunner

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.data.sample import Turn
from llava.errors import CheckpointError, ConfigError, DataError, TemplateError
from lrm_ext.corpus.store import CorpusRow
from lrm_ext.corpus.writer import CorpusWriter
from lrm_ext.instructions import get_instruction
from lrm_ext.instructions.inspection import encode_sample, load_tokenizer
from lrm_ext.mixture import commands

ROW = CorpusRow(
    "r0",
    "0.jpg",
    "unit",
    "vqa",
    True,
    (Turn("human", "<image>\nIs there a [duck]?"), Turn("gpt", "Yes")),
)
LOCAL = (Turn("human", "<image>\nIma li [patke]?"), Turn("gpt", "Da"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sample") / "corpus"
    with CorpusWriter(path, ["hr", "cs"]) as writer:
        writer.append(ROW, {"hr": LOCAL})
    return path


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE; what it has learnt does not matter here."""
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet
    )
    backend.train_from_iterator(["USER ASSISTANT English"], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    folder = tmp_path_factory.mktemp("tokenizer")
    fast.save_pretrained(folder)
    return folder


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(commands.app, ["sample", *map(str, arguments)])
    if result.exception is not None:
        raise result.exception
    return result.output


def test_sample_as_text_prompt_and_ids(corpus: Path, tokenizer: Path) -> None:
    arguments = ("--lang", "hr", "--instruction", "epvqa", "--corpus", corpus)
    output = run(*arguments, "--tokenizer", tokenizer)
    assert "r0@hr.epvqa" in output
    assert "[[ English: Is there a [duck]?\nOdgovor: Da</s>]]" in output
    sample = get_instruction("epvqa").format(ROW, LOCAL, "hr")
    encoded = encode_sample(sample, "lrm_bare", load_tokenizer(tokenizer))
    printed = {
        name: [int(number) for number in re.findall(r"-?\d+", line)]
        for name, line in re.findall(r"^(input_ids|labels) (.*)$", output, re.MULTILINE)
    }
    assert printed == {"input_ids": encoded.input_ids, "labels": encoded.labels}
    assert encoded.input_ids.count(IMAGE_TOKEN_INDEX) == 1
    supervised = [label for label in encoded.labels if label != IGNORE_INDEX]
    decoded = load_tokenizer(tokenizer).decode(supervised)
    assert decoded.strip() == "English: Is there a [duck]?\nOdgovor: Da</s>"


def test_direction(corpus: Path, tokenizer: Path) -> None:
    arguments = ("--lang", "hr", "--instruction", "bvqa", "--corpus", corpus, "--tokenizer")
    assert "Odgovorite na engleskom." in run(*arguments, tokenizer)
    assert "Answer in Croatian." in run(*arguments, tokenizer, "--direction", "from_en")


def test_template_in_the_language_of_the_answer(corpus: Path, tokenizer: Path) -> None:
    arguments = ("--lang", "hr", "--instruction", "bvqa", "--corpus", corpus, "--tokenizer")
    output = run(*arguments, tokenizer, "--template", "lrm_v1")
    assert "template lrm_v1_en" in output
    output = run(*arguments, tokenizer, "--template", "lrm_v1", "--direction", "from_en")
    assert "template lrm_v1_hr" in output


def test_without_a_tokenizer_it_says_what_to_pass(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(commands, "MINI_TOKENIZER", tmp_path / "none")
    output = run("--corpus", corpus)
    assert "[[ Yes</s>]]" in output
    assert "--tokenizer DIR" in output


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("--lang", "xx"), ConfigError, "en, cs, de"),
        (("--instruction", "xvqa"), ConfigError, "mvqa, epvqa, bvqa"),
        (("--template", "nonsense"), TemplateError, "lrm_bare"),
        (("--lang", "cs"), DataError, "found none"),
        (("--lang", "de"), DataError, "en, hr, cs"),
        (("--index", "7"), DataError, "0 to 0"),
        (("--tokenizer", "/nowhere"), ConfigError, "no folder"),
        (("--instruction", "bvqa", "--lang", "hr", "--direction", "up"), ConfigError, "to_en"),
        (("--corpus", "/nowhere"), DataError, "not a corpus"),
    ],
)
def test_what_is_wrong_is_said(
    corpus: Path, arguments: tuple[str, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run("--corpus", corpus, *arguments)


def test_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot load its tokenizer"):
        load_tokenizer(tmp_path)
