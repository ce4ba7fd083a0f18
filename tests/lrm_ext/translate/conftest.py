"""A corpus made of records, and a chat service that is stopped after the test."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from fake_chat import ChatService, start_server

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


@pytest.fixture
def serve(quick_retries: None) -> Iterator[Callable[[ChatService], ChatService]]:
    """Start a service: `serve(ChatService(table))`; its `url` is set."""
    servers: list[ThreadingHTTPServer] = []

    def start(service: ChatService) -> ChatService:
        servers.append(start_server(service))
        return service

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
