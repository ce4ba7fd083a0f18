"""tools/calibrate_quality.py: what it prints, and what it writes into a language file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from llava.errors import DataError
from llava.files import load_toml
from lrm_ext.languages.registry import DATA_DIR
from lrm_ext.translate.quality import get_thresholds
from tools import calibrate_quality


def test_prints_and_saves(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    captions = tmp_path / "stamps"
    captions.mkdir()
    for i, (english, croatian, serbian) in enumerate(
        [
            ("A white flower in the snow.", "Bijeli cvijet na snijegu.", "Beli cvet u snegu."),
            ("Two old men and a dog.", "Dva stara muškarca i pas.", "Dva stara čoveka i pas."),
        ]
    ):
        lines = [english, f"hr.utf8={croatian}", f"sr@latin.utf8={serbian}", "de.utf8="]
        (captions / f"{i}.txt").write_text("\n".join(lines), encoding="utf-8")
    out = tmp_path / "out.json"
    command = ["x", "--rows", "20", "--lang", "hr", "--captions", str(captions), "--calibrate"]
    monkeypatch.setattr(sys, "argv", [*command, "--markdown", "--json", str(out)])
    calibrate_quality.main()
    shown = capsys.readouterr().out
    assert "| built-in | false alarms | rejected | found | wrong language | cut |" in shown
    assert "sr-Latn taken for hr: found 100%" in shown
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["built-in"]["hr"]["clean"] == 20 and found["captions"]["hr"]["clean"] == 1


def test_no_captions(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no captions"):
        list(calibrate_quality.caption_rows(tmp_path))


@pytest.mark.parametrize("lang", ["hr", "zh"])
def test_writes_only_what_was_measured(tmp_path: Path, lang: str) -> None:
    path = tmp_path / f"{lang}.toml"
    before = (DATA_DIR / f"{lang}.toml").read_text(encoding="utf-8")
    path.write_text(before, encoding="utf-8")
    calibrate_quality.write_thresholds(path, get_thresholds(lang))
    assert path.read_text(encoding="utf-8") == before
    other = get_thresholds(lang).with_limits({"copy": 0.123})
    calibrate_quality.write_thresholds(path, other)
    found, ours = load_toml(path), load_toml(DATA_DIR / f"{lang}.toml")
    assert found["quality"].pop("limits")["copy"] == 0.123
    ours["quality"].pop("limits")
    assert found == ours


def test_a_file_without_the_section_is_named(tmp_path: Path) -> None:
    path = tmp_path / "xx.toml"
    path.write_text('code = "xx"\n')
    with pytest.raises(DataError, match=r"no \[quality\] section"):
        calibrate_quality.write_thresholds(path, get_thresholds("hr"))
