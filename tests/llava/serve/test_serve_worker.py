import asyncio
import base64
import io
import logging
import re
import threading
import time

import pytest
import requests
from PIL import ExifTags, Image

from llava.errors import DataError
from llava.serve import model_worker, protocol
from llava.serve.model_worker import parse_request
from llava.utils import server_error_msg


def test_images_are_turned_as_the_api_turns_them():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    buffer = io.BytesIO()
    Image.new("RGB", (40, 20)).save(buffer, "JPEG", exif=exif)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    (image,) = parse_request({"prompt": "<image>", "images": [encoded]}).images
    assert image.size == (20, 40)


def test_the_message_on_a_foreign_file_names_no_object():
    encoded = base64.b64encode(b"hello, world").decode()
    with pytest.raises(DataError, match=r"images\[0\] is not an image") as caught:
        parse_request({"prompt": "<image>", "images": [encoded]})
    assert "BytesIO" not in str(caught.value)


def encoded(picture, mode="RGB"):
    buffer = io.BytesIO()
    picture.convert(mode).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def ask(address, prompt="Q", **body):
    return list(protocol.stream_generation(address, {"prompt": prompt, **body}))


def test_stream_is_cumulative_and_begins_with_the_prompt(make_engine, start_worker, picture):
    engine = make_engine("kůň")
    _, address = start_worker(engine)
    prompt = "USER: <image>\nCo? ASSISTANT:"
    chunks = ask(address, prompt, images=[encoded(picture, "P")], stop="</s>")
    assert [chunk["text"] for chunk in chunks] == [prompt + "k", prompt + "ků", prompt + "kůň"]
    assert {chunk["error_code"] for chunk in chunks} == {0}
    assert engine.model.calls[0]["images"].shape == (1, 3, 8, 8)
    assert engine.model.calls[0]["image_sizes"] == [(8, 6)]


def test_wire_bytes_are_nul_delimited_json(make_engine, start_worker):
    _, address = start_worker(make_engine("ab"))
    response = requests.post(
        address + "/worker_generate_stream", json={"prompt": "Q", "stop": None}, timeout=10
    )
    assert response.content == (
        b'{"text": "Qa", "error_code": 0}\x00{"text": "Qab", "error_code": 0}\x00'
    )


def test_an_empty_answer_is_an_answer(make_engine, start_worker):
    _, address = start_worker(make_engine(""))
    assert ask(address) == [{"text": "Q", "error_code": 0}]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"prompt": "<image>"}, "0 images"),
        ({"images": ["AAAA"]}, r"images\[0\] is not an image"),
        ({"images": [7]}, r"images\[0\] is not an image"),
        ({"images": "AAAA"}, "images is str"),
        ({"prompt": None}, "prompt is NoneType"),
        ({"stop": 3}, "stop is int"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"max_new_tokens": -5}, "max_new_tokens is -5"),
        ({"top_p": float("inf")}, "top_p is inf"),
    ],
)
def test_bad_requests_get_code_1_and_the_reason(make_engine, body, reason):
    (chunk,) = answer_of(make_engine("a"), {"prompt": "Q", **body})
    assert chunk["text"] == server_error_msg
    assert chunk["error_code"] == 1
    assert re.search(reason, chunk["reason"])


def answer_of(engine, params):
    """Answer one request without a server between."""
    worker = model_worker.ModelWorker(
        "", "", "test", True, "", None, None, False, False, "cpu", engine=engine
    )

    async def collect():
        return [chunk async for chunk in worker.answer(params)]

    return list(protocol.decode_chunks(asyncio.run(collect())))


def test_failing_generation_ends_the_stream_with_its_cause(make_engine, start_worker, caplog):
    _, address = start_worker(make_engine("ab", error=RuntimeError("the device burns")))
    started = time.monotonic()
    with caplog.at_level(logging.ERROR):
        chunks = ask(address)
    assert time.monotonic() - started < 5
    assert [chunk["error_code"] for chunk in chunks] == [0, 0, 1]
    assert chunks[-1]["text"] == server_error_msg
    assert "RuntimeError" in chunks[-1]["reason"]
    assert "the device burns" in caplog.text


def test_too_long_prompt_gets_the_fixed_message(make_engine):
    assert answer_of(make_engine("a", context_len=10), {"prompt": "x" * 10}) == [
        {
            "text": "x" * 10 + "Exceeds max token length. Please start a new conversation, thanks.",
            "error_code": 0,
        }
    ]


def test_new_tokens_are_capped():
    assert parse_request({"prompt": "Q", "max_new_tokens": 5000}).max_new_tokens == 1024
    assert parse_request({"prompt": "Q"}).max_new_tokens == 256
    assert parse_request({"prompt": "Q"}).temperature == 1.0


def test_a_client_that_leaves_cancels_its_generation(make_engine, start_worker, wait_for):
    engine = make_engine("x" * 900, delay_s=0.01)
    worker, address = start_worker(engine)
    stream = protocol.stream_generation(address, {"prompt": "Q", "max_new_tokens": 900})
    next(stream)
    assert worker.get_queue_length() == 1
    stream.close()
    wait_for(engine.model.finished.is_set)
    assert engine.model.num_generated < 450
    wait_for(lambda: worker.get_queue_length() == 0)


def test_requests_beyond_the_limit_wait(make_engine, start_worker, wait_for):
    engine = make_engine("x" * 30, delay_s=0.01)
    worker, address = start_worker(engine, limit_model_concurrency=1)
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(ask(address))) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait_for(lambda: worker.get_queue_length() == 3)
    status = requests.post(address + "/worker_get_status", timeout=10).json()
    assert status["queue_length"] == 3
    for thread in threads:
        thread.join(timeout=20)
    assert [answer[-1]["text"] for answer in answers] == ["Q" + "x" * 30] * 3
    wait_for(lambda: worker.get_queue_length() == 0)


def test_status_offers_the_checkpoints_template(make_engine, start_worker):
    conversation = {"name": "own", "system": "S"}
    _, address = start_worker(make_engine(conversation=conversation))
    status = protocol.get_worker_status(address)
    assert status["model_names"] == ["llava-v1-stub"]
    assert (status["speed"], status["queue_length"]) == (1, 0)
    assert status["conversation"] == conversation


def test_malformed_json_is_refused_and_the_worker_lives(make_engine, start_worker):
    worker, address = start_worker(make_engine("a"))
    response = requests.post(
        address + "/worker_generate_stream",
        data=b"{",
        headers={"Content-Type": "application/json"},
        timeout=10,
    )
    assert response.status_code == 422
    assert worker.get_queue_length() == 0
    assert ask(address)[-1]["text"] == "Qa"


def test_documented_flags_and_defaults():
    args = model_worker.build_parser().parse_args(
        ["--controller", "http://c", "--worker", "http://w", "--model-path", "m"]
    )
    assert (args.controller_address, args.worker_address) == ("http://c", "http://w")
    defaults = model_worker.build_parser().parse_args([])
    assert (defaults.port, defaults.limit_model_concurrency, defaults.device) == (21002, 5, "cuda")
