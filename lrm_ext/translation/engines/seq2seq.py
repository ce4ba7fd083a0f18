"""What the engines on encoder-decoder models share: batches of like lengths, and their answers.

Input: segments. Output: replies, a batch at a time. A batch holds segments of one length class, so
that the longest answer allowed depends on the segment alone: what else is in the batch changes a
translation only as far as floating point does (sums in another order; in bfloat16 a near tie may
fall the other way). Text is never cut: what is too long or does not end is said, not shortened.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from llava.errors import ConfigError
from lrm_ext.translation.engines.base import (
    OptionValue,
    Outcome,
    Reply,
    Segment,
    Usage,
)
from lrm_ext.translation.engines.checkpoints import (
    Answered,
    Naming,
    Runner,
    find_checkpoint,
    is_out_of_memory,
    load,
)

log = logging.getLogger(__name__)

INSTALL = "nothing beside lrm-llava itself; lrm-llava[ct2] for CTranslate2"
_SHORTEST_CLASS = 16
# Tokens of an answer beside twice those of the text.
_MORE_TOKENS = 16


@dataclass(frozen=True)
class Seq2SeqOptions:
    """Options of the engines on encoder-decoder models.

    Attributes:
        model: A folder, or an id on the Hugging Face hub.
        revision: Branch, tag or commit on the hub.
        local_files_only: Fetch nothing; what is missing is an error.
        device: auto (a GPU if there is one), cpu, cuda, cuda:1, ...
        dtype: auto (bfloat16 on a GPU, float32 on a CPU), float32, bfloat16 or float16; of a
            CTranslate2 model also int8 and the like.
        beams: Width of the beam search; 1 is greedy, faster, and reads worse.
        no_repeat_ngram: Forbid that so many tokens occur twice in an answer; 0 allows it.
        max_source_tokens: Longer segments are not translated.
        tokens_per_batch: Tokens of a batch, padding included; halved where memory runs out.
        ct2_model: Folder of the same model converted for CTranslate2.
        ct2_fault: Why CTranslate2's own converter cannot make one; "" if it can.
    """

    ct2_fault: ClassVar[str] = ""

    model: str
    revision: str | None = None
    local_files_only: bool = False
    device: str = "auto"
    dtype: str = "auto"
    beams: int = 4
    no_repeat_ngram: int = 0
    max_source_tokens: int = 256
    tokens_per_batch: int = 4096
    ct2_model: str | None = None

    def __post_init__(self) -> None:
        for name in ("beams", "max_source_tokens", "tokens_per_batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected 1 or more.")
        if self.no_repeat_ngram < 0:
            raise ConfigError(f"no_repeat_ngram is {self.no_repeat_ngram}, expected 0 or more.")


class Seq2SeqEngine:
    """Translates with a model in this process.

    Args:
        name: The engine's name.
        options: Its options.
        naming: How the model is told the languages.

    Raises:
        EngineError: There is no such model.
    """

    context = "joined"
    mask_styles: tuple[str, ...] = ("underscores", "word", "tag")
    is_table = False
    is_sentence_level = True

    def __init__(self, name: str, options: Seq2SeqOptions, naming: Naming) -> None:
        self.name = name
        self._settings = options
        self._naming = naming
        self._found = find_checkpoint(options)
        self._runner: Runner | None = None
        self._tokens_per_batch = options.tokens_per_batch
        self.version = self._found.version
        self.options: Mapping[str, OptionValue] = {
            "beams": options.beams,
            "dtype": options.dtype,
            "max_source_tokens": options.max_source_tokens,
            "no_repeat_ngram": options.no_repeat_ngram,
            "target": naming.prefix + naming.first,
        }

    def translate(self, segments: Sequence[Segment]) -> Iterator[Reply]:
        """Translate a batch; see `Engine.translate`."""
        if self._runner is None:
            self._runner = load(self._found, self._settings, self._naming)
        runner = self._runner
        prefix = f"{self._naming.prefix} " if self._naming.prefix else ""
        tokens = [runner.tokenizer(prefix + segment.text).input_ids for segment in segments]
        most = self._settings.max_source_tokens
        if runner.max_positions is not None:
            # a few places are left for what the model puts around a text
            most = min(most, runner.max_positions - 4)
        too_long = [i for i, ids in enumerate(tokens) if len(ids) > most]
        if too_long:
            yield Reply(
                tuple(
                    Outcome(i, None, f"too long: {len(tokens[i])} tokens, at most {most}")
                    for i in too_long
                )
            )
        lengths = {i: len(ids) for i, ids in enumerate(tokens) if len(ids) <= most}
        waiting = make_batches(lengths, self._tokens_per_batch)[::-1]
        while waiting:
            batch = waiting.pop()
            limit = max_new_tokens(max(lengths[i] for i in batch), runner.max_positions)
            answers = self._run(runner, [tokens[i] for i in batch], limit)
            if answers is None and len(batch) == 1:
                fault = f"out of memory with {lengths[batch[0]]} tokens"
                yield Reply((Outcome(batch[0], None, fault, is_final=False),))
                continue
            if answers is None:
                self._shrink(len(batch))
                left = sorted(i for some in (*waiting, batch) for i in some)
                waiting = make_batches({i: lengths[i] for i in left}, self._tokens_per_batch)[::-1]
                continue
            yield self._reply(runner, batch, answers, sum(lengths[i] for i in batch), limit)

    def close(self) -> None:
        """Free the model's memory."""
        if self._runner is not None:
            runner, self._runner = self._runner, None
            runner.close()

    def _run(
        self, runner: Runner, batch: Sequence[Sequence[int]], limit: int
    ) -> list[Answered] | None:
        """Translate token ids; None if memory ran out."""
        try:
            return runner.run(batch, limit)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        # outside the handler: the error holds on to what filled the memory
        runner.free()
        return None

    def _shrink(self, num_segments: int) -> None:
        self._tokens_per_batch = max(1, self._tokens_per_batch // 2)
        log.warning(
            "%s: memory ran out with %d segments; batches now have at most %d tokens",
            self.name,
            num_segments,
            self._tokens_per_batch,
        )

    def _reply(
        self,
        runner: Runner,
        batch: Sequence[int],
        answers: Sequence[Answered],
        num_tokens: int,
        limit: int,
    ) -> Reply:
        texts = runner.tokenizer.batch_decode(
            [answer.ids for answer in answers],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        outcomes: list[Outcome] = []
        for i, answer, text in zip(batch, answers, texts, strict=True):
            if not answer.is_ended:
                outcomes.append(Outcome(i, None, f"no end after {limit} tokens"))
            elif not text.strip():
                outcomes.append(Outcome(i, None, "empty answer"))
            else:
                outcomes.append(Outcome(i, text.strip()))
        usage = Usage(1, num_tokens, sum(len(answer.ids) for answer in answers))
        return Reply(tuple(outcomes), usage)


def make_batches(lengths: Mapping[int, int], tokens_per_batch: int) -> list[list[int]]:
    """Group segments of like lengths, the longest first.

    Args:
        lengths: Tokens of each segment, by its number.
        tokens_per_batch: Most tokens in a batch, padding included; a longer segment is alone.

    Returns:
        Numbers of segments; all of a batch are of one length class.

    Example:
        >>> make_batches({0: 3, 1: 40, 2: 5, 3: 39}, 80)
        [[1, 3], [2, 0]]
    """
    batches: list[list[int]] = []
    for i in sorted(lengths, key=lambda i: (-lengths[i], i)):
        batch = batches[-1] if batches else []
        longest = lengths[batch[0]] if batch else 0
        fits = longest * (len(batch) + 1) <= tokens_per_batch
        if batch and fits and length_class(longest) == length_class(lengths[i]):
            batch.append(i)
        else:
            batches.append([i])
    return batches


def length_class(num_tokens: int) -> int:
    """The length up to which segments may share a batch: 16, 32, 64, ..."""
    return max(_SHORTEST_CLASS, 1 << (num_tokens - 1).bit_length())


def max_new_tokens(num_tokens: int, max_positions: int | None) -> int:
    """The longest answer to a segment of this length, in tokens."""
    limit = 2 * length_class(num_tokens) + _MORE_TOKENS
    return limit if max_positions is None else min(limit, max_positions - 2)
