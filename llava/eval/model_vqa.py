"""Answers a file of questions about images, in batches; the scripts `model_vqa*` share this module.

In: JSON Lines `question_id, image, text`. Out: JSON Lines `question_id, prompt, text, answer_id,
model_id, metadata`, in the same order, resumable (`records.AnswersFile`). Rows of a batch are
padded on the left and masked, so that greedy answers do not depend on the batch size; images of the
coming batches are opened and resized while the model works. Another script says only how its
question file reads. Usage:
python -m llava.eval.model_vqa --model-path M --question-file Q --image-folder I --answers-file A
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import shortuuid
import torch
from torch import Tensor

import llava.conversation as conversation_lib
from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_TOKEN
from llava.conversation import (
    Conversation,
    get_conversation,
    select_conversation,
    template_of_config,
)
from llava.errors import ConfigError, DataError, Flag, flag, script_main
from llava.eval.records import (
    AnswersFile,
    field,
    get_chunk,
    image_path,
    read_json_lines,
    refuse_missing,
)
from llava.eval.records import split_list as split_list
from llava.files import sha256_of
from llava.images import open_image
from llava.mm_utils import (
    get_model_name_from_path,
    pad_left,
    process_images,
    tokenizer_image_token,
)
from llava.model.builder import load_pretrained_model
from llava.model.checkpoint import MultimodalConfig
from llava.progress import Progress

log = logging.getLogger(__name__)

NUM_IMAGE_THREADS = 4
NUM_BATCHES_AHEAD = 2
_WEIGHT_SUFFIXES = (".safetensors", ".bin")


@dataclass(frozen=True)
class VqaQuestion:
    """A question, and what is written down with its answer.

    Attributes:
        question_id: As in the question file.
        prompt: The text that the answers file records.
        text: The text that the model is asked, without template and image token.
        image: The image, a path or the bytes of a file; None for a question without one.
        where: `file:line`, for errors.
        extra: Further keys of the answer's line.
    """

    question_id: Any
    prompt: str
    text: str
    image: Path | bytes | None
    where: str
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Sampling:
    """Settings of generation; a temperature of 0 is greedy.

    Attributes:
        temperature: Of the softmax.
        top_p: Mass of the nucleus that is sampled from; None for all.
        num_beams: Width of the beam search.
        max_new_tokens: Longest answer.
    """

    temperature: float
    top_p: float | None
    num_beams: int
    max_new_tokens: int

    def keywords(self) -> dict[str, Any]:
        """Returns the arguments of `generate`."""
        keywords = {**asdict(self), "do_sample": self.temperature > 0}
        if self.temperature > 0:
            return keywords
        # a checkpoint's generation_config.json may hold sampling settings
        return {**keywords, "temperature": None, "top_p": None, "top_k": None}


class _Prepared(NamedTuple):
    pixels: Tensor  # [3, S, S] or [tiles, 3, S, S]
    size: tuple[int, int]  # (width, height) in pixels


@dataclass
class BatchedAnswerer:
    """Answers with one loaded model.

    Attributes:
        tokenizer: The model's.
        model: With `generate`; of LLaVA, or a text-only one.
        image_processor: The tower's, None for a text-only model.
        conversation: Template without messages.
        sampling: How to generate.
        context_len: Longest prompt of a text-only model, in tokens.
    """

    tokenizer: Any
    model: Any
    image_processor: Any
    conversation: Conversation
    sampling: Sampling
    context_len: int

    def answer(
        self, questions: Sequence[VqaQuestion], batch_size: int
    ) -> Iterator[tuple[VqaQuestion, str]]:
        """Answers questions in their order, `batch_size` at once.

        Yields:
            Each question with its answer, stripped and without special tokens.

        Raises:
            DataError: An image cannot be read, or a prompt does not fit; those before it have been
                answered.
        """
        pending: deque[tuple[Sequence[VqaQuestion], list[Future[_Prepared | None]]]] = deque()
        with ThreadPoolExecutor(NUM_IMAGE_THREADS) as pool:
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
        self, batch: Sequence[VqaQuestion], opening: Sequence[Future[_Prepared | None]]
    ) -> Iterator[tuple[VqaQuestion, str]]:
        try:
            texts = self._generate(batch, [image.result() for image in opening])
        except DataError as error:
            if len(batch) == 1:
                where = f"{batch[0].where}: question {batch[0].question_id}"
                raise DataError(f"{where}: {error}") from error
            # one by one: those before the bad one are answered, and the error names the bad one
            for question, image in zip(batch, opening, strict=True):
                yield from self._answer_batch([question], [image])
            return
        yield from zip(batch, texts, strict=True)

    def _open(self, question: VqaQuestion) -> _Prepared | None:
        """Opens and prepares a question's image.

        Raises:
            DataError: It cannot be read, or the model takes none.
        """
        if question.image is None:
            return None
        if self.image_processor is None:
            raise DataError("the model is text-only: it cannot look at the image")
        name = None if isinstance(question.image, Path) else "the image in the question file"
        image = open_image(question.image, name, orient=False)
        pixels = process_images([image], self.image_processor, self.model.config)
        return _Prepared(pixels[0], image.size)

    def _encode(self, question: VqaQuestion) -> list[int]:
        """Token ids of a question in the template, with a sentinel for its image."""
        text = question.text
        if question.image is not None:
            text = f"{image_token(self.model.config)}\n{text}"
        return question_ids(text, self.conversation, self.tokenizer)

    @torch.inference_mode()
    def _generate(
        self, batch: Sequence[VqaQuestion], images: Sequence[_Prepared | None]
    ) -> list[str]:
        rows = [self._encode(question) for question in batch]
        eos_ids = _eos_ids(self.model, self.tokenizer)
        pad_id = self.tokenizer.pad_token_id
        pad_id = eos_ids[0] if pad_id is None else int(pad_id)
        input_ids, mask = pad_left(rows, pad_id)
        num_tokens, is_text_only = input_ids.shape[1], self.image_processor is None
        if is_text_only and num_tokens >= self.context_len:
            raise DataError(
                f"the prompt takes {num_tokens} tokens, but the model's context is "
                f"{self.context_len}: shorten the text"
            )
        output = self.model.generate(
            input_ids.to(self.model.device),
            attention_mask=mask.to(self.model.device),
            pad_token_id=pad_id,
            use_cache=True,
            **self.sampling.keywords(),
            **_image_keywords(images),
        )
        # LLaVA's models do not repeat the prompt
        new_ids = output[:, num_tokens:] if is_text_only else output
        # padding follows the end token, and need not be a special token
        answers = [_until_any(ids, eos_ids) for ids in new_ids.tolist()]
        return [self.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in answers]


def question_ids(text: str, conversation: Conversation, tokenizer: Any) -> list[int]:
    """Returns the token ids of a first question in a template, with a sentinel for each image."""
    conversation = conversation.copy()
    conversation.append_message(conversation.roles[0], text)
    conversation.append_message(conversation.roles[1], None)
    ids = tokenizer_image_token(conversation.get_prompt(), tokenizer)
    assert isinstance(ids, list)
    return ids


def image_token(config: Any) -> str:
    """Returns the placeholder of an image, wrapped if a model's configuration says so."""
    if MultimodalConfig.from_config(config).mm_use_im_start_end:
        return DEFAULT_IM_START_TOKEN + DEFAULT_IMAGE_TOKEN + DEFAULT_IM_END_TOKEN
    return DEFAULT_IMAGE_TOKEN


def _eos_ids(model: Any, tokenizer: Any) -> list[int]:
    """Tokens at which the model stops."""
    found = getattr(model.generation_config, "eos_token_id", None)
    if found is None:
        found = tokenizer.eos_token_id
    return [int(token_id) for token_id in (found if isinstance(found, list) else [found])]


def _until_any(ids: Sequence[int], ends: Sequence[int]) -> Sequence[int]:
    return ids[: next((i for i, token_id in enumerate(ids) if token_id in ends), len(ids))]


def _image_keywords(images: Sequence[_Prepared | None]) -> dict[str, Any]:
    """`images` and `image_sizes` for a batch; a row without an image owns a dummy."""
    first = next((image for image in images if image is not None), None)
    if first is None:
        return {}
    dummy = _Prepared(first.pixels.new_zeros(first.pixels.shape[-3:]), first.size)
    pixels, sizes = zip(*(image or dummy for image in images), strict=True)
    is_flat = all(tensor.ndim == 3 for tensor in pixels)
    return {"images": torch.stack(pixels) if is_flat else [*pixels], "image_sizes": [*sizes]}


@dataclass(frozen=True)
class Script:
    """Settings that distinguish one script that asks a model from another.

    Attributes:
        name: Its name, which is part of a run's identity.
        conv_mode: Template where neither `--conv-mode` nor the checkpoint names one; None for
            `llava.conversation.default_conversation` as it is then.
        max_new_tokens: Longest answer by default.
        plain_rule: A stage-1 model (`plain` in its name) is asked with the `_mmtag` template.
    """

    name: str
    conv_mode: str | None
    max_new_tokens: int
    plain_rule: bool = False

    def flags(self, question_file: str = "tables/question.jsonl") -> list[Flag]:
        """Returns the flags of LLaVA's `model_vqa*`, and ours.

        Args:
            question_file: The default; without one the script has a flag of its own.
        """
        file_flag = [flag("--question-file", default=question_file)] if question_file else []
        template = f"template; by default the checkpoint's own, else {self.conv_mode}"
        return [
            flag("--model-path", default="facebook/opt-350m"),
            flag("--model-base", default=None),
            flag("--image-folder", default=""),
            *file_flag,
            flag("--answers-file", default="answer.jsonl"),
            flag("--conv-mode", default=None, help=template),
            flag("--num-chunks", type=int, default=1),
            flag("--chunk-idx", type=int, default=0),
            flag("--temperature", type=float, default=0.2, help="0 is greedy"),
            flag("--top_p", type=float, default=None),
            flag("--num_beams", type=int, default=1),
            flag("--max_new_tokens", type=int, default=self.max_new_tokens),
            *RUN_FLAGS,
        ]


RUN_FLAGS = [
    flag("--batch-size", type=int, default=1, help="questions per batch"),
    flag("--device", default="cuda", help="cuda (else the CPU), cpu, mps"),
    flag("--fresh", action="store_true", help="discard earlier answers"),
]
"""The flags that LLaVA does not have."""


def answer_questions(
    script: Script,
    args: Any,
    question_file: str | Path,
    questions: Sequence[VqaQuestion],
    **more_identity: Any,
) -> None:
    """Answers this chunk's questions that have no answer yet, in order.

    Args:
        script: Which script asks.
        args: Anything with the attributes that `Script.flags` give; those that LLaVA does not have
            may be absent.
        question_file: Where the questions are from.
        questions: Those of this chunk (`records.get_chunk`).
        **more_identity: Further settings that change answers.

    Raises:
        ConfigError: A flag cannot be, or the answers there are of another run.
        DataError: A question, an image or an earlier answer is invalid.
    """
    max_new_tokens = getattr(args, "max_new_tokens", script.max_new_tokens)
    sampling = Sampling(args.temperature, args.top_p, args.num_beams, max_new_tokens)
    batch_size = getattr(args, "batch_size", 1)
    for name, value, least in (
        ("--batch-size", batch_size, 1),
        ("--num_beams", sampling.num_beams, 1),
        ("--max_new_tokens", sampling.max_new_tokens, 1),
        ("--temperature", sampling.temperature, 0),
    ):
        if value < least:
            raise ConfigError(f"{name} is {value}; expected {least} or more")
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
        log.info("%s: %d of %d questions answered", answers.path, num_answered, len(questions))
        pending = questions[num_answered:]
        if not pending:
            return
        _check_images(pending)
        answerer = load_answerer(script, args, model_id, sampling)
        with Progress("answers", len(pending), "questions") as progress:
            texts = answerer.answer(pending, batch_size)
            for position, (question, text) in enumerate(texts, num_answered):
                answers.write(_answer_line(question, text, model_id, position))
                progress.advance()


def _answer_line(question: VqaQuestion, text: str, model_id: str, position: int) -> dict[str, Any]:
    # deterministic, so that an interrupted run writes the same bytes as an uninterrupted one
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


def load_answerer(script: Script, args: Any, model_id: str, sampling: Sampling) -> BatchedAnswerer:
    """Loads the model that `args` names.

    Raises:
        CheckpointError: It is incomplete.
        TemplateError: The template is unknown.
    """
    if args.conv_mode is not None:
        get_conversation(args.conv_mode)  # fail on a typo before the model is loaded
    tokenizer, model, image_processor, context_len = load_pretrained_model(
        args.model_path, args.model_base, model_id, device=getattr(args, "device", "cuda")
    )
    conversation = choose_conversation(script, model.config, model_id, args.conv_mode)
    context_len = getattr(model.config, "max_position_embeddings", context_len)
    return BatchedAnswerer(tokenizer, model, image_processor, conversation, sampling, context_len)


def choose_conversation(
    script: Script, config: Any, model_id: str, conv_mode: str | None
) -> Conversation:
    """Returns the template to ask with: `conv_mode`, the checkpoint's own, or the script's.

    Raises:
        TemplateError: There is none of that name.
    """
    if conv_mode is None and template_of_config(config):
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
    """SHA-256 of weights and configuration; None for a Hub id, which the name identifies."""
    folder = Path(model_path)
    if not folder.is_dir():
        return None
    files = (path for path in folder.iterdir() if path.suffix in _WEIGHT_SUFFIXES)
    weights = sorted(path for path in files if path.name != "training_args.bin")
    # the configuration may name the template
    return sha256_of(*weights, *folder.glob("config.json"))


def _check_images(questions: Sequence[VqaQuestion]) -> None:
    """Finds missing images before the model is loaded."""
    paths = {q.image: q.where for q in questions if isinstance(q.image, Path)}
    missing = [f"{path} ({where})" for path, where in paths.items() if not path.is_file()]
    refuse_missing("images are missing", missing, "check --image-folder")


SCRIPT = Script("model_vqa", conv_mode="llava_v1", max_new_tokens=1024)


def read_questions(question_file: str, image_folder: str) -> list[VqaQuestion]:
    """Reads LLaVA's question format.

    Raises:
        DataError: A line lacks a key, or its image is not in the folder.
    """
    questions = []
    for where, record in read_json_lines(question_file):
        text = field(record, "text", where, str)
        image = image_path(image_folder, field(record, "image", where), where)
        questions.append(VqaQuestion(field(record, "question_id", where), text, text, image, where))
    return questions


def eval_model(args: Any, script: Script = SCRIPT) -> None:
    """Answers the questions that `args` names; see `answer_questions`."""
    questions = read_questions(args.question_file, args.image_folder)
    chunk = get_chunk(questions, args.num_chunks, args.chunk_idx)
    answer_questions(script, args, args.question_file, chunk)


main = script_main(
    "Answer questions about images.",
    eval_model,
    *SCRIPT.flags(),
)


if __name__ == "__main__":
    main()
