from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from llava.errors import ConfigError
from lrm_ext.languages import get_language, list_languages
from lrm_ext.languages.registry import (
    DATA_DIR,
    PAPER_LANGUAGES,
    answer_request,
    load_language,
)

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
    assert list_languages()[:10] == TEN == PAPER_LANGUAGES  # more may follow
    labels = [get_language(code).paper_label for code in TEN]
    assert labels == ["En", "Cs", "De", "Fr", "Hr", "It", "Ro", "Ru", "Sp", "Zh"]


@pytest.mark.parametrize(
    ("code", "name", "native_name", "script", "full_stop"),
    [
        ("en", "English", "English", "Latn", "."),
        ("cs", "Czech", "čeština", "Latn", "."),
        ("hr", "Croatian", "hrvatski", "Latn", "."),
        ("ru", "Russian", "русский", "Cyrl", "."),
        ("zh", "Chinese", "中文", "Hans", "。"),
    ],
)
def test_what_files_leave_out(
    code: str, name: str, native_name: str, script: str, full_stop: str
) -> None:
    language = get_language(code)
    assert (language.name, language.native_name) == (name, native_name)
    assert (language.script, language.full_stop) == (script, full_stop)
    assert language.spaced == (code != "zh")
    assert language.translation_marker == "English:"
    assert language.ships and language.review_text == "not reviewed"


def test_no_word_has_both_polarities() -> None:
    for code in ALL:
        local = get_language(code).local
        letters = {"yes": {"y"}, "no": {"n"}}
        for letter, meaning in local.letters.items():
            letters[meaning].add(letter)
        yes = {fold(w) for w in (*local.yes, "yes", *letters["yes"])}
        no = {fold(w) for w in (*local.no, "no", "not", *letters["no"])}
        assert not yes & no, code


def test_trained_answers_are_read_back() -> None:
    for code in ALL:
        language = get_language(code)
        if language.spaced and " " not in f"{language.yes}{language.no}":
            assert fold(language.yes) in {fold(w) for w in language.local.yes}, code
            assert fold(language.no) in {fold(w) for w in language.local.no}, code


@pytest.mark.parametrize("code", TEN)
def test_every_text_is_in_its_script(code: str) -> None:
    language = get_language(code)
    texts = [language.epvqa_instruction, language.system, *language.format_prompts]
    texts += [answer_request(code, other) for other in ALL]
    script = {"Latn": "LATIN", "Cyrl": "CYRILLIC", "Hans": "CJK"}[language.script]
    for text in texts:
        names = {unicodedata.name(c).split()[0] for c in text if c.isalpha()}
        assert names == {script}
        assert text == unicodedata.normalize("NFC", text)
        assert not set(text) & set("\u015f\u0163\u015e\u0162")  # Romanian has the comma below


def test_instructions_differ() -> None:
    for code in ALL:
        language = get_language(code)
        requests = {answer_request(code, other) for other in ALL}
        assert len(requests) == len(ALL), code
        assert "\n" not in "".join([*requests, language.epvqa_instruction])
        assert language.translation_marker != language.answer_marker


def test_texts_in_use_are_those_of_the_evaluation_spec() -> None:
    assert answer_request("cs", "en") == "Odpov\u011bzte anglicky."
    assert answer_request("en", "cs") == "Answer in Czech."
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
        ("reviewed =", "reviewd =", r"sk\.toml: unknown key `reviewd`"),
        ("reviewed = false", "reviewed = true", "expected false or who and when"),
        ("reviewed = false", 'reviewed = { by = "" }', r"reviewed\.by is empty"),
        ("reviewed = false", 'reviewed = { by = "A" }', r"reviewed: missing key `on`"),
        ("{language}", "{jazyk}", r"answer_in_other is .*expected \{language\}"),
        ("[prompts]\n", "[prompts]\nextra = 1\n", r"unknown key `prompts\.extra`"),
        ("answer_marker =", "# answer_marker =", r"missing key `instructions\.answer_marker`"),
        ("reviewed =", 'spaced = "yes"\nreviewed =', r"spaced: Expected `bool`.*found .yes"),
        ('"ano", ', '"ano", "not", ', "'not' would mean both"),
        ('a = "yes"', 'a = "maybe"', r"letters\.a is 'maybe'"),
        ('yes = "Ano"', 'yes = ""', r"answers\.yes is empty"),
        ('yes = "Ano"', 'yes = "Ano "', r"answers\.yes .*white space"),
        ('code = "sk"', 'code = "cs"', "expected the file's name"),
        ("„{text}“", "„{word}“", r"reading\.is_written is 'Je na.*\{text\}"),
        ("[answers]", "[answers", "cannot be read as TOML"),
    ],
)
def test_faults_name_file_and_key(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = (DATA_DIR / "cs.toml").read_text(encoding="utf-8").replace('code = "cs"', 'code = "sk"')
    path = tmp_path / "sk.toml"
    path.write_text(text, encoding="utf-8")
    load_language(path)
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_language(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_language(tmp_path / "xx.toml")


SMALL = """
code = "{code}"

[answers]
yes = "Ja-a"
no = "Nei-i"

[prompts]
short_answer = "Short."
option_letter = "Letter."

[format_prompts]
image_concise = "Say it."
image_what = "What?"

[short_answers]
unanswerable = "Unknown"

[instructions]
epvqa = "English, then ours."
answer_marker = "Ours:"
answer_in_other = "In: {{language}}."

[conversation]
system = "A chat."

[local]
yes = ["ja-a"]
no = ["nei-i"]
letters = {{}}
stop = []
word_letters = []
option_letters = "\u0410 \u0411 \u0412"
"""


def test_a_file_needs_only_what_people_say(tmp_path: Path) -> None:
    path = tmp_path / "th.toml"
    path.write_text(SMALL.format(code="th"), encoding="utf-8")
    thai = load_language(path)
    assert (thai.name, thai.native_name, thai.paper_label) == ("Thai", "ไทย", "Th")
    assert (thai.script, thai.spaced, thai.full_stop) == ("Thai", False, "")
    assert thai.local.option_letters == ("\u0410", "\u0411", "\u0412")
    assert thai.translation_marker == "English:"
    assert thai.fixed_prompts["image_terse"] == "Say it."
    assert thai.fixed_prompts["image_what"] == "What?"
    assert "caption" not in thai.fixed_prompts  # `lrm languages check` says so
    assert not thai.ships


@pytest.mark.parametrize(
    ("code", "spaced", "full_stop"),
    [("ja", False, "。"), ("hi", True, "\u0964"), ("am", True, "\u1362"), ("ko", True, ".")],
)
def test_spaces_and_full_stops_follow_the_script(
    tmp_path: Path, code: str, spaced: bool, full_stop: str
) -> None:
    path = tmp_path / f"{code}.toml"
    path.write_text(SMALL.format(code=code), encoding="utf-8")
    language = load_language(path)
    assert (language.spaced, language.full_stop) == (spaced, full_stop)
    own = '\n[punctuation]\nfull_stop = "!"\n'
    path.write_text("spaced = false\n" + SMALL.format(code=code) + own, encoding="utf-8")
    language = load_language(path)
    assert (language.spaced, language.full_stop) == (False, "!")


def test_what_nothing_tells_must_be_written(tmp_path: Path) -> None:
    path = tmp_path / "qaa.toml"
    path.write_text(SMALL.format(code="qaa"), encoding="utf-8")
    with pytest.raises(ConfigError, match="missing key `name`"):
        load_language(path)


def test_a_signature(tmp_path: Path) -> None:
    path = tmp_path / "th.toml"
    signed = 'reviewed = { by = "Ana Horvat", on = 2026-12-31 }\n'
    path.write_text(signed + SMALL.format(code="th"), encoding="utf-8")
    assert load_language(path).review_text == "Ana Horvat, 2026-12-31"


@pytest.mark.parametrize(
    ("encoding", "line"), [("utf-16", "line 1"), ("iso8859-2", "line 2"), ("cp1250", "line 2")]
)
def test_another_encoding_is_named(tmp_path: Path, encoding: str, line: str) -> None:
    path = tmp_path / "sk.toml"
    path.write_bytes('code = "sk"\nname = "Slovenčina"\n'.encode(encoding))
    with pytest.raises(ConfigError, match=rf"sk\.toml: {line} is not UTF-8 .*iconv"):
        load_language(path)
