"""More pieces for a language: what is learnt, what keeps its id, what rows begin as."""

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from llava.data.sample import Turn
from llava.errors import ConfigError
from llava.model.tokenizer import load_tokenizer
from lrm_ext.cli import app
from lrm_ext.corpus.store import Corpus, CorpusRow
from lrm_ext.corpus.writer import CorpusWriter
from lrm_ext.vocabulary.extend import (
    BLANK,
    Extension,
    NewPiece,
    extend,
    fill_rows,
    held_out_pairs,
    learn_pieces,
    read_model,
    split_words,
    texts_of,
)

LLAVA = Path(__file__).parents[2] / "golden" / "llava" / "model" / "tiny-llava"
SENTENCES = [
    ("Is there a frog in the picture?", "Nalazi li se žaba na slici?"),
    ("How many animals are there?", "Koliko životinja ima na slici?"),
    ("There are two animals.", "Na slici su dvije životinje."),
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp("vocabulary")
    with CorpusWriter(root / "small", ("hr",), image_root="..") as writer:
        for i in range(30):
            (asked, asked_hr), (said, said_hr) = SENTENCES[i % 2], SENTENCES[2]
            turns = (Turn("human", f"<image>\n{asked}"), Turn("gpt", said))
            native = (Turn("human", f"<image>\n{asked_hr}"), Turn("gpt", said_hr))
            row = CorpusRow(f"r{i}", "a.png", "made up", "naming", True, turns)
            writer.append(row, {"hr": native})
    return root / "small"


@pytest.fixture(scope="module")
def extended(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("models") / "tiny-llava-more"
    args = ["--model", LLAVA, "--corpus", corpus, "--lang", "hr", "--num-pieces", 40, "--out", out]
    result = CliRunner().invoke(app, ["extend-vocab", *map(str, args)])
    assert result.exit_code == 0, result.output
    return out, " ".join(result.output.split())


def test_merges_go_on_from_the_tokenizers_own_cuts():
    words = Counter({("ab", "c"): 3, ("ab", "d"): 2, ("1", "2"): 9})
    pieces = learn_pieces(words, {"ab", "c", "d", "1", "2"}, 10)
    # digits are never joined; a pair that was joined is gone
    assert pieces == [NewPiece("abc", ("ab", "c"), 3), NewPiece("abd", ("ab", "d"), 2)]
    assert learn_pieces(words, {"ab", "c", "d", "1", "2"}, 1) == pieces[:1]
    # a character that was spelled in bytes becomes a piece first, and merges build on it
    pieces = learn_pieces(Counter({("\u0111", "ak"): 2}), {"ak"}, 10)
    assert [piece.parts for piece in pieces] == [("<0xC4>", "<0x91>"), ("\u0111", "ak")]


def test_words_are_cut_at_blanks_and_bytes_are_read():
    pieces = [f"{BLANK}a", "b", BLANK, "<0xC4>", "<0x91>", "c"]
    assert split_words(pieces) == [(f"{BLANK}a", "b"), (BLANK, "\u0111", "c")]


def test_old_pieces_keep_their_ids_and_new_ones_are_used(extended):
    out, _ = extended
    old, new = load_tokenizer(LLAVA), load_tokenizer(out)
    ids = list(range(len(old)))
    assert new.convert_ids_to_tokens(ids) == old.convert_ids_to_tokens(ids)
    used = set()
    for _, text in SENTENCES:
        assert new.decode(new(text).input_ids, skip_special_tokens=True) == text
        assert len(new(text).input_ids) < len(old(text).input_ids)
        used |= {number for number in new(text).input_ids if number >= len(old)}
    assert len(used) >= 8


def test_transformers_and_sentencepiece_cut_alike(extended):
    from sentencepiece import SentencePieceProcessor
    from transformers import AutoTokenizer

    out, _ = extended
    pieces = SentencePieceProcessor(model_file=str(out / "tokenizer.model"))
    plain = AutoTokenizer.from_pretrained(out)
    for _, text in SENTENCES:
        assert plain(text, add_special_tokens=False).input_ids == pieces.encode(text)


def test_transformers_4_reads_the_extended_model(extended):
    out, _ = extended
    assert json.loads((out / "config.json").read_text())["rope_theta"] == 10000.0


def test_rows_begin_as_the_mean_of_their_parts(extended):
    from llava.model.builder import load_pretrained_model

    out, _ = extended
    old_tokenizer, old, *_ = load_pretrained_model(str(LLAVA), None, "tiny-llava", device="cpu")
    tokenizer, model, *_ = load_pretrained_model(str(out), None, "tiny-llava", device="cpu")
    num_old = len(old_tokenizer)
    assert model.config.vocab_size == len(tokenizer) == model.get_input_embeddings().num_embeddings
    for before, after in (
        (old.get_input_embeddings().weight, model.get_input_embeddings().weight),
        (old.get_output_embeddings().weight, model.get_output_embeddings().weight),
    ):
        assert torch.equal(after[:num_old], before[:num_old])
        for number in range(num_old, len(tokenizer)):
            text = tokenizer.convert_ids_to_tokens(number)
            if not text.startswith(BLANK):
                continue  # inside a word it may be cut in another way
            parts = old_tokenizer(text[1:], add_special_tokens=False).input_ids
            torch.testing.assert_close(after[number], before[parts].mean(dim=0))


def test_the_command_says_what_it_brings(extended):
    _, said = extended
    assert "new pieces from id 2,000 on" in said
    # all sentences of this corpus are learnt from
    assert "that it was learnt from (no others are left), so too good" in said
    assert "Croatian" in said and "-" in said
    assert "cut in another way than before: en" in said


def test_fewer_pieces_are_explained(extended, corpus):
    _, said = extended
    num = int(re.search(r"(\d+) new pieces", said).group(1))
    assert num < 40 and f"{num} of 40 pieces: in the " in said and "words that were read" in said


def test_figures_are_of_text_that_was_not_learnt_from(tmp_path):
    with CorpusWriter(tmp_path / "c", ("hr",), image_root="..") as writer:
        for i in range(60):
            turns = (Turn("human", f"<image>\nQ {i % 50}"), Turn("gpt", f"A {i}"))
            native = (Turn("human", f"<image>\nP {i % 50}"), Turn("gpt", f"O {i}"))
            writer.append(CorpusRow(f"r{i}", "a.png", "x", "y", True, turns), {"hr": native})
    path = tmp_path / "c"
    texts = set(texts_of(Corpus.open(path), "hr", 1000))
    assert not {"O 0", "O 20", "O 40"} & texts and "O 1" in texts and len(texts) == 57 + 48
    pairs = held_out_pairs(path, "hr", texts, 100)
    # P 0 is asked in another row, too
    assert [text for _, text in pairs["hr"]] == ["O 0", "P 20", "O 20", "P 40", "O 40"]
    assert [text for _, text in pairs["en"]] == ["A 0", "Q 20", "A 20", "Q 40", "A 40"]
    assert len(set(texts_of(Corpus.open(path), "hr", 2))) == 4
    assert held_out_pairs(path, "hr", {*texts, *(t for _, t in pairs["hr"])}, 100) == {}


def test_rows_beyond_the_pieces_are_the_mean():
    table = torch.arange(8.0).reshape(4, 2).repeat(2, 1)
    fill_rows(table, Extension((NewPiece("ab", ("a", "b"), 2),), 4, {"ab": (0, 2)}))
    assert table[4].tolist() == [2.0, 3.0]
    assert table[5:].tolist() == [[3.0, 4.0]] * 3


def test_tokens_behind_the_pieces_are_refused(tmp_path):
    folder = tmp_path / "padded"
    folder.mkdir()
    for path in LLAVA.glob("*token*"):
        shutil.copy(path, folder)
    tokenizer = load_tokenizer(folder)
    tokenizer.add_tokens(["<im_start>"])
    tokenizer.save_pretrained(folder)
    shutil.copy(LLAVA / "tokenizer.model", folder)
    with pytest.raises(ConfigError, match="1 tokens were added behind the 2000 pieces"):
        read_model(folder)


def test_texts_that_need_nothing_are_refused():
    with pytest.raises(ConfigError, match="no piece is worth adding"):
        extend(read_model(LLAVA), LLAVA, ["the"], 10)


def test_other_tokenizers_are_refused(tmp_path, corpus):
    with pytest.raises(ConfigError, match="SentencePiece tokenizers"):
        read_model(tmp_path)
    args = ["extend-vocab", "--corpus", corpus, "--lang", "hr", "--out", tmp_path / "x"]
    result = CliRunner().invoke(app, [*map(str, args)])
    assert isinstance(result.exception, ConfigError)
