"""A chat service on this machine that may misbehave."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from lrm_ext.translate.engines.base import Usage

PROMPT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."


class NoLedger:
    """A ledger that knows nothing."""

    def spent(self, engine: str, target: str | None = None) -> Usage:
        return Usage()


@dataclass
class Answer:
    """What the service sends back: a status, a body, and what it waits before."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    wait_s: float = 0.0
    hangs_up: bool = False


# Of the number of the request and the segments asked for: an answer, or None for a good one.
Behaviour = Callable[[int, list[dict[str, Any]]], "Answer | None"]


class ChatService:
    """Translates by a table, unless its behaviour says otherwise."""

    def __init__(self, table: Mapping[str, str]) -> None:
        self.table = dict(table)
        self.behave: Behaviour = lambda number, segments: None
        self.wait_s = 0.0
        self.models = ["m"]
        self.requests: list[list[str]] = []
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.answered: Counter[str] = Counter()
        self.under_way = 0
        self.most_under_way = 0
        self.lock = threading.Lock()
        self.url = ""

    def translation(self, text: str) -> str:
        return self.table.get(text, f"[{text}]")

    def good(self, segments: list[dict[str, Any]]) -> Answer:
        """The answer that was asked for."""
        items = [{"id": s["id"], "text": self.translation(s["text"])} for s in segments]
        return chat_answer(json.dumps({"translations": items}))

    def request(self, method: str, path: str, data: bytes, headers: dict[str, str]) -> Answer:
        """Answer any request; `handle` answers those for chat."""
        if method == "GET":
            models = {"data": [{"id": name} for name in self.models]}
            return Answer(body=json.dumps(models).encode())
        return self.handle(json.loads(data), headers)

    def handle(self, body: dict[str, Any], headers: dict[str, str]) -> Answer:
        segments = json.loads(body["messages"][1]["content"])["segments"]
        with self.lock:
            number = len(self.requests)
            self.requests.append([segment["text"] for segment in segments])
            self.bodies.append(body)
            self.headers.append(headers)
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
        time.sleep(self.wait_s)
        answer = self.behave(number, segments)
        with self.lock:
            self.under_way -= 1
            if answer is None:
                self.answered.update(segment["text"] for segment in segments)
        return answer or self.good(segments)


def chat_answer(content: str, **message: Any) -> Answer:
    """An answer in the protocol's form."""
    data = {
        "choices": [{"message": {"content": content, **message}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20},
    }
    return Answer(body=json.dumps(data).encode(), headers={"content-type": "application/json"})


def start_server(service: ChatService) -> ThreadingHTTPServer:
    """Serve in a thread, and tell the service its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.do_POST()

        def do_POST(self) -> None:
            length = int(self.headers.get("content-length", 0))
            data = self.rfile.read(length)
            headers = {k.lower(): v for k, v in self.headers.items()}
            answer = service.request(self.command, self.path, data, headers)
            time.sleep(answer.wait_s)
            try:
                if answer.hangs_up:
                    self.close_connection = True
                    self.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{")
                    return
                self.send_response(answer.status)
                for key, value in answer.headers.items():
                    self.send_header(key, value)
                self.send_header("content-length", str(len(answer.body)))
                self.end_headers()
                self.wfile.write(answer.body)
            except OSError:
                pass  # who asked has gone

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    serve = partial(server.serve_forever, poll_interval=0.02)
    threading.Thread(target=serve, daemon=True).start()
    service.url = f"http://127.0.0.1:{server.server_port}/v1"
    return server
