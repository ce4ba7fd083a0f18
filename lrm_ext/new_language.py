"""Drafts the file of a new language, checks language files, and shows one for review.

A draft comes from `languages/new_language.toml` and English. It has what Unicode CLDR and the lists
of the engines know; everything else is marked as pending, with the English text after the mark.

The checks find what is missing, untranslated or not read back as intended. The loader
(`languages/registry.py`) rejects files that cannot be used; these checks find what can be used but
misleads, and the review shows what only a reader can judge. Checks of wording ask whether the texts
are in this language and in no other. Checks of reading back run the project's own formatters and
parsers on the texts, so this module is above everything that uses a language; a new language needs
no change here.
"""

from __future__ import annotations

import json
import re
import string
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from string import Formatter
from typing import NamedTuple

from fontTools.unicodedata import Scripts
from fontTools.unicodedata import script as script_of
from jinja2 import Environment, StrictUndefined

from llava.conversation import get_conversation
from llava.errors import ConfigError, DataError
from llava.files import load_toml
from lrm_ext.emoji.conversations import SceneQuestion, can_say, caption, render_question
from lrm_ext.emoji.scenes import NUM_PATTERNS, get_vocabulary, load_concepts, load_scenes
from lrm_ext.evaluate.reading import answer_words, fold, normalise, parse_yes_no, words_of
from lrm_ext.instructions.registry import get_instruction, split_human_text
from lrm_ext.languages.identification import candidates, probabilities
from lrm_ext.languages.registry import (
    DATA_DIR,
    ENGLISH,
    PENDING,
    Language,
    answer_request,
    get_language,
    is_brief_request,
    is_draft,
    language_files,
    list_languages,
    reload_languages,
)
from lrm_ext.languages.tags import (
    NEUTRAL_SCRIPTS,
    SCRIPT_PARTS,
    KnownNames,
    known_names,
    normalize_tag,
    preferred_tag,
)
from lrm_ext.languages.templates import register_templates, template_for
from lrm_ext.translate.engines.base import engine_names, find_code, get_spec
from lrm_ext.translate.quality.base import parse_thresholds
from lrm_ext.translate.quality.form_checks import is_other_chinese

_TEMPLATE = DATA_DIR.with_name("new_language.toml")
# Engines that exist only where something is installed.
_OPTIONAL_ENGINES = ("apertium", "opus-mt")

_TABLE = re.compile(r"\[([\w.-]+)\]")
_KEY = re.compile(r'\s*"?([\w-]+)"?\s*=')
_WORD = re.compile(r"[^\W\d_]+")
# What a value is for, by the beginning of its key.
_PURPOSES: Mapping[str, str] = {
    "answers.": "it is a short answer that a model is trained to give",
    "prompts.": "it ends the questions of training and of benchmarks",
    "format_prompts.": "it is a request that LLaVA's data repeats, looked up and never translated",
    "short_answers.": "it is the answer that a request of format_prompts quotes",
    "instructions.epvqa": "it asks to answer by way of English (EP-VQA)",
    "instructions.answer_marker": "it tells where the answer of an EP-VQA reply begins",
    "instructions.answer_in": "it asks for an answer in another language (BVQA, the page)",
    "conversation.": "it tells the model in which language it answers",
    "local.": "it tells how answers of people and models are read",
    "name": "CLDR does not know the language's English name",
    "native_name": "CLDR does not know the language's own name",
    "script": "CLDR does not know the language's script",
}
# Probability of another language, for all sentences together, that leaves no doubt.
_SURE = 0.9
_COLONS = (":", "\uff1a")
_QUESTION = "What is it?"
# Tasks whose questions are asked of a scene with two things.
_ONE_SCENE = ("existence", "position", "counting", "color")


def write_draft(code: str, folder: Path) -> Path:
    """Writes the draft of a language file, creating the folder if necessary.

    Args:
        code: The code of the language, in any spelling.
        folder: Folder of the user's language files.

    Raises:
        ConfigError: The code is not valid or not the preferred one, the file exists already, or the
            folder cannot be written.
    """
    tag = normalize_tag(code)
    if usual := preferred_tag(tag):
        raise ConfigError(f"{code!r}: the usual code of this language is {usual!r}; use that.")
    if tag in list_languages():
        raise ConfigError(f"{tag!r} is there already: {get_language(tag).path}.")
    path = folder / f"{tag}.toml"
    text = _draft(tag)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise ConfigError(f"{path} is there already; edit it, or move it away first.") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error}") from error
    return path


def _draft(code: str) -> str:
    names, english = known_names(code), get_language(ENGLISH)
    template = Environment(
        undefined=StrictUndefined, keep_trailing_newline=True, trim_blocks=True
    ).from_string(_TEMPLATE.read_text(encoding="utf-8"))
    named = f"in {names.name or '(the language)'}"
    prompts = english.fixed_prompts.items()
    return template.render(
        code=code,
        names=names,
        english=english,
        names_lines="\n".join(_names(names)),
        prompts={key: text for key, text in prompts if not is_brief_request(key)},
        answer_in={
            ENGLISH: answer_request(ENGLISH, ENGLISH),
            code: f"Answer in {names.name or 'this language'}.",
        },
        engines="\n".join(_engines(code, names)),
        first_ui=next(f"{key} = {_quote(text)}" for key, text in english.ui.items()),
        quote=_quote,
        todo=_todo,
        pending=lambda texts: "\n".join(f"{key} = {_todo(text)}" for key, text in texts.items()),
        in_language=lambda text: named.join(text.rsplit("in English", 1)),
    )


def _names(names: KnownNames) -> Iterator[str]:
    """Lists what CLDR knows, as comments, and what it does not know and nothing else tells."""
    for key, value, told in (
        ("name", names.name, "its name in English"),
        ("native_name", names.native_name, "its own name"),
        ("script", names.script, "ISO 15924 code of its script, such as Latn or Cyrl"),
    ):
        yield f"{key} = {_todo(told)}" if value is None else f"# {key} = {_quote(value)}"
    if names.script is not None:
        yield f"# spaced = {json.dumps(names.spaced)}"
        yield f"# punctuation.full_stop = {_quote(names.full_stop or '')}"


def _engines(code: str, names: KnownNames) -> Iterator[str]:
    """Lists the code of the language in each engine: as in its own list, or else the likely one."""
    for engine, spec in ((name, get_spec(name)) for name in engine_names()):
        if spec.likely_code is None:
            continue
        line = f"# {engine} = {_quote(spec.likely_code(code, names))}"
        if spec.likely_code(code, names) in spec.known_codes:
            yield line
        elif spec.lists_all:
            yield f"# {engine} does not have the language"
        else:
            yield f"{line}  # likely, not known: remove the # if the engine has the language"


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _todo(text: str) -> str:
    return _quote(f"{PENDING} {text}")


class Fault(NamedTuple):
    """A finding in a language file.

    Attributes:
        path: The file.
        text: What was found, where, and what was expected.
        is_note: Whether it may stay as it is.
    """

    path: Path
    text: str
    is_note: bool = False

    def __str__(self) -> str:
        return f"{self.path}: {self.text}"


def check_languages(codes: tuple[str, ...] = ()) -> list[Fault]:
    """Checks the files of some languages, or of all, drafts included.

    Raises:
        ConfigError: There is no file for one of the codes.
    """
    reload_languages()
    files = language_files()
    for code in codes:
        if code not in files:
            get_language(code)  # its error says which are near
    found = [fault for code in codes or tuple(files) for fault in check_language(code)]
    if not codes:  # what may stay as it is in a shipped file is told only on request
        found = [fault for fault in found if not (fault.is_note and fault.path.parent == DATA_DIR)]
    # a file that cannot be loaded shows up in every language, because languages load each other
    return list(dict.fromkeys(found))


def check_language(code: str) -> list[Fault]:
    """Checks the file of a language."""
    path = language_files()[code]
    if is_draft(path):
        return [Fault(path, text) for text in _pending(path)]
    try:
        language = get_language(code)
        others = [get_language(other) for other in list_languages() if other != code]
    except ConfigError as error:
        at_fault = next(
            (p for p in language_files().values() if str(error).startswith(f"{p}: ")), path
        )
        return [Fault(at_fault, str(error).removeprefix(f"{at_fault}: "))]
    english = get_language(ENGLISH)
    if language.ships:  # conflicts with a user's file are reported for that file
        others = [other for other in others if other.ships]
    found = (check(language, english, others) for check in _CHECKS)
    faults = [Fault(path, text) for text in chain.from_iterable(found)]
    return faults + [Fault(path, text, is_note=True) for text in _notes(language, english, others)]


def _pending(path: Path) -> Iterator[str]:
    """Lists the lines of a draft that are not translated, and errors of TOML."""
    try:
        load_toml(path)
    except ConfigError as error:
        yield str(error).removeprefix(f"{path}: ")
    for number, key in pending_keys(path):
        purposes = (text for start, text in _PURPOSES.items() if key.startswith(start))
        yield f"line {number}: {key} is not translated yet: {next(purposes, 'see its comment')}."


def pending_keys(path: Path) -> Iterator[tuple[int, str]]:
    """Yields the line number and the key of each value of a draft that is not translated."""
    table = ""
    text = path.read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text.splitlines(), 1):
        if match := _TABLE.fullmatch(line.strip()):
            table = match[1] + "."
        elif f'"{PENDING}' in line and not line.lstrip().startswith("#"):
            match = _KEY.match(line)
            yield number, f"{table}{match[1] if match else ''}"


def _sentences(language: Language) -> dict[str, str]:
    """Returns the sentences of a file by key, without labels and single words."""
    return {
        "prompts.short_answer": language.short_answer,
        "prompts.option_letter": language.option_letter,
        **{f"format_prompts.{key}": text for key, text in language.fixed_prompts.items()},
        **{f"short_answers.{key}": text for key, text in language.fixed_answers.items()},
        "instructions.epvqa": language.epvqa_instruction,
        "instructions.answer_marker": language.answer_marker,
        "instructions.answer_in_other": language.answer_in_other or "",
        **{f"instructions.answer_in.{key}": text for key, text in language.answer_in.items()},
        "conversation.system": language.system,
    }


def _entries(language: Language) -> dict[str, str]:
    """Returns the sentences, the words for yes and no, and the labels of the page."""
    labels = {f"ui.{key}": text for key, text in language.ui.items()}
    answers = {"answers.yes": language.yes, "answers.no": language.no}
    return {**_sentences(language), **answers, **labels}


def _bare(text: str) -> str:
    """Returns the letters of a text, casefolded."""
    return "".join(_WORD.findall(text)).casefold()


def _check_keys(language: Language, english: Language, others: Sequence[Language]) -> Iterator[str]:
    """Checks that tables have the keys of English; labels of the page may be missing."""
    for table, own, theirs in (
        ("format_prompts", language.fixed_prompts, english.fixed_prompts),
        ("short_answers", language.fixed_answers, english.fixed_answers),
        ("ui", language.ui, english.ui),
    ):
        for key, text in theirs.items():
            if key not in own and table != "ui":
                yield f"{table}.{key} is missing; in English: {text!r}."
        for key in own:
            if key not in theirs:
                yield f"{table}.{key} is unknown; known: {', '.join(theirs)}."


def _check_placeholders(
    language: Language, english: Language, others: Sequence[Language]
) -> Iterator[str]:
    """Checks that texts have the same `{placeholders}` as in English."""
    theirs = _entries(english)
    for key, text in _entries(language).items():
        wanted = _placeholders(theirs.get(key, ""))
        if (found := _placeholders(text)) != wanted:
            yield (
                f"{key} is {text!r}, with {found}; expected {wanted}: names in braces are not "
                "translated."
            )


def _placeholders(text: str) -> str:
    try:
        names = sorted(name for _, name, _, _ in Formatter().parse(text) if name is not None)
    except ValueError:
        return "braces that do not match"
    return ", ".join(f"{{{name}}}" for name in names) or "no name in braces"


def _check_engines(
    language: Language, english: Language, others: Sequence[Language]
) -> Iterator[str]:
    """Checks that engines exist, and that codes are in their lists, if these are complete."""
    known = {*engine_names(), *_OPTIONAL_ENGINES}
    for engine, code in language.engine_codes.items():
        spec = get_spec(engine) if engine in engine_names() else None
        codes = spec.known_codes if spec and spec.lists_all else ()
        if engine not in known:
            yield f"engines.{engine}: there is no such engine; known: {', '.join(sorted(known))}."
        elif codes and code not in codes:
            near = ", ".join(get_close_matches(code, codes))
            yield (
                f"engines.{engine} is {code!r}, which is not in the engine's list of {len(codes)} "
                f"codes; {f'similar: {near}' if near else 'delete the line'}."
            )


def _check_untranslated(
    language: Language, english: Language, others: Sequence[Language]
) -> Iterator[str]:
    """Checks that no text is still English.

    Short labels of the page (`ui`), and one of yes and no, may be the same in both languages.
    """
    if language.code == english.code:
        return
    theirs = _entries(english)
    own = _entries(language)
    same = [key for key in own if key in theirs and _bare(own[key]) == _bare(theirs[key])]
    for key in same:
        is_short = key.startswith(("ui.", "answers.")) and own[key].count(" ") < 2
        if not is_short:
            yield f"{key} is {own[key]!r}, as in English; translate it."
    if {"answers.yes", "answers.no"} <= set(same):
        yield "answers.yes and answers.no are the English words."


def _check_script(
    language: Language, english: Language, others: Sequence[Language]
) -> Iterator[str]:
    """Checks the script of words and the form of characters.

    Words of the English text, such as "OCR", may stay.
    """
    if language.script not in {*Scripts.NAMES, *SCRIPT_PARTS} - NEUTRAL_SCRIPTS:
        yield f"script is {language.script!r}, expected an ISO 15924 code such as Latn or Cyrl."
        return
    allowed = SCRIPT_PARTS.get(language.script, frozenset({language.script})) | NEUTRAL_SCRIPTS
    theirs = {k: t for k, t in _entries(english).items() if not k.startswith("answers.")}
    for key, text in _entries(language).items():
        if text != unicodedata.normalize("NFC", text):
            yield f"{key} is not in Unicode's form NFC; type it anew."
        same = set(_WORD.findall(theirs.get(key, "")))
        words = [word for word in _WORD.findall(text) if word not in same]
        if wrong := [word for word in words if not allowed.issuperset(map(script_of, word))]:
            found = sorted({*map(script_of, "".join(wrong))} - allowed)
            yield (
                f"{key} has {', '.join(dict.fromkeys(wrong))} with letters of script "
                f"{', '.join(found)}; expected {language.script}. Type the word anew (letters of "
                "two scripts may look alike), or correct `script`."
            )
        letters = [letter for letter in text if script_of(letter) == "Hani"]
        if odd := [letter for letter in letters if is_other_chinese(letter, language.script)]:
            yield f"{key} has {''.join(odd)!r}, which is not written so in {language.script}."
    # people also answer in another script, but never in two within a word
    for word in (*language.local.yes, *language.local.no):
        found = sorted({*map(script_of, word)} - NEUTRAL_SCRIPTS)
        if len(found) > 1 and not allowed.issuperset(found):
            yield (
                f"local has {word!r} with letters of the scripts {', '.join(found)}: nobody types "
                "that. Type the word anew (letters of two scripts may look alike)."
            )


def _check_identity(
    language: Language, english: Language, others: Sequence[Language]
) -> Iterator[str]:
    """Checks the thresholds, and that all sentences together look like the language."""
    try:
        thresholds = parse_thresholds(language.quality, "quality")
    except ConfigError as error:
        yield str(error)
        return
    among = candidates(language.code, thresholds)
    shares = probabilities(" ".join(_sentences(language).values()), among)
    near = {language.code, language.code.partition("-")[0], *thresholds.near}
    best = max(shares, key=shares.__getitem__, default=language.code)
    if language.code in shares and best not in near and shares[best] > _SURE:
        yield f"the texts look like language {best!r}, not {language.code!r}."


def _check_short_answers(
    language: Language, english: Language, others: Sequence[Language]
) -> Iterator[str]:
    """Checks that yes and no, and all words that count as one, are read as intended."""
    answer_words.cache_clear()  # the file may have changed
    words = answer_words(language.code)
    for key, word, label in (
        ("answers.yes", language.yes, "yes"),
        ("answers.no", language.no, "no"),
        *(
            (f"answers_to.{start}", word, label)
            for start, pair in language.answers_to.items()
            for word, label in zip(pair, ("yes", "no"), strict=True)
        ),
        *(("local.yes", word, "yes") for word in language.local.yes),
        *(("local.no", word, "no") for word in language.local.no),
    ):
        is_listed = key.startswith("local.")  # an answer may have several words
        if is_listed and language.spaced and len(words_of(fold(normalise(word)))) != 1:
            yield (
                f"{key} has {word!r}: the first word of an answer decides, so a phrase is never "
                "found; list its first word, if that decides."
            )
            continue
        reads = [parse_yes_no(word, words, "mme"), parse_yes_no(word, words, "pope")]
        if wrong := [read.label for read in reads if read.label != label or read.by_default]:
            found = "neither" if "other" in wrong else repr(wrong[0])
            yield f"{key} has {word!r}, which is read as {found}; is it in local.{label}?"
        elif key.startswith("answers.") and reads[0].answer_lang not in (language.code, "letter"):
            yield (
                f"{key} is {word!r}, which is read as {reads[0].answer_lang!r}; add it to local."
                f"{label}."
            )
    if collisions := sorted(words.stop & words.native):
        yield f"local.stop has {', '.join(collisions)}, which also means yes or no."


def _check_prompts(
    language: Language, english: Language, others: Sequence[Language]
) -> Iterator[str]:
    """Checks that requests are recognised at the end of a question, and end as in English."""
    prompts = language.format_prompts
    for name, prompt in zip(("short_answer", "option_letter"), prompts, strict=True):
        if split_human_text(f"{_QUESTION}\n{prompt}", prompts).format_prompt != prompt:
            yield f"prompts.{name} is not found again as the last line of a question."
    if prompts[0] == prompts[1]:
        yield "prompts.short_answer and prompts.option_letter are the same."
    seen: dict[str, str] = {}
    for key, own in language.fixed_prompts.items():
        wanted = english.fixed_prompts.get(key, own).endswith(_COLONS)
        if own.endswith(_COLONS) != wanted:
            expected = "a colon" if wanted else "no colon"
            yield f"format_prompts.{key} is {own!r}, expected {expected} at its end."
        same = seen.setdefault(own, key)
        if same != key and not (same == "image_concise" and is_brief_request(key)):
            yield f"format_prompts.{key} is the same as format_prompts.{same}."
    for key, answer in language.fixed_answers.items():
        if answer not in language.fixed_prompts.get(key, answer):
            yield f"format_prompts.{key} does not quote short_answers.{key}, {answer!r}."


def _check_instructions(
    language: Language, english: Language, others: Sequence[Language]
) -> Iterator[str]:
    """Checks that replies to every kind of training sample are read back."""
    for key, text in _sentences(language).items():
        if key.startswith(("instructions.epvqa", "instructions.answer_in")) and "\n" in text:
            yield f"{key} has several lines, expected one."
    before, after = language.translation_marker, language.answer_marker
    for key, marker in (("translation_marker", before), ("answer_marker", after)):
        if not marker.endswith(_COLONS):
            yield f"instructions.{key} is {marker!r}, expected a colon at its end."
    if before != english.translation_marker:
        yield (
            f"instructions.translation_marker is {before!r}, expected "
            f"{english.translation_marker!r}: the translation is always English."
        )
    if before.startswith(after) or after.startswith(before):
        yield f"instructions: the markers {before!r} and {after!r} begin alike."
        return
    if language.code == english.code:
        return
    rule = get_instruction("epvqa")
    for answer in (language.yes, language.no, *language.fixed_answers.values(), "7", "A"):
        try:
            reply = rule.write_reply(_QUESTION, answer, language)
        except DataError as error:
            yield f"instructions: {error}"
            return
        read = rule.read_reply(reply, language)
        if not read.well_formed or (read.translation, read.answer) != (_QUESTION, answer):
            yield f"instructions: the reply {reply!r} is read as {read.answer!r} ({read.problem})."


def _check_option_letters(
    language: Language, english: Language, others: Sequence[Language]
) -> Iterator[str]:
    """Checks that option letters that are also words are in `word_letters`."""
    local = language.local
    for letter in local.word_letters:
        if len(letter) != 1 or not letter.isupper():
            yield f"local.word_letters has {letter!r}, expected one capital letter."
    words = [("answers", language.yes), ("answers", language.no)]
    for key, text in (*words, *(("local", word) for word in (*local.yes, *local.no))):
        letter = text.upper()
        if letter in {*string.ascii_uppercase} - {*local.word_letters}:
            yield (
                f"{key} has the word {text!r}, which is an option's letter too; add {letter!r} to "
                "local.word_letters."
            )
    for letter in local.letters:
        if len(letter) != 1:
            yield f"local.letters has {letter!r}, expected one letter."


def _check_distinct(
    language: Language, english: Language, others: Sequence[Language]
) -> Iterator[str]:
    """Checks that requests differ from one another and from those of other languages.

    A request that is the same in two languages does not tell in which one to answer.
    """
    seen: dict[str, str] = {}
    for code, text in language.answer_in.items():
        if (first := seen.setdefault(_bare(text), code)) != code:
            yield f"instructions.answer_in.{code} is {text!r}, the same as for {first!r}."
    if _bare(language.epvqa_instruction) in seen:
        yield "instructions.epvqa is the same as one of instructions.answer_in."
    ours = _requests(language)
    theirs = {other.code: _requests(other) for other in others}
    for name, key in (
        ("instructions.epvqa", "epvqa"),
        ("conversation.system", "system"),
        (f"instructions.answer_in.{language.code}", "answer_in"),
    ):
        same = [code for code, texts in theirs.items() if _bare(texts[key]) == _bare(ours[key])]
        if same:
            yield f"{name} is {ours[key]!r}, the same as in {', '.join(same)}; the two must differ."


def _requests(language: Language) -> dict[str, str]:
    """Returns the texts that must differ between languages."""
    return {
        "epvqa": language.epvqa_instruction,
        "system": language.system,
        "answer_in": answer_request(language.code, language.code),
    }


_CHECKS: tuple[Callable[[Language, Language, Sequence[Language]], Iterator[str]], ...] = (
    _check_keys,
    _check_placeholders,
    _check_engines,
    _check_untranslated,
    _check_script,
    _check_identity,
    _check_short_answers,
    _check_prompts,
    _check_instructions,
    _check_option_letters,
    _check_distinct,
)


def _notes(language: Language, english: Language, others: Sequence[Language]) -> Iterator[str]:
    """Lists what may stay as it is, and its consequences."""
    if language.answer_in_other is None:
        missing = [other.code for other in others if other.code not in language.answer_in]
        yield (
            f"instructions.answer_in_other is missing: for an answer in {', '.join(missing)} the "
            "demo asks in English."
        )
    if unknown := sorted({*language.answer_in, *language.named_by} - set(list_languages())):
        yield f"instructions name languages that there are no files for: {', '.join(unknown)}."
    if missing := [key for key in english.ui if key not in language.ui]:
        listed = ", ".join(missing) if language.ui else "all texts"
        yield f"ui lacks {listed}: they stay English on the demo's page."
    if not language.numbers:
        yield "numbers is missing: a number written in words counts as lost in a translation."
    with_codes = [name for name in engine_names() if find_code(name, language.code)]
    if not with_codes:
        yield (
            "no engine is known to have the language: only those that need no code (memory, "
            "openai) translate into it. If another has it, add its code under [engines]."
        )
    if not language.reviewed:
        yield (
            f"reviewed is false: no native reader has signed. `lrm languages review "
            f"{language.code}` shows each text in its place."
        )


def review_parts(code: str) -> Iterator[tuple[str, list[str]]]:
    """Yields headings and lines that show each text of a language where a model or user meets it.

    Raises:
        ConfigError: The language is unknown or a draft.
    """
    language, english = get_language(code), get_language(ENGLISH)
    yield (
        f"The language: {language.name}",
        [
            f"its own name: {language.native_name}",
            f"script: {language.script}",
            f"spaces between words: {'yes' if language.spaced else 'no'}",
            f"a sentence ends with: {language.full_stop or 'nothing'}",
            f"reviewed: {language.review_text}",
            f"file: {language.path}",
        ],
    )
    asked = english.fixed_prompts["image_what"]
    question = language.fixed_prompts.get("image_what", asked)
    yield "A question as the model gets it", _as_asked(language, question)
    yield (
        "The same, answered through English (EP-VQA), and the reply",
        [
            *get_instruction("epvqa").ask(question, code).splitlines(),
            "",
            *get_instruction("epvqa").write_reply(asked, language.yes, language).splitlines(),
        ],
    )
    shown = dict.fromkeys((ENGLISH, code, "fr", "ru", "zh"))
    yield (
        "Requests for an answer in another language; the names must fit in",
        [f"{get_language(other).name}: {answer_request(code, other)}" for other in shown],
    )
    own, theirs = _fixed(language), _fixed(english)
    yield "Fixed requests and answers, below the English ones", _below_english(own, theirs)
    yield "How answers to yes/no questions are read", list(_as_read(language))
    yield "Options and numbers", _options_and_numbers(language)
    yield (
        "Images of the built-in corpus and with text, below the English ones ([scenes], [reading])",
        _below_english(_about_images(language), _about_images(english)) or ["none"],
    )
    missing = [key for key in english.ui if key not in language.ui]
    page = _below_english(language.ui, english.ui)
    page += [f"in English only: {', '.join(missing)}"] if missing else []
    yield "The page, below the English texts ([ui], optional)", page
    faults = [fault.text for fault in check_language(code) if not fault.is_note]
    yield "What looks wrong to `lrm languages check`", faults or ["nothing"]
    yield (
        "To sign",
        [
            f"Correct what you would say otherwise in {language.path},",
            f"run `lrm languages check {code}`, and replace its line `reviewed = ...` by",
            'reviewed = { by = "your name", on = 2026-12-31 }',
        ],
    )


def _about_images(language: Language) -> dict[str, str]:
    """Returns every pattern of the built-in corpus, filled in, and the questions about text."""
    said = {}
    if language.scenes:
        code = language.code
        scene = next(s for s in load_scenes(60) if len(s.objects) == 2 and can_say(s, (), code))
        placed = scene.objects[0]
        for task, number in NUM_PATTERNS.items():
            target = placed.position if task == "position" else placed.concept
            for i in range(number):
                question = SceneQuestion(task, target, i)
                pair = render_question(question, scene, code) if task in _ONE_SCENE else None
                pair = caption(scene, code, i) if task == "caption" else pair
                if pair is not None:
                    said[f"{task} {i + 1}"] = " - ".join(pair)
        words = get_vocabulary(code)
        said |= {f"naming {i + 1}": text for i, text in enumerate(words.questions["naming"])}
        for title, listed in (
            ("positions", words.positions),
            ("categories", words.categories),
            ("colours", words.color_answers),
            ("backgrounds", words.color_backgrounds),
        ):
            said[title] = ", ".join(listed.values())
        said["things"] = ", ".join(each.names.get(code, "-") for each in load_concepts())
    if language.reading:
        said |= {"text": language.reading.what, "is written": language.reading.is_written}
    return said


def _options_and_numbers(language: Language) -> list[str]:
    local = language.local
    numbers = "; ".join(f"{number} {words}" for number, words in language.numbers.items())
    return [
        f"labels of options: {' '.join(('A B C D', *local.option_letters))}",
        f"letters that are also words: {' '.join(local.word_letters) or 'none'}",
        f"numbers: {numbers or 'none listed'}",
    ]


def _as_asked(language: Language, question: str) -> list[str]:
    """Returns a conversation in the language's template."""
    register_templates()
    conversation = get_conversation(template_for("lrm_v1", language.code))
    user, assistant = conversation.roles
    conversation.append_message(user, f"<image>\n{question}\n{language.short_answer}")
    conversation.append_message(assistant, language.fixed_answers.get("unanswerable", language.no))
    return conversation.get_prompt().splitlines()


def _fixed(language: Language) -> dict[str, str]:
    """Returns the fixed requests and answers; requests that the file leaves out come once."""
    brief = language.fixed_prompts.get("image_concise")
    return {
        "option_letter": language.option_letter,
        **{
            key: text
            for key, text in language.fixed_prompts.items()
            if not (is_brief_request(key) and text == brief)
        },
        **{f"answer {key}": text for key, text in language.fixed_answers.items()},
    }


def _below_english(texts: Mapping[str, str], english: Mapping[str, str]) -> list[str]:
    """Returns texts, each below the English one; those that are the same in one line."""
    lines: list[str] = []
    for key, text in texts.items():
        theirs = english.get(key, "")
        lines += [f"{key}: {theirs}"] if text == theirs else [f"{key}: {theirs}", f"    {text}"]
    return lines


def _as_read(language: Language) -> Iterator[str]:
    """Yields the answers and words of the file by what they are read as."""
    words, mark = answer_words(language.code), language.full_stop
    answers = [language.yes, language.no, f"{language.yes}{mark}", f"{language.no}{mark}"]
    answers += [part for pair in language.answers_to.values() for part in pair]
    answers += [*language.local.yes, *language.local.no, *language.local.letters]
    read: dict[str, list[str]] = {"yes": [], "no": [], "other": []}
    for answer in dict.fromkeys((*answers, *language.local.stop)):
        read[parse_yes_no(answer, words, "mme").label].append(answer)
    for label, shown in zip(read, ("as yes", "as no", "as neither"), strict=True):
        yield f"{shown}: {' | '.join(read[label]) or '(none of the words of the file)'}"
