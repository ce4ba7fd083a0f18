"""Ask a loaded model a list of questions, in batches.

In: `Question`s and sampling settings. Out: each question with its answer, in order. Rows of a batch
are padded on the left and masked, so that greedy answers do not depend on the batch size. Pictures
of the coming batches are opened and resized while the model works. Files are not written here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_TOKEN
from llava.conversation import Conversation
from llava.errors import DataError
from llava.images import open_image
from llava.mm_utils import process_images, tokenizer_image_token
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
    extra: Mapping[str, Any] = field(default_factory=dict)


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
        starts = iter(range(0, len(questions), batch_size))
        waiting: deque[tuple[Sequence[Question], list[Future[_Picture | None]]]] = deque()
        with ThreadPoolExecutor(NUM_PICTURE_THREADS) as pool:
            try:
                while True:
                    while len(waiting) <= NUM_BATCHES_AHEAD:
                        start = next(starts, None)
                        if start is None:
                            break
                        batch = questions[start : start + batch_size]
                        waiting.append((batch, [pool.submit(self._open, q) for q in batch]))
                    if not waiting:
                        return
                    batch, pictures = waiting.popleft()
                    yield from self._answer_batch(batch, pictures)
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
            token = DEFAULT_IMAGE_TOKEN
            if self._wrap:
                token = DEFAULT_IM_START_TOKEN + token + DEFAULT_IM_END_TOKEN
            text = f"{token}\n{text}"
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
