import asyncio
import base64
import io
import json
import logging
import re
import socket
import textwrap
import threading
import time
import urllib.parse
from pathlib import Path

import openai
import pytest
import requests
from PIL import Image

from llava.conversation import conversation_to_dict, get_conversation
from llava.serve import openai_api
from llava.serve.openai_api import ApiSettings, CompletionReply
from llava.serve.openai_chat import ApiError, ChatAnswer, parse_chat_request
from llava.serve.web import ImageLimits, RateLimiter

MODEL = "llava-v1-stub"
QUESTION = [{"role": "user", "content": "Co?"}]


def data_url(image, kind="png", **options):
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def with_picture(url, text="What is it?"):
    image = {"type": "image_url", "image_url": {"url": url}}
    return [{"role": "user", "content": [{"type": "text", "text": text}, image]}]


@pytest.fixture
def start_api(start, start_controller, start_worker):
    """Start controller, a worker with an engine, and the API; return worker and addresses."""

    def make(engine=None, **settings):
        _, controller = start_controller()
        if engine is not None:
            worker, address = start_worker(engine, controller)
            deadline = time.monotonic() + 10
            while not requests.post(controller + "/list_models", timeout=5).json()["models"]:
                assert time.monotonic() < deadline
                time.sleep(0.01)
        return start(openai_api.create_app(ApiSettings(controller, **settings)))

    return make


@pytest.fixture
def client_of():
    def make(address, key="none"):
        return openai.OpenAI(base_url=address + "/v1", api_key=key, max_retries=0)

    return make


def post(address, body, **headers):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **headers}
    return requests.post(address + "/v1/chat/completions", data=data, headers=headers, timeout=20)


def test_official_client_gets_models_and_an_answer(make_engine, start_api, client_of):
    engine = make_engine("Žlutý kůň.")
    client = client_of(start_api(engine))
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).object == "model"
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[
            {"role": "system", "content": "Be short."},
            *QUESTION,
            {"role": "assistant", "content": "Nic."},
            {"role": "user", "content": "Opravdu?"},
        ],
        temperature=0,
    )
    assert answer.choices[0].message.content == "Žlutý kůň."
    assert answer.choices[0].finish_reason == "stop"
    assert engine.model.calls[0]["prompt"] == (
        "Be short. USER: Co? ASSISTANT: Nic.</s>USER: Opravdu? ASSISTANT:"
    )
    assert engine.model.calls[0]["do_sample"] is False


def test_official_client_streams(make_engine, start_api, client_of):
    client = client_of(start_api(make_engine("kůň a pes")))
    stream = client.chat.completions.create(
        model=MODEL, messages=QUESTION, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "kůň a pes"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert len({chunk.id for chunk in chunks}) == 1


def test_pictures_come_first_and_without_metadata(make_engine, start_api, client_of, picture):
    engine = make_engine("a")
    client = client_of(start_api(engine))
    exif = Image.Exif()
    exif[0x010E] = "secret place"
    url = data_url(picture, "jpeg", exif=exif)
    client.chat.completions.create(model=MODEL, messages=with_picture(url, "Co?"))
    call = engine.model.calls[0]
    assert call["images"].shape == (1, 3, 8, 8)
    assert call["image_sizes"] == [(8, 6)]
    # the sentinel itself is no byte of the prompt
    assert " USER: \nCo? ASSISTANT:" in call["prompt"]


def test_stops_of_the_caller_and_several_choices(make_engine, start_api, client_of):
    client = client_of(start_api(make_engine("one two three")))
    answer = client.chat.completions.create(
        model=MODEL, messages=QUESTION, stop=[" three", "zzz"], n=3, seed=7
    )
    assert [choice.message.content for choice in answer.choices] == ["one two"] * 3
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    chunks = list(
        client.chat.completions.create(
            model=MODEL, messages=QUESTION, stop=" three", n=2, stream=True
        )
    )
    for index in range(2):
        parts = [c.choices[0] for c in chunks if c.choices and c.choices[0].index == index]
        assert "".join(part.delta.content or "" for part in parts) == "one two"
        assert parts[-1].finish_reason == "stop"


GOOD = {"model": MODEL, "messages": QUESTION}
SVG = base64.b64encode(b"<svg xmlns='http://www.w3.org/2000/svg'/>").decode()
URL_FIELD = "messages[0].content[1].image_url.url"
BAD = [
    (b"{", None),
    (b"\xff\xfe", None),
    (b"[" * 100_000, None),
    (b"7", None),
    (b'{"model": NaN}', None),
    ([], None),
    ({**GOOD, "model": 7}, "model"),
    ({"messages": QUESTION}, "model"),
    ({"model": MODEL}, "messages"),
    ({**GOOD, "model": "../../etc/passwd"}, "model"),
    ({**GOOD, "model": "x" * 10_000}, "model"),
    ({**GOOD, "messages": []}, "messages"),
    ({**GOOD, "messages": {}}, "messages"),
    ({**GOOD, "messages": ["hi"]}, "messages[0]"),
    ({**GOOD, "messages": [{"role": "user"}]}, "messages[0].content"),
    ({**GOOD, "messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
    ({**GOOD, "messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({**GOOD, "messages": [{"role": "user", "content": []}]}, "messages[0].content"),
    ({**GOOD, "messages": [{"role": "user", "content": "a <image> b"}]}, "messages[0].content"),
    ({**GOOD, "messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content"),
    ({**GOOD, "messages": [{"role": "assistant", "content": "x"}]}, "messages[0].role"),
    ({**GOOD, "messages": [{"role": "user", "content": None}]}, "messages[0].content"),
    ({**GOOD, "messages": [{"role": "system", "content": None}, *QUESTION]}, "messages[0].content"),
    (
        {**GOOD, "messages": [{"role": "assistant", "content": "", "refusal": "No."}, *QUESTION]},
        "messages[0].refusal",
    ),
    (
        {**GOOD, "messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}, *QUESTION]},
        "messages[0].tool_calls",
    ),
    ({**GOOD, "max_tokens": -1}, "max_tokens"),
    ({**GOOD, "max_tokens": 1.5}, "max_tokens"),
    ({**GOOD, "max_tokens": "9"}, "max_tokens"),
    ({**GOOD, "temperature": -0.1}, "temperature"),
    ({**GOOD, "temperature": 10**400}, "temperature"),
    ({**GOOD, "temperature": "hot"}, "temperature"),
    ({**GOOD, "top_p": 1.01}, "top_p"),
    ({**GOOD, "n": 0}, "n"),
    ({**GOOD, "n": 10**9}, "n"),
    ({**GOOD, "seed": 2**64}, "seed"),
    ({**GOOD, "stop": [""]}, "stop"),
    ({**GOOD, "stop": ["a"] * 5}, "stop"),
    ({**GOOD, "stop": [3]}, "stop[0]"),
    ({**GOOD, "stream": "yes"}, "stream"),
    ({**GOOD, "stream_options": {"x": 1}}, "stream_options.x"),
    ({**GOOD, "tools": [{"type": "function"}]}, "tools"),
    ({**GOOD, "logprobs": True}, "logprobs"),
    ({**GOOD, "presence_penalty": 1.5}, "presence_penalty"),
    ({**GOOD, "response_format": {"type": "json_object"}}, "response_format.type"),
    ({**GOOD, "frobnicate": 1}, "frobnicate"),
    ({**GOOD, "messages": with_picture("data:image/svg+xml;base64," + SVG)}, URL_FIELD),
    ({**GOOD, "messages": with_picture("data:image/png;base64," + SVG)}, URL_FIELD),
    ({**GOOD, "messages": with_picture("data:image/png;base64,@@@@")}, URL_FIELD),
    ({**GOOD, "messages": with_picture("data:image/png;base64,AAA")}, URL_FIELD),
    ({**GOOD, "messages": with_picture("data:image/png,AAAA")}, URL_FIELD),
    ({**GOOD, "messages": with_picture("data:image/png;base64,\ud800")}, URL_FIELD),
    ({**GOOD, "messages": with_picture("../../../etc/passwd")}, URL_FIELD),
    ({**GOOD, "messages": with_picture("file:///etc/passwd")}, URL_FIELD),
    ({**GOOD, "messages": with_picture("http://127.0.0.1/x.png")}, URL_FIELD),
    ({**GOOD, "messages": with_picture("")}, URL_FIELD),
    ({**GOOD, "messages": with_picture(7)}, URL_FIELD),
    (
        {
            **GOOD,
            "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": 7}]}],
        },
        "messages[0].content[0].image_url",
    ),
]


@pytest.mark.parametrize(("body", "param"), BAD)
def test_bad_requests_get_4xx_and_the_name_of_the_field(lonely_api, body, param):
    response = post(lonely_api, body)
    assert 400 <= response.status_code < 500, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert error["message"]
    assert "Traceback" not in response.text
    assert len(response.text) < 1000


def test_a_reply_is_taken_back_as_it_came(make_engine, start_api, client_of):
    engine = make_engine("Nic.")
    client = client_of(start_api(engine))
    reply = client.chat.completions.create(model=MODEL, messages=QUESTION).choices[0].message
    silent = {
        "refusal": None,
        "annotations": [],
        "audio": None,
        "function_call": None,
        "tool_calls": None,
        "reasoning_content": None,
    }
    for message in (reply, reply.model_dump(), {**silent, **reply.to_dict(), "tool_calls": []}):
        messages = [*QUESTION, message, {"role": "user", "content": "A teď?"}]
        client.chat.completions.create(model=MODEL, messages=messages)
        prompt = engine.model.calls[-1]["prompt"]
        assert prompt.endswith("USER: Co? ASSISTANT: Nic.</s>USER: A teď? ASSISTANT:")


def test_an_answer_without_text_is_left_out(make_engine, start_api):
    engine = make_engine("a")
    api = start_api(engine)
    for answer in ({"content": None, "refusal": None}, {"content": ""}, {}):
        messages = [*QUESTION, {"role": "assistant", **answer}, *QUESTION]
        assert post(api, {**GOOD, "messages": messages}).status_code == 200, answer
        assert engine.model.calls[-1]["prompt"].endswith(" USER: Co?\nCo? ASSISTANT:")


OPENAI_FIELDS = (
    "audio frequency_penalty function_call functions logit_bias logprobs max_completion_tokens "
    "max_tokens metadata modalities n parallel_tool_calls prediction presence_penalty "
    "prompt_cache_key reasoning_effort response_format safety_identifier seed service_tier stop "
    "store stream stream_options temperature tool_choice tools top_logprobs top_p user verbosity "
    "web_search_options"
).split()


def test_fields_that_say_nothing_are_accepted(make_engine, start_api):
    api = start_api(make_engine("a"))
    hint = {"cache_control": {"type": "ephemeral"}}
    parts = [{"type": "text", "text": "Co?", **hint}, {"type": "text", "text": "A?", "x": None}]
    for extra in (
        dict.fromkeys(OPENAI_FIELDS),
        {"parallel_tool_calls": True},
        {"parallel_tool_calls": False, "tools": [], "functions": []},
        {"messages": [{"role": "user", "content": parts, "name": None, "tool_call_id": None}]},
        {"messages": [{"role": "system", "content": "Be short.", **hint}, *QUESTION]},
    ):
        response = post(api, {**GOOD, **extra})
        assert response.status_code == 200, (extra, response.text)


def test_more_tokens_than_the_worker_gives_are_clamped(make_engine, start_api):
    engine = make_engine("x" * 2000)
    api = start_api(engine)
    for field in ("max_tokens", "max_completion_tokens"):
        choice = post(api, {**GOOD, field: 10**12}).json()["choices"][0]
        assert len(choice["message"]["content"]) == 1024
        assert choice["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        ("vicuna_v1", "S ASSISTANT: Hi!</s>USER: Co? ASSISTANT:"),
        ("llava_v0", "S###Assistant: Hi!###Human: Co?###Assistant:"),
        (
            "mpt",
            "<|im_start|>system\nS<|im_end|><|im_start|>assistant\nHi!<|im_end|>"
            "<|im_start|>user\nCo?<|im_end|><|im_start|>assistant\n",
        ),
        (
            "qwen_1_5",
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>assistant\nHi!<|im_end|>\n"
            "<|im_start|>user\nCo?<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            "llava_llama_3",
            "<|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nHi!<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nCo?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        (
            "llama_2",
            "[INST] <<SYS>>\nS\n<</SYS>>\n\n  [/INST] Hi! </s><s>[INST] Co? [/INST]",
        ),
        ("mistral_instruct", "[INST] <<SYS>>\nS\n<</SYS>>\n\n  [/INST] Hi! </s>[INST] Co? [/INST]"),
    ],
)
def test_a_conversation_may_begin_with_the_assistant(make_engine, start_api, template, prompt):
    stored = conversation_to_dict(get_conversation(template))
    engine = make_engine("a", conversation=stored)
    messages = [
        {"role": "system", "content": "S"},
        {"role": "assistant", "content": "Hi!"},
        *QUESTION,
    ]
    response = post(start_api(engine), {**GOOD, "messages": messages})
    assert response.status_code == 200, response.text
    assert engine.model.calls[0]["prompt"] == prompt


def test_a_template_without_a_system_text(make_engine, start_api):
    stored = conversation_to_dict(get_conversation("gemma_instruct"))
    api = start_api(make_engine("a", conversation=stored))
    assert post(api, {**GOOD, "messages": QUESTION}).status_code == 200
    system = {"role": "system", "content": "S"}
    response = post(api, {**GOOD, "messages": [system, *QUESTION]})
    assert response.status_code == 400 and "takes no system text" in response.text


def test_data_urls_are_read_as_browsers_read_them(make_engine, start_api, picture):
    engine = make_engine("a")
    api = start_api(engine)
    buffer = io.BytesIO()
    picture.save(buffer, format="png")
    # one byte more than a multiple of three, so that there is padding
    raw = buffer.getvalue() + b"\0" * ((1 - len(buffer.getvalue())) % 3)
    text = base64.b64encode(raw).decode()
    lines = "\r\n".join(textwrap.wrap(text, 76))
    urls = [
        "data:image/png;base64," + form
        for form in (
            lines,
            text + "\n",
            " " + text,
            "\t".join(text),
            urllib.parse.quote(text, safe=""),
            urllib.parse.quote(lines, safe=""),
            "".join(f"%{ord(character):02x}" for character in text),
            text.rstrip("="),
        )
    ]
    urls += [
        f"data:application/octet-stream;base64,{text}",
        f" DATA:image/png; charset=utf-8; BASE64,{text}",
    ]
    for url in urls:
        response = post(api, {**GOOD, "messages": with_picture(url)})
        assert response.status_code == 200, (url[:80], response.text)
    part = {"type": "image_url", "image_url": urls[0], "cache_control": None}
    body = {**GOOD, "messages": [{"role": "user", "content": [part]}]}
    assert post(api, body).status_code == 200
    assert {call["image_sizes"][0] for call in engine.model.calls} == {picture.size}


def test_unknown_routes_and_methods_have_the_same_shape(lonely_api):
    for method, route, status in (
        ("GET", "/v1/../../etc/passwd", 404),
        ("GET", "/v1/models/..%2f..%2fetc%2fpasswd", 404),
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/v1/completions", 404),
        ("GET", "/docs", 404),
        ("GET", "/openapi.json", 404),
    ):
        response = requests.request(method, lonely_api + route, timeout=10)
        assert (response.status_code, "error" in response.json()) == (status, True), route


def test_no_cors_header_is_sent(lonely_api):
    headers = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    for method in ("OPTIONS", "POST"):
        response = requests.request(
            method, lonely_api + "/v1/chat/completions", headers=headers, timeout=10
        )
        assert not [name for name in response.headers if name.lower().startswith("access-control")]


def test_bodies_are_bounded(lonely_api):
    response = post(lonely_api, {**GOOD, "messages": [{"role": "user", "content": "x" * 2**20}]})
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "request_too_large"


def test_pictures_are_bounded(make_engine, start_api):
    limits = ImageLimits(max_bytes=3000, max_pixels=5000, max_images=1)
    api = start_api(make_engine("a"), pictures=limits)
    small, wide = Image.new("RGB", (50, 50)), Image.new("RGB", (5001, 1))
    noise = Image.effect_noise((64, 64), 90)
    assert post(api, {**GOOD, "messages": with_picture(data_url(small))}).status_code == 200
    escaped = urllib.parse.quote(data_url(noise), safe=":/;,")
    assert "%" in escaped
    for messages, reason in (
        (with_picture(data_url(wide)), "5001 x 1 pixels"),
        (with_picture(data_url(noise)), "larger than 3,000 bytes"),
        (with_picture(escaped), "larger than 3,000 bytes"),
        (with_picture(data_url(small)) * 2, "2 images"),
    ):
        response = post(api, {**GOOD, "messages": messages})
        assert response.status_code == 400
        assert reason in response.json()["error"]["message"]


def test_a_message_without_content_is_a_missing_parameter():
    for content in ({}, {"content": None}):
        with pytest.raises(ApiError, match=r"Missing required parameter: .*content") as caught:
            parse_chat_request({**GOOD, "messages": [{"role": "user", **content}]})
        assert (caught.value.code, caught.value.param) == (
            "missing_parameter", "messages[0].content",
        )  # fmt: skip


def test_a_video_is_refused_with_what_to_do():
    for kind in ("video_url", "video"):
        part = {"type": kind, kind: {"url": "data:video/mp4;base64,AA=="}}
        with pytest.raises(ApiError, match="frames as parts of type image_url") as caught:
            parse_chat_request({**GOOD, "messages": [{"role": "user", "content": [part]}]})
        assert caught.value.param == "messages[0].content[0]"


def test_the_log_names_an_unexpected_error():
    reply = CompletionReply()
    assert reply.fail(KeyError("x")).status == 500
    assert reply.record(0)["error"] == "KeyError"


def test_an_answer_ends_even_if_its_worker_gives_no_reason():
    class Client:
        async def worker_address(self, model):
            return "worker"

        async def template(self, worker, model):
            return get_conversation("llava_v1")

        async def stream_generation(self, worker, body):
            yield {"text": body["prompt"] + "Yes", "error_code": 0, "finish_reason": None}

    async def ask():
        answer = ChatAnswer(Client(), parse_chat_request(GOOD), [])
        return [piece async for piece in answer.pieces()]

    pieces = asyncio.run(asyncio.wait_for(ask(), 10))
    assert [(piece.text, piece.finish_reason) for piece in pieces] == [("Yes", None), ("", "stop")]


def test_missing_parts_are_named(start_api, start, client_of):
    api = start_api()
    assert requests.get(api + "/health", timeout=10).status_code == 503
    response = post(api, GOOD)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "no_worker")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{taken.getsockname()[1]}"
        api = start(openai_api.create_app(ApiSettings(nowhere)))
        assert requests.get(api + "/health", timeout=10).status_code == 503
        response = post(api, GOOD)
        assert (response.status_code, response.json()["error"]["code"]) == (503, "no_controller")


def test_unknown_model_lists_those_there_are(make_engine, start_api, client_of):
    with pytest.raises(openai.NotFoundError, match=MODEL) as caught:
        client_of(start_api(make_engine("a"))).chat.completions.create(
            model="gpt-9", messages=QUESTION
        )
    assert caught.value.param == "model"
    assert caught.value.code == "model_not_found"


def test_full_context_is_the_callers_fault(make_engine, start_api, client_of):
    client = client_of(start_api(make_engine("a", context_len=50)))
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "x" * 60}]
        )
    assert caught.value.code == "context_length_exceeded"


def test_a_failing_model_is_a_500_before_and_an_event_within_a_stream(
    make_engine, start_api, client_of
):
    api = start_api(make_engine("ab", error=RuntimeError("the device burns"), delay_s=0.05))
    with pytest.raises(openai.InternalServerError, match="RuntimeError"):
        client_of(api).chat.completions.create(model=MODEL, messages=QUESTION)
    stream = client_of(api).chat.completions.create(model=MODEL, messages=QUESTION, stream=True)
    with pytest.raises(openai.APIError, match="RuntimeError"):
        list(stream)


def test_keys_are_asked_for_where_there_are_some(make_engine, start_api, client_of, tmp_path):
    path = tmp_path / "keys"
    path.write_text("# ours\nsk-1\nsk-2\n")
    keys = openai_api.read_api_keys(path)
    assert keys == ("sk-1", "sk-2")
    api = start_api(make_engine("a"), keys=keys)
    assert client_of(api, "sk-2").models.list().data
    for key in ("sk-3", "sk-", "klíč"):
        response = requests.get(
            api + "/v1/models", headers={"Authorization": f"Bearer {key}".encode()}, timeout=10
        )
        assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")
    assert requests.get(api + "/metrics", timeout=10).status_code == 401
    assert requests.get(api + "/health", timeout=10).status_code == 200
    with pytest.raises(openai.AuthenticationError):
        client_of(api, "wrong").chat.completions.create(model=MODEL, messages=QUESTION)


def test_rate_limit_is_per_client(make_engine, start_api, client_of):
    api = start_api(make_engine("a"), keys=("sk-1", "sk-2"), per_minute=2)
    statuses = [post(api, GOOD, Authorization="Bearer sk-1").status_code for _ in range(3)]
    assert statuses == [200, 200, 429]
    assert post(api, GOOD, Authorization="Bearer sk-2").status_code == 200
    limited = post(api, GOOD, Authorization="Bearer sk-1")
    assert 20 < int(limited.headers["Retry-After"]) <= 31


def test_rate_limit_fills_up_again():
    now = [0.0]
    limiter = RateLimiter(60, clock=lambda: now[0])
    assert [limiter.take("c") for _ in range(60)] == [0] * 60
    assert limiter.take("c") == 2
    now[0] = 1.0
    assert limiter.take("c") == 0


def test_metrics_and_logs_hold_no_contents(make_engine, start_api, client_of, picture, caplog):
    api = start_api(make_engine("a"))
    url = data_url(picture)
    with caplog.at_level(logging.INFO):
        client_of(api).chat.completions.create(
            model=MODEL, messages=with_picture(url, "my secret question")
        )
        post(api, {**GOOD, "n": 0})
    text = requests.get(api + "/metrics", timeout=10).text
    assert 'lrm_api_requests_total{status="200"} 1.0' in text
    assert 'lrm_api_requests_total{status="400"} 1.0' in text
    assert "lrm_api_pictures_total 1.0" in text
    lines = [r.message for r in caplog.records if r.name == "llava.serve.openai_api"]
    record = json.loads(lines[0])
    assert (record["status"], record["pictures"], record["model"]) == (200, 1, MODEL)
    assert "secret" not in caplog.text
    assert url[40:80] not in caplog.text


def test_a_client_that_leaves_cancels_its_answer(make_engine, start_api, wait_for):
    engine = make_engine("x" * 900, delay_s=0.01)
    api = start_api(engine)
    for options in ({"stream": True}, {"stream": True, "n": 2}, {}):
        engine.model.num_generated = 0
        body = {**GOOD, **options}
        request = json.dumps(body).encode()
        with socket.create_connection(("127.0.0.1", int(api.rsplit(":", 1)[1]))) as line:
            line.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s"
                % (len(request), request)
            )
            wait_for(lambda: engine.model.num_generated > 3)
        wait_for(engine.model.finished.is_set)
        assert engine.model.num_generated < 450


def test_too_many_at_once_are_told_so(make_engine, start_api, wait_for):
    engine = make_engine("x" * 100, delay_s=0.01)
    api = start_api(engine, max_requests=1)
    first = []
    thread = threading.Thread(target=lambda: first.append(post(api, GOOD)))
    thread.start()
    wait_for(lambda: engine.model.num_generated > 3)
    busy = post(api, GOOD)
    thread.join(timeout=20)
    assert (busy.status_code, busy.json()["error"]["code"]) == (503, "overloaded")
    assert busy.headers["Retry-After"] == "1"
    assert first[0].json()["choices"][0]["message"]["content"] == "x" * 100


def test_moderation_is_off_unless_asked_for(make_engine, start_api, monkeypatch):
    monkeypatch.setattr(openai_api, "violates_moderation", lambda text: "bad" in text)
    bad = {**GOOD, "messages": [{"role": "user", "content": "a bad word"}]}
    assert post(start_api(make_engine("a")), bad).status_code == 200
    response = post(start_api(make_engine("a"), moderate=True), bad)
    assert response.json()["error"]["code"] == "content_policy_violation"


def test_the_client_of_the_documentation_runs(make_engine, start_api, monkeypatch, capsys):
    root = Path(__file__).parents[3]
    text = (root / "docs" / "serving.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    api = start_api(make_engine("Crvena."))
    assert code.count("http://localhost:8000/v1") == 1
    monkeypatch.chdir(root)
    # our own text, a fixed file
    exec(compile(code.replace("http://localhost:8000", api), "docs/serving.md", "exec"), {})
    assert capsys.readouterr().out == "Crvena.\nCrvena."
