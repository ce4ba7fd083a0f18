"""Fixtures that tests of both packages use."""

import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

GOLDEN = Path(__file__).parent / "golden"
# Whoever runs the tests may have languages of their own; this folder has none.
os.environ["LRM_LANGUAGES_DIR"] = str(GOLDEN)


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    return GOLDEN


@pytest.fixture(scope="session", params=["AVIF", "QOI"])
def damaged_image(request) -> bytes:
    """A damaged file at which Pillow raises something else than at a damaged PNG."""
    from PIL import Image, features

    if request.param == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    buffer = io.BytesIO()
    Image.radial_gradient("L").resize((32, 24)).convert("RGB").save(buffer, request.param)
    whole = buffer.getvalue()
    for place in range(len(whole)):
        content = bytearray(whole)
        content[place] ^= 0xFF
        try:
            with Image.open(io.BytesIO(content)) as image:
                image.load()
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            continue
        except Exception:
            return bytes(content)
    raise AssertionError("no byte matters")


@pytest.fixture(scope="session")
def load_golden():
    """Read a golden file below `tests/golden/llava`, by its name without `.json`."""

    def load(name: str) -> Any:
        return json.loads((GOLDEN / "llava" / f"{name}.json").read_text(encoding="utf-8"))

    return load


@pytest.fixture(scope="session")
def llama_tokenizer():
    """Build the golden Llama tokenizer: `llama_tokenizer(legacy=False)`."""
    from transformers import LlamaTokenizer

    built: dict[bool, Any] = {}

    def build(legacy: bool = True) -> Any:
        if legacy not in built:
            built[legacy] = LlamaTokenizer.from_pretrained(
                GOLDEN / "llava",
                legacy=legacy,
                add_bos_token=True,
                add_eos_token=False,
                pad_token="<unk>",
                padding_side="right",
                model_max_length=2048,
            )
        return built[legacy]

    return build


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the client of chat services wait a hundredth of a second before it tries again."""
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.01)


@pytest.fixture
def serve(quick_retries: None) -> Iterator[Callable[[Any], Any]]:
    """Start a chat service: `serve(fake_chat.ChatService(table))`; its `url` is set."""
    from fake_chat import start_server

    servers: list[Any] = []

    def start(service: Any) -> Any:
        servers.append(start_server(service))
        return service

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def matplotlibs_fonts(monkeypatch):
    """Fonts are matplotlib's and those of named folders, whatever else this machine has."""
    from matplotlib import font_manager

    from lrm_ext.languages.fonts import installed_fonts

    find = font_manager.findSystemFonts
    monkeypatch.setattr(
        font_manager, "findSystemFonts", lambda paths=None: find(paths) if paths else []
    )
    installed_fonts.cache_clear()
    yield
    installed_fonts.cache_clear()
