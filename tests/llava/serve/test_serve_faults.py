"""What users see when something breaks; `docs/serving.md` has the table."""

import base64
import contextlib
import io
import json
import logging
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import openai
import pytest
import requests
from PIL import Image

from llava.errors import CheckpointError, ConfigError
from llava.serve import (
    check,
    controller,
    gradio_web_server,
    model_worker,
    openai_api,
    protocol,
    web,
)
from llava.serve.chat import PageSettings
from llava.serve.openai_api import ApiSettings

MODEL = "llava-v1-stub"
TINY = Path(__file__).parents[2] / "golden" / "llava" / "model" / "tiny-llava"
QUESTION = [{"role": "user", "content": "Q"}]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def models_of(controller_address):
    return requests.post(controller_address + "/list_models", timeout=5).json()["models"]


@pytest.fixture
def worker_process(wait_for, tmp_path):
    """Start workers in processes of their own; return the process and its address."""
    processes = []

    def make(controller_address, *flags, **options):
        port = free_port()
        address = f"http://127.0.0.1:{port}"
        named = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        process = subprocess.Popen(
            [
                sys.executable, str(Path(__file__).with_name("stub_process.py")),
                "--host=127.0.0.1", f"--port={port}", f"--worker-address={address}",
                f"--controller-address={controller_address}", *flags, *named,
            ],
            stderr=(tmp_path / f"worker-{port}.log").open("wb"),
        )  # fmt: skip
        processes.append(process)
        wait_for(lambda: process.poll() is not None or answers(address), 60)
        assert process.poll() is None
        return process, address

    yield make
    for process in processes:
        process.kill()
        process.wait()


def answers(address):
    with contextlib.suppress(requests.RequestException):
        return requests.post(address + "/worker_get_status", timeout=5).ok
    return False


@pytest.fixture
def api_of(start):
    def make(controller_address):
        address = start(openai_api.create_app(ApiSettings(controller_address)))
        return openai.OpenAI(base_url=address + "/v1", api_key="none", max_retries=0)

    return make


def ask(api, **options):
    return api.chat.completions.create(model=MODEL, messages=QUESTION, **options)


def test_worker_killed_in_mid_answer(start_controller, worker_process, api_of, wait_for):
    _, address = start_controller()
    process, _ = worker_process(address, answer="x" * 500, delay=0.02)
    wait_for(lambda: models_of(address))
    api = api_of(address)
    stream = iter(ask(api, stream=True))
    next(stream)
    text = next(stream).choices[0].delta.content
    process.kill()
    with pytest.raises(openai.APIError, match="the worker is gone") as caught:
        for chunk in stream:
            text += chunk.choices[0].delta.content
    assert caught.value.code == "worker_unreachable"
    assert text == "x" * len(text)
    with pytest.raises(openai.InternalServerError) as caught:
        ask(api)  # nobody is left, and the next one who asks is told so at once
    assert (caught.value.status_code, caught.value.code) == (503, "no_worker")


def test_worker_killed_in_mid_answer_as_the_page_sees_it(start_controller, worker_process):
    process, address = worker_process("", "--no-register", answer="x" * 500, delay=0.02)
    stream = protocol.stream_generation(address, {"prompt": "Q"})
    assert next(stream)["text"] == "Qx"
    process.kill()
    with pytest.raises((requests.RequestException, ValueError)):
        list(stream)


def test_another_worker_takes_over_from_a_dead_one(
    start_controller, start_worker, make_engine, api_of, wait_for
):
    known, address = start_controller()
    start_worker(make_engine("alive"), address)
    wait_for(lambda: models_of(address))
    # It seems to be the less busy one, so it is chosen first; after one failure it is forgotten.
    status = {"model_names": [MODEL], "speed": 1, "queue_length": -100}
    dead = f"http://127.0.0.1:{free_port()}"
    api = api_of(address)
    for _ in range(3):
        known.register_worker(dead, False, status)
        assert ask(api).choices[0].message.content == "alive"
        assert dead not in known.worker_info


def test_controller_restarted(start_worker, make_engine, api_of, wait_for, monkeypatch, serving):
    monkeypatch.setattr(model_worker, "WORKER_HEART_BEAT_INTERVAL", 0.1)
    monkeypatch.setattr(model_worker, "RETRY_INTERVAL_S", 0.1)
    port = free_port()
    with serving(controller.create_app(controller.Controller()), port) as address:
        start_worker(make_engine("a"), address)
        wait_for(lambda: models_of(address))
        api = api_of(address)
        assert ask(api).choices[0].message.content == "a"
    with pytest.raises(openai.InternalServerError) as caught:
        ask(api)
    assert caught.value.code == "no_controller"
    with serving(controller.create_app(controller.Controller()), port) as address:
        wait_for(lambda: models_of(address))
        assert ask(api).choices[0].message.content == "a"


def test_slow_client_holds_up_nobody_and_loses_nothing(make_engine, start_worker, wait_for):
    answer = "".join(random.Random(0).choices("abcdefgh ", k=1000))
    engine = make_engine(answer, context_len=40_000)
    worker, address = start_worker(engine, limit_model_concurrency=1)
    prompt = "Q" * 20_000  # all objects together are larger than any buffer between
    body = json.dumps({"prompt": prompt, "max_new_tokens": 1000}).encode()
    with socket.socket() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.connect(("127.0.0.1", int(address.rsplit(":", 1)[1])))
        line.sendall(
            b"POST /worker_generate_stream HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        # It has not read a byte, and its answer is complete: the place is free for others.
        wait_for(lambda: engine.model.num_generated == 1000 and worker.get_queue_length() == 0)
        other = list(protocol.stream_generation(address, {"prompt": "P", "max_new_tokens": 5}))
        assert other[-1]["text"] == "P" + answer[:5]
        received = bytearray()
        while piece := line.recv(65536):
            received += piece
    whole = json.dumps({"text": prompt + answer, "error_code": 0}).encode() + b"\0"
    assert whole in received
    # Objects that it was too slow for were left out.
    assert received.count(b"\0") < 1000


def test_queue_full(make_engine, start_controller, start_worker, api_of, wait_for):
    _, address = start_controller()
    engine = make_engine("x" * 150, delay_s=0.01)
    worker, direct = start_worker(engine, address, limit_model_concurrency=1, max_waiting=1)
    wait_for(lambda: models_of(address))
    api = api_of(address)
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(ask(api).choices[0].message.content))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    wait_for(lambda: worker.get_queue_length() == 2)
    refused = list(protocol.stream_generation(direct, {"prompt": "Q"}))
    assert (refused[0]["error_code"], refused[0]["kind"]) == (1, "busy")
    assert "the queue is full" in refused[0]["reason"]
    with pytest.raises(openai.InternalServerError, match="the queue is full") as caught:
        ask(api)
    assert (caught.value.status_code, caught.value.code) == (503, "overloaded")
    assert caught.value.response.headers["Retry-After"] == "1"
    for thread in threads:
        thread.join(timeout=30)
    assert found == ["x" * 150] * 2


def test_deadline(make_engine, start_controller, start_worker, api_of, wait_for):
    _, address = start_controller()
    engine = make_engine("x" * 3000, delay_s=0.01)
    start_worker(engine, address, request_timeout_s=0.2)
    wait_for(lambda: models_of(address))
    with pytest.raises(openai.InternalServerError, match=r"longer than 0\.2 s") as caught:
        ask(api_of(address))
    assert (caught.value.status_code, caught.value.code) == (504, "deadline_exceeded")
    wait_for(engine.model.finished.is_set)
    assert engine.model.num_generated < 500


def test_worker_told_to_stop_finishes_first(start_controller, worker_process, wait_for):
    _, address = start_controller()
    process, direct = worker_process(address, answer="x" * 100, delay=0.01)
    wait_for(lambda: models_of(address))
    stream = protocol.stream_generation(direct, {"prompt": "Q"})
    next(stream)
    process.send_signal(signal.SIGTERM)
    wait_for(lambda: not models_of(address))  # at once, not after 30 s without a heartbeat
    assert process.poll() is None
    assert list(stream)[-1]["text"] == "Q" + "x" * 100
    assert process.wait(20) in (0, -signal.SIGTERM)


def png_bomb(side=60_000):
    """A valid PNG of a few kilobytes whose pixels take gigabytes."""
    width = height = side
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    data = zlib.compress(b"\0" * 1_000_000, 9)
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    body = b"".join(
        struct.pack(">I", len(part)) + name + part + struct.pack(">I", zlib.crc32(name + part))
        for name, part in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x89PNG\r\n\x1a\n" + b"\0" * 50,
        b"<svg/>",
        png_bomb(),
        png_bomb(8000),
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
    ],
    ids=len,
)
def test_hostile_pictures_leave_the_worker_alive(make_engine, start_worker, raw):
    _, address = start_worker(make_engine("a"))
    body = {"prompt": "<image>", "images": [base64.b64encode(raw).decode()]}
    refused = list(protocol.stream_generation(address, body))
    assert (refused[0]["error_code"], refused[0]["kind"]) == (1, "invalid_request")
    assert "images[0] is not an image" in refused[0]["reason"]
    assert list(protocol.stream_generation(address, {"prompt": "Q"}))[-1]["text"] == "Qa"


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "../../etc/passwd", "model": "../../etc/passwd", "stop": "../.."},
        {"prompt": "Q", "seed": -1},
        {"prompt": "Q", "seed": "7"},
        {"prompt": "Q", "images": ["AAAA"] * 100},
        {"prompt": "Q", "max_new_tokens": 10**400},
        {"prompt": "Q", "temperature": "9" * 10_000},
        {"prompt": "\ud800"},
        {"prompt": ["Q"]},
    ],
)
def test_strange_requests_leave_the_worker_alive(make_engine, start_worker, body):
    _, address = start_worker(make_engine("a"))
    response = requests.post(
        address + "/worker_generate_stream", data=json.dumps(body).encode(), timeout=20,
        headers={"Content-Type": "application/json"},
    )  # fmt: skip
    assert "Traceback" not in response.text
    assert "root:" not in response.text
    assert len(response.content) < 1000
    assert list(protocol.stream_generation(address, {"prompt": "Q"}))[-1]["text"] == "Qa"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_disk_full_for_logs(make_engine, start_controller, start_worker, api_of, wait_for, capsys):
    handler = logging.FileHandler("/dev/full")
    logging.getLogger().addHandler(handler)
    logging.getLogger("llava").setLevel(logging.INFO)
    try:
        _, address = start_controller()
        start_worker(make_engine("a"), address)
        wait_for(lambda: models_of(address))
        assert ask(api_of(address)).choices[0].message.content == "a"
    finally:
        logging.getLogger("llava").setLevel(logging.NOTSET)
        logging.getLogger().removeHandler(handler)
        with contextlib.suppress(OSError):
            handler.close()
    assert "No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize("module", [controller, model_worker, openai_api, gradio_web_server])
def test_port_taken(module):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        args = module.build_parser().parse_args(["--host", "127.0.0.1", "--port", port])
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
            module.run(args)


@pytest.mark.parametrize(
    ("host", "port", "message"),
    [
        ("127.0.0.1", 99_999_999, "--port is 99999999; expected 0 to 65535"),
        ("127.0.0.1", -1, "--port is -1; expected 0 to 65535"),
        ("no.such.host.invalid", 0, "cannot listen on no.such.host.invalid: "),
    ],
)
def test_what_is_no_address_is_named(host, port, message):
    with pytest.raises(ConfigError, match=message):
        check.check_port_is_free(host, port)
    with pytest.raises(ConfigError, match=message):
        gradio_web_server.serve(None, host, port, False, PageSettings())


def test_model_that_does_not_load(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llava_llama"}')
    for path in (tmp_path / "none", tmp_path):
        args = model_worker.build_parser().parse_args(
            ["--host", "127.0.0.1", "--port", str(free_port()), "--model-path", str(path)]
        )
        with pytest.raises(CheckpointError):
            model_worker.run(args)


def test_flags_out_of_range_are_named():
    for flag in ("--limit-model-concurrency=0", "--max-waiting=-1", "--request-timeout=-1"):
        args = model_worker.build_parser().parse_args([flag, "--port", str(free_port())])
        with pytest.raises(ConfigError, match=flag.partition("=")[0]):
            model_worker.run(args)


def test_server_hook_runs_before_connections_are_closed():
    from fastapi import FastAPI

    seen = []
    server = web.build_server(FastAPI(), "127.0.0.1", free_port(), lambda: seen.append(1))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    server.should_exit = True
    thread.join(timeout=20)
    assert seen == [1]


def rss_mib(pid):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmRSS")


def picture(colour):
    buffer = io.BytesIO()
    Image.new("RGB", (48, 32), colour).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.slow
@pytest.mark.parametrize("num_clients", [16, 64])
def test_load(num_clients, start_controller, worker_process, api_of, wait_for):
    """Each answer is the one that it must be, and memory does not grow."""
    _, address = start_controller()
    process, _ = worker_process(
        address, model_path=TINY, limit_model_concurrency=16, drain_timeout=1
    )
    wait_for(lambda: models_of(address))
    api = api_of(address)
    questions = []
    for index in range(24):
        content = [{"type": "text", "text": "what is it " * (index % 5 + 1) + str(index)}]
        if index % 3 == 0:
            url = picture((index * 10, 255 - index * 10, index))
            content.append({"type": "image_url", "image_url": {"url": url}})
        questions.append([{"role": "user", "content": content}])

    def answer(index):
        reply = api.chat.completions.create(
            model=MODEL, messages=questions[index], temperature=0, max_tokens=24
        )
        return reply.choices[0].message.content

    expected = [answer(index) for index in range(len(questions))]
    assert len(set(expected)) > 12
    wrong, counts, lock = [], [], threading.Lock()

    def work(seed, seconds):
        rng, number = random.Random(seed), 0
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            index = rng.randrange(len(questions))
            found = answer(index)
            number += 1
            if found != expected[index]:
                with lock:
                    wrong.append((index, expected[index], found))
        with lock:
            counts.append(number)

    def round_of(seconds):
        threads = [
            threading.Thread(target=work, args=(seed, seconds)) for seed in range(num_clients)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    round_of(5)
    before = rss_mib(process.pid)
    round_of(15)
    assert not wrong
    assert len(counts) == 2 * num_clients  # nobody was refused or lost
    assert rss_mib(process.pid) < before + 60
