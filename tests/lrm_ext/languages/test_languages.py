from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from llava.errors import ConfigError
from lrm_ext.languages import get_language, list_languages
from lrm_ext.languages.registry import DATA_DIR, load_language
from lrm_ext.new_language import check_languages

TEN = ("en", "cs", "de", "fr", "hr", "it", "ro", "ru", "es", "zh")
ALL = list_languages()


def fold(word: str) -> str:
    """Independent of the loader's: marks off Latin letters only."""
    out = ""
    for c in unicodedata.normalize("NFD", word.casefold()):
        if not (unicodedata.combining(c) and "LATIN" in unicodedata.name(out[-1])):
            out += c
    return unicodedata.normalize("NFC", out)


def test_the_ten_languages_in_the_papers_order() -> None:
    assert list_languages()[:10] == TEN  # more may follow
    labels = [get_language(code).paper_label for code in TEN]
    assert labels == ["En", "Cs", "De", "Fr", "Hr", "It", "Ro", "Ru", "Sp", "Zh"]


def test_all_files_are_complete_and_know_each_other() -> None:
    assert check_languages() == []
    for code in ALL:
        assert set(get_language(code).answer_in) == set(ALL)


@pytest.mark.parametrize("code", ALL)
def test_no_word_has_both_polarities(code: str) -> None:
    local = get_language(code).local
    letters = {"yes": {"y"}, "no": {"n"}}
    for letter, meaning in local.letters.items():
        letters[meaning].add(letter)
    yes = {fold(w) for w in (*local.yes, "yes", *letters["yes"])}
    no = {fold(w) for w in (*local.no, "no", "not", *letters["no"])}
    assert not yes & no


@pytest.mark.parametrize("code", ALL)
def test_trained_answers_are_read_back(code: str) -> None:
    language = get_language(code)
    assert fold(language.yes) in {fold(w) for w in language.local.yes}
    assert fold(language.no) in {fold(w) for w in language.local.no}


@pytest.mark.parametrize("code", ALL)
def test_every_text_is_in_its_script(code: str) -> None:
    language = get_language(code)
    texts = [language.epvqa_instruction, language.system, *language.format_prompts]
    texts += language.answer_in.values()
    script = {"Latn": "LATIN", "Cyrl": "CYRILLIC", "Hans": "CJK"}.get(language.script)
    if script is None:
        pytest.skip(f"script {language.script} is not known to this test")
    for text in texts:
        names = {unicodedata.name(c).split()[0] for c in text if c.isalpha()}
        assert names == {script}
        assert text == unicodedata.normalize("NFC", text)
        assert not set(text) & set("\u015f\u0163\u015e\u0162")  # Romanian has the comma below


@pytest.mark.parametrize("code", ALL)
def test_instructions_differ(code: str) -> None:
    language = get_language(code)
    assert len(set(language.answer_in.values())) == len(ALL)
    assert "\n" not in "".join([*language.answer_in.values(), language.epvqa_instruction])
    assert language.translation_marker != language.answer_marker


def test_texts_in_use_are_those_of_the_evaluation_spec() -> None:
    assert get_language("cs").answer_in["en"] == "Odpov\u011bzte anglicky."
    assert get_language("en").answer_in["cs"] == "Answer in Czech."
    assert get_language("en").short_answer == "Answer the question using a single word or phrase."


def test_unknown_language_lists_the_choices() -> None:
    with pytest.raises(ConfigError, match=r"'xx'.*en, cs, de, fr, hr, it, ro, ru, es, zh"):
        get_language("xx")


def test_is_read_only() -> None:
    with pytest.raises(AttributeError):
        get_language("cs").yes = "Jo"  # type: ignore[misc]
    with pytest.raises(TypeError):
        get_language("cs").answer_in["en"] = "x"  # type: ignore[index]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("native_name =", "nativ_name =", r"xx\.toml: unknown key `nativ_name`"),
        ("[prompts]\n", "[prompts]\nextra = 1\n", r"unknown key `prompts\.extra`"),
        ("answer_marker =", "# answer_marker =", r"missing key `instructions\.answer_marker`"),
        ("spaced = true", 'spaced = "yes"', r"spaced: Expected `bool`, got `str`, found .yes"),
        ('"ano", ', '"ano", "not", ', "'not' would mean both"),
        ('a = "yes"', 'a = "maybe"', r"letters\.a is 'maybe'"),
        ('yes = "Ano"', 'yes = ""', r"answers\.yes is empty"),
        ('yes = "Ano"', 'yes = "Ano "', r"answers\.yes .*white space"),
        ('code = "xx"', 'code = "cs"', "expected the file's name"),
        ("[answers]", "[answers", "cannot be read as TOML"),
    ],
)
def test_faults_name_file_and_key(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = (DATA_DIR / "cs.toml").read_text(encoding="utf-8").replace('code = "cs"', 'code = "xx"')
    path = tmp_path / "xx.toml"
    path.write_text(text, encoding="utf-8")
    load_language(path)
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_language(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_language(tmp_path / "xx.toml")
