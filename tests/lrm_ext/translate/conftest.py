"""A corpus made of records."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from lrm_ext.corpus.importing import import_llava


@pytest.fixture
def make_corpus(tmp_path: Path) -> Callable[..., Path]:
    """Write records as LLaVA JSON and import them: `make_corpus(records, name="corpus")`."""

    def make(records: Sequence[Mapping[str, Any]], name: str = "corpus", **settings: Any) -> Path:
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(records), encoding="utf-8")
        import_llava(path, tmp_path / name, **settings)
        return tmp_path / name

    return make
