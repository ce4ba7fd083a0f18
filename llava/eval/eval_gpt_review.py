"""Lets GPT compare two answers to each question; the scripts `eval_gpt_review*` share this module.

In: questions, two files of answers, the rules `{category: {"role", "prompt"}}` (and, for images,
what is in them, in words). Out: JSON Lines `id, question_id, answer1_id, answer2_id, category,
content, tuple`, resumable as all answers files are (`records.AnswersFile`). In this script a
category without a rule of its own is judged by `default`. Usage:
python -m llava.eval.eval_gpt_review -q questions.jsonl -a one.jsonl two.jsonl
    -r llava/eval/table/rule.json -o reviews.jsonl
"""

from __future__ import annotations

import argparse
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from llava.chat_service import (
    MAX_TOKENS_FIELDS,
    ChatReply,
    Dialect,
    ServiceLimits,
    ask_each,
    service_of_environment,
)
from llava.errors import (
    DataError,
    ExhaustedError,
    Flag,
    RejectedError,
    ServiceError,
    flag,
    script_main,
)
from llava.eval.records import AnswersFile, field, read_json, read_json_lines, refuse_missing

log = logging.getLogger(__name__)

JUDGE = "gpt-4-0314"
TEMPERATURE = 0.2
SYSTEM = "You are a helpful and precise assistant for checking the quality of the answer."
NUM_CONCURRENT = 4
NUM_TRIES = 10
NO_SCORES = [-1.0, -1.0]

Rules = Mapping[str, Mapping[str, str]]


Record = Mapping[str, Any]
GetCategory = Callable[[Record, str, Rules], str]
Describe = Callable[[Record, str], str]


class PlannedReview(NamedTuple):
    """What the judge is asked about two answers.

    Attributes:
        where: Place of the question.
        content: What the judge is asked.
        line: The line that is written down, without the judge's reply.
    """

    where: str
    content: str
    line: Record


FLAGS: Sequence[Flag] = (
    flag("-q", "--question", required=True),
    flag("-a", "--answer-list", nargs=2, required=True, metavar="ANSWERS"),
    flag("-r", "--rule", required=True),
    flag("-o", "--output", required=True),
    flag("--max-tokens", type=int, default=1024, help="longest review"),
    flag("--model", default=JUDGE, help="the judge"),
    flag(
        "--max-tokens-field",
        choices=MAX_TOKENS_FIELDS,
        default=MAX_TOKENS_FIELDS[0],
        help="the service's name for it; another name is detected",
    ),
    flag(
        "--no-temperature",
        action="store_true",
        help=f"use the service's default instead of {TEMPERATURE}",
    ),
    flag("--fresh", action="store_true", help="discard earlier reviews"),
)
CONTEXT_FLAG = flag("-c", "--context", required=True)
"""Flag of the scripts about images."""


def parse_score(review: str) -> list[float]:
    """Reads two scores from the first line of a review; `[-1, -1]` if they are not there."""
    words = review.split("\n")[0].replace(",", " ").split()
    try:
        first, second = map(float, words)
    except ValueError:
        log.warning("no two scores in the first line of a review: %r", review[:80])
        return NO_SCORES
    return [first, second]


def read_pairs(
    question: str, answer_list: Sequence[str]
) -> list[tuple[str, Record, Record, Record]]:
    """Reads questions and both files of answers, which must be in the same order.

    Returns:
        The place of each question, its record, and those of both answers.

    Raises:
        DataError: The files differ in length or order.
    """
    questions = list(read_json_lines(question))
    sides = [list(read_json_lines(path)) for path in answer_list]
    for path, side in zip(answer_list, sides, strict=True):
        if len(side) != len(questions):
            raise DataError(f"{path}: {len(side)} answers to {len(questions)} questions")
        for (where, asked), (place, answer) in zip(questions, side, strict=True):
            question_id = field(asked, "question_id", where)
            if field(answer, "question_id", place) != question_id:
                raise DataError(
                    f"{place}: answer to question {answer['question_id']!r}, expected "
                    f"{question_id!r} as in {where}"
                )
            field(answer, "text", place, str)
    return [
        (where, asked, first, second)
        for (where, asked), (_, first), (_, second) in zip(questions, *sides, strict=True)
    ]


def _plan(
    args: argparse.Namespace, get_category: GetCategory, describe: Describe | None
) -> list[PlannedReview]:
    """Makes what the judge is asked about every pair of answers.

    Raises:
        DataError: A rule or an image's context is missing.
    """
    pairs = read_pairs(args.question, args.answer_list)
    rules: Rules = read_json(args.rule, dict)
    contexts = [""] * len(pairs)
    if describe is not None:
        images = [field(question, "image", where) for where, question, _, _ in pairs]
        contexts = _read_contexts(args.context, images, describe)
    plan = []
    for number, (where, question, first, second) in enumerate(pairs, 1):
        category = get_category(question, where, rules)
        if category not in rules:
            raise DataError(f"{where}: no rule for {category!r}; there are {', '.join(rules)}")
        role, prompt = (
            field(rules[category], name, f"{args.rule}: {category}", str)
            for name in ("role", "prompt")
        )
        blocks = [
            f"[Question]\n{question['text']}",
            f"[{role} 1]\n{first['text']}",
            f"[End of {role} 1]",
            f"[{role} 2]\n{second['text']}",
            f"[End of {role} 2]",
            f"[System]\n{prompt}",
        ]
        line = {
            "id": number,
            "question_id": question["question_id"],
            "answer1_id": first.get("answer_id", first["question_id"]),
            "answer2_id": second.get("answer_id", second["question_id"]),
            "category": category,
        }
        content = contexts[number - 1] + "".join(f"{block}\n\n" for block in blocks)
        plan.append(PlannedReview(where, content, line))
    return plan


def _read_contexts(path: str, images: Sequence[Any], describe: Describe) -> list[str]:
    contexts = {
        field(record, "image", where, str): f"[Context]\n{describe(record, where)}\n\n"
        for where, record in read_json_lines(path)
    }
    missing = [image for image in images if image not in contexts]
    refuse_missing("images have no context", missing, f"complete {path}")
    return [contexts[image] for image in images]


def review(
    args: argparse.Namespace, get_category: GetCategory, describe: Describe | None = None
) -> None:
    """Asks the judge about every pair that has no review yet, and writes the reviews.

    Args:
        args: Values of `FLAGS`.
        get_category: Names the rule of a question, given its record and its place.
        describe: Says what is in an image, given its record in `args.context` and the place of
            that; None if the judge is not told.

    Raises:
        ConfigError: There is no key, or the reviews there are of another run.
        DataError: A rule or an image's context is missing.
    """
    plan = _plan(args, get_category, describe)
    contents = "".join(planned.content for planned in plan)
    identity = {
        "judge": args.model,
        "max_tokens": args.max_tokens,
        "content_sha256": hashlib.sha256(contents.encode()).hexdigest(),
    }
    if args.no_temperature:
        identity["temperature"] = "the service's own"
    with AnswersFile(args.output, identity, args.fresh) as reviews:
        done = _read_done(args.output, [planned.line["question_id"] for planned in plan])
        log.info("%s: %d of %d reviews are there", args.output, len(done), len(plan))
        if todo := [planned for i, planned in enumerate(plan) if i not in done]:
            _ask_judge(args, todo, reviews)
            reviews.sort("id")


def _ask_judge(
    args: argparse.Namespace, todo: Sequence[PlannedReview], reviews: AnswersFile
) -> None:
    """Asks for reviews and writes them; a review that the judge refuses is empty."""
    dialect = Dialect(args.max_tokens_field, not args.no_temperature)
    service = service_of_environment(ServiceLimits(max_tries=NUM_TRIES), dialect)
    refused = []

    def receive(position: int, outcome: ChatReply | RejectedError | ExhaustedError) -> None:
        if isinstance(outcome, ExhaustedError):
            raise ServiceError(
                f"no review from {service.url}: {outcome}; the reviews so far are kept, run "
                "again to continue"
            )
        refusal = outcome if isinstance(outcome, RejectedError) else outcome.refusal
        if refusal:
            refused.append(refusal)
            log.warning("%s: the judge refuses (%s)", todo[position].where, refusal)
        text = outcome.text if isinstance(outcome, ChatReply) and not refusal else ""
        reviews.write({**todo[position].line, "content": text, "tuple": parse_score(text)})

    bodies = [
        {
            "model": args.model,
            "messages": [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": planned.content},
            ],
            "max_tokens": args.max_tokens,
            "temperature": TEMPERATURE,
        }
        for planned in todo
    ]
    ask_each(service, bodies, NUM_CONCURRENT, receive)
    if refused:
        log.warning("%s: %d of %d refused, without scores", args.output, len(refused), len(bodies))


def _read_done(path: str, question_ids: Sequence[Any]) -> set[int]:
    """Returns the positions of the pairs that have a review.

    Raises:
        DataError: A review is not that of the question in its place.
    """
    done: set[int] = set()
    for where, record in read_json_lines(path):
        place = field(record, "id", where, int) - 1
        is_known = 0 <= place < len(question_ids) and place not in done
        if not is_known or record.get("question_id") != question_ids[place]:
            raise DataError(
                f"{where}: review {place + 1}, of question {record.get('question_id')!r}, is not "
                "of these questions, or is there twice: the file was edited or mixed; review anew "
                "with --fresh"
            )
        done.add(place)
    return done


def _category_or_default(question: Record, where: str, rules: Rules) -> str:
    category = str(question.get("category", "default"))
    return category if category in rules else "default"


main = script_main(
    "Let GPT compare two models.",
    lambda args: review(args, _category_or_default),
    *FLAGS,
)


if __name__ == "__main__":
    main()
