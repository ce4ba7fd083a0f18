from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from llava.data.sample import Turn
from llava.errors import ConfigError
from lrm_ext.corpus.store import CorpusRow
from lrm_ext.corpus.writer import CorpusWriter
from lrm_ext.emoji.unpack import open_corpus
from lrm_ext.languages.registry import PAPER_LANGUAGES
from lrm_ext.mixture import commands
from lrm_ext.mixture.spec import mixture_path

LANGUAGES = ("cs", "de", "fr", "hr", "it", "ro", "ru", "es", "zh")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("show") / "corpus"
    turns = (Turn("human", "<image>\nQ?"), Turn("gpt", "A"))
    with CorpusWriter(path, LANGUAGES) as writer:
        for i in range(54):
            row = CorpusRow(f"r{i}", "x.jpg", None, None, True, turns)
            writer.append(row, dict.fromkeys(LANGUAGES, turns))
    return path


def run(*arguments: str | Path) -> str:
    result = CliRunner(env={"COLUMNS": "160"}).invoke(
        commands.app, ["mixture", "show", *map(str, arguments)]
    )
    if result.exception is not None:
        raise result.exception
    return result.output


def cells(output: str, first: str) -> list[str]:
    line = next(line for line in output.splitlines() if line.startswith(f"\u2502 {first} "))
    return [cell.strip() for cell in line.strip("\u2502").split("\u2502")]


def test_table_of_the_default_mixture(corpus: Path) -> None:
    output = run("--corpus", corpus)
    assert cells(output, "en") == ["en", "54", "", "", "54", "50.0 %", "54 of 54"]
    for lang in LANGUAGES:
        assert cells(output, lang) == [lang, "2", "2", "2", "6", "5.6 %", "6 of 54"]
    assert cells(output, "all") == ["all", "72", "18", "18", "108", "100.0 %", ""]
    assert "54 English + 54 other samples an epoch (1 : 1)" in output


def test_many_languages_are_rows_of_the_worst_and_of_scripts(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lrm_ext.languages.grouping.MAX_ROWS", 9)
    monkeypatch.setattr("lrm_ext.languages.grouping.NUM_WORST", 2)
    monkeypatch.setattr(commands, "_token_counter", lambda folder, template: lambda sample: 10)
    path = tmp_path / "uneven.toml"
    shares = {lang: 3 if lang in ("fr", "zh") else 1 for lang in LANGUAGES}
    path.write_text("[languages]\n" + "\n".join(f"{k} = {v}" for k, v in shares.items()))
    shown = ("--corpus", corpus, "--mixture", path, "--tokenizer", "anything")
    output = run(*shown)
    names = [line.split()[1] for line in output.splitlines() if line.startswith("\u2502")]
    assert names == ["en", "fr", "zh", "Latin:", "ru", "all"]
    latin = cells(output, "Latin: 6")
    assert latin[4:7] + latin[8:] == ["24", "22.2 %", "24 of 324", "10.0", "22.2 %"]
    assert cells(output, "all")[4:6] == ["108", "100.0 %"]
    assert "--all shows every language" in output
    assert cells(run(*shown, "--all"), "hr")[4] == "4"


def test_the_built_in_corpus_is_unpacked_in_other_languages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def unpack(languages: tuple[str, ...]) -> Path:
        asked.append(languages)
        turns = (Turn("human", "<image>\nQ?"), Turn("gpt", "A"))
        with CorpusWriter(tmp_path / "finetune", ("sw",), overwrite=True) as writer:
            writer.append(CorpusRow("r", "x.jpg", None, None, True, turns), {"sw": turns})
        return tmp_path

    monkeypatch.setattr("lrm_ext.emoji.unpack.unpack", unpack)
    assert cells(run("--languages", "sw"), "sw")[4] == "1"
    open_corpus(None, languages=["hr", "cs"])
    assert asked == [("sw",), PAPER_LANGUAGES]


def test_languages_that_the_mixture_leaves_out_are_named(corpus: Path, tmp_path: Path) -> None:
    spec = tmp_path / "some.toml"
    spec.write_text(
        "seed = 0\nnon_english_ratio = 1\nlanguages = { cs = 1, hr = 1 }\n"
        "instructions = { mvqa = 1 }\n"
    )
    output = run("--corpus", corpus, "--mixture", spec)
    assert "Left out: de, fr, it, ro, ru, es, zh; the corpus has them" in output
    assert "Left out" not in run("--corpus", corpus)  # all of them take part


def test_lengths_with_a_tokenizer(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "_token_counter", lambda folder, template: lambda sample: 10)
    output = run("--corpus", corpus, "--tokenizer", "anything")
    assert cells(output, "hr")[-2:] == ["10.0", "5.6 %"]
    assert cells(output, "en")[-3:] == ["11.0", "10.0", "50.0 %"]


def test_pretraining_has_one_instruction(corpus: Path) -> None:
    assert cells(run("--corpus", corpus, "--mixture", "pretrain"), "hr")[1:3] == ["6", "6"]


def test_a_file_of_ones_own(corpus: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("non_english_ratio = 0.5\n[languages]\nhr = 2\ncs = 1\n")
    output = run("--corpus", corpus, "--mixture", path)
    assert cells(output, "hr")[4] == "18"
    assert "(1 : 0.5)" in output


def test_simulation_over_epochs(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('languages = ["cs", "hr"]\n[[corpora]]\npath = "show"\nepochs = 1.5\n')
    (tmp_path / "show").symlink_to(corpus)
    monkeypatch.setattr(commands, "_token_counter", lambda folder, template: lambda sample: 10)
    output = run("--mixture", path, "--simulate", "--epochs", "3", "--tokenizer", "anything")
    # 81 English samples an epoch of 54 rows; 41 and 40 of each language
    assert cells(output, "en") == [
        "en", "243", "50.0 %", "54 of 54", "189", "5 x", "2,430", "50.0 %",
    ]  # fmt: skip
    assert cells(output, "cs")[1:6] == ["123", "25.3 %", "54 of 54", "69", "3 x"]
    assert cells(output, "all") == ["all", "486", "100.0 %", "", "324", "", "4,860", "100.0 %"]
    assert "Over 3 epochs." in output


def test_an_epoch_of_a_curriculum(corpus: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        "[languages]\ncs = 1\nhr = 2\n[[curriculum]]\nsampling = 'shares'\n"
        "[[curriculum]]\nfrom_epoch = 1\nsampling = 'unimax'\nmax_epochs = 1\n"
    )
    shown = ("--corpus", corpus, "--mixture", path)
    assert cells(run(*shown), "hr")[4] == "36"
    assert cells(run(*shown, "--epoch", "1"), "hr")[4] == "27"


def test_unknown_mixture_lists_those_that_ship() -> None:
    with pytest.raises(ConfigError, match=r"'nonsense'.*finetune, pretrain"):
        mixture_path("nonsense")
