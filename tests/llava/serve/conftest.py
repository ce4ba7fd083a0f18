"""A stub model that says what it is told, and servers on the loopback that always stop."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from transformers import BatchEncoding

from llava.serve import controller as controller_module
from llava.serve import model_worker, openai_api
from llava.serve.engine import Engine
from llava.serve.openai_api import ApiSettings
from llava.serve.web import build_server

EOS = 256
STOP = 257


class ByteTokenizer:
    """One token a byte, so that most characters take several; two special tokens."""

    bos_token_id = None
    unk_token_id = None
    is_fast = False

    def __call__(self, text, **_):
        is_batch = not isinstance(text, str)
        ids = [list(t.encode()) for t in text] if is_batch else list(text.encode())
        return BatchEncoding({"input_ids": ids})

    def decode(self, ids, skip_special_tokens=True, **_):
        return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")

    def convert_tokens_to_ids(self, token):
        return {"</s>": EOS, "<|im_end|>": STOP}.get(token)


class StubTower:
    num_patches = num_image_tokens = 4
    num_patches_per_side = 2


class StubModel:
    """Generates a fixed list of ids; counts them, so that tests see when it stopped."""

    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self, answer=b"", error=None, delay_s=0.0, context_len=4096, conversation=None):
        self.config = SimpleNamespace(
            max_position_embeddings=context_len,
            mm_use_im_start_end=False,
            image_aspect_ratio=None,
            conversation=conversation,
            model_type="llava_llama",
        )
        self.ids = list(answer.encode()) if isinstance(answer, str) else list(answer)
        self.error = error
        self.delay_s = delay_s
        self.num_generated = 0
        self.finished = threading.Event()
        self.calls = []

    def get_vision_tower(self):
        return StubTower()

    def eval(self):
        return self

    def generate(self, inputs, max_new_tokens, streamer, **kwargs):
        self.finished.clear()
        self.calls.append(
            {"prompt": bytes(i for i in inputs[0].tolist() if i >= 0).decode(), **kwargs}
        )
        try:
            streamer.put(torch.zeros(1, 0, dtype=torch.long))
            for token in self.ids[:max_new_tokens]:
                time.sleep(self.delay_s)
                self.num_generated += 1
                streamer.put(torch.tensor([token]))
            if self.error is not None:
                raise self.error
            streamer.end()
        finally:
            self.finished.set()


def stub_processor(images, return_tensors):
    return {"pixel_values": torch.zeros(len(images), 3, 8, 8)}


@pytest.fixture
def make_engine():
    def make(answer="", name="llava-v1-stub", **options):
        return Engine(ByteTokenizer(), StubModel(answer, **options), stub_processor, name)

    return make


@pytest.fixture
def picture():
    return Image.new("RGB", (8, 6), (250, 30, 30))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def running(app, port):
    server = build_server(app, "127.0.0.1", port)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + 20
        while not server.started:
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def lonely_api():
    """An API whose controller knows a model of a worker that nobody can reach."""
    known = controller_module.Controller()
    status = {"model_names": ["llava-v1-stub"], "speed": 1, "queue_length": 0}
    known.register_worker("http://127.0.0.1:9", False, status)
    with running(controller_module.create_app(known), free_port()) as address:
        settings = ApiSettings(address, max_body_bytes=2**20)
        with running(openai_api.create_app(settings), free_port()) as api:
            yield api


@pytest.fixture
def serving():
    """Serve an app on a port as long as a `with` block lasts."""
    return running


@pytest.fixture
def start():
    """Start apps on the loopback; all stop when the test ends."""
    with contextlib.ExitStack() as stack:

        def start_app(app, port=None):
            return stack.enter_context(running(app, port or free_port()))

        yield start_app


@pytest.fixture
def start_controller(start):
    def make(controller=None):
        controller = controller or controller_module.Controller("shortest_queue")
        return controller, start(controller_module.create_app(controller))

    return make


@pytest.fixture
def start_worker(start):
    """Start a worker with a stub engine, registered when a controller is given."""
    workers = []

    def make(engine, controller_addr="", **options):
        port = free_port()
        worker = model_worker.ModelWorker(
            controller_addr,
            f"http://127.0.0.1:{port}",
            "test",
            not controller_addr,
            "",
            None,
            None,
            False,
            False,
            "cpu",
            engine=engine,
            **options,
        )
        address = start(model_worker.create_app(worker), port)
        workers.append(worker)
        worker.start()
        return worker, address

    yield make
    for worker in workers:
        worker.close()


@pytest.fixture
def wait_for():
    def wait(condition, timeout_s=10):
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.01)

    return wait
