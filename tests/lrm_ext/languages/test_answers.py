"""Answers as people give them, `answers/<code>.toml`, are read as their files say."""

from pathlib import Path
from typing import Any

from llava.files import load_toml
from lrm_ext.evaluate.reading import answer_words, infer_local, parse_yes_no, text_key
from lrm_ext.languages import get_language, list_languages

FOLDER = Path(__file__).parent / "answers"
FILES = {path.stem: path for path in sorted(FOLDER.glob("*.toml"))}
MIN_ANSWERS = 20


def answers_of(code: str) -> dict[str, Any]:
    return dict(load_toml(FILES[code]))


def meaning(answer: str, lang: str) -> str:
    """Returns yes, no or other: a no anywhere in the first sentence is a no."""
    read = parse_yes_no(answer, answer_words(lang), "pope")
    return "other" if read.by_default or read.label == "unparsed" else read.label


def faults(code: str) -> list[str]:
    table, language = answers_of(code), get_language(code)
    labels = answer_words(code).labels
    found = [
        f"{answer!r} is read as {read}, expected {label}"
        for label in ("yes", "no", "other")
        for answer in table[label]
        if (read := meaning(answer, code)) != label
    ]
    for answer, digits in table.get("numbers", {}).items():
        if (key := text_key(answer)) != digits:
            found.append(f"{answer!r} is read as {key!r}, expected {digits}")
    for answer, letter in table.get("options", {}).items():
        choice = infer_local(
            answer, [], language.local.word_letters, language.spaced, labels=labels
        )
        if choice.letter != letter:
            found.append(f"{answer!r} is read as option {choice.letter}, expected {letter}")
    return found


def test_answers_are_read_as_meant():
    wrong = [f"{code}: {fault}" for code in FILES for fault in faults(code)]
    assert not wrong, f"{len(wrong)} answers\n" + "\n".join(wrong)


def test_each_file_has_twenty_answers_of_a_language():
    unknown = sorted(set(FILES) - set(list_languages()))
    assert not unknown, f"answers/: no language is called {', '.join(unknown)}"
    few = {
        code: sum(len(answers_of(code)[key]) for key in ("yes", "no", "other")) for code in FILES
    }
    assert not {code: num for code, num in few.items() if num < MIN_ANSWERS}


def test_a_word_is_never_read_as_its_opposite():
    """In a known language its own words and the English ones mean what they mean."""
    wrong = []
    for code in list_languages():
        local = get_language(code).local
        for label, said in (("yes", (*local.yes, "yes", "Yes.")), ("no", (*local.no, "No", "not"))):
            wrong += [
                f"{code}: {word!r} is read as {read}, expected {label}"
                for word in said
                if (read := meaning(word, code)) != label
            ]
    assert not wrong, "\n".join(wrong)
