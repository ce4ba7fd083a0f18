"""The workers in front of SGLang and vLLM, with stand-ins for both."""

import asyncio
import base64
import copy
import io
import json
import shutil
import socket
import sys
import types

import pytest
from fastapi import FastAPI, Request
from PIL import Image
from starlette.responses import StreamingResponse

from llava.conversation import conversation_from_dict, conversation_to_dict, get_conversation
from llava.errors import CheckpointError, ConfigError
from llava.mm_utils import tokenizer_image_token
from llava.serve import openai_worker, protocol, remote_worker, sglang_worker, vllm_worker
from llava.serve.check import find_problems, main
from llava.serve.model_worker import create_app


def encoded(picture):
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture
def free_address():
    """An address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture(scope="module")
def exported(llama_tokenizer, tmp_path_factory):
    """A folder with the tokenizer of an exported checkpoint."""
    folder = tmp_path_factory.mktemp("exported") / "llava-v1.5-tiny"
    tokenizer = copy.deepcopy(llama_tokenizer())
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def ids_of(exported, llama_tokenizer):
    """Return LLaVA's ids of a prompt, with the id of `<image>` in place of the sentinel."""
    image = llama_tokenizer().vocab_size

    def ids(prompt):
        return tokenizer_image_token(prompt, llama_tokenizer(), image)

    return ids


@pytest.fixture
def sglang(start, exported):
    """A stand-in for an SGLang server; returns its address and the requests that it got."""
    app, bodies = FastAPI(), []

    @app.get("/get_model_info")
    def info():
        return {"model_path": exported}

    @app.post("/generate")
    async def generate(request: Request):
        bodies.append(await request.json())

        async def stream():
            for text in ("Žl", "Žlut", "Žlutá"):
                yield f"data: {json.dumps({'text': text, 'meta_info': {}})}\n\n".encode()
                await asyncio.sleep(0.01)
            yield b"data: [DONE]\n\n"

        return StreamingResponse(stream(), media_type="text/event-stream")

    return start(app), bodies


def test_sglang_worker_speaks_the_protocol(sglang, start, picture, ids_of):
    endpoint, bodies = sglang
    worker = sglang_worker.ModelWorker("", "", endpoint, "test", True, None)
    address = start(create_app(worker))
    assert protocol.get_worker_status(address)["model_names"] == ["llava-v1.5-tiny"]
    prompt = "USER: <image>\nCo? ASSISTANT:"
    body = {
        "prompt": prompt, "images": [encoded(picture)], "temperature": 0.2, "top_p": 0,
        "max_new_tokens": 5000, "stop": "</s>",
    }  # fmt: skip
    chunks = list(protocol.stream_generation(address, body))
    assert [chunk["text"] for chunk in chunks] == [prompt + t for t in ("Žl", "Žlut", "Žlutá")]
    assert bodies[0] == {
        "input_ids": ids_of(prompt),
        "image_data": body["images"],
        "stream": True,
        "sampling_params": {
            "temperature": 0.2, "top_p": 1e-6, "max_new_tokens": 1024, "stop": ["</s>"],
        },
    }  # fmt: skip
    refused = list(protocol.stream_generation(address, {"prompt": "<image>"}))
    assert (refused[0]["error_code"], refused[0]["kind"]) == (1, "invalid_request")
    assert worker.get_queue_length() == 0
    assert worker.drain(1)


def test_sglang_worker_says_that_its_server_is_missing(free_address):
    with pytest.raises(ConfigError, match="no SGLang server answers at"):
        sglang_worker.ModelWorker("", "", free_address, "test", True, None)


def test_sglang_server_that_dies_is_an_error_of_the_worker(sglang, start, free_address):
    worker = sglang_worker.ModelWorker("", "", sglang[0], "test", True, "m")
    address = start(create_app(worker))
    worker.sgl_endpoint = free_address
    refused = list(protocol.stream_generation(address, {"prompt": "Q"}))
    assert refused[0]["error_code"] == 1
    assert "ConnectError" in refused[0]["reason"]


def test_full_and_leaving_adapters_refuse(sglang):
    worker = sglang_worker.ModelWorker("", "", sglang[0], "test", True, "m")
    worker.num_requests = 1000

    async def first():
        async for chunk in worker.answer({"prompt": "Q"}):
            return json.loads(chunk[:-1])

    assert asyncio.run(first())["kind"] == "busy"
    worker.is_leaving = True
    assert asyncio.run(first())["kind"] == "stopping"
    assert worker.get_status()["model_names"] == []


def test_sglang_flags():
    args = sglang_worker.build_parser().parse_args(
        ["--controller", "http://c", "--worker", "http://w", "--sgl-endpoint", "http://s"]
    )
    assert (args.controller_address, args.worker_address) == ("http://c", "http://w")
    assert (args.port, args.limit_model_concurrency, args.stream_interval) == (21002, 5, 1)


def test_sglang_worker_reads_the_tokenizer_where_it_is_told(sglang, exported, tmp_path):
    worker = sglang_worker.ModelWorker(
        "", "", sglang[0], "test", True, None, model_path=shutil.copytree(exported, tmp_path / "m")
    )
    assert worker.model_name == "llava-v1.5-tiny"
    with pytest.raises(CheckpointError, match="nowhere"):
        sglang_worker.ModelWorker("", "", sglang[0], "test", True, None, model_path="/nowhere")


@pytest.fixture
def service(start):
    """A stand-in for a service with OpenAI's API; returns its address and the requests it got."""
    app, bodies = FastAPI(), []

    @app.get("/v1/models")
    def models():
        return {"object": "list", "data": [{"id": "org/llava-x"}, {"id": "other"}]}

    @app.post("/v1/chat/completions")
    async def complete(request: Request):
        bodies.append(await request.json())

        async def stream():
            for text in (" Žl", "", "utá"):
                choices = [{"index": 0, "delta": {"content": text}}]
                yield f"data: {json.dumps({'id': '1', 'choices': choices})}\n\n".encode()
            yield b'data: {"id": "1", "choices": []}\n\ndata: [DONE]\n\n'

        return StreamingResponse(stream(), media_type="text/event-stream")

    return start(app) + "/v1", bodies


def test_openai_worker_speaks_the_protocol(service, start, picture):
    worker = openai_worker.OpenAIWorker("", "", service[0], "test", True, None, 4)
    address = start(create_app(worker))
    status = protocol.get_worker_status(address)
    assert status["model_names"] == ["llava-x"]
    conv = conversation_from_dict(status["conversation"])
    user, assistant = conv.roles
    for role, text in ((user, "Co\nje to?"), (assistant, "Kolo."), (user, "<image>\nA toto?")):
        conv.append_message(role, text)
    conv.append_message(assistant, None)
    prompt, image = conv.get_prompt(), encoded(picture)
    body = {"prompt": prompt, "images": [image], "temperature": 0, "stop": conv.sep, "top_p": 0.5}
    body["seed"] = 7
    chunks = list(protocol.stream_generation(address, body))
    assert [chunk["text"] for chunk in chunks] == [prompt + text for text in ("Žl", "Žlutá")]
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + image}}
    assert service[1] == [
        {
            "model": "org/llava-x", "stream": True, "max_tokens": 256,
            "temperature": 0, "top_p": 0.5, "seed": 7,
            "messages": [
                {"role": "user", "content": "Co\nje to?"},
                {"role": "assistant", "content": "Kolo."},
                {"role": "user", "content": [part, {"type": "text", "text": "A toto?"}]},
            ],
        }
    ]  # fmt: skip
    refused = list(protocol.stream_generation(address, {"prompt": "USER: A? ASSISTANT:"}))
    assert (refused[0]["error_code"], refused[0]["kind"]) == (1, "invalid_request")
    assert "in the template" in refused[0]["reason"]


def test_openai_worker_says_what_its_service_lacks(service, free_address):
    with pytest.raises(ConfigError, match="no service with OpenAI's API answers"):
        openai_worker.OpenAIWorker("", "", free_address, "test", True, None, 4)
    with pytest.raises(ConfigError, match="'other'.*expected third"):
        openai_worker.OpenAIWorker("", "", service[0], "test", True, "third", 4)


def test_a_checkpoint_that_was_not_exported_is_refused(vllm, golden_dir):
    with pytest.raises(ConfigError, match="lrm export hf"):
        vllm_worker.VllmWorker(
            "", "", "test", True, str(golden_dir / "llava" / "model" / "tiny-llava"), None, 4
        )


@pytest.fixture
def vllm(monkeypatch):
    """A stand-in for the module `vllm`; returns what its engine saw."""
    seen = {"aborted": []}

    class Engine:
        @classmethod
        def from_engine_args(cls, args):
            seen["args"] = args
            return cls()

        async def generate(self, prompt, sampling, request_id):
            seen.update(prompt=prompt, sampling=sampling, id=request_id)
            for text in ("ye", "yes"):
                await asyncio.sleep(0)
                yield types.SimpleNamespace(outputs=[types.SimpleNamespace(text=text)])

        async def abort(self, request_id):
            seen["aborted"].append(request_id)

    module = types.ModuleType("vllm")
    module.AsyncEngineArgs = lambda **options: options
    module.SamplingParams = lambda **options: options
    module.AsyncLLMEngine = Engine
    monkeypatch.setitem(sys.modules, "vllm", module)
    return seen


def test_vllm_worker_speaks_the_protocol(vllm, start, picture, exported, ids_of, tmp_path):
    shutil.copytree(exported, tmp_path, dirs_exist_ok=True)
    conversation = {"name": "own"}
    config = {"config": {"conversation": conversation}}
    (tmp_path / "llava_config.json").write_text(json.dumps(config))
    worker = vllm_worker.VllmWorker(
        "", "", "test", True, str(tmp_path), "llava-x", 4, tensor_parallel_size=2
    )
    assert vllm["args"] == {"model": str(tmp_path), "tensor_parallel_size": 2}
    address = start(create_app(worker))
    status = protocol.get_worker_status(address)
    assert (status["model_names"], status["conversation"]) == (["llava-x"], conversation)
    body = {"prompt": "<image>\nQ", "images": [encoded(picture)], "seed": 3, "stop": "</s>"}
    chunks = list(protocol.stream_generation(address, body))
    assert [chunk["text"] for chunk in chunks] == ["<image>\nQye", "<image>\nQyes"]
    assert vllm["prompt"]["prompt_token_ids"] == ids_of("<image>\nQ")
    assert [image.mode for image in vllm["prompt"]["multi_modal_data"]["image"]] == ["RGB"]
    assert vllm["sampling"] == {
        "temperature": 1.0, "top_p": 1.0, "max_tokens": 256, "stop": ["</s>"], "seed": 3,
    }  # fmt: skip
    assert vllm["aborted"] == []


def test_vllm_requests_that_nobody_waits_for_are_aborted(vllm, exported):
    worker = vllm_worker.VllmWorker("", "", "test", True, exported, None, 4)

    async def leave_early():
        texts = worker.answer({"prompt": "Q"})
        await anext(texts)
        await texts.aclose()

    asyncio.run(leave_early())
    assert vllm["aborted"] == [vllm["id"]]
    assert worker.get_queue_length() == 0


def test_missing_vllm_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ConfigError, match="pip install vllm"):
        vllm_worker.import_vllm()


def test_templates_of_checkpoints(tmp_path):
    assert remote_worker.read_conversation("org/name-on-the-hub") is None
    (tmp_path / "config.json").write_text('{"conversation": {"name": "a"}}')
    assert remote_worker.read_conversation(str(tmp_path)) == {"name": "a"}
    v1 = conversation_to_dict(get_conversation("v1"), "v1")
    exported = tmp_path / "llava_config.json"
    exported.write_text('{"config": {"conversation": {"name": "a"}}, "conversation": "a"}')
    assert remote_worker.read_conversation(str(tmp_path)) == {"name": "a"}
    exported.write_text('{"config": {"conversation": {"name": "a"}}, "conversation": "v1"}')
    assert remote_worker.read_conversation(str(tmp_path)) == v1
    exported.write_text('{"config": {}, "conversation": "v1"}')
    assert remote_worker.read_conversation(str(tmp_path)) == v1
    exported.unlink()
    (tmp_path / "config.json").write_text("[]")
    assert remote_worker.read_conversation(str(tmp_path)) is None


def test_check_says_what_is_missing(
    start_controller, start_worker, make_engine, wait_for, free_address, capsys
):
    assert "no controller answers" in find_problems(free_address)[0]
    known, address = start_controller()
    assert "no worker has registered" in find_problems(address)[0]
    assert main(["--controller-address", address]) == 1
    assert "--model-path FOLDER" in capsys.readouterr().err
    start_worker(make_engine("a"), address)
    wait_for(lambda: known.list_models())
    assert find_problems(address) == []
    assert main(["--controller-address", address]) == 0
    assert capsys.readouterr().out == "ready: llava-v1-stub\n"


def test_pictures_of_any_mode_reach_the_engine(vllm, start, exported):
    worker = vllm_worker.VllmWorker("", "", "test", True, exported, None, 4)
    address = start(create_app(worker))
    body = {"prompt": "<image>", "images": [encoded(Image.new("P", (2, 2)))]}
    assert list(protocol.stream_generation(address, body))[-1]["error_code"] == 0
    assert vllm["prompt"]["multi_modal_data"]["image"][0].mode == "RGB"
