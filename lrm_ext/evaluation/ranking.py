"""Choose options by their likelihood, as SEED-Bench's owner does (EVAL_SPEC 4).

Input: questions without the list of their options, and the options' texts. Output: the letter of
the one that is the likeliest answer, over exactly its tokens; the first on ties. Who answers can
say how likely a text is only if the model is loaded here, in LLaVA's format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from llava.errors import ConfigError, DataError
from lrm_ext.benchmarks.items import LETTERS
from lrm_ext.evaluation.answerer import Answer, Answerer, LlavaAnswerer, Request
from lrm_ext.evaluation.questions import QuestionSet

MODES: Final = ("mean", "sum")
# Batches differ in the last digits of a sum; what is nearer than this is a tie.
_DECIMALS: Final = 4


class RankingAnswerer:
    """Ranks where there are options.

    Args:
        model: Says how likely an answer is.
        mode: `mean` or `sum` over an option's tokens.
    """

    def __init__(self, model: LlavaAnswerer, mode: str) -> None:
        self._model = model
        self._mode = mode

    def num_tokens(self, request: Request) -> int:
        """See `Answerer`."""
        return self._model.num_tokens(request)

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """See `Answerer`."""
        pairs = [(request, text) for request in requests for text in request.options]
        costs: list[float] = []
        for start in range(0, len(pairs), len(requests)):
            some = pairs[start : start + len(requests)]
            losses = self._model.token_losses([r for r, _ in some], [text for _, text in some])
            for one in losses:
                total = one.mean() if self._mode == "mean" else one.sum()
                costs.append(round(float(total), _DECIMALS))
        answers: list[Answer] = []
        for request in requests:
            own, costs = costs[: len(request.options)], costs[len(request.options) :]
            answers.append(Answer(LETTERS[own.index(min(own))], 0, "stop"))
        return answers


def check_mode(mode: str | None) -> None:
    """Refuse an unknown way of ranking.

    Raises:
        ConfigError: It is unknown.
    """
    if mode is not None and mode not in MODES:
        raise ConfigError(f"--rank is {mode!r}; expected {' or '.join(MODES)}")


def ranked(answerer: Answerer, mode: str) -> RankingAnswerer:
    """Have a model rank.

    Raises:
        ConfigError: It cannot say how likely an answer is.
    """
    if not isinstance(answerer, LlavaAnswerer):
        raise ConfigError("--rank needs a checkpoint in LLaVA's format that is loaded here")
    return RankingAnswerer(answerer, mode)


def without_options(questions: QuestionSet) -> QuestionSet:
    """The questions as they are asked for a ranking: bare, with the options beside them.

    Raises:
        DataError: There are questions without options.
    """
    for item in questions.items:
        if not item.options:
            raise DataError(
                f"{questions.benchmark.name}: question {item.question_id} has no options; --rank "
                "is for benchmarks of multiple choice, such as seed_bench"
            )
    items = tuple(replace(item, text=item.question or item.text) for item in questions.items)
    return replace(questions, items=items, is_ranked=True)
