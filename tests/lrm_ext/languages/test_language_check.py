"""`lrm languages check`: one thing wrong at a time, in a file that is right otherwise."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from llava.errors import ConfigError
from lrm_ext.cli import app
from lrm_ext.languages import identification, list_languages
from lrm_ext.languages.registry import DATA_DIR, get_language, reload_languages
from lrm_ext.new_language import check_language, check_languages
from lrm_ext.translate.engines.base import build_engine, find_code


def test_the_languages_that_ship_are_right():
    found = [fault for code in list_languages() for fault in check_language(code)]
    assert [fault for fault in found if not fault.is_note] == []


def test_so_is_slovak(slovak):
    identification.forget()  # it prepares for the languages that there are
    assert [fault for fault in check_languages(("sk",)) if not fault.is_note] == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"Stručne opíšte obrázok."', '"Describe the image concisely."', "as in English"),
        ('"Odpoveď:"', '"Answer:"', "answer_marker is 'Answer:', as in English"),
        ('"Zhrňte ', '"\u0417hrňte ', "image_summary has \u0417hrňte with letters of script Cyrl"),
        ('yes = "Áno"', 'yes = "A\u0301no"', "answers.yes is not in Unicode's form NFC"),
        ('script = "Latn"', 'script = "Latin"', "expected an ISO 15924 code"),
        ('"Odpoveď:"', '"Odpoveď"', "expected a colon at its end"),
        ('"Odpoveď:"', '"English: Odpoveď:"', "begin alike"),
        ('marker = "English:"', 'marker = "Anglicky:"', "the translation is always English"),
        ('en = "Odpovedzte po anglicky."', 'en = "Odpovedzte po slovensky."', "same as for 'en'"),
        ('sk = "Odpovedzte po slovensky."', 'sk = "Odpovězte česky."', "the same as in cs"),
        ('answer_in_other = "Jazyk', '# "', "answer_in_other is missing: for an answer in"),
        (
            '"jasné", "iste"',
            '"j\u0430sné", "iste"',
            "letters of the scripts Cyrl, Latn: nobody types that",
        ),
        ('zh = "请用斯洛', 'et = "x"\nzh = "请用斯洛', "there are no files for: et"),
        ('yes = ["áno", ', 'yes = ["tak áno", "áno", ', "the first word of an answer decides"),
        ('yes = ["áno", ', "yes = [", "answers.yes has 'Áno', which is read as neither"),
        ('"nie", "niet"', '"nie", "hej"', "would mean both yes and no"),
        ("stop = []", 'stop = ["nie"]', "local.stop has nie, which also means yes or no"),
        ('{ a = "yes"', '{ ano = "yes"', "expected one letter"),
        ('word_letters = ["A"]', 'word_letters = ["a"]', "expected one capital letter"),
        ('yes = ["áno", ', 'yes = ["áno", "b", ', "which is an option's letter too"),
        ('option_letter = "Odpovedzte ', 'option_letter = "Answer\\n', "not found again"),
        ("tejto oblasti:", "tejto oblasti.", "expected a colon at its end"),
        ('"Čo je to?"', '"Stručne opíšte obrázok."', "the same as format_prompts.image_concise"),
        ('able = "Nedá sa odpovedať"', 'able = "Neviem"', "does not quote short_answers"),
        ('image_what = "Čo je to?"\n', "", "format_prompts.image_what is missing"),
        ("nllb =", "nlb =", "engines.nlb: there is no such engine; known: "),
        ('code = "sk"', 'code = "sk"\nreviewed = true', "reviewed is true, expected false or who"),
        ("foreign_letters", "foreign_leters", "unknown key `foreign_leters`; choose from: near"),
        ('nllb = "slk_Latn"', 'nllb = "slk"', "'slk', which is not in the engine's list of 202"),
        ("{days}", "{dni}", "with {dni}; expected {days}: names in braces are not translated"),
        ("{seconds}", "{seconds", "with braces that do not match; expected {seconds}"),
        ("{mib}", "5", "with {megapixels}; expected {megapixels}, {mib}"),
        ("[prompts]", '[answers_to]\n"Je" = "Tak / Nie je"\n[prompts]', "answers_to.Je has 'Tak'"),
        ("[prompts]", '[answers_to]\n"Je" = "Je"\n[prompts]', "expected its yes and its no"),
        ("[engines]", '[numbers]\ntwo = "dva"\n[engines]', "expected a number in digits"),
        ("[engines]", '[numbers]\n2 = "d*va"\n[engines]', "has 'd*va', expected a word"),
        ("send =", "sned =", "ui.sned is unknown; known: intro"),
        ('send = "Odoslať"\n', "", "ui lacks send"),
        ('native_name = "', 'nativ_name = "', "unknown key `nativ_name`"),
        ('code = "sk"', 'code = "cs"', "expected the file's name"),
        ("[answers]", "[answers", "cannot be read as TOML"),
    ],
)
def test_each_fault_is_found_and_named(slovak_file, old, new, message):
    text = slovak_file.read_text(encoding="utf-8")
    assert old in text
    slovak_file.write_text(text.replace(old, new, 1), encoding="utf-8")
    reload_languages()
    found = [str(fault) for fault in check_language("sk")]
    assert any(message in line and "sk.toml" in line for line in found), found
    elsewhere = [fault for code in ("en", "cs", "zh") for fault in check_language(code)]
    assert all(fault.path == slovak_file for fault in elsewhere if not fault.is_note)


def test_another_languages_texts_are_noticed(slovak_file):
    """Somebody copied the Czech file and changed the names."""
    text = (DATA_DIR / "cs.toml").read_text(encoding="utf-8").replace('code = "cs"', 'code = "sk"')
    own = '[instructions.answer_in]\nsk = "Odpovězte slovensky."\n'
    text = text.replace("[instructions.answer_in]\n", own)
    slovak_file.write_text(text, encoding="utf-8")
    reload_languages()
    identification.forget()
    found = "\n".join(map(str, check_language("sk")))
    assert "the texts look like language 'cs', not 'sk'" in found
    assert "instructions.epvqa is" in found and "conversation.system is" in found


def test_notes_alone_are_no_failure(slovak_file):
    text = slovak_file.read_text(encoding="utf-8")
    slovak_file.write_text(text.replace('send = "Odoslať"\n', ""), encoding="utf-8")
    result = CliRunner().invoke(app, ["languages", "check", "sk"])
    assert result.exit_code == 0
    assert "note" in result.output and "nothing wrong" in result.output


def test_a_fault_is_a_failure(slovak_file):
    text = slovak_file.read_text(encoding="utf-8")
    slovak_file.write_text(text.replace('"Odpoveď:"', '"Odpoveď"'), encoding="utf-8")
    result = CliRunner().invoke(app, ["languages", "check", "sk", "hr"])
    assert result.exit_code == 1
    assert "fault" in result.output and "2 language files: 1 fault." in result.output


def test_notes_about_what_ships_are_told_on_request(slovak_file):
    ours = [fault for fault in check_languages(("hr",)) if fault.is_note]
    assert any("reviewed is false: no native reader" in str(fault) for fault in ours)
    notes = [fault for fault in check_languages() if fault.is_note]
    assert notes and all(fault.path == slovak_file for fault in notes)


def test_yes_and_no_may_depend_on_the_question(slovak_file):
    text = slovak_file.read_text(encoding="utf-8")
    table = '[answers_to]\n"Je tam" = "Áno, je / Nie, nie je"\n"Je" = "Áno / Nie je"\n\n[prompts]'
    slovak_file.write_text(text.replace("[prompts]", table, 1), encoding="utf-8")
    reload_languages()
    assert [fault for fault in check_language("sk") if not fault.is_note] == []
    slovak = get_language("sk")
    assert slovak.answer_to("Je tam pes?", is_yes=True) == "Áno, je"
    assert slovak.answer_to("je to pes?", is_yes=False) == "Nie je"
    assert slovak.answer_to("Vidno psa?", is_yes=False) == slovak.no


def test_an_engine_without_a_code_says_where_it_belongs(slovak_file):
    text = slovak_file.read_text(encoding="utf-8")
    assert "apertium" not in text
    with pytest.raises(ConfigError) as raised:
        build_engine("apertium", {}, "sk", None)
    assert str(slovak_file) in str(raised.value)
    assert 'under [engines], such as apertium = "eng-slk"' in str(raised.value)


def test_engines_know_their_codes_and_a_file_overrides_them(slovak_file):
    text = slovak_file.read_text(encoding="utf-8")
    for line in text.splitlines():
        if line.startswith(("madlad = ", "nllb = ", "deepl = ")):
            text = text.replace(line + "\n", "")
    slovak_file.write_text(text.replace('google = "sk"', 'google = "sk-SK"'), encoding="utf-8")
    reload_languages()
    found = {name: find_code(name, "sk") for name in ("madlad", "nllb", "deepl", "google")}
    assert found == {"madlad": "sk", "nllb": "slk_Latn", "deepl": "SK", "google": "sk-SK"}
    assert find_code("apertium", "sk") is None and find_code("openai", "sk") is None


def test_a_language_that_no_engine_has_is_named(tmp_path, slovak_file):
    text = slovak_file.read_text(encoding="utf-8")
    start, end = text.index("[engines]"), text.index("[ui]")
    text = text[:start] + text[end:]
    text = text.replace('code = "sk"', 'code = "dsb"').replace('sk = "', 'dsb = "')
    slovak_file.with_name("dsb.toml").write_text(text, encoding="utf-8")
    slovak_file.unlink()
    reload_languages()
    found = [str(fault) for fault in check_language("dsb")]
    assert any("no engine is known to have the language" in line for line in found), found
