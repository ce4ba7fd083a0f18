"""Requests and answers of LLaVA's protocol, one by one, in both directions.

`protocol.json` holds them in the shapes of the contract, without anything that is ours alone. They
are sent to our controller and worker, and answered to our worker, controller, page and API by
doubles that know nothing else.
"""

import base64
import io
import json
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import openai
import pytest
import requests
from fastapi import FastAPI, Request
from PIL import Image
from starlette.responses import Response

from llava.serve import chat, openai_api
from llava.serve.chat import PageSettings
from llava.serve.openai_api import ApiSettings
from llava.utils import server_error_msg

EXCHANGE = json.loads(
    (Path(__file__).parents[2] / "golden" / "llava" / "protocol.json").read_text("utf-8")
)
GONE = "http://127.0.0.1:9"
MODEL = "llava-v1-stub"
LONG = "x" * 200


def as_base64(picture):
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def fill_in(value, **named):
    """Put what is only known now in place of the words in capitals."""
    if isinstance(value, dict):
        return {key: fill_in(each, **named) for key, each in value.items()}
    if isinstance(value, list):
        return [fill_in(each, **named) for each in value]
    if isinstance(value, str):
        for name, text in {"SERVER_ERROR": server_error_msg, "LONG": LONG, **named}.items():
            value = value.replace(name, text)
    return value


def covers(given, wanted):
    """Whether an object has all that the contract says, and perhaps more."""
    if isinstance(wanted, dict):
        return isinstance(given, dict) and all(
            key in given and covers(given[key], each) for key, each in wanted.items()
        )
    return given == wanted


def stream_of(address, body):
    """Read a stream as a client of LLaVA does: objects between NUL bytes, two keys of each."""
    response = requests.post(
        address + "/worker_generate_stream",
        headers={"User-Agent": "LLaVA Client"},
        json=body,
        stream=True,
        timeout=10,
    )
    assert response.status_code == 200
    raw = b"".join(response.iter_content(8192))
    assert raw.endswith(b"\0")
    found = [json.loads(chunk.decode()) for chunk in raw.split(b"\0") if chunk]
    return [each["text"] for each in found], found[-1]["error_code"]


class LlavaDouble:
    """A worker, or a controller, that speaks the shapes of the contract and no more."""

    def __init__(self):
        self.received = []
        self.app = FastAPI()
        self.app.post("/{route}")(self.answer)

    async def answer(self, route: str, request: Request):
        body = await request.json() if await request.body() else None
        self.received.append(("/" + route, body))
        if route == "worker_get_status":
            return EXCHANGE["worker_status"]
        if route == "receive_heart_beat":
            return {"exist": True}
        if route == "worker_generate_stream":
            texts = [body["prompt"] + "abc"[:end] for end in (1, 2, 3)]
            raw = [json.dumps({"text": text, "error_code": 0}) + "\0" for text in texts]
            return Response("".join(raw).encode())
        return None

    def bodies(self, route):
        return [body for each, body in self.received if each == route]


@pytest.fixture
def double(start):
    made = LlavaDouble()
    return made, start(made.app)


def test_where_the_shapes_come_from_is_said():
    assert "contract" in EXCHANGE["source"]
    assert "no recording" in EXCHANGE["source"]


def test_our_controller_answers_as_llavas(start_controller, double):
    _, worker = double
    _, address = start_controller()
    for step in fill_in(EXCHANGE["controller"], WORKER=worker, GONE=GONE):
        response = requests.post(address + step["route"], json=step["request"], timeout=10)
        assert response.status_code == 200, step
        assert response.json() == step["response"], step
    for step in fill_in(EXCHANGE["controller_streams"]):
        texts, error_code = stream_of(address, step["request"])
        assert (texts, error_code) == (step["texts"], step["error_code"])


@pytest.mark.parametrize("step", EXCHANGE["worker_streams"])
def test_our_worker_answers_as_llavas(make_engine, start_worker, picture, step):
    context_len = 150 if "LONG" in step["request"]["prompt"] else 4096
    _, address = start_worker(make_engine("abc", context_len=context_len, delay_s=0.02))
    step = fill_in(step, PICTURE=as_base64(picture))
    status = requests.post(address + "/worker_get_status", timeout=10).json()
    assert covers(status, EXCHANGE["worker_status"])
    assert stream_of(address, step["request"]) == (step["texts"], step["error_code"])


def test_our_worker_registers_as_llavas(make_engine, start_worker, wait_for, double):
    controller, address = double
    worker, own = start_worker(make_engine("a"), address)
    worker.beat_now.set()
    for step in fill_in(EXCHANGE["worker_sends"], WORKER=own):
        wait_for(lambda route=step["route"]: controller.bodies(route))
        assert covers(controller.bodies(step["route"])[0], step["request"])


def test_our_page_and_api_work_with_llavas_worker(
    start, start_controller, double, picture, tmp_path
):
    worker, address = double
    dispatch, controller = start_controller()
    dispatch.register_worker(address, True, EXCHANGE["worker_status"])
    settings = PageSettings(controller, log_dir=tmp_path)
    request = gr.Request(client=SimpleNamespace(host="1.2.3.4"))
    state = chat.add_text(None, "Q", picture, "Default", request, settings=settings)[0]
    answers = chat.http_bot(state, MODEL, 0.2, 0.7, 512, request, settings=settings)
    assert list(answers)[-1][0].conversation.messages[-1][1] == "abc"
    (sent,) = worker.bodies("/worker_generate_stream")
    wanted = EXCHANGE["page_sends"]
    assert set(sent) == set(wanted)
    assert {key: sent[key] for key in wanted if key not in ("prompt", "images")} == {
        key: wanted[key] for key in wanted if key not in ("prompt", "images")
    }
    assert sent["prompt"].count("<image>") == len(sent["images"]) == 1
    with Image.open(io.BytesIO(base64.b64decode(sent["images"][0]))) as image:
        assert image.size == picture.size
    api = openai.OpenAI(
        base_url=start(openai_api.create_app(ApiSettings(controller))) + "/v1", api_key="none"
    )
    question = [{"role": "user", "content": "Q"}]
    answer = api.chat.completions.create(model=MODEL, messages=question)
    assert answer.choices[0].message.content == "abc"
    assert answer.usage is None
