from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest

from llava.errors import ConfigError
from llava.files import load_toml


class Part(msgspec.Struct, forbid_unknown_fields=True):
    kind: Literal["red", "green"] = "red"
    size: Annotated[int, msgspec.Meta(ge=1)] = 1


class File(msgspec.Struct, forbid_unknown_fields=True):
    parts: tuple[Part, ...] | None = None
    named: dict[str, Part] = {}
    title: str = ""


def test_a_file_is_read_into_its_type(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text('title = "x"\n[[parts]]\nkind = "green"\n')
    assert load_toml(path) == {"title": "x", "parts": [{"kind": "green"}]}
    assert load_toml(path, File) == File((Part("green"),), {}, "x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("titel = 1", r"a\.toml: .*unknown key `titel`; choose from: parts, named, title\.$"),
        ("title = 1", r"a\.toml: title: Expected `str`, got `int`, found 1\.$"),
        ("[[parts]]\nsize = 0", r"parts\[0\]\.size: Expected `int` >= 1, found 0\.$"),
        ('[[parts]]\nkind = "blue"', r"parts\[0\]\.kind: .*'blue'; choose from: red, green\.$"),
        ("[[parts]]\ncolour = 1", r"parts\[0\]: .*`colour`; choose from: kind, size\.$"),
        ("[named.a]\nsize = 0", r"named\[\.\.\.\]\.size: Expected `int` >= 1\.$"),
        ('[named.a]\nkind = "blue"', r"named.*kind: .*'blue'; choose from: red, green\.$"),
    ],
)
def test_an_error_names_file_key_and_choices(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_toml(path, File)
