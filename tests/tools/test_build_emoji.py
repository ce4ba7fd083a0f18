"""The packed corpus: what is committed is what the two packages give."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
from PIL import Image

from llava.errors import DataError
from lrm_ext.emoji.scenes import LANGUAGES, iter_codepoints, load_scenes, packed_dir
from tools import build_emoji as build

# Where the npm package of CLDR's annotations is unpacked, to run the test that needs it.
ANNOTATIONS = Path(os.environ.get("CLDR_ANNOTATIONS", "package/annotations"))
needs_packages = pytest.mark.skipif(
    not (build.FONT.is_file() and ANNOTATIONS.is_dir()),
    reason=f"{build.FONT_PACKAGE} is not installed or {build.CLDR_PACKAGE} not unpacked",
)


@needs_packages
def test_building_again_gives_the_committed_bytes() -> None:
    first, second = build.build_files(ANNOTATIONS), build.build_files(ANNOTATIONS)
    assert first == second
    assert build.differences(first, packed_dir()) == []


def test_a_name_is_taken_from_any_language_that_has_enough(tmp_path: Path) -> None:
    points = [chr(codepoint) for _, codepoint, _ in iter_codepoints()]
    for lang, named in {**dict.fromkeys(LANGUAGES, 68), "cy": 62, "mi": 61}.items():
        entries = {
            point: {"tts": [f"\u202b{lang} {ord(point):X}, a thing"]} for point in points[:named]
        }
        (tmp_path / lang).mkdir()
        content = json.dumps({"annotations": {"annotations": entries}})
        (tmp_path / lang / "annotations.json").write_text(content)
    names = build.extract_names(tmp_path)
    assert names["dog"] == {lang: f"{lang} 1F415" for lang in (*LANGUAGES, "cy")}
    assert names["anchor"].keys() == {*LANGUAGES}
    (tmp_path / "hr" / "annotations.json").write_text('{"annotations": {}}')
    with pytest.raises(DataError, match="hr.annotations.json: no short name of accordion, "):
        build.extract_names(tmp_path)


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
    for name in ("Apache-2.0", "OFL-1.1", "Unicode-3.0"):
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


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build, "FONT", tmp_path / "absent")
    with pytest.raises(DataError, match="apt-get install fonts-noto-color-emoji"):
        build.extract_sprites()
    with pytest.raises(DataError, match="npm pack cldr-annotations-full@"):
        build.extract_names(tmp_path / "absent")
