"""Unpacking the built-in corpus: aligned, complete, resumable."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from llava.errors import ConfigError, DataError
from lrm_ext.corpus.store import Corpus
from lrm_ext.emoji import unpack as unpack_module
from lrm_ext.emoji.conversations import questions_of
from lrm_ext.emoji.scenes import LANGUAGES, load_scenes
from lrm_ext.emoji.unpack import COMPLETE_FILE, unpack

LIMIT = 12


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(tmp_path_factory.mktemp("emoji") / "corpus", limit=LIMIT)


@pytest.mark.parametrize("name", ["pretrain", "finetune"])
def test_corpora_have_every_row_in_every_language(root: Path, name: str) -> None:
    corpus = Corpus.open(root / name)
    assert len(corpus) == LIMIT and corpus.languages == LANGUAGES
    for lang in LANGUAGES:
        assert corpus.statuses(lang)["ok"] == LIMIT
    row = corpus.row(3)
    assert row.id == "train-000003" and row.turns[0].text.startswith("<image>\n")
    for index in range(LIMIT):
        (path,) = corpus.image_paths(index)
        with Image.open(path) as image:
            assert (image.size, image.format) == ((128, 128), "JPEG")
        assert corpus.row(index).id.startswith("train-")


def test_benchmarks_ask_the_same_in_every_language(root: Path) -> None:
    for name, split in (("scenes", "test"), ("scenes-val", "val")):
        rows = {
            lang: [
                json.loads(line)
                for line in (root / "benchmarks" / name / f"{lang}.jsonl").open(encoding="utf-8")
            ]
            for lang in LANGUAGES
        }
        shared = ("question_id", "image", "category", "answer_type")
        for lang in LANGUAGES:
            assert [[r[k] for k in shared] for r in rows[lang]] == [
                [r[k] for k in shared] for r in rows["en"]
            ]
            assert {r["lang"] for r in rows[lang]} == {lang}
        for row in rows["en"]:
            assert row["image"].startswith(f"{split}/")
            assert (root / "images" / row["image"]).is_file()


def test_second_call_touches_nothing(root: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    unpack(root, limit=LIMIT)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_same_files_on_every_run(root: Path, tmp_path: Path) -> None:
    again = unpack(tmp_path / "corpus", limit=LIMIT)
    names = sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())
    assert names == sorted(p.relative_to(again) for p in again.rglob("*") if p.is_file())
    for name in names:
        assert (root / name).read_bytes() == (again / name).read_bytes(), name


def test_interrupted_run_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "corpus"

    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(unpack_module, "benchmark_items", interrupt)
        with pytest.raises(KeyboardInterrupt):
            unpack(target, limit=LIMIT)
    assert not (target / COMPLETE_FILE).exists()
    kept = target / "images" / "train" / "train-000000.jpg"
    time_ns = kept.stat().st_mtime_ns
    half_written = kept.with_name("train-000001.jpg")
    half_written.rename(half_written.with_name(f".{half_written.name}.partial"))
    unpack(target, limit=LIMIT)
    assert (target / COMPLETE_FILE).is_file() and kept.stat().st_mtime_ns == time_ns
    assert not list(target.rglob("*.partial"))


def test_other_languages_are_unpacked_beside_the_ten(tmp_path: Path) -> None:
    root = tmp_path / "corpus"
    chosen = unpack(root, limit=60, languages=("sw", "qu"))
    assert chosen == root / "chosen" / "en-qu-sw"
    opened = Corpus.open(chosen / "finetune")
    assert opened.languages == ("en", "qu", "sw")
    assert len(opened.usable("sw")) == len(opened) == 60
    # CLDR has no name of an axe in Quechua
    train = [scene for scene in load_scenes(60) if scene.split == "train"]
    concepts = [
        {placed.concept for placed in scene.objects} | {each.target for each in questions_of(scene)}
        for scene in train
    ]
    with_axe = [row for row in range(60) if "axe" in concepts[row]]
    assert with_axe and [row for row in range(60) if row not in opened.usable("qu")] == with_axe
    assert all(path.is_file() for path in opened.image_paths(0))
    assert (root / "benchmarks" / "scenes" / "sw.jsonl").is_file()
    assert Corpus.open(root / "finetune").languages == LANGUAGES
    time_ns = (chosen / "finetune" / "corpus.toml").stat().st_mtime_ns
    assert unpack(root, limit=60, languages=("qu", "en", "sw")) == chosen
    assert (chosen / "finetune" / "corpus.toml").stat().st_mtime_ns == time_ns


def test_a_language_without_patterns_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the built-in corpus has no language 'su'; it has en, "):
        unpack(tmp_path / "corpus", languages=("su",))
    assert not (tmp_path / "corpus").exists()


def test_other_inputs_start_over(tmp_path: Path) -> None:
    target = unpack(tmp_path / "corpus", limit=2)
    stale = target / "images" / "train" / "train-000000.jpg"
    stale.write_bytes(b"stale")
    unpack(target, limit=3)
    assert stale.stat().st_size > 100
    assert len(Corpus.open(target / "finetune")) == 3


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(DataError, match="not an unpacked corpus"):
        unpack(tmp_path / "corpus", limit=1)
    assert (tmp_path / "corpus" / "thesis.txt").read_text(encoding="utf-8") == "mine"
