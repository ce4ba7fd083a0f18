"""Codes as people type them: aliases mean one language, and an unknown one says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from llava.errors import ConfigError
from lrm_ext.cli import app
from lrm_ext.corpus.columns import check_sample
from lrm_ext.languages.registry import (
    DATA_DIR,
    canonical_code,
    canonical_codes,
    get_language,
    list_languages,
)
from lrm_ext.languages.tags import NLLB_CODES, preferred_tag
from lrm_ext.mixture.spec import MixtureSpec
from lrm_ext.translate.engines.seq2seq import M2M100


@pytest.mark.parametrize(
    ("alias", "code"),
    [
        ("iw", "he"),
        ("tl", "fil"),
        ("quz", "qu"),
        ("nb", "no"),
        ("nn", "no"),
        ("in", "id"),
        ("mo", "ro"),
        ("jw", "jv"),
        ("arb", "ar"),
        ("sh", None),
        ("no", None),
    ],
)
def test_aliases(alias: str, code: str | None) -> None:
    assert preferred_tag(alias) == code


@pytest.mark.parametrize(
    ("typed", "code"),
    [
        ("hr", "hr"),
        ("HR", "hr"),
        ("hrv", "hr"),
        ("mo", "ro"),
        ("cmn", "zh"),
        ("zh-Hans", "zh"),
        ("zh-hant", "zh"),
        ("ces-Latn", "cs"),
        ("tlh", "tlh"),
        ("all", "all"),
        ("chinese", "chinese"),  # a name is no code
        ("hr-x-ours", "hr-x-ours"),
    ],
)
def test_an_alias_means_the_language_that_has_a_file(typed: str, code: str) -> None:
    assert canonical_code(typed) == code


def test_each_language_comes_once() -> None:
    assert canonical_codes(["hr, mo", "ro,zh-Hans", "xx"]) == ("hr", "ro", "zh", "xx")


def test_a_file_of_its_own_is_no_alias(tmp_path: Path, use_folder) -> None:
    text = (DATA_DIR / "zh.toml").read_text(encoding="utf-8")
    text = text.replace('code = "zh"', 'code = "zh-Hant"')
    (tmp_path / "zh-Hant.toml").write_text(text, encoding="utf-8")
    use_folder(tmp_path)
    assert canonical_code("zh-hant") == "zh-Hant"
    assert get_language("zh-Hant").script == "Hant"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("mo", r"did you mean ro \(Romanian\)\?"),
        ("en-US", r"did you mean en \(English\)\?"),
        ("Croatian", r"did you mean hr \(Croatian\)\? Choose from: en, cs.*add CODE"),
        ("hrvatsky", r"did you mean hr \(Croatian\)\?"),
        ("sh", r"did you mean (sr \(Serbian\) or )?hr \(Croatian\)"),
        ("slk", r"'slk'. Choose from: en, cs.*`lrm languages add sk`"),
    ],
)
def test_an_unknown_code_says_near_ones_and_how_to_add_one(code: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        get_language(code)


def test_a_mixture_takes_aliases() -> None:
    spec = MixtureSpec.from_dict({"languages": {"mo": 3, "hrv": 1}})
    assert list(spec.languages) == ["ro", "hr"]
    with pytest.raises(ConfigError, match="one comes twice in mo, ro"):
        MixtureSpec.from_dict({"languages": ["mo", "ro"]})


def test_a_sample_of_an_alias_is_in_the_language(make_sample) -> None:
    check_sample(make_sample("mo"), "a.json", "ro")
    with pytest.raises(Exception, match="lang is 'hr', expected 'ro'"):
        check_sample(make_sample("hr"), "a.json", "ro")


@pytest.fixture
def make_sample():
    from llava.data.sample import Sample

    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes"}]
    record = {"id": "1", "conversations": turns}
    return lambda lang: Sample.from_record({**record, "lang": lang}, "a.json")


def test_the_lists_of_engines_are_those_of_their_tokenizers() -> None:
    from transformers.models.m2m_100.tokenization_m2m_100 import FAIRSEQ_LANGUAGE_CODES as M2M
    from transformers.models.nllb.tokenization_nllb import FAIRSEQ_LANGUAGE_CODES as NLLB

    assert set(NLLB_CODES) == set(NLLB)
    assert set(M2M100.known_codes) == set(M2M["m2m100"])


def lrm(*arguments: str) -> str:
    result = CliRunner(env={"COLUMNS": "80"}).invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.output


def test_the_list_fits_a_terminal() -> None:
    shown = lrm("languages")
    assert max(map(len, shown.splitlines()[: len(list_languages()) + 5])) <= 80
    row = next(line for line in shown.splitlines() if "hrvatski" in line)
    cells = [cell.strip() for cell in row.strip("\u2502").split("\u2502")]
    assert cells == ["hr", "Croatian", "hrvatski", "Latn", "ltr", "no", "7"]
    assert f"{len(list_languages())} languages, 0 signed by a native reader" in shown


def test_a_review_shows_every_text_in_its_place() -> None:
    shown = lrm("languages", "review", "hrv")
    language = get_language("hr")
    for text in (language.system, *language.fixed_prompts.values(), *language.ui.values()):
        assert text in shown
    assert "USER: <image>\n   \u0160to je ovo?" in shown  # the prompt
    assert "   English: What is this?\n   Odgovor: Da" in shown  # the reply
    yes = next(line for line in shown.splitlines() if line.startswith("   as yes: "))
    assert yes.split(": ")[1].split(" | ") == ["Da", "Da.", "da", "jest", "jeste", "ima", "d"]
    assert "as neither: (none of the words of the file)" in shown
    assert "What looks wrong to `lrm languages check`\n   nothing" in shown
    assert "existence 1: Is there a television in the picture? - Yes" in shown
    assert "Nalazi li se na slici televizor? - Da" in shown
    assert "things: dog, cat, horse, " in shown and "\n       pas, mačka, konj, " in shown
    assert shown.rstrip().endswith('reviewed = { by = "your name", on = 2026-12-31 }')


def test_a_signature_is_shown(slovak_file, use_folder) -> None:
    text = slovak_file.read_text(encoding="utf-8")
    signed = 'code = "sk"\nreviewed = { by = "Ana", on = 2026-12-31 }'
    slovak_file.write_text(text.replace('code = "sk"', signed), encoding="utf-8")
    use_folder(slovak_file.parent)
    assert "reviewed: Ana, 2026-12-31" in lrm("languages", "review", "sk")
    listed = lrm("languages")
    assert "1 signed by a native reader" in listed and "Ana" in listed
