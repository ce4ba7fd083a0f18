"""Answers a file of questions about images, in batches; the scripts `model_vqa*` share this module.

In: JSON Lines `question_id, image, text`. Out: JSON Lines `question_id, prompt, text, answer_id,
model_id, metadata`, in the same order, resumable (`records.AnswersFile`). Rows of a batch are
padded on the left and masked, so that greedy answers do not depend on the batch size; images of the
coming batches are opened and resized while the model works. Another script says only how its
question file reads. Usage:
python -m llava.eval.model_vqa --model-path M --question-file Q --image-folder I --answers-file A
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import shortuuid
import torch
from torch import Tensor

from llava import conversation as conversation_lib
from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_TOKEN
from llava.conversation import Conversation, get_conversation, select_conversation
from llava.errors import ConfigError, DataError, run_script
from llava.eval.records import AnswersFile, field, image_path, read_json_lines, refuse_missing
from llava.eval.records import get_chunk as get_chunk
from llava.eval.records import split_list as split_list
from llava.files import sha256_of
from llava.images import open_image
from llava.mm_utils import get_model_name_from_path, process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model
from llava.model.checkpoint import MultimodalConfig

NUM_PICTURE_THREADS = 4
NUM_BATCHES_AHEAD = 2


@dataclass(frozen=True)
class Question:
    """A question, and what is written down with its answer.

    Attributes:
        question_id: as in the question file.
        prompt: the text that the answers file records.
        text: the text that the model is asked, without template and image token.
        image: the picture, a path or the bytes of a file; None for a question without one.
        where: `file:line`, for errors.
        extra: further keys of the answer's line.
    """

    question_id: Any
    prompt: str
    text: str
    image: Path | bytes | None
    where: str
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Sampling:
    """How answers are generated; a temperature of 0 is greedy.

    Attributes:
        temperature: of the softmax.
        top_p: mass of the nucleus that is sampled from; None for all.
        num_beams: width of the beam search.
        max_new_tokens: longest answer.
    """

    temperature: float
    top_p: float | None
    num_beams: int
    max_new_tokens: int

    def keywords(self) -> dict[str, Any]:
        """Arguments of `generate`."""
        keywords: dict[str, Any] = {
            "do_sample": self.temperature > 0,
            "num_beams": self.num_beams,
            "max_new_tokens": self.max_new_tokens,
        }
        if self.temperature > 0:
            return {**keywords, "temperature": self.temperature, "top_p": self.top_p}
        # a checkpoint's generation_config.json may hold sampling settings
        return {**keywords, "temperature": None, "top_p": None, "top_k": None}


@dataclass(frozen=True)
class _Picture:
    pixels: Tensor  # [3, S, S] or [tiles, 3, S, S]
    size: tuple[int, int]  # (width, height) in pixels


class Answerer:
    """Answers with one loaded model.

    Args:
        tokenizer: the model's.
        model: with `generate`; of LLaVA, or a text-only one.
        image_processor: the tower's, None for a text-only model.
        conversation: template without messages.
        sampling: how to generate.
        context_len: longest prompt of a text-only model, in tokens.
    """

    def __init__(
        self,
        tokenizer: Any,
        model: Any,
        image_processor: Any,
        conversation: Conversation,
        sampling: Sampling,
        context_len: int,
    ) -> None:
        self._tokenizer = tokenizer
        self._model = model
        self._image_processor = image_processor
        self._conversation = conversation
        self._sampling = sampling
        self._context_len = context_len
        self._wrap = MultimodalConfig.from_config(model.config).mm_use_im_start_end
        self._eos_ids = _eos_ids(model, tokenizer)
        pad_id = tokenizer.pad_token_id
        self._pad_id = self._eos_ids[0] if pad_id is None else int(pad_id)

    def answer(
        self, questions: Sequence[Question], batch_size: int
    ) -> Iterator[tuple[Question, str]]:
        """Answer questions in their order.

        Args:
            questions: what to ask.
            batch_size: how many at once.

        Yields:
            Each question with its answer, stripped and without special tokens.

        Raises:
            DataError: a picture cannot be read, or a prompt does not fit; those before it have
                been answered.
        """
        pending: deque[tuple[Sequence[Question], list[Future[_Picture | None]]]] = deque()
        with ThreadPoolExecutor(NUM_PICTURE_THREADS) as pool:
            try:
                for start in range(0, len(questions), batch_size):
                    batch = questions[start : start + batch_size]
                    pending.append((batch, [pool.submit(self._open, q) for q in batch]))
                    if len(pending) > NUM_BATCHES_AHEAD:
                        yield from self._answer_batch(*pending.popleft())
                while pending:
                    yield from self._answer_batch(*pending.popleft())
            finally:
                pool.shutdown(cancel_futures=True)

    def _answer_batch(
        self, batch: Sequence[Question], opening: Sequence[Future[_Picture | None]]
    ) -> Iterator[tuple[Question, str]]:
        try:
            pictures = [picture.result() for picture in opening]
            texts = self._generate(batch, pictures)
        except DataError as error:
            if len(batch) == 1:
                question = batch[0]
                raise DataError(
                    f"{question.where}: question {question.question_id}: {error}"
                ) from error
            # Alone, the questions before the bad one are answered, and it is known which it is.
            for question, picture in zip(batch, opening, strict=True):
                yield from self._answer_batch([question], [picture])
            return
        yield from zip(batch, texts, strict=True)

    def _open(self, question: Question) -> _Picture | None:
        """Open and prepare a question's picture.

        Raises:
            DataError: it cannot be read, or the model takes none.
        """
        if question.image is None:
            return None
        if self._image_processor is None:
            raise DataError("the model is text-only: it cannot look at the picture")
        name = None if isinstance(question.image, Path) else "the picture in the question file"
        image = open_image(question.image, name, orient=False)
        pixels = process_images([image], self._image_processor, self._model.config)
        return _Picture(pixels[0], image.size)

    def _encode(self, question: Question) -> list[int]:
        """Token ids of a question in the template, with a sentinel for its picture."""
        text = question.text
        if question.image is not None:
            text = f"{image_token(self._wrap)}\n{text}"
        conversation = self._conversation.copy()
        conversation.append_message(conversation.roles[0], text)
        conversation.append_message(conversation.roles[1], None)
        ids = tokenizer_image_token(conversation.get_prompt(), self._tokenizer)
        assert isinstance(ids, list)
        return ids

    @torch.inference_mode()
    def _generate(
        self, batch: Sequence[Question], pictures: Sequence[_Picture | None]
    ) -> list[str]:
        rows = [self._encode(question) for question in batch]
        input_ids, mask = pad_left(rows, self._pad_id)
        keywords = self._sampling.keywords()
        if self._image_processor is None:
            self._check_context(max(map(len, rows)))
        else:
            keywords.update(_image_keywords(pictures))
        device = self._model.device
        output = self._model.generate(
            input_ids.to(device),
            attention_mask=mask.to(device),
            pad_token_id=self._pad_id,
            use_cache=True,
            **keywords,
        )
        if self._image_processor is None:
            output = output[:, input_ids.shape[1] :]  # LLaVA's models do not repeat the prompt
        return [self._decode(ids) for ids in output.tolist()]

    def _check_context(self, num_tokens: int) -> None:
        if num_tokens >= self._context_len:
            raise DataError(
                f"the prompt takes {num_tokens} tokens, but the model's context is "
                f"{self._context_len}: shorten the text"
            )

    def _decode(self, ids: Sequence[int]) -> str:
        # what follows the end is padding, which need not be a special token
        end = next((i for i, token_id in enumerate(ids) if token_id in self._eos_ids), len(ids))
        text: str = self._tokenizer.decode(ids[:end], skip_special_tokens=True)
        return text.strip()


def image_token(wrap: bool) -> str:
    """The placeholder of an image; `wrap` as the model's `mm_use_im_start_end` says."""
    if wrap:
        return DEFAULT_IM_START_TOKEN + DEFAULT_IMAGE_TOKEN + DEFAULT_IM_END_TOKEN
    return DEFAULT_IMAGE_TOKEN


def _eos_ids(model: Any, tokenizer: Any) -> list[int]:
    """Tokens at which the model stops."""
    found = getattr(model.generation_config, "eos_token_id", None)
    if found is None:
        found = tokenizer.eos_token_id
    return [int(token_id) for token_id in (found if isinstance(found, list) else [found])]


def pad_left(rows: Sequence[list[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Pad rows of ids to one length: ids and mask, both [B, T]."""
    length = max(map(len, rows))
    ids = [[pad_id] * (length - len(row)) + row for row in rows]
    mask = [[0] * (length - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids), torch.tensor(mask)


def _image_keywords(pictures: Sequence[_Picture | None]) -> dict[str, Any]:
    """`images` and `image_sizes` for a batch; a row without a picture owns a dummy."""
    given = [picture for picture in pictures if picture is not None]
    if not given:
        return {}
    side = given[0].pixels.shape[-3:]
    dummy = _Picture(torch.zeros(side, dtype=given[0].pixels.dtype), given[0].size)
    slots = [dummy if picture is None else picture for picture in pictures]
    pixels = [slot.pixels for slot in slots]
    is_flat = all(tensor.ndim == 3 for tensor in pixels)
    return {
        "images": torch.stack(pixels) if is_flat else pixels,
        "image_sizes": [slot.size for slot in slots],
    }


log = logging.getLogger(__name__)

REPORT_EVERY_S = 10.0
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

    def make_parser(
        self, description: str, question_file: str | None = "tables/question.jsonl"
    ) -> argparse.ArgumentParser:
        """A parser with the flags of LLaVA's `model_vqa*`, and ours."""
        parser = argparse.ArgumentParser(description=description)
        parser.add_argument("--model-path", default="facebook/opt-350m")
        parser.add_argument("--model-base", default=None)
        parser.add_argument("--image-folder", default="")
        if question_file is not None:
            parser.add_argument("--question-file", default=question_file)
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


def answer_questions(
    script: Script,
    args: Any,
    question_file: str | Path,
    questions: Sequence[Question],
    **more_identity: Any,
) -> None:
    """Answer this chunk's questions that have no answer yet, in order.

    Args:
        script: which script asks.
        args: anything with the attributes that the flags of `Script.make_parser` give; those that
            LLaVA does not have may be absent.
        question_file: where the questions are from.
        questions: those of this chunk (`records.get_chunk`).
        **more_identity: further settings that change answers.

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
    identity = {
        "script": script.name,
        "model_id": model_id,
        "checkpoint_sha256": checkpoint_sha256(args.model_path),
        "model_base": args.model_base,
        "questions_sha256": sha256_of(Path(question_file).expanduser()),
        "conv_mode": args.conv_mode,
        **asdict(sampling),
        "num_chunks": args.num_chunks,
        "chunk_idx": args.chunk_idx,
        **more_identity,
    }
    with AnswersFile(args.answers_file, identity, getattr(args, "fresh", False)) as answers:
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
        texts = answerer.answer(pending, batch_size)
        _write_answers(answers, texts, model_id, num_answered, len(questions))


def _write_answers(
    answers: AnswersFile,
    texts: Iterable[tuple[Question, str]],
    model_id: str,
    num_answered: int,
    num_all: int,
) -> None:
    """Write answers as they come, and say every few seconds how many there are."""
    reported_at = time.monotonic()
    for position, (question, text) in enumerate(texts, num_answered):
        # of name and place, so that a run that was cut off writes the bytes of one that was not
        name = json.dumps([model_id, position, question.question_id, question.prompt])
        answers.write(
            {
                "question_id": question.question_id,
                "prompt": question.prompt,
                "text": text,
                **question.extra,
                "answer_id": shortuuid.uuid(name=name),
                "model_id": model_id,
                "metadata": {},
            }
        )
        if time.monotonic() - reported_at >= REPORT_EVERY_S or position + 1 == num_all:
            log.info("%d of %d questions answered", position + 1, num_all)
            reported_at = time.monotonic()


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
    return sha256_of(*weights, *folder.glob("config.json"))


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


SCRIPT = Script("model_vqa", conv_mode="llava_v1", max_new_tokens=1024)


def read_questions(question_file: str, image_folder: str) -> list[Question]:
    """Read LLaVA's question format.

    Raises:
        DataError: a line lacks a key, or its picture is not in the folder.
    """
    questions = []
    for where, record in read_json_lines(question_file):
        text = field(record, "text", where, str)
        image = image_path(image_folder, field(record, "image", where), where)
        questions.append(Question(field(record, "question_id", where), text, text, image, where))
    return questions


def eval_model(args: Any) -> None:
    """Answer the questions that `args` names; see `model_vqa.answer_questions`."""
    questions = read_questions(args.question_file, args.image_folder)
    chunk = get_chunk(questions, args.num_chunks, args.chunk_idx)
    answer_questions(SCRIPT, args, args.question_file, chunk)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and answer."""
    parser = SCRIPT.make_parser("Answer questions about pictures.")
    run_script(eval_model, parser, argv)


if __name__ == "__main__":
    main()
