"""Makes images of sentences with questions about what is written in them.

In: sentences of each language (a file, a folder, or the project's own). Out, in a folder:

    train/                    a corpus: every image is asked what is written in it, and whether a
                              text is; FONTS.md in it lists the fonts with their licences
    images/<lang>/<n>.jpg     its images
    mixture.toml              its languages, for training
    reading/<lang>.jsonl      a benchmark of other sentences in other fonts, with its `images/`
    COMPLETE                  written last: a hash of all inputs

An image is a function of seed, language and number. An interrupted run keeps its images.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from llava.data.sample import Turn
from llava.errors import ConfigError, DataError
from llava.eval.records import read_text
from llava.files import lock_of, sha256_of, write_atomically, writing
from llava.progress import Progress
from lrm_ext.corpus.sentences import built_in_pairs
from lrm_ext.corpus.store import CorpusRow
from lrm_ext.corpus.text_rendering import graphemes, needs_shaping, render_text, shows_spaces
from lrm_ext.corpus.writer import CorpusWriter
from lrm_ext.emoji.conversations import IMAGE_PREFIX
from lrm_ext.emoji.unpack import JPEG_QUALITY, finish_folder, is_finished, prepare_folder
from lrm_ext.languages.fonts import Font, installed_fonts, missing_font, visible
from lrm_ext.languages.registry import ENGLISH, Language, get_language, list_languages

log = logging.getLogger(__name__)

# Increase it when images or questions change.
_FORMAT: Final = 1
SOURCE: Final = "text_images"
READING, CONTROL = "reading", "reading_control"
MAX_GRAPHEMES: Final = 160
_TEST_SHARE: Final = 0.1
# of each split, so that one can be asked about on the image of another
_MIN_SENTENCES: Final = 2
# Of the sentences that the best font covers, the share that a font must cover, too.
_COVERAGE: Final = 0.9
_NUM_PROBED: Final = 500
# Thinner strokes than those of Light fade at the sizes at which towers see images.
_MIN_WEIGHT: Final = 300
_NUM_OTHERS: Final = 16
_RESERVED: Final = ("<image>", "<video>")

Split = Literal["train", "test"]


@dataclass
class LanguagePlan:
    """What is drawn in a language.

    Attributes:
        language: The language.
        sentences: Sentences by split; no sentence is in both.
        fonts: Fonts by split.
        fonts_apart: What the splits do not share: "families", "styles" of the one family, or
            "nothing", if there is one font.
        left_out: Number of sentences that are not drawn, by reason.
        remark: Why a font lacks, for the sentences that no font covers.
    """

    language: Language
    sentences: dict[Split, list[str]] = field(default_factory=dict)
    fonts: dict[Split, list[Font]] = field(default_factory=dict)
    fonts_apart: str = "families"
    left_out: Counter[str] = field(default_factory=Counter)
    remark: str = ""

    @property
    def wording(self) -> Language:
        """The language of the questions: English if the language's file has none."""
        return self.language if self.language.reading else get_language(ENGLISH)


@dataclass(frozen=True)
class TextImage:
    """An image and the text that its yes/no question asks about.

    Attributes:
        plan: Its language.
        number: Its number in its language and split.
        text: What is written in it.
        asked: What is asked about: `text`, or another sentence of the split.
        font: Its font.
        seed: Seed of its look.
    """

    plan: LanguagePlan
    number: int
    text: str
    asked: str
    font: Font
    seed: str

    @property
    def name(self) -> str:
        """Path below the folder of images."""
        return f"{self.plan.language.code}/{self.number:06d}.jpg"

    def question(self, task: str, wording: Language) -> str:
        """Returns the question of a task; a yes/no question asks for a short answer."""
        assert wording.reading is not None
        if task == READING:
            return wording.reading.what
        asked = wording.reading.is_written.replace("{text}", self.asked)
        return f"{asked}\n{wording.short_answer}"

    def answer(self, task: str, wording: Language) -> str:
        """Returns the answer: the text, letter by letter, or yes or no."""
        if task == READING:
            return self.text
        return wording.answer_to(self.question(task, wording), self.asked == self.text)


def make_text_images(
    root: Path,
    languages: Sequence[str],
    num_rows: int,
    *,
    source: Path | None = None,
    folders: Sequence[Path] = (),
    seed: int = 0,
    overwrite: bool = False,
) -> list[LanguagePlan]:
    """Makes the corpus and the benchmark, unless they are there already.

    Args:
        root: Folder to write.
        languages: Codes of the languages.
        num_rows: Rows of the corpus, two of an image, shared evenly by the languages; the benchmark
            has a tenth of that.
        source: See `read_sentences`; None for the project's own sentences.
        folders: Folders with fonts besides the installed ones.
        seed: Of all choices.
        overwrite: Replace what is at `root`.

    Returns:
        What was drawn in each language.

    Raises:
        ConfigError: A language is unknown or no font covers it, or `root` has other images.
        DataError: The sentences cannot be read, or are too few.
    """
    plans = plan_languages(read_sentences(source, languages), folders, seed)
    if num_rows < 2 * len(plans):
        raise ConfigError(
            f"--rows {num_rows}: expected at least {2 * len(plans)}, two for each language"
        )
    digest = _digest(plans, num_rows, seed)
    root.parent.mkdir(parents=True, exist_ok=True)
    with lock_of(root):
        if is_finished(root, digest):
            return plans
        prepare_folder(root, digest, keep=True, replace=overwrite)
        each = -(-num_rows // (2 * len(plans)))
        train = _images(plans, "train", each, seed)[: -(-num_rows // 2)]
        # an even number: as many yes as no
        test = _images(plans, "test", 2 * max(1, round(_TEST_SHARE * each / 2)), seed)
        places = [(one, root / "images" / one.name) for one in train]
        places += [(one, root / "reading" / "images" / one.name) for one in test]
        with Progress("text images", len(places), "images") as progress:
            for one, path in places:
                _draw(one, path)
                progress.advance()
        _write_corpus(root / "train", plans, train, num_rows)
        _write_benchmark(root / "reading", test)
        write_atomically(root / "mixture.toml", _mixture([plan.language.code for plan in plans]))
        finish_folder(root, digest)
    return plans


def read_sentences(source: Path | None, languages: Sequence[str]) -> dict[str, list[str]]:
    """Reads the sentences of each language, one a line.

    Args:
        source: A file of lines in one language; a file of lines `LANG<TAB>TEXT`; or a folder with a
            file `<lang>.txt` for each language. None for sentences of the project: those of the
            language files, and captions and questions of the built-in corpus.
        languages: Codes of the languages; lines of others are left out.

    Raises:
        ConfigError: A language is unknown.
        DataError: A file is missing or not UTF-8, or a line has no language.
    """
    found: dict[str, list[str]] = {get_language(code).code: [] for code in languages}
    if source is None:
        pairs = built_in_pairs(list(found))
        return {lang: [text for _, text in pairs[lang]] for lang in found}
    if source.is_dir():
        paths = {lang: source / f"{lang}.txt" for lang in found}
        if missing := [path.name for path in paths.values() if not path.is_file()]:
            raise DataError(f"{source} lacks {', '.join(missing)}; expected <lang>.txt, in UTF-8.")
        return {lang: read_text(path).splitlines() for lang, path in paths.items()}
    lines = read_text(source).splitlines()
    if not _label(next(filter(str.strip, lines), "")):
        if len(found) > 1:
            raise DataError(
                f"{source}: the first line does not name its language, and {len(found)} are asked "
                "for; expected lines LANG<TAB>TEXT, a folder with <lang>.txt, or one language."
            )
        return dict.fromkeys(found, lines)
    others = Counter[str]()
    for number, line in enumerate(lines, start=1):
        lang = _label(line)
        if lang in found:
            found[lang].append(line.partition("\t")[2])
        elif lang is not None:
            others[lang] += 1
        elif line.strip():
            raise DataError(
                f"{source}:{number}: expected LANG<TAB>TEXT with a language that `lrm languages` "
                f"lists, found {line[:40]!r}."
            )
    if others:
        counts = ", ".join(f"{lang} {count}" for lang, count in others.most_common())
        log.warning("%s: lines in other languages are left out: %s", source, counts)
    return found


def _label(line: str) -> str | None:
    """Returns the language that a line names."""
    lang, tab, _ = line.partition("\t")
    return lang if tab and lang in list_languages() else None


def plan_languages(
    sentences: Mapping[str, Sequence[str]], folders: Sequence[Path], seed: int
) -> list[LanguagePlan]:
    """Chooses sentences and fonts of each split.

    Args:
        sentences: Lines by language.
        folders: Folders with fonts besides the installed ones.
        seed: Decides what the test gets.

    Raises:
        ConfigError: No font covers a language; the error names the scripts and the packages. Or
            Pillow cannot shape it.
        DataError: A language has too few sentences.
    """
    fonts = installed_fonts(tuple(folders))
    plans = [LanguagePlan(get_language(lang)) for lang in sentences]
    usable = {plan.language.code: _usable(sentences[plan.language.code], plan) for plan in plans}
    fitting = {
        plan.language.code: _fonts_for(usable[plan.language.code], plan.language, fonts)
        for plan in plans
    }
    problems = [
        f"{lang}: {missing_font(texts, fonts)}, or name a folder of fonts with --fonts"
        for lang, texts in usable.items()
        if texts and not fitting[lang]
    ]
    problems += [
        f"{plan.language.code}: this Pillow lacks Raqm, which joins and orders its letters; install"
        " Pillow from PyPI, whose wheels have it"
        for plan in plans
        if needs_shaping(plan.language)
    ]
    if problems:
        raise ConfigError("\n".join(problems))
    for_test = _test_families(fitting, seed)
    for plan in plans:
        lang = plan.language.code
        _split_fonts(plan, fitting[lang], for_test, seed)
        texts = sorted(usable[lang], key=lambda text: _hash(seed, text))
        num_test = max(_MIN_SENTENCES, round(_TEST_SHARE * len(texts)))
        plan.sentences = {"test": texts[:num_test], "train": texts[num_test:]}
        for split in plan.sentences:
            _leave_uncovered_out(plan, split)
            if (num := len(plan.sentences[split])) < _MIN_SENTENCES:
                raise DataError(
                    f"{lang}: {num} sentences for the {split} images, expected at least "
                    f"{_MIN_SENTENCES}; of {len(sentences[lang])} lines "
                    f"{dict(plan.left_out) or 'none'} were left out."
                )
    return plans


def _usable(lines: Sequence[str], plan: LanguagePlan) -> list[str]:
    """Returns each sentence once, in NFC and with single spaces; counts what is left out."""
    kept: dict[str, str] = {}
    for line in lines:
        text = " ".join(unicodedata.normalize("NFC", line).split())
        if not text:
            continue
        if text.casefold() in kept:
            plan.left_out["repeated"] += 1
        elif len(text) > MAX_GRAPHEMES and len(graphemes(text)) > MAX_GRAPHEMES:
            plan.left_out["too long"] += 1
        elif any(unicodedata.category(c) == "Cc" for c in text) or any(
            token in text for token in _RESERVED
        ):
            plan.left_out["not plain text"] += 1
        else:
            kept[text.casefold()] = text
    return list(kept.values())


def _fonts_for(texts: Sequence[str], language: Language, fonts: Sequence[Font]) -> list[Font]:
    """Returns the fonts that cover almost as many of the texts as the best does."""
    needed = [visible(text) for text in texts[:_NUM_PROBED]]
    drawn = [font for font in fonts if font.weight >= _MIN_WEIGHT]
    covered = {font: sum(one <= font.characters for one in needed) for font in drawn}
    best = max(covered.values(), default=0)
    chosen = [font for font, count in covered.items() if best and count >= _COVERAGE * best]
    return [font for font in chosen if shows_spaces(font, language)]


def _test_families(fitting: Mapping[str, Sequence[Font]], seed: int) -> set[str]:
    """Chooses families for the test images of all languages, one of each language at least.

    A language keeps a family for training where it has two; those with few families choose first.
    """
    families = {lang: {font.family for font in fonts} for lang, fonts in fitting.items()}
    for_test, for_train = set[str](), set[str]()
    for own in sorted(families.values(), key=lambda own: (len(own), sorted(own))):
        free = sorted(own - for_test - for_train, key=lambda family: _hash(seed, family))
        if len(own) > 1 and not own & for_test and free:
            for_test.add(free.pop())
        if not own & for_train and free:
            for_train.add(free.pop())
    return for_test


def _split_fonts(plan: LanguagePlan, fonts: list[Font], for_test: set[str], seed: int) -> None:
    test = [font for font in fonts if font.family in for_test]
    train = [font for font in fonts if font.family not in for_test]
    if not (test and train):
        *train, last = sorted(fonts, key=lambda font: _hash(seed, font.name))
        test = [last]
        plan.fonts_apart = "styles" if train else "nothing"
    plan.fonts = {"train": train or test, "test": test}


def _leave_uncovered_out(plan: LanguagePlan, split: Split) -> None:
    fonts = plan.fonts[split]
    texts = plan.sentences[split]
    if others := [text for text in texts if not any(font.covers(text) for font in fonts)]:
        plan.left_out["no font"] += len(others)
        plan.remark = plan.remark or missing_font(others, fonts)
        lacking = set(others)
        plan.sentences[split] = [text for text in texts if text not in lacking]


def _images(plans: Sequence[LanguagePlan], split: Split, each: int, seed: int) -> list[TextImage]:
    """Returns a number of images of each language; languages alternate."""
    return [_image(plan, split, number, seed) for number in range(each) for plan in plans]


def _image(plan: LanguagePlan, split: Split, number: int, seed: int) -> TextImage:
    name = f"{seed}/{split}/{plan.language.code}/{number}"
    rng, sentences = random.Random(name), plan.sentences[split]
    times, place = divmod(number, len(sentences))
    text = sentences[place]
    # a sentence that is drawn again is asked about the other way
    asked = text if (place + times) % 2 == 0 else _other_sentence(text, sentences, rng)
    faces: dict[str, list[Font]] = {}
    for font in plan.fonts[split]:
        if font.covers(text):
            faces.setdefault(font.family, []).append(font)
    family = [*faces.values()][int(rng.random() * len(faces))]
    font = family[int(rng.random() * len(family))]
    return TextImage(plan, number, text, asked, font, f"{name}/look")


def _other_sentence(text: str, sentences: Sequence[str], rng: random.Random) -> str:
    """Returns a sentence that is not in a text, the likest of a few; the text if there is none."""
    shown = text.casefold()

    def likeness(other: str) -> float:
        ours, theirs = (set(zip(t, t[1:], strict=False)) for t in (shown, other.casefold()))
        return len(ours & theirs) / (len(ours | theirs) or 1)

    drawn = [sentences[int(rng.random() * len(sentences))] for _ in range(_NUM_OTHERS)]
    for choices in (drawn, sentences):
        if others := [one for one in choices if one.casefold() not in shown]:
            return max(others, key=likeness)
    return text


def _draw(one: TextImage, path: Path) -> None:
    if path.is_file():
        return
    image = render_text(one.text, one.plan.language, one.font, random.Random(one.seed))
    with writing(path) as partial:
        image.save(partial, format="JPEG", quality=JPEG_QUALITY)


def _write_corpus(
    path: Path, plans: Sequence[LanguagePlan], images: Sequence[TextImage], num_rows: int
) -> None:
    english = get_language(ENGLISH)
    codes = [plan.language.code for plan in plans]
    with CorpusWriter(path, codes, image_root="../images", overwrite=True) as writer:
        for one, task in list(_tasks(images))[:num_rows]:
            lang = one.plan.language.code
            row = CorpusRow(
                id=f"{lang}-{one.number:06d}-{task}",
                image=one.name,
                source=SOURCE,
                task=task,
                translatable=True,
                turns=_turns(one, task, english),
            )
            own = _turns(one, task, one.plan.wording)
            writer.append(row, {} if lang == ENGLISH else {lang: own})
        write_atomically(writer.work_dir / "FONTS.md", fonts_page(plans))


def _turns(one: TextImage, task: str, wording: Language) -> tuple[Turn, ...]:
    question = IMAGE_PREFIX + one.question(task, wording)
    return Turn("human", question), Turn("gpt", one.answer(task, wording))


def _tasks(images: Sequence[TextImage]) -> Iterator[tuple[TextImage, str]]:
    return ((one, task) for one in images for task in (READING, CONTROL))


def _write_benchmark(folder: Path, images: Sequence[TextImage]) -> None:
    lines: dict[str, list[str]] = {}
    for one, task in _tasks(images):
        lang, wording = one.plan.language.code, one.plan.wording
        record = {
            # other languages show other texts: these are other questions
            "question_id": f"{lang}-{task}-{one.number:04d}",
            "image": f"images/{one.name}",
            "text": one.question(task, wording),
            "category": task,
            "answer": one.answer(task, wording),
            "lang": lang,
            "answer_type": "text" if task == READING else "yesno",
        }
        lines.setdefault(lang, []).append(json.dumps(record, ensure_ascii=False))
    for lang, written in lines.items():
        write_atomically(folder / f"{lang}.jsonl", "\n".join(written))


def _mixture(codes: Sequence[str]) -> str:
    others = [code for code in codes if code != ENGLISH]
    if not others:
        return "non_english_ratio = 0.0"
    return (
        f"languages = {json.dumps(others)}\n"
        "# not bvqa: a text is read in the language that it is written in\n"
        "[instructions]\nmvqa = 1\nepvqa = 1"
    )


def fonts_page(plans: Sequence[LanguagePlan]) -> str:
    """Returns a Markdown table of the fonts with their languages, versions and licences."""
    used: dict[Font, dict[Split, list[str]]] = {}
    for plan in plans:
        for split, fonts in plan.fonts.items():
            for font in fonts:
                used.setdefault(font, {}).setdefault(split, []).append(plan.language.code)
    lines = [
        "# Fonts of these images",
        "",
        "| font | version | train | test | licence, as the font states it |",
        "|---|---|---|---|---|",
    ]
    for font in sorted(used, key=lambda font: font.name):
        languages = (" ".join(used[font].get(split, [])) for split in ("train", "test"))
        cells = (font.name, font.version, *languages, font.licence or "not stated")
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines)


def _digest(plans: Sequence[LanguagePlan], num_rows: int, seed: int) -> str:
    """Hashes everything that images and questions are made from."""
    inputs: list[object] = [_FORMAT, num_rows, seed]
    english = get_language(ENGLISH)
    hashes = {font.path: "" for plan in plans for each in plan.fonts.values() for font in each}
    hashes = {path: sha256_of(path) for path in hashes}
    for plan in plans:
        for wording in (plan.wording, english):
            said = wording.reading
            assert said is not None
            inputs += [wording.short_answer, wording.yes, wording.no, said.what, said.is_written]
        inputs += [plan.language.code, plan.sentences]
        for split, fonts in plan.fonts.items():
            inputs += [split, *((hashes[font.path], font.index) for font in fonts)]
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()


def _hash(seed: int, text: str) -> str:
    return hashlib.sha256(f"{seed}/{text}".encode()).hexdigest()
