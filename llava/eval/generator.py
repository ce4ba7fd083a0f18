"""What the scripts that ask a model share: flags, loading, resuming, writing.

In: a script's command line and its questions. Out: its answers file. A script itself says only how
its question file reads; asking is `answering`, the file `answers_file`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import shortuuid

from llava import conversation as conversation_lib
from llava.conversation import Conversation, get_conversation, select_conversation
from llava.errors import ConfigError, run_command
from llava.eval.answering import Answerer, Question, Sampling
from llava.eval.answers_file import AnswersFile
from llava.eval.records import refuse_missing
from llava.mm_utils import get_model_name_from_path
from llava.model.builder import load_pretrained_model

log = logging.getLogger(__name__)

REPORT_EVERY_S = 10.0
_HASH_CHUNK_BYTES = 1 << 20
_WEIGHT_SUFFIXES = (".safetensors", ".bin")


@dataclass(frozen=True)
class Script:
    """What tells one script that asks a model from another.

    Attributes:
        name: its name, which is part of a run's identity.
        conv_mode: template where neither `--conv-mode` nor the checkpoint names one; None for
            `llava.conversation.default_conversation` as it is then.
        max_new_tokens: longest answer by default.
        plain_rule: a stage-1 model (`plain` in its name) is asked with the `_mmtag` template.
    """

    name: str
    conv_mode: str | None
    max_new_tokens: int
    plain_rule: bool = False

    def make_parser(self, description: str) -> argparse.ArgumentParser:
        """A parser with the flags of LLaVA's `model_vqa*`, and ours."""
        parser = argparse.ArgumentParser(description=description)
        parser.add_argument("--model-path", default="facebook/opt-350m")
        parser.add_argument("--model-base", default=None)
        parser.add_argument("--image-folder", default="")
        parser.add_argument("--answers-file", default="answer.jsonl")
        parser.add_argument(
            "--conv-mode",
            default=None,
            help=f"template; by default the checkpoint's own, else {self.conv_mode or 'vicuna_v1'}",
        )
        parser.add_argument("--num-chunks", type=int, default=1)
        parser.add_argument("--chunk-idx", type=int, default=0)
        parser.add_argument("--temperature", type=float, default=0.2, help="0 is greedy")
        parser.add_argument("--top_p", type=float, default=None)
        parser.add_argument("--num_beams", type=int, default=1)
        parser.add_argument("--max_new_tokens", type=int, default=self.max_new_tokens)
        add_run_arguments(parser)
        return parser


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that LLaVA does not have."""
    parser.add_argument("--batch-size", type=int, default=1, help="questions asked at once")
    parser.add_argument("--device", default="cuda", help="cuda (else the CPU), cpu, mps")
    parser.add_argument("--fresh", action="store_true", help="throw earlier answers away")


def run_main(action: Callable[[], object]) -> None:
    """Run a script; a mistake of the user ends it with one line and no traceback."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    run_command(action, status=1)


def answer_questions(
    script: Script,
    args: Any,
    question_file: str | Path,
    questions: Sequence[Question],
    **identity: Any,
) -> None:
    """Answer this chunk's questions that have no answer yet, in order.

    Args:
        script: which script asks.
        args: anything with the attributes that the flags of `Script.make_parser` give; those that
            LLaVA does not have may be absent.
        question_file: where the questions are from.
        questions: those of this chunk (`records.get_chunk`).
        **identity: further settings that change answers.

    Raises:
        ConfigError: a flag cannot be, or the answers there are of another run.
        DataError: a question, a picture or an earlier answer is not as it must be.
    """
    batch_size = getattr(args, "batch_size", 1)
    sampling = Sampling(
        args.temperature,
        args.top_p,
        args.num_beams,
        getattr(args, "max_new_tokens", script.max_new_tokens),
    )
    _check_numbers(batch_size, sampling)
    model_id = get_model_name_from_path(str(args.model_path))
    settings = {
        "script": script.name,
        "model_id": model_id,
        "checkpoint_sha256": checkpoint_sha256(args.model_path),
        "model_base": args.model_base,
        "questions_sha256": _sha256_of(Path(question_file).expanduser()),
        "conv_mode": args.conv_mode,
        **asdict(sampling),
        "num_chunks": args.num_chunks,
        "chunk_idx": args.chunk_idx,
        **identity,
    }
    with AnswersFile(args.answers_file, settings, getattr(args, "fresh", False)) as answers:
        num_answered = answers.count_answered([question.question_id for question in questions])
        pending = questions[num_answered:]
        if not pending:
            log.info("%s: all %d questions are answered", answers.path, len(questions))
            return
        if num_answered:
            log.info(
                "%s: going on after %d of %d answers", answers.path, num_answered, len(questions)
            )
        _check_pictures(pending)
        answerer = load_answerer(script, args, model_id, sampling)
        progress = _Progress(num_answered, len(questions))
        for question, text in answerer.answer(pending, batch_size):
            answers.write(_record(question, text, model_id, progress.num_done))
            progress.advance()


def load_answerer(script: Script, args: Any, model_id: str, sampling: Sampling) -> Answerer:
    """Load the model that `args` names.

    Raises:
        CheckpointError: it is incomplete.
        TemplateError: the template is unknown.
    """
    if args.conv_mode is not None:
        get_conversation(args.conv_mode)  # a typo must not cost the loading
    tokenizer, model, image_processor, context_len = load_pretrained_model(
        args.model_path, args.model_base, model_id, device=getattr(args, "device", "cuda")
    )
    conversation = choose_conversation(script, model.config, model_id, args.conv_mode)
    context_len = getattr(model.config, "max_position_embeddings", context_len)
    return Answerer(tokenizer, model, image_processor, conversation, sampling, context_len)


def choose_conversation(
    script: Script, config: Any, model_id: str, conv_mode: str | None
) -> Conversation:
    """The template to ask with: `conv_mode`, the checkpoint's own, or the script's.

    Raises:
        TemplateError: there is none of that name.
    """
    if conv_mode is None and getattr(config, "conversation", None):
        return select_conversation(config, model_id)[1]
    name = conv_mode or script.conv_mode
    if name is None:
        return conversation_lib.default_conversation.copy()
    is_plain = "plain" in model_id and "finetune" not in model_id.lower()
    if script.plain_rule and is_plain and "mmtag" not in name:
        log.warning("%s is a stage-1 model: the template %s_mmtag is used", model_id, name)
        name += "_mmtag"
    return get_conversation(name)


def checkpoint_sha256(model_path: str) -> str | None:
    """SHA-256 of weights and configuration; None for a Hub id, whose name stands for it."""
    folder = Path(model_path)
    if not folder.is_dir():
        return None
    files = (path for path in folder.iterdir() if path.suffix in _WEIGHT_SUFFIXES)
    weights = sorted(path for path in files if path.name != "training_args.bin")
    # the configuration may name the template
    return _sha256_of(*weights, *folder.glob("config.json"))


def _sha256_of(*paths: Path) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(_HASH_CHUNK_BYTES):
                digest.update(block)
    return digest.hexdigest()


def _check_numbers(batch_size: int, sampling: Sampling) -> None:
    for name, value in (
        ("--batch-size", batch_size),
        ("--num_beams", sampling.num_beams),
        ("--max_new_tokens", sampling.max_new_tokens),
    ):
        if value < 1:
            raise ConfigError(f"{name} is {value}; expected 1 or more")
    if sampling.temperature < 0:
        raise ConfigError(f"--temperature is {sampling.temperature}; expected 0 (greedy) or more")


def _check_pictures(questions: Sequence[Question]) -> None:
    """Find missing pictures before the model is loaded."""
    paths = {q.image: q.where for q in questions if isinstance(q.image, Path)}
    missing = [f"{path} ({where})" for path, where in paths.items() if not path.is_file()]
    refuse_missing("pictures are missing", missing, "check --image-folder")


def _record(question: Question, text: str, model_id: str, position: int) -> dict[str, Any]:
    # of name and place, so that a run that was cut off writes the bytes of one that was not
    name = json.dumps([model_id, position, question.question_id, question.prompt])
    return {
        "question_id": question.question_id,
        "prompt": question.prompt,
        "text": text,
        **question.extra,
        "answer_id": shortuuid.uuid(name=name),
        "model_id": model_id,
        "metadata": {},
    }


class _Progress:
    """Says every few seconds how far it is."""

    def __init__(self, num_done: int, num_all: int) -> None:
        self.num_done = num_done
        self._num_all = num_all
        self._reported_at = time.monotonic()

    def advance(self) -> None:
        self.num_done += 1
        now = time.monotonic()
        if now - self._reported_at >= REPORT_EVERY_S or self.num_done == self._num_all:
            log.info("%d of %d questions answered", self.num_done, self._num_all)
            self._reported_at = now
