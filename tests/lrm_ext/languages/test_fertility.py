"""Tokens relative to English: counted right, for every kind of tokenizer, in words and bars."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from llava.data.sample import Turn
from llava.errors import ConfigError, DataError
from lrm_ext.cli import app
from lrm_ext.corpus.sentences import built_in_pairs, corpus_pairs, in_common
from lrm_ext.corpus.store import CorpusRow, CorpusText
from lrm_ext.corpus.writer import CorpusWriter
from lrm_ext.languages.fertility import (
    TokenCounter,
    load_counter,
    load_counters,
    measure,
    plot_relative,
)

GOLDEN = Path(__file__).parents[2] / "golden" / "llava"
SENTENCEPIECE = GOLDEN / "tokenizer.model"
CODES = "en,hr,cs,ta"
# one token a character; "?" is what it cannot write
LETTERS = TokenCounter("letters", lambda text: [0 if c == "?" else ord(c) for c in text], 0)


def lrm(*arguments: str | Path) -> str:
    command = ["languages", "fertility", *(str(a) for a in arguments)]
    result = CliRunner(env={"COLUMNS": "120"}).invoke(app, command)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """English and Czech; of the three rows the second was rejected, the third has none."""
    said = (
        (("<image>\nA dog?\nYes or no.", "Yes"), ("<image>\nPes?\nAno nebo ne.", "Ano"), "ok"),
        (("<image>\nA cat?", "No"), ("<image>\nKočka?", "Ne"), "rejected"),
        (("<image>\nA hen?", "No"), None, ""),
    )
    with CorpusWriter(tmp_path / "corpus", ["cs"]) as writer:
        for i, (english, czech, status) in enumerate(said):
            row = CorpusRow(str(i), "1.png", None, None, True, turns(*english))
            writer.append(row, {} if czech is None else {"cs": CorpusText(turns(*czech), status)})
    return tmp_path / "corpus"


def turns(question: str, answer: str) -> tuple[Turn, ...]:
    return (Turn("human", question), Turn("gpt", answer))


def test_counts_are_relative_to_the_english_of_the_same_sentences():
    pairs = {"en": [("abcd", "abcd"), ("ef", "ef")], "xx": [("abcd", "ab?"), ("ef", "123456")]}
    english, other = measure(LETTERS, pairs)
    assert (english.relative, english.tokens_per_sentence, english.unknown_share) == (1.0, 3.0, 0)
    assert (other.num_sentences, other.tokens_per_sentence) == (2, 4.5)
    assert (other.relative, other.characters_per_token) == (1.5, 1.0)
    assert other.unknown_share == 1 / 9


def test_every_kind_of_tokenizer_counts_the_same(tmp_path, llama_tokenizer):
    llama_tokenizer(legacy=False).save_pretrained(tmp_path / "folder")
    shutil.copyfile(SENTENCEPIECE, tmp_path / "folder" / "tokenizer.model")
    folder = tmp_path / "folder"
    files = [folder, folder / "tokenizer.model", folder / "tokenizer.json"]
    counters = load_counters([str(path) for path in files])
    # three of the same name are told apart by where they lie
    assert [counter.name for counter in counters] == [str(path) for path in files]
    sentence = "Kolik psů je na obrázku?"
    assert len({len(counter.encode(sentence)) for counter in counters}) == 1
    assert load_counter(str(SENTENCEPIECE)).name == "llava"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("./none", None, r"tokenizer: there is no \./none; expected a folder with a tokenizer"),
        ("t.json", "{}", r"t\.json cannot be loaded: .*expected a folder with a tokenizer"),
        ("t.model", "no model", r"t\.model cannot be loaded: .*\n?expected a folder"),
        ("folder", "", r"folder cannot be loaded: .*\n?expected a folder with a tokenizer"),
    ],
)
def test_what_is_no_tokenizer_is_named(tmp_path, name, content, message):
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
    elif content is not None:
        path.write_text(content, encoding="utf-8")
    source = name if content is None else str(path)
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        lrm("--tokenizer", source)


def test_a_name_that_the_hub_does_not_have(monkeypatch):
    def refuse(*args, **options):
        assert options["trust_remote_code"] is False
        raise OSError("no such model")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", refuse)
    with pytest.raises(ConfigError, match=r"mine/none cannot be loaded \(no such file here; taken"):
        lrm("--tokenizer", "mine/none")


def test_table_and_json_say_the_same():
    said = lrm("--languages", "en,hr", "--languages", "zh")
    results = json.loads(lrm("--languages", "en,hr,zh", "--json"))
    assert [result["lang"] for result in results] == ["en", "hr", "zh"]
    assert len({result["num_sentences"] for result in results}) == 1
    assert results[0]["relative"] == 1.0
    for result, name in zip(results, ("English", "Croatian", "Chinese"), strict=True):
        line = next(line for line in said.splitlines() if line.startswith(f"│ {name} "))
        cells = [cell.strip() for cell in line.strip("│").split("│")]
        assert cells[1:3] == [f"{result['tokens_per_sentence']:.1f}", f"{result['relative']:.2f}"]


def test_many_languages_are_rows_of_the_worst_and_of_scripts(monkeypatch):
    monkeypatch.setattr("lrm_ext.languages.grouping.MAX_ROWS", 3)
    monkeypatch.setattr("lrm_ext.languages.grouping.NUM_WORST", 1)
    every = [language["relative"] for language in json.loads(lrm("--languages", CODES, "--json"))]
    said = lrm("--languages", CODES)
    rows = [line.strip("│").split("│") for line in said.splitlines() if line.startswith("│")]
    assert [row[0].strip() for row in rows[:2]] == ["English", "Tamil"]
    assert rows[2][0].strip() == "Latin: 2" and len(rows) == 3
    assert float(rows[2][2]) == pytest.approx(sum(every[1:3]) / 2, abs=0.005)
    assert "--all shows every language" in said
    assert "Croatian" in lrm("--languages", CODES, "--all")


def test_all_are_those_with_a_file(monkeypatch):
    monkeypatch.setattr("lrm_ext.languages.commands.list_languages", lambda: ("en", "hr", "ta"))
    results = json.loads(lrm("--languages", "all", "--json"))
    assert [result["lang"] for result in results] == ["en", "hr", "ta"]


def test_built_in_text_is_parallel_and_the_same_every_time():
    pairs = built_in_pairs(["en", "cs", "zh"], num_scenes=20)
    assert {len(found) for found in in_common(pairs).values()} == {len(pairs["en"])}
    assert pairs == built_in_pairs(["en", "cs", "zh"], num_scenes=20)
    assert all(english == other for english, other in pairs["en"])
    assert len({english for english, _ in pairs["cs"]}) == len(pairs["cs"]) > 30


def test_a_new_language_has_the_requests_of_its_file(slovak):
    pairs = in_common(built_in_pairs(["en", slovak]))
    assert ("Answer the question using a single word or phrase.",) * 2 in pairs["en"]
    assert json.loads(lrm("--languages", "en,sk", "--json"))[1]["lang"] == "sk"


def test_sentences_of_a_corpus(corpus):
    assert corpus_pairs(corpus, ["cs"]) == {
        "cs": [("A dog?", "Pes?"), ("Yes or no.", "Ano nebo ne."), ("Yes", "Ano")]
    }
    results = json.loads(lrm("--corpus", corpus, "--json"))
    # English has sentences that Czech lacks; those are not counted
    assert [(r["lang"], r["num_sentences"]) for r in results] == [("en", 3), ("cs", 3)]
    limited = json.loads(lrm("--corpus", corpus, "--limit", "2", "--json"))
    assert [r["num_sentences"] for r in limited] == [2, 2]
    with pytest.raises(DataError, match="no texts in language 'hr'"):
        lrm("--corpus", corpus, "--languages", "hr")


def test_languages_without_a_common_sentence():
    with pytest.raises(DataError, match=r"no sentence exists in all languages .*cs 1, hr 1"):
        in_common({"cs": [("a", "b")], "hr": [("c", "d")]})


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_the_plot(tmp_path, ending):
    out = tmp_path / "plots" / f"fertility.{ending}"
    said = lrm("--languages", "en,cs", "--tokenizer", SENTENCEPIECE, "--out", out)
    assert f"saved to {out}" in said and out.stat().st_size > 1000
    if ending == "png":
        with Image.open(out) as picture:
            assert len(picture.convert("L").getcolors()) > 20
            assert picture.width == 960
    with pytest.raises(ConfigError, match=r"--out .*\.doc: expected a name that ends in \.png"):
        lrm("--out", out.with_suffix(".doc"))


def test_bars_of_several_tokenizers_are_told_apart_without_colours(monkeypatch, tmp_path):
    """Each has its own shade and hatching, and each bar the figure of the table."""
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **options: drawn.append(self))
    pairs = {"en": [("abcd", "abcd")], "cs": [("abcd", "ab")]}
    values = {(f"t{i}", r.lang): r.relative for i in range(4) for r in measure(LETTERS, pairs)}
    plot_relative(values, tmp_path / "a.png", "Tokens", "tokens", "tokenizer")
    axes = drawn[0].axes[0]
    looks = {(bars[0].get_hatch(), bars[0].get_facecolor()) for bars in axes.containers}
    assert len(looks) == 4
    labels = [text.get_text() for text in axes.texts]
    assert labels == ["1.00", "0.50"] * 4
    with pytest.raises(ConfigError, match="draws at most 4 bars a language, got 5"):
        lrm(*(a for i in range(5) for a in ("--tokenizer", f"t{i}")), "--out", tmp_path / "b.png")
