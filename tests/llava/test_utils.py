import asyncio
import json
import logging
import sys

import pytest
import requests

import llava
from llava import utils
from llava.errors import ConfigError


@pytest.fixture
def own_logging(tmp_path, monkeypatch):
    monkeypatch.setattr(utils, "LOGDIR", str(tmp_path))
    monkeypatch.setattr(utils, "handler", None)
    root = logging.getLogger()
    before = list(root.handlers)
    yield tmp_path
    for each in root.handlers[:]:
        if each not in before:
            root.removeHandler(each)
            each.close()


def test_all_loggers_share_one_file_and_the_streams_stay(own_logging):
    stdout = sys.stdout
    logger = utils.build_logger("one", "server.log")
    assert not list(own_logging.iterdir())  # no empty file of a server that is only asked for help
    logger.info("Kůň")
    utils.build_logger("two", "other.log").error("bad")
    assert sys.stdout is stdout
    lines = (own_logging / "server.log").read_text(encoding="utf-8").splitlines()
    assert [line.split(" | ")[1:] for line in lines] == [
        ["INFO", "one", "Kůň"],
        ["ERROR", "two", "bad"],
    ]
    assert not (own_logging / "other.log").exists()


def test_a_folder_without_permission_is_named(own_logging, monkeypatch):
    monkeypatch.setattr(utils.os, "access", lambda path, mode: False)
    with pytest.raises(ConfigError, match="logs cannot be written there"):
        utils.build_logger("one", "server.log")


def test_stream_to_logger_logs_whole_lines(caplog):
    stream = utils.StreamToLogger(logging.getLogger("stream"))
    with caplog.at_level(logging.INFO):
        stream.write("one\ntw")
        stream.write("o\nrest")
        stream.flush()
    assert caplog.messages == ["one", "two", "rest"]


def test_moderation_sends_valid_json_and_survives_the_service(monkeypatch):
    sent = {}

    class Response:
        def json(self):
            return {"results": [{"flagged": True}]}

    def post(url, json, **options):
        sent.update(json)
        return Response()

    monkeypatch.setenv("OPENAI_API_KEY", "x")
    monkeypatch.setattr(requests, "post", post)
    assert utils.violates_moderation('He said "no"\nand left') is True
    assert json.loads(json.dumps(sent)) == {"input": 'He said "no"and left'}

    def fail(*args, **options):
        raise requests.ConnectionError

    monkeypatch.setattr(requests, "post", fail)
    assert utils.violates_moderation("text") is False


def test_semaphore_text():
    assert utils.pretty_print_semaphore(None) == "None"
    semaphore = asyncio.Semaphore(3)
    assert utils.pretty_print_semaphore(semaphore) == "Semaphore(value=3, locked=False)"


def test_the_package_hands_out_the_model_class_and_nothing_else():
    assert llava.LlavaLlamaForCausalLM.__name__ == "LlavaLlamaForCausalLM"
    with pytest.raises(AttributeError, match="nonsense"):
        _ = llava.nonsense
