"""`lrm languages add`: the file of a new language, before anybody has translated it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from drafted import fill, leaves
from typer.testing import CliRunner

from llava.errors import ConfigError
from llava.files import load_toml
from lrm_ext.cli import app
from lrm_ext.languages import list_languages
from lrm_ext.languages.registry import FOLDER_VARIABLE, PENDING, is_brief_request, load_language
from lrm_ext.new_language import write_draft

OWN = Path(__file__).parent / "own"


@pytest.fixture
def draft(tmp_path):
    return write_draft("sk", tmp_path / "new")


def test_it_asks_for_what_only_people_can_say(draft):
    values = dict(leaves(load_toml(draft)))
    theirs = dict(leaves(load_toml(OWN / "sk.toml")))
    done = {key for key, value in values.items() if PENDING not in str(value)}
    assert done == {"code", "reviewed"}
    optional = ("quality.", "engines.", "ui.", "instructions.named_by.", "local.letters.")
    may_be_derived = {"name", "native_name", "paper_label", "script", "spaced"}
    may_be_derived |= {"punctuation.full_stop", "instructions.translation_marker"}
    may_be_derived |= {key for key in theirs if is_brief_request(key.partition(".")[2])}
    may_be_derived |= {f"instructions.answer_in.{code}" for code in list_languages()[1:]}
    asked = {key for key in values if not key.startswith("local.letters.")} - done
    assert asked == {k for k in theirs if not k.startswith(optional)} - may_be_derived - done
    assert len(asked) < 30


def test_what_cldr_and_the_engines_say_is_shown(draft):
    text = draft.read_text(encoding="utf-8")
    theirs = dict(leaves(load_toml(OWN / "sk.toml")))
    for key in ("name", "native_name", "script"):
        assert f'# {key} = "{theirs[key]}"' in text
    assert '# spaced = true\n# punctuation.full_stop = "."' in text


def test_the_codes_of_all_engines_are_shown(tmp_path):
    text = write_draft("cy", tmp_path).read_text(encoding="utf-8")
    for line in ('# nllb = "cym_Latn"', '# m2m100 = "cy"', '# deepl = "CY"', '# madlad = "cy"'):
        assert re.search(f"^{line}$", text, re.MULTILINE), line
    assert re.search(r'^# apertium = "eng-cym"  # likely, not known', text, re.MULTILINE)


def test_an_engine_that_does_not_have_the_language_gets_no_code(tmp_path):
    text = write_draft("nv", tmp_path).read_text(encoding="utf-8")
    assert "# m2m100 does not have the language" in text  # Navajo


def test_the_english_text_stands_after_the_mark(draft):
    values = dict(leaves(load_toml(draft)))
    assert values["prompts.short_answer"].startswith("TODO Answer the question using a single")
    assert values["instructions.epvqa"].endswith("then answer it in Slovak.")
    assert values["conversation.system"].endswith("The assistant answers in Slovak.")


def test_every_table_and_entry_is_explained(draft):
    """A comment stands before each table and each entry of its own, or in the table."""
    lines = draft.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        if re.fullmatch(r"\[[\w.]+\]", line):
            assert lines[number - 1].startswith("#") or lines[number + 1].startswith("#"), line
    text = "\n".join(lines)
    for key in ("code", "reviewed", "epvqa", "answer_marker", "letters", "word_letters"):
        assert re.search(rf"^#.*\n{key} = ", text, re.MULTILINE), key


def test_filled_in_it_is_a_language(draft):
    """Line by line: what is marked gets its value from the finished file."""
    fill(draft, OWN / "sk.toml")
    ours, theirs = load_language(draft), load_language(OWN / "sk.toml")
    for field in ("yes", "short_answer", "answer_in_other", "system", "native_name"):
        assert getattr(ours, field) == getattr(theirs, field)
    assert (ours.local.yes, ours.local.no) == (theirs.local.yes, theirs.local.no)
    assert ours.fixed_prompts.keys() == theirs.fixed_prompts.keys()


def test_a_language_without_a_name_in_cldr_is_all_to_do(tmp_path):
    values = dict(leaves(load_toml(write_draft("qaa", tmp_path))))
    for key in ("name", "native_name", "script"):
        assert values[key].startswith(PENDING)


def test_a_script_without_blanks_between_words(tmp_path):
    text = write_draft("lo", tmp_path).read_text(encoding="utf-8")
    assert '# spaced = false\n# punctuation.full_stop = ""' in text


@pytest.mark.parametrize("code", ["../sk", "/tmp/sk", "sk/x", "", ".", "..", "sk.toml", "s k"])
def test_a_code_that_is_none_writes_nothing(tmp_path, code):
    folder = tmp_path / "a" / "new"
    with pytest.raises(ConfigError, match="BCP-47"):
        write_draft(code, folder)
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize(("code", "message"), [("slk", "'sk'"), ("hr", "is there already")])
def test_a_code_that_there_is_is_not_written_again(tmp_path, code, message):
    with pytest.raises(ConfigError, match=message):
        write_draft(code, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_never_overwritten(draft):
    draft.write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"sk\.toml is there already"):
        write_draft("sk", draft.parent)
    assert draft.read_text(encoding="utf-8") == "mine"


def test_the_commands(tmp_path, use_folder):
    """What a user types, one after the other."""
    folder = tmp_path / "mine"
    folder.mkdir()
    use_folder(folder)
    added = CliRunner().invoke(app, ["languages", "add", "sk"])
    assert added.exit_code == 0 and "lrm languages check sk" in added.output
    unfinished = CliRunner().invoke(app, ["languages", "check", "sk"])
    assert unfinished.exit_code == 1
    marks = (folder / "sk.toml").read_text(encoding="utf-8").count(f'"{PENDING}')
    assert unfinished.output.count("is not translated yet") == marks > 20
    assert re.search(r"sk\.toml: line \d+: local\.yes is not translated yet", unfinished.output)
    assert "sk" not in list_languages()
    (folder / "sk.toml").write_bytes((OWN / "sk.toml").read_bytes())
    finished = CliRunner().invoke(app, ["languages", "check", "sk"])
    assert finished.exit_code == 0 and "1 language file: nothing wrong." in finished.output
    listed = CliRunner(env={"COLUMNS": "160"}).invoke(app, ["languages"])
    assert "sk (yours)" in listed.output and "slovenčina" in listed.output


def test_another_folder_says_how_to_have_it_used(tmp_path, use_folder):
    use_folder(OWN)
    result = CliRunner().invoke(app, ["languages", "add", "et", "--dir", str(tmp_path / "new")])
    assert result.exit_code == 0
    assert f"export {FOLDER_VARIABLE}={tmp_path / 'new'}" in result.output
    assert (tmp_path / "new" / "et.toml").is_file()
