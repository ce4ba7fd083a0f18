"""Writes files whole or not at all and names one that cannot be written; locks folders; reads TOML.

What a training logs is read here, too, so that reports do not import the training. `load_toml`
returns plain dictionaries or a typed object; its errors name the file and the line or key. It uses
the standard library, or `tomli` before Python 3.11.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, get_args, get_origin, get_type_hints, overload

import msgspec
from filelock import FileLock

from llava.errors import ConfigError, is_disk_full

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")

_HASH_BLOCK_BYTES = 1 << 20
PLOT_ENDINGS: Final = (".png", ".svg", ".pdf")

METRICS_FILE: Final = "metrics.jsonl"
"""What a training logs, one JSON object a line (`llava.train.metrics`)."""

LEAVES_FOLDER = r"^/|(?:^|/)\.\.(?:/|$)|\x00"
"""Matches a name that is absolute, goes upwards or is invalid; for `re` and RE2."""


@contextmanager
def writing(path: Path, flush: bool = False) -> Iterator[Path]:
    """Writes a file so that a reader finds the old content or the new, never a part.

    Args:
        path: The file; its folder is created if missing.
        flush: See `flush_to_disk`; for what must outlast a power cut.

    Yields:
        The path to write to. It takes the place of `path` at the end; after an error it is removed.

    Raises:
        OSError: It cannot be written; what was there stays. The error names `path`.
    """
    partial = path.with_name(f".{path.name}.partial")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            if flush:
                flush_to_disk(partial)
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Makes a write error name its file: on a full disk it names none, or a temporary one."""
    try:
        yield
    except OSError as error:
        if error.filename is None or is_disk_full(error):
            error.filename, error.filename2 = str(path), None
        raise


def flush_to_disk(path: Path) -> None:
    """Waits until the content of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file as `writing` does; a line end is added where it lacks one.

    Raises:
        OSError: It cannot be written; what was there stays.
    """
    with writing(path) as partial:
        partial.write_text(text if text.endswith("\n") else text + "\n", encoding="utf-8")


def sha256_of(*paths: Path) -> str:
    """SHA-256 of the content of files, one after the other, in hexadecimal digits."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(_HASH_BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()


def leaves_folder(name: str) -> bool:
    """Tells whether a file name in a dataset leads out of its folder.

    Only the name counts. Links in the folder may lead anywhere, because the owner of the folder
    made them: image folders often consist of links to shared data, as snapshots of the Hub do.
    """
    return re.search(LEAVES_FOLDER, name) is not None


def get_model_name_from_path(model_path: str) -> str:
    """Returns the name of a model: its folder's, after the parent's for a `checkpoint-` folder."""
    parts = model_path.strip("/").split("/")
    if parts[-1].startswith("checkpoint-") and len(parts) > 1:
        return f"{parts[-2]}_{parts[-1]}"
    return parts[-1]


def lock_of(path: Path, timeout_s: float = -1) -> FileLock:
    """Returns the lock of a file or folder, to hold in a `with` block.

    It is the file `.<name>.lock` beside it, because folders cannot be locked on network disks. The
    system frees it if the process dies.

    Args:
        path: The file or folder; its parent must exist.
        timeout_s: How long to wait for the lock before `filelock.Timeout`; for ever if negative.
    """
    return FileLock(path.with_name(f".{path.name}.lock"), timeout=timeout_s)


def refuse_existing(folder: Path) -> None:
    """Raises `ConfigError` if a folder that is to be written exists."""
    if folder.exists():
        raise ConfigError(f"{folder} exists: name a new folder, or remove it")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Reads a metrics file.

    Args:
        path: The file; it need not exist.

    Returns:
        Its lines, without those that a killed process did not finish.
    """
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        with suppress(json.JSONDecodeError):
            records.append(json.loads(line))
    return records


def save_figure(figure: Any, path: Path, dpi: int = 150) -> None:
    """Writes a matplotlib figure.

    Raises:
        ConfigError: The name does not end with .png, .svg or .pdf.
    """
    if path.suffix not in PLOT_ENDINGS:
        raise ConfigError(f"--out {path}: expected a file that ends with {', '.join(PLOT_ENDINGS)}")
    drawn = io.BytesIO()  # a figure that cannot be drawn leaves the file alone
    figure.savefig(drawn, dpi=dpi, format=path.suffix[1:])
    with writing(path) as partial:
        partial.write_bytes(drawn.getvalue())


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
