"""Languages of one's own: Slovak, complete, in `own/`, and folders made by a test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lrm_ext.languages.registry import FOLDER_VARIABLE, reload_languages

OWN = Path(__file__).parent / "own"


@pytest.fixture
def use_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], None]]:
    """Make a folder the one of the user's languages, until the test ends."""

    def use(folder: Path) -> None:
        monkeypatch.setenv(FOLDER_VARIABLE, str(folder))
        reload_languages()

    yield use
    monkeypatch.undo()
    reload_languages()


@pytest.fixture
def slovak(use_folder: Callable[[Path], None]) -> str:
    """The code of a complete language that the project does not ship."""
    use_folder(OWN)
    return "sk"


@pytest.fixture
def slovak_file(tmp_path: Path, use_folder: Callable[[Path], None]) -> Path:
    """A copy of the Slovak file to break, in the folder of the user's languages."""
    folder = tmp_path / "languages"
    folder.mkdir()
    path = folder / "sk.toml"
    path.write_bytes((OWN / "sk.toml").read_bytes())
    use_folder(folder)
    return path
