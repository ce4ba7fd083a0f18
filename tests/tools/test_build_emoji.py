"""The packed corpus: what is committed is what the two Debian packages give."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from PIL import Image

from llava.errors import DataError
from lrm_ext.emoji.scenes import load_scenes, packed_dir
from tools import build_emoji as build

MISSING = [
    package
    for path, package in (
        (build.FONT, build.FONT_PACKAGE),
        (build.ANNOTATIONS_DIR / "en.xml", build.CLDR_PACKAGE),
    )
    if not path.is_file()
]
needs_packages = pytest.mark.skipif(bool(MISSING), reason=f"Debian packages absent: {MISSING}")


@needs_packages
def test_building_again_gives_the_committed_bytes() -> None:
    first, second = build.build_files(), build.build_files()
    assert first == second
    assert build.differences(first, packed_dir()) == []


def test_committed_files_match_their_sums() -> None:
    lines = (packed_dir() / build.SUMS_FILE).read_text(encoding="utf-8").splitlines()
    assert len(lines) > 60
    for line in lines:
        digest, name = line.split("  ")
        assert hashlib.sha256((packed_dir() / name).read_bytes()).hexdigest() == digest, name


def test_packed_corpus_is_small_and_has_its_notices() -> None:
    files = [
        path
        for path in packed_dir().rglob("*")
        if path.is_file() and "corpus" not in path.relative_to(packed_dir()).parts
    ]
    assert sum(path.stat().st_size for path in files) < 3 * 1024**2
    notice = (packed_dir() / "NOTICE").read_text(encoding="utf-8")
    for name in ("Apache-2.0", "OFL-1.1", "Unicode-DFS-2016"):
        assert f"licenses/{name}.txt" in notice
        assert (packed_dir() / "licenses" / f"{name}.txt").stat().st_size > 1000


def test_committed_examples_are_current() -> None:
    scenes = load_scenes(limit=60)
    assert len(build.example_scenes(scenes)) == build.NUM_EXAMPLES
    found = build.differences(build.example_files(scenes), packed_dir())
    assert [line for line in found if not line.endswith("not part of the corpus")] == []


def test_differences_are_named(tmp_path: Path) -> None:
    files = {"a": b"one", "sprites/b.png": b"two"}
    build.write_files(files, tmp_path)
    assert build.differences(files, tmp_path) == []
    (tmp_path / "a").write_bytes(b"other")
    (tmp_path / "sprites" / "b.png").unlink()
    (tmp_path / "sprites" / "c.png").touch()
    found = build.differences(files, tmp_path)
    assert [line.split(":")[0] for line in found] == ["a", "sprites/b.png", "sprites/c.png"]


def test_changed_example_picture_is_noticed(tmp_path: Path) -> None:
    scenes = load_scenes(limit=60)
    files = build.example_files(scenes)
    build.write_files(files, tmp_path)
    path = next((tmp_path / build.EXAMPLES_DIR).glob("*.png"))
    with Image.open(path) as image:
        image.save(path, compress_level=1)  # other bytes, the same pixels
    assert build.differences(files, tmp_path) == []
    Image.new("RGB", (256, 256)).save(path)
    assert build.differences(files, tmp_path) == [f"{build.EXAMPLES_DIR}/{path.name}: differs"]


@pytest.mark.parametrize(
    ("attribute", "package", "function"),
    [
        ("FONT", "fonts-noto-color-emoji", "extract_sprites"),
        ("ANNOTATIONS_DIR", "unicode-cldr-core", "extract_names"),
    ],
)
def test_missing_package_is_named(
    attribute: str, package: str, function: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(build, attribute, tmp_path / "absent")
    with pytest.raises(DataError, match=f"apt-get install {package}"):
        getattr(build, function)()
