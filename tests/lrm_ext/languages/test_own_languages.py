"""Where a user's languages are looked for, and what a file there can and cannot do."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava.errors import ConfigError
from lrm_ext.languages import get_language, list_languages
from lrm_ext.languages.registry import (
    DATA_DIR,
    FOLDER_VARIABLE,
    PAPER_LANGUAGES,
    answer_request,
    default_languages,
    reload_languages,
    shipped_languages,
    user_dir,
)
from lrm_ext.languages.tags import known_names, normalize_tag, preferred_tag


def test_one_file_makes_a_language(slovak):
    assert list_languages() == (*shipped_languages(), "sk")
    assert default_languages() == (*PAPER_LANGUAGES, "sk")
    assert get_language("sk").native_name == "slovenčina"


def test_its_own_file_says_how_the_others_ask_for_it(slovak):
    assert get_language("en").answer_in["sk"] == "Answer in Slovak."
    assert get_language("cs").answer_in["sk"] == "Odpovězte slovensky."
    assert answer_request("zh", "sk") == get_language("sk").named_by["zh"]
    assert answer_request("sk", "cs") == "Odpovedzte po česky."


def test_every_language_is_asked_for_by_its_name_in_cldr(slovak_file):
    lines = slovak_file.read_text(encoding="utf-8").splitlines()
    kept = [x for x in lines if not x.startswith(("de = ", "ru = "))]
    slovak_file.write_text("\n".join(kept), encoding="utf-8")
    reload_languages()
    assert answer_request("de", "sk") == "Antwortsprache: Slowakisch."
    assert answer_request("sk", "ru") == "Jazyk odpovede: ruština."
    assert answer_request("fr", "sk") == "Répondez en slovaque."  # its own file says so


def test_two_languages_that_do_not_know_each_other_ask_in_english(slovak_file):
    lines = slovak_file.read_text(encoding="utf-8").splitlines()
    kept = [x for x in lines if not x.startswith(("de = ", "ru = ", "answer_in_other"))]
    slovak_file.write_text("\n".join(kept), encoding="utf-8")
    reload_languages()
    assert answer_request("de", "sk") == "Antwortsprache: Slowakisch."
    assert answer_request("sk", "ru") == "Answer in Russian."


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('en = "Odpovedzte po anglicky."\n', r"sk\.toml: instructions\.answer_in\.en is missing"),
        ('sk = "Odpovedzte po slovensky."\n', r"instructions\.answer_in\.sk is missing"),
    ],
)
def test_english_and_itself_must_be_known_without_a_general_sentence(slovak_file, line, message):
    text = slovak_file.read_text(encoding="utf-8")
    assert line in text
    text = text.replace('answer_in_other = "Jazyk odpovede: {language}."\n', "")
    slovak_file.write_text(text.replace(line, ""), encoding="utf-8")
    reload_languages()
    with pytest.raises(ConfigError, match=message):
        get_language("sk")


def test_a_draft_is_no_language_yet(slovak_file):
    text = slovak_file.read_text(encoding="utf-8")
    slovak_file.write_text(text.replace('"Áno"', '"TODO Yes"'), encoding="utf-8")
    reload_languages()
    assert "sk" not in list_languages()
    assert "sk" not in get_language("en").answer_in
    with pytest.raises(ConfigError, match=r"sk\.toml is a draft.*lrm languages check sk"):
        get_language("sk")


def test_what_ships_cannot_be_replaced(tmp_path, use_folder):
    (tmp_path / "hr.toml").write_bytes((DATA_DIR / "hr.toml").read_bytes())
    use_folder(tmp_path)
    with pytest.raises(ConfigError, match=r"hr\.toml: 'hr' ships.*hr-x-ours"):
        list_languages()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my language.toml", "'my language' is not a language code"),
        ("PT-br.toml", "rename it to pt-BR.toml"),
    ],
)
def test_other_names_are_refused(tmp_path, use_folder, name, message):
    (tmp_path / name).write_text("", encoding="utf-8")
    use_folder(tmp_path)
    with pytest.raises(ConfigError, match=message):
        list_languages()


def test_a_folder_that_was_asked_for_must_be_there(tmp_path, use_folder):
    use_folder(tmp_path / "gone")
    with pytest.raises(ConfigError, match=f"{FOLDER_VARIABLE} is .*gone.* no such folder"):
        list_languages()


def test_without_the_variable_it_is_the_users_configuration(tmp_path, monkeypatch):
    monkeypatch.delenv(FOLDER_VARIABLE)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert user_dir() == tmp_path / "lrm" / "languages"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    assert user_dir() == Path.home() / ".config" / "lrm" / "languages"


@pytest.mark.parametrize(
    ("given_code", "code"),
    [
        ("SK", "sk"),
        ("zh-hant", "zh-Hant"),
        ("pt-br", "pt-BR"),
        ("es-419", "es-419"),
        ("SR-latn-me", "sr-Latn-ME"),
        ("de-1996", "de-1996"),
        ("hr-X-Ours", "hr-x-ours"),
    ],
)
def test_codes_are_written_as_bcp_47_does(given_code, code):
    assert normalize_tag(given_code) == code


@given(st.text(max_size=40) | st.from_regex(r"[a-zA-Z0-9/.\\-]{1,40}", fullmatch=True))
def test_no_code_is_a_path(code):
    try:
        tag = normalize_tag(code)
    except ConfigError:
        return
    assert set(tag) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-")
    assert Path(tag).name == tag and tag[0].isalpha()


def test_the_usual_code_is_known():
    assert preferred_tag("slk") == "sk"
    assert preferred_tag("ces-Latn") == "cs-Latn"
    assert preferred_tag("sk") is None


@pytest.mark.parametrize(
    ("code", "name", "native_name", "script", "three"),
    [
        ("sk", "Slovak", "slovenčina", "Latn", "slk"),
        ("uk", "Ukrainian", "українська", "Cyrl", "ukr"),
        ("th", "Thai", "ไทย", "Thai", "tha"),
        ("pt-BR", "Portuguese (Brazil)", "português (Brasil)", "Latn", "por"),
        ("zh-Hant", "Chinese (Traditional)", "中文 (繁體)", "Hant", "zho"),
        ("qaa", None, None, None, "qaa"),  # a code for private use
    ],
)
def test_what_cldr_knows(code, name, native_name, script, three):
    known = known_names(code)
    assert (known.name, known.native_name, known.script) == (name, native_name, script)
    assert known.iso_639_3 == three
