import itertools
import random
import time

import pytest
import requests

from llava.conversation import conversation_to_dict, get_conversation
from llava.errors import ConfigError
from llava.serve import (
    controller,
    openai_api,
    protocol,
    register_worker,
    test_message,
)
from llava.serve.controller import Controller, DispatchMethod
from llava.serve.openai_api import ApiSettings
from llava.utils import server_error_msg

MESSAGES = [{"role": "user", "content": "Q"}]


def status(*names, speed=1, queue_length=0):
    return {"model_names": list(names), "speed": speed, "queue_length": queue_length}


def post(address, route, body=None):
    response = requests.post(address + route, json=body or {}, timeout=10)
    response.raise_for_status()
    return response.json()


def test_routes(start_controller):
    _, address = start_controller()
    body = {
        "worker_name": "http://w",
        "check_heart_beat": True,
        "worker_status": {**status("m"), "conversation": None},
    }
    assert post(address, "/register_worker", body) is None
    assert post(address, "/list_models") == {"models": ["m"]}
    assert post(address, "/get_worker_address", {"model": "m"}) == {"address": "http://w"}
    assert post(address, "/get_worker_address", {"model": "other"}) == {"address": ""}
    beat = {"worker_name": "http://w", "queue_length": 4}
    assert post(address, "/receive_heart_beat", beat) == {"exist": True}
    assert post(address, "/receive_heart_beat", {**beat, "worker_name": "x"}) == {"exist": False}
    assert post(address, "/worker_get_status") == status("m", speed=1, queue_length=4)


def test_a_worker_is_logged_when_it_is_new_or_its_models_are(caplog):
    dispatch = Controller()
    with caplog.at_level("INFO"):
        for models in (["m"], ["m"], ["m"], []):
            dispatch.register_worker("http://w", False, status(*models))
    assert [record.message for record in caplog.records] == [
        "registered worker http://w: m",
        "registered worker http://w: ",
    ]


def test_shortest_queue_counts_what_it_gives_out():
    dispatch = Controller("shortest_queue")
    dispatch.register_worker("slow", False, status("m", speed=1))
    dispatch.register_worker("fast", False, status("m", speed=2, queue_length=1))
    chosen = [dispatch.get_worker_address("m") for _ in range(6)]
    assert chosen == ["slow", "fast", "slow", "fast", "fast", "slow"]


def test_lottery_follows_speed():
    dispatch = Controller(DispatchMethod.LOTTERY)
    dispatch.register_worker("slow", False, status("m", speed=1))
    dispatch.register_worker("fast", False, status("m", speed=9))
    random.seed(0)
    chosen = [dispatch.get_worker_address("m") for _ in range(400)]
    assert 320 < chosen.count("fast") < 390
    stopped = Controller("lottery")
    stopped.register_worker("w", False, status("m", speed=0.00001))
    assert stopped.get_worker_address("m") == ""


def test_unknown_dispatch_method_lists_the_choices():
    with pytest.raises(ConfigError, match="lottery, shortest_queue"):
        Controller("fastest")


def test_silent_workers_expire(monkeypatch):
    dispatch = Controller()
    dispatch.register_worker("watched", True, status("a"))
    dispatch.register_worker("unwatched", False, status("b"))
    now = time.time()
    monkeypatch.setattr(controller.time, "time", lambda: now + 29)
    dispatch.remove_stale_workers_by_expiration()
    assert dispatch.list_models() == ["a", "b"]
    monkeypatch.setattr(controller.time, "time", lambda: now + 31)
    dispatch.remove_stale_workers_by_expiration()
    assert dispatch.list_models() == ["b"]


def test_worker_registers_and_again_when_forgotten(
    make_engine, start_controller, start_worker, wait_for
):
    dispatch, address = start_controller()
    worker, _ = start_worker(make_engine(), address)
    wait_for(lambda: dispatch.list_models() == ["llava-v1-stub"])
    dispatch.remove_worker(worker.worker_addr)
    worker.beat_now.set()
    wait_for(lambda: dispatch.list_models() == ["llava-v1-stub"])


def test_refresh_drops_dead_workers(make_engine, start_controller, start_worker, wait_for):
    dispatch, address = start_controller()
    start_worker(make_engine(), address)
    wait_for(dispatch.list_models)
    dispatch.register_worker("http://127.0.0.1:9", False, status("dead"))
    assert protocol.get_model_list(address) == ["llava-v1-stub"]


def test_proxy_and_nested_controllers(make_engine, start_controller, start_worker):
    inner, inner_address = start_controller()
    _, worker_address = start_worker(make_engine("ab"))
    register_worker.register(inner_address, worker_address, False)
    assert inner.list_models() == ["llava-v1-stub"]
    _, outer_address = start_controller()
    register_worker.register(outer_address, inner_address, False)
    body = {"model": "llava-v1-stub", "prompt": "Q"}
    texts = [chunk["text"] for chunk in protocol.stream_generation(outer_address, body)]
    assert texts[-1] == "Qab"


# By their names, the models would be asked in `llava_v1` and `llava_llama_2`.
NESTED = {"llava-v1-chat": ("mpt", 500), "llava-llama-2-chat": ("llava_v0", 900)}


def test_nested_controllers_pass_on_what_workers_say_of_their_models(
    make_engine, start_controller, start_worker, start
):
    addresses = [start_controller()[1] for _ in range(3)]
    engines = {}
    for name, (template, context_len) in NESTED.items():
        own = conversation_to_dict(get_conversation(template))
        engines[name] = make_engine("a", name, conversation=own, context_len=context_len)
        _, worker = start_worker(engines[name])
        register_worker.register(addresses[0], worker, False)
    for inner, outer in itertools.pairwise(addresses):
        register_worker.register(outer, inner, False)
    api = start(openai_api.create_app(ApiSettings(addresses[-1])))
    for name, (template, context_len) in NESTED.items():
        wanted = get_conversation(template)
        for address in addresses:
            details = protocol.model_details(protocol.get_worker_status(address), name)
            assert details == {
                "conversation": conversation_to_dict(wanted),
                "context_len": context_len,
                "multimodal": True,
            }
            assert protocol.template_of_worker(address, name) == wanted
        post(api, "/v1/chat/completions", {"model": name, "messages": MESSAGES})
        wanted.append_message(wanted.roles[0], "Q")
        wanted.append_message(wanted.roles[1], None)
        assert engines[name].model.calls[0]["prompt"] == wanted.get_prompt()


def test_workers_of_one_model_that_differ_are_named(caplog):
    dispatch = Controller()
    for address, template in (("http://a", "mpt"), ("http://b", "llava_v0"), ("http://c", None)):
        dispatch.register_worker(address, False, {**status("m"), "conversation": template})
    assert dispatch.worker_api_get_status()["models"] == {"m": {"conversation": "mpt"}}
    assert "workers of model m differ in conversation" in caplog.text


def test_a_template_may_be_a_name():
    found = protocol.template_from_status({"conversation": "mpt"}, "llava-v1")
    assert found == get_conversation("mpt")


def test_a_client_that_leaves_the_proxy_cancels(
    make_engine, start_controller, start_worker, wait_for
):
    dispatch, address = start_controller()
    engine = make_engine("x" * 900, delay_s=0.01)
    start_worker(engine, address)
    wait_for(dispatch.list_models)
    body = {"model": "llava-v1-stub", "prompt": "Q", "max_new_tokens": 900}
    stream = protocol.stream_generation(address, body)
    next(stream)
    stream.close()
    wait_for(engine.model.finished.is_set)
    assert engine.model.num_generated < 450


def test_no_worker_is_one_object_with_code_2(start_controller):
    _, address = start_controller()
    chunks = list(protocol.stream_generation(address, {"model": "m", "prompt": "Q"}))
    assert [(chunk["text"], chunk["error_code"]) for chunk in chunks] == [(server_error_msg, 2)]


def test_dead_worker_is_code_3(start_controller):
    dispatch, address = start_controller()
    dispatch.register_worker("http://127.0.0.1:9", False, status("m"))
    chunks = list(protocol.stream_generation(address, {"model": "m", "prompt": "Q"}))
    assert [chunk["error_code"] for chunk in chunks] == [3]


def test_pinned_models_come_first(start_controller, monkeypatch):
    dispatch, address = start_controller()
    monkeypatch.setattr(dispatch, "refresh_all_workers", lambda: None)
    dispatch.register_worker("http://w", False, status("a", "koala-13b", "vicuna-13b", "b"))
    assert protocol.get_model_list(address) == ["vicuna-13b", "koala-13b", "a", "b"]


def test_test_message(make_engine, start_controller, start_worker, wait_for, capsys):
    dispatch, address = start_controller()
    engine = make_engine("Hi there.")
    start_worker(engine, address)
    wait_for(dispatch.list_models)
    test_message.main(
        ["--controller", address, "--model-name", "llava-v1-stub", "--message", "Hello"]
    )
    printed = capsys.readouterr().out
    assert printed.endswith("USER: Hello ASSISTANT:Hi there.\n")
    with pytest.raises(SystemExit, match="served: llava-v1-stub"):
        test_message.main(["--controller", address, "--model-name", "nonsense"])


def test_register_worker_names_an_unreachable_controller():
    with pytest.raises(SystemExit, match="http://127.0.0.1:9"):
        register_worker.main(["--controller", "http://127.0.0.1:9", "--worker", "http://w"])


def test_documented_flags():
    args = controller.build_parser().parse_args(["--host", "0.0.0.0", "--port", "10000"])
    assert (args.host, args.port, args.dispatch_method) == ("0.0.0.0", 10000, "shortest_queue")
