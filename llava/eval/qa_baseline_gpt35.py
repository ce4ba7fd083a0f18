"""Answers a file of questions by GPT-3.5, as a baseline.

In: JSON Lines `question_id, text`. Out: JSON Lines `answer_id, question_id, text, model_id`, sorted
by question. An answer that could not be had after three tries, or was refused, is `#ERROR#`. Usage:
python -m llava.eval.qa_baseline_gpt35 -q questions.jsonl -o answers.jsonl
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import shortuuid

from llava.chat_service import ChatReply, ServiceLimits, ask_each, service_of_environment
from llava.errors import ExhaustedError, RejectedError, ServiceError, flag, script_main
from llava.eval.records import field, read_json_lines

log = logging.getLogger(__name__)

MODEL = "gpt-3.5-turbo"
MODEL_ID = "gpt-3.5-turbo:20230327"
SYSTEM = "You are a helpful assistant."
NUM_CONCURRENT = 32
NUM_TRIES = 3
ERROR = "#ERROR#"


def answer_file(args: argparse.Namespace) -> None:
    """Answers all questions of a file.

    Raises:
        ConfigError: There is no key.
        ServiceError: The service cannot be used.
        DataError: A question lacks a key.
    """
    service = service_of_environment(ServiceLimits(max_tries=NUM_TRIES))
    asked = {
        field(record, "question_id", where): field(record, "text", where, str)
        for where, record in read_json_lines(args.question)
    }
    ids = list(asked)
    texts: dict[Any, str] = {}

    def keep(position: int, outcome: ChatReply | RejectedError | ExhaustedError) -> None:
        is_answer = isinstance(outcome, ChatReply) and not outcome.refusal
        texts[ids[position]] = outcome.text if is_answer else ERROR
        if not is_answer:
            log.warning("no answer to question %r from %s: %s", ids[position], service.url, outcome)

    bodies = [
        {
            "model": MODEL,
            "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}],
            "max_tokens": args.max_tokens,
        }
        for text in asked.values()
    ]
    target = Path(args.output).expanduser()
    try:
        ask_each(service, bodies, NUM_CONCURRENT, keep)
    except ServiceError as error:
        if not texts:
            raise
        partial = target.with_name(target.name + ".partial")
        _write(partial, texts)
        raise ServiceError(f"{error}; {len(texts)} answers are in {partial}") from error
    _write(target, texts)


def _write(target: Path, texts: Mapping[Any, str]) -> None:
    answers = [
        {"answer_id": shortuuid.uuid(), "question_id": key, "text": text, "model_id": MODEL_ID}
        for key, text in sorted(texts.items(), key=lambda item: str(item[0]).zfill(20))
    ]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("\n".join(json.dumps(answer) for answer in answers), encoding="utf-8")


main = script_main(
    "Answer questions by GPT-3.5.",
    answer_file,
    flag("-q", "--question", required=True),
    flag("-o", "--output", required=True),
    flag("--max-tokens", type=int, default=1024, help="longest answer"),
)


if __name__ == "__main__":
    main()
