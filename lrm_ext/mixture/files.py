"""Finds mixture files: the ones that ship, by name, and any other by path."""

from __future__ import annotations

from pathlib import Path

from llava.errors import ConfigError

MIXTURES_DIR = Path(__file__).parents[2] / "scripts" / "v1_5" / "mixtures"


def mixture_path(name: str) -> Path:
    """Path of a mixture file.

    Args:
        name: A path, or the name of one that ships ("finetune").

    Raises:
        ConfigError: There is no such file; those that ship are listed.
    """
    for path in (Path(name), MIXTURES_DIR / f"{name}.toml"):
        if path.is_file():
            return path
    shipped = ", ".join(sorted(path.stem for path in MIXTURES_DIR.glob("*.toml"))) or "none"
    raise ConfigError(f"no mixture file {name!r}; give a path, or choose from: {shipped}.")
