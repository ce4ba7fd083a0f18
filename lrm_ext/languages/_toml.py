"""Reads TOML files and checks them against types.

`load_toml` returns plain dictionaries or a typed object; its errors name the file and the line or
key. It uses the standard library, or `tomli` before Python 3.11.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints, overload

import msgspec

from llava.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")


@overload
def load_toml(path: str | Path) -> dict[str, Any]: ...
@overload
def load_toml(path: str | Path, kind: type[T]) -> T: ...
def load_toml(path: str | Path, kind: Any = None) -> Any:
    """Reads a TOML file.

    Args:
        path: The file.
        kind: Type of its content, such as a `msgspec.Struct`; by default plain dictionaries.

    Raises:
        ConfigError: The file is missing, not UTF-8 or not TOML, or see `convert`.
    """
    path = Path(path)
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: there is no such file.") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path}: line {line} is not UTF-8 (byte 0x{error.object[error.start]:02x}); save the "
            "file as UTF-8, or convert it: `iconv -f ENCODING -t UTF-8`."
        ) from error
    except (tomllib.TOMLDecodeError, OSError) as error:
        raise ConfigError(f"{path}: cannot be read as TOML: {error}") from error
    return data if kind is None else convert(data, kind, str(path))


def convert(
    data: Any, kind: type[T], where: str | Path, dec_hook: Callable[[type, Any], Any] | None = None
) -> T:
    """Converts plain values to a type.

    Args:
        data: The content of a file.
        kind: The type.
        where: Name of the file, for errors.
        dec_hook: Converts to types that msgspec does not know; see `msgspec.convert`.

    Raises:
        ConfigError: A key is missing or unknown, or a value is not valid; the error names the key.
    """
    try:
        return msgspec.convert(data, kind, dec_hook=dec_hook)
    except msgspec.ValidationError as error:
        said, _, at = str(error).partition(" - at `$")
        said = said.replace("Object contains unknown field", "unknown key")
        said = said.replace("Object missing required field", "missing key")
        key = at.strip("`").removeprefix(".")  # for a key of a dictionary, msgspec writes [...]
        text = ": ".join(filter(None, (str(where), key, said)))
        if said.startswith("Expected") and "..." not in key:
            text += f", found {_value_at(data, key)!r:.60}"
        if "unknown key" in said or "enum value" in said:
            text += f"; choose from: {', '.join(map(str, _choices(kind, key)))}"
        raise ConfigError(f"{text.rstrip('.')}.") from error


def _value_at(data: Any, key: str) -> Any:
    """Finds the value of a key such as `parts[0].size`; a table may have dotted keys itself."""
    if isinstance(data, dict) and key in data:
        return data[key]
    for name in re.findall(r"[^.\[\]]+", key):
        data = data[int(name) if isinstance(data, list) else name]
    return data


def _choices(kind: Any, key: str) -> tuple[Any, ...]:
    """Returns the fields of the struct, or the values of the literal, at a key."""
    for name in re.findall(r"[^\W\d]\w*", key):
        kind = get_type_hints(kind)[name]
        while get_origin(kind) not in (None, Literal):
            kind = [each for each in get_args(kind) if each not in (..., type(None))][-1]
    return get_args(kind) or kind.__struct_encode_fields__
