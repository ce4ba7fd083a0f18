"""What the client of chat services does by itself; who uses it tests the rest against servers."""

import pytest

from llava.chat_service import Dialect, is_completion, read_reply
from llava.eval.records import without_thinking


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Yes", "Yes"),
        (" as it stands\n", " as it stands\n"),
        ("<think>\nNo.\n</think>\n\nYes", "Yes"),
        ("No.</think>Yes", "Yes"),
        ("a</think>b</think> c ", "c"),
        ("\n<think>No", ""),
        ("", ""),
    ],
)
def test_thoughts_end_before_the_answer(text, answer):
    assert without_thinking(text) == answer


@pytest.mark.parametrize(
    ("choice", "text", "refusal", "is_cut"),
    [
        ({"message": {"content": "a"}, "finish_reason": "length"}, "a", None, True),
        ({"message": {"content": None, "refusal": "no"}}, "", "no", False),
        (
            {"message": {"content": "a"}, "finish_reason": "content_filter"},
            "a",
            "content filter",
            False,
        ),
        ({"message": {"content": [{"text": "<think>a"}, {"text": "</think>b"}]}}, "b", None, False),
        ({"message": {}}, "", None, False),
    ],
)
def test_a_reply(choice, text, refusal, is_cut):
    data = {"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": None}}
    assert is_completion(data)
    reply = read_reply(data)
    assert (reply.text, reply.refusal, reply.is_cut) == (text, refusal, is_cut)
    assert (reply.num_input_tokens, reply.num_output_tokens) == (3, 0)


@pytest.mark.parametrize("data", [None, [], {}, {"choices": []}, {"choices": [{"message": "a"}]}])
def test_no_reply(data):
    assert not is_completion(data)


def test_a_dialect_changes_by_one_field_at_a_time():
    body = {"model": "m", "max_tokens": 5, "temperature": 0}
    first = Dialect()
    assert first.adapt(body) == body and first.after("no such image", body) is None
    second = first.after("max_tokens", first.adapt(body))
    assert second.adapt(body) == {"model": "m", "max_completion_tokens": 5, "temperature": 0}
    assert second.after("max_tokens", second.adapt(body)) is None
    third = second.after("temperature does not support 0", second.adapt(body))
    assert third.adapt(body) == {"model": "m", "max_completion_tokens": 5}
    assert third.after("temperature", third.adapt(body)) is None
