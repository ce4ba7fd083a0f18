"""Answer a file of questions by GPT-3.5, as a baseline.

In: JSON Lines `question_id, text`. Out: JSON Lines `answer_id, question_id, text, model_id`, sorted
by question. An answer that could not be had after three tries, or was refused, is `#ERROR#`. Usage:
python -m llava.eval.qa_baseline_gpt35 -q questions.jsonl -o answers.jsonl
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import shortuuid

from llava.chat_service import ChatReply, Limits, ask_each, service_of_environment
from llava.errors import ExhaustedError, RejectedError, ServiceError, run_script
from llava.eval.records import field, read_json_lines

log = logging.getLogger(__name__)

MODEL = "gpt-3.5-turbo"
MODEL_ID = "gpt-3.5-turbo:20230327"
SYSTEM = "You are a helpful assistant."
NUM_CONCURRENT = 32
NUM_TRIES = 3
ERROR = "#ERROR#"


def answer_file(question: str, output: str, max_tokens: int) -> None:
    """Answer all questions of a file.

    Raises:
        ConfigError: there is no key.
        ServiceError: the service cannot be used.
        DataError: a question lacks a key.
    """
    service = service_of_environment(Limits(max_tries=NUM_TRIES))
    asked = {
        field(record, "question_id", where): field(record, "text", where, str)
        for where, record in read_json_lines(question)
    }
    texts: dict[Any, str] = {}
    ids = list(asked)

    def keep(position: int, outcome: ChatReply | RejectedError | ExhaustedError) -> None:
        texts[ids[position]] = ERROR
        if isinstance(outcome, ChatReply) and not outcome.refusal:
            texts[ids[position]] = outcome.text
        else:
            log.warning("no answer to question %r from %s: %s", ids[position], service.url, outcome)

    bodies = [_body(text, max_tokens) for text in asked.values()]
    target = Path(output).expanduser()
    try:
        ask_each(service, bodies, NUM_CONCURRENT, keep)
    except ServiceError as error:
        if not texts:
            raise
        target = target.with_name(target.name + ".partial")
        _write(target, texts)
        raise ServiceError(f"{error}; {len(texts)} answers are in {target}") from error
    _write(target, texts)


def _write(target: Path, texts: Mapping[Any, str]) -> None:
    answers = [
        {
            "answer_id": shortuuid.uuid(),
            "question_id": question_id,
            "text": text,
            "model_id": MODEL_ID,
        }
        for question_id, text in texts.items()
    ]
    answers.sort(key=lambda answer: str(answer["question_id"]).zfill(20))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("\n".join(json.dumps(answer) for answer in answers), encoding="utf-8")


def _body(text: str, max_tokens: int) -> dict[str, Any]:
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
    return {"model": MODEL, "messages": messages, "max_tokens": max_tokens}


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and answer."""
    parser = argparse.ArgumentParser(description="Answer questions by GPT-3.5.")
    parser.add_argument("-q", "--question", required=True)
    parser.add_argument("-o", "--output", required=True)
    parser.add_argument("--max-tokens", type=int, default=1024, help="longest answer")
    run_script(lambda args: answer_file(args.question, args.output, args.max_tokens), parser, argv)


if __name__ == "__main__":
    main()
