"""Unpacks the built-in corpus: images, two parallel corpora and two benchmarks.

Input: the packed, committed data. Output, in a git-ignored folder:

    images/<split>/<scene>.jpg          128 px
    pretrain/  finetune/                corpus folders (`lrm_ext.corpus.store`) in ten languages
    chosen/<languages>/pretrain/  ...   the same in other languages, if they are asked for
    benchmarks/scenes/<lang>.jsonl      from test scenes; `scenes-val/` from validation scenes
    COMPLETE                            written last: a hash of all inputs; in `chosen/`, too

Image paths in corpora and benchmarks are relative to `images/`. An interrupted run is resumed; a
second call with the same inputs returns at once.

A scene with a thing that has no name in a language has no text in that language.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track

from llava.errors import ConfigError, DataError
from llava.files import lock_of, writing
from lrm_ext.corpus.store import Corpus, CorpusRow
from lrm_ext.corpus.writer import CorpusWriter
from lrm_ext.emoji.conversations import (
    SOURCE,
    benchmark_items,
    can_say,
    caption_turns,
    question_turns,
    questions_of,
)
from lrm_ext.emoji.scenes import (
    CONCEPTS_FILE,
    LANGUAGES,
    SCENES_FILE,
    Scene,
    available_languages,
    concept_ids,
    get_vocabulary,
    image_name,
    load_scenes,
    load_sprites,
    packed_dir,
    packed_path,
    render_scene,
    sprite_file,
    unnamed_concepts,
)
from lrm_ext.languages.registry import ENGLISH, get_language, in_language_order

log = logging.getLogger(__name__)

# Increase it when this file or `conversations.py` changes what it writes.
FORMAT = 2
NUM_CAPTIONED = 10_000
JPEG_QUALITY = 90

COMPLETE_FILE = "COMPLETE"
# Holds the corpora in other languages than those of `LANGUAGES`.
CHOSEN_DIR = "chosen"
_MAX_FOLDER_NAME = 40
_MAX_UNNAMED = 0.1
_PROGRESS_FILE = "UNPACKING"
BENCHMARKS = {"scenes": "test", "scenes-val": "val"}


def unpack(
    root: Path | None = None,
    force: bool = False,
    limit: int | None = None,
    languages: Sequence[str] = LANGUAGES,
) -> Path:
    """Unpacks the built-in corpus, unless it is there already.

    Several processes may call it at once: the first unpacks, the others wait.

    Args:
        root: Target folder; by default `playground/data/emoji_scenes/corpus`.
        force: Start over even if it is complete.
        limit: Maximum number of scenes of each split (for tests).
        languages: Languages of the two corpora; English is always one. Other languages than the
            default ones have their corpora in a folder of their own below `root`, and their
            benchmarks beside the others.

    Returns:
        The folder that `pretrain` and `finetune` are in.

    Raises:
        ConfigError: There are no words and sentence patterns in one of the languages.
        DataError: The packed data is missing or damaged, or `root` holds something else.
    """
    root = packed_dir() / "corpus" if root is None else root
    for lang in languages:
        get_vocabulary(lang)
        if (num := len(unnamed_concepts(lang))) > _MAX_UNNAMED * len(concept_ids()):
            raise ConfigError(
                f"CLDR has no name in {lang!r} of {num} of {len(concept_ids())} things, so the "
                "built-in corpus cannot be unpacked in it."
            )
    chosen = in_language_order({ENGLISH, *languages})
    digest = inputs_digest(limit)
    root.parent.mkdir(parents=True, exist_ok=True)
    with lock_of(root):
        if force or not is_finished(root, digest):
            scenes = load_scenes(limit)
            prepare_folder(root, digest, keep=not force)
            _write_images(root, scenes)
            _write_corpora(root, root, scenes, LANGUAGES)
            finish_folder(root, digest)
        folder = corpus_folder(chosen, root)
        digest = inputs_digest(limit, chosen)
        if folder != root and not is_finished(folder, digest):
            (folder / COMPLETE_FILE).unlink(missing_ok=True)
            _write_corpora(root, folder, load_scenes(limit), chosen)
            _write(folder / COMPLETE_FILE, digest)
    return folder


def corpus_folder(languages: Sequence[str], root: Path | None = None) -> Path:
    """Returns where `unpack` puts the corpora in some languages; none means those of the paper."""
    root = packed_dir() / "corpus" if root is None else root
    chosen = in_language_order({ENGLISH, *languages}) if languages else LANGUAGES
    if chosen == LANGUAGES:
        return root
    name = "all" if chosen == available_languages() else "-".join(chosen)
    if len(name) > _MAX_FOLDER_NAME:
        name = f"{len(chosen)}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return root / CHOSEN_DIR / name


def ensure_unpacked() -> Path:
    """Returns the unpacked corpus in its default folder, unpacking it first if necessary.

    Raises:
        DataError: See `unpack`.
    """
    return unpack()


def inputs_digest(limit: int | None = None, languages: Sequence[str] = LANGUAGES) -> str:
    """Hashes everything that the unpacked corpus is made from."""
    digest = hashlib.sha256(f"{FORMAT} {limit}".encode())
    names = [CONCEPTS_FILE, SCENES_FILE]
    names += map(sprite_file, json.loads(packed_path(CONCEPTS_FILE).read_bytes()))
    for path in map(packed_path, names):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    for lang in languages:
        spoken = get_language(lang)
        words = (spoken.yes, spoken.no, *spoken.answers_to.items())
        words += tuple(spoken.scenes.get("names", {}).items())
        digest.update(f"{lang} {get_vocabulary(lang)} {words}".encode())
    return digest.hexdigest()


def is_finished(root: Path, digest: str) -> bool:
    """Tells whether `root` was made from inputs with this hash, and finished."""
    return _read(root / COMPLETE_FILE) == digest


def prepare_folder(root: Path, digest: str, keep: bool, replace: bool = True) -> None:
    """Empties a folder to make, but keeps what an interrupted run with the same inputs has made.

    Args:
        root: The folder.
        digest: Hash of the inputs.
        keep: Go on with an interrupted run.
        replace: Remove what was made from other inputs.

    Raises:
        DataError: `root` holds something else.
    """
    started = _read(root / _PROGRESS_FILE)
    if keep and started == digest:
        log.info("resuming %s", root)
        return
    if root.exists():
        is_ours = started is not None or (root / COMPLETE_FILE).is_file()
        if any(root.iterdir()) and not is_ours:
            raise DataError(
                f"{root} holds something that is not an unpacked corpus; move it away or name "
                "another folder."
            )
        if is_ours and not replace:
            raise DataError(
                f"{root} was made from other sentences, fonts or options; name another folder, or "
                "replace it with --overwrite"
            )
        # first, so that a run killed here does not leave a folder that looks complete
        _write(root / _PROGRESS_FILE, "removing")
        (root / COMPLETE_FILE).unlink(missing_ok=True)
        for path in root.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
    _write(root / _PROGRESS_FILE, digest)


def finish_folder(root: Path, digest: str) -> None:
    """Marks a folder as complete."""
    _write(root / COMPLETE_FILE, digest)
    (root / _PROGRESS_FILE).unlink()


def _write_images(root: Path, scenes: Sequence[Scene]) -> None:
    sprites = load_sprites()
    for scene in _tracked(scenes, "images"):
        path = root / "images" / image_name(scene)
        if not path.is_file():
            image = render_scene(scene, sprites)
            with writing(path) as partial:
                image.save(partial, format="JPEG", quality=JPEG_QUALITY)


def _write_corpora(
    root: Path, folder: Path, scenes: Sequence[Scene], languages: Sequence[str]
) -> None:
    """Writes the corpora to a folder, and the benchmarks of the same languages to `root`."""
    train = [scene for scene in scenes if scene.split == "train"]
    images = os.path.relpath(root / "images", folder / "pretrain")
    for name, rows, task, make_turns in (
        ("pretrain", train[:NUM_CAPTIONED], "caption", caption_turns),
        ("finetune", train, "conversation", question_turns),
    ):
        others = [lang for lang in languages if lang != ENGLISH]
        with CorpusWriter(folder / name, others, image_root=images, overwrite=True) as writer:
            for scene in _tracked(rows, f"{task}s"):
                row = CorpusRow(
                    id=scene.id,
                    image=image_name(scene),
                    source=SOURCE,
                    task=task,
                    translatable=True,
                    turns=make_turns(scene, ENGLISH),
                )
                said = questions_of(scene) if any(map(unnamed_concepts, others)) else ()
                texts = {
                    lang: make_turns(scene, lang) for lang in others if can_say(scene, said, lang)
                }
                writer.append(row, texts)
    for name, split in BENCHMARKS.items():
        items = benchmark_items(scene for scene in scenes if scene.split == split)
        for lang in languages:
            records = (
                item.to_record(lang, image_name(item.scene))
                for item in items
                if can_say(item.scene, (item.question,), lang)
            )
            lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
            _write(root / "benchmarks" / name / f"{lang}.jsonl", "".join(lines))


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _write(path: Path, text: str) -> None:
    with writing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _tracked(scenes: Sequence[Scene], title: str) -> Iterable[Scene]:
    return track(scenes, title, console=Console(stderr=True))


def open_corpus(
    path: Path | None, stage: str = "finetune", languages: Iterable[str] = ()
) -> Corpus:
    """Opens a corpus folder, or the built-in corpus of a stage.

    Args:
        path: A corpus folder; None for the built-in corpus.
        stage: The built-in corpus to open, "pretrain" or "finetune".
        languages: What the built-in corpus must have; where those of the paper are not enough, it
            is unpacked in these.

    Raises:
        ConfigError: The built-in corpus has no such language.
        DataError: The folder is not a corpus, or the built-in data is damaged.
    """
    if path is None:
        chosen = tuple(languages)
        path = unpack(languages=LANGUAGES if {*chosen} <= {*LANGUAGES} else chosen) / stage
    return Corpus.open(path)
