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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.chat_service import (
    MAX_TOKENS_FIELDS,
    ChatReply,
    Dialect,
    Limits,
    ask_each,
    service_of_environment,
)
from llava.errors import DataError, ExhaustedError, RejectedError, ServiceError, run_script
from llava.eval.records import AnswersFile, field, read_json, read_json_lines, refuse_missing

log = logging.getLogger(__name__)

JUDGE = "gpt-4-0314"
TEMPERATURE = 0.2
SYSTEM = "You are a helpful and precise assistant for checking the quality of the answer."
NUM_CONCURRENT = 4
NUM_TRIES = 10
NO_SCORES = [-1.0, -1.0]

Rules = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Comparison:
    """Two answers to one question.

    Attributes:
        question: the question's record.
        answers: the two answers' records.
        where: place of the question.
    """

    question: Mapping[str, Any]
    answers: tuple[Mapping[str, Any], Mapping[str, Any]]
    where: str

    def content(self, rule: Mapping[str, str], context: str | None) -> str:
        """What the judge is asked."""
        role, (first, second) = rule["role"], self.answers
        blocks = [] if context is None else [f"[Context]\n{context}"]
        blocks += [
            f"[Question]\n{self.question['text']}",
            f"[{role} 1]\n{first['text']}",
            f"[End of {role} 1]",
            f"[{role} 2]\n{second['text']}",
            f"[End of {role} 2]",
            f"[System]\n{rule['prompt']}",
        ]
        return "".join(f"{block}\n\n" for block in blocks)

    def review(self, number: int, category: str, text: str) -> dict[str, Any]:
        """The line that is written for the judge's reply; empty if it refuses."""
        first, second = self.answers
        return {
            "id": number,
            "question_id": self.question["question_id"],
            "answer1_id": first.get("answer_id", first["question_id"]),
            "answer2_id": second.get("answer_id", second["question_id"]),
            "category": category,
            "content": text,
            "tuple": parse_score(text),
        }


def make_parser(description: str, has_context: bool = True) -> argparse.ArgumentParser:
    """A parser with the flags that all review scripts have; `-c` is for those about images."""
    parser = argparse.ArgumentParser(description=description)
    if has_context:
        parser.add_argument("-c", "--context", required=True)
    parser.add_argument("-q", "--question", required=True)
    parser.add_argument("-a", "--answer-list", nargs=2, required=True, metavar="ANSWERS")
    parser.add_argument("-r", "--rule", required=True)
    parser.add_argument("-o", "--output", required=True)
    parser.add_argument("--max-tokens", type=int, default=1024, help="longest review")
    parser.add_argument("--model", default=JUDGE, help="who judges")
    parser.add_argument(
        "--max-tokens-field",
        choices=MAX_TOKENS_FIELDS,
        default=MAX_TOKENS_FIELDS[0],
        help="what the service calls it; another is found out",
    )
    parser.add_argument(
        "--no-temperature",
        action="store_true",
        help=f"leave it to the service, in place of {TEMPERATURE}",
    )
    parser.add_argument("--fresh", action="store_true", help="throw earlier reviews away")
    return parser


def parse_score(review: str) -> list[float]:
    """Read two scores from the first line of a review; `[-1, -1]` if they are not there."""
    words = review.split("\n")[0].replace(",", " ").split()
    try:
        scores = [float(word) for word in words]
    except ValueError:
        scores = []
    if len(scores) == 2:
        return scores
    log.warning("no two scores in the first line of a review: %r", review[:80])
    return NO_SCORES


def read_comparisons(question: str, answer_list: Sequence[str]) -> list[Comparison]:
    """Read questions and both files of answers, which must be in the same order.

    Raises:
        DataError: the files differ in length or order.
    """
    questions = list(read_json_lines(question))
    sides = [list(read_json_lines(path)) for path in answer_list]
    comparisons = []
    for path, side in zip(answer_list, sides, strict=True):
        if len(side) != len(questions):
            raise DataError(f"{path}: {len(side)} answers to {len(questions)} questions")
    for (where, asked), first, second in zip(questions, *sides, strict=True):
        question_id = field(asked, "question_id", where)
        for place, answer in (first, second):
            if field(answer, "question_id", place) != question_id:
                raise DataError(
                    f"{place}: answer to question {answer['question_id']!r}, expected "
                    f"{question_id!r} as in {where}"
                )
            field(answer, "text", place, str)
        comparisons.append(Comparison(asked, (first[1], second[1]), where))
    return comparisons


def read_rules(path: str) -> Rules:
    """Read the rules.

    Raises:
        DataError: one lacks `role` or `prompt`.
    """
    rules = read_json(path, dict)
    for category, rule in rules.items():
        for name in ("role", "prompt"):
            field(rule, name, f"{path}: {category}", str)
    return rules


def review(
    args: argparse.Namespace,
    get_category: Callable[[Comparison, Rules], str],
    describe: Callable[[Mapping[str, Any], str], str] | None = None,
) -> None:
    """Ask the judge about every comparison that has no review yet, and write the reviews.

    Args:
        args: flags of `make_parser`.
        get_category: names the rule of a comparison.
        describe: says what is in an image, given its record in `args.context` and the place of
            that; None if the judge is not told.

    Raises:
        ConfigError: there is no key, or the reviews there are of another run.
        DataError: a rule or an image's context is missing.
    """
    comparisons = read_comparisons(args.question, args.answer_list)
    rules = read_rules(args.rule)
    categories = [get_category(comparison, rules) for comparison in comparisons]
    contexts: Sequence[str | None] = [None] * len(comparisons)
    if describe is not None:
        contexts = _read_contexts(args.context, comparisons, describe)
    for comparison, category in zip(comparisons, categories, strict=True):
        if category not in rules:
            raise DataError(
                f"{comparison.where}: no rule for {category!r}; there are {', '.join(rules)}"
            )
    contents = [
        comparison.content(rules[category], context)
        for comparison, category, context in zip(comparisons, categories, contexts, strict=True)
    ]
    identity = {
        "judge": args.model,
        "max_tokens": args.max_tokens,
        "content_sha256": hashlib.sha256("".join(contents).encode()).hexdigest(),
    }
    if args.no_temperature:
        identity["temperature"] = "the service's own"
    with AnswersFile(Path(args.output), identity, args.fresh) as reviews:
        done = _read_done(args.output, [c.question["question_id"] for c in comparisons])
        todo = [i for i in range(len(contents)) if i not in done]
        if not todo:
            log.info("%s: all %d reviews are there", args.output, len(done))
            return

        def keep(i: int, text: str) -> None:
            reviews.write(comparisons[i].review(i + 1, categories[i], text))

        _ask_judge(args, comparisons, {i: contents[i] for i in todo}, keep)
        reviews.sort("id")


def _read_contexts(
    path: str,
    comparisons: Sequence[Comparison],
    describe: Callable[[Mapping[str, Any], str], str],
) -> list[str]:
    contexts = {
        field(record, "image", where, str): describe(record, where)
        for where, record in read_json_lines(path)
    }
    images = [field(comparison.question, "image", comparison.where) for comparison in comparisons]
    missing = [image for image in images if image not in contexts]
    refuse_missing("images have no context", missing, f"complete {path}")
    return [contexts[image] for image in images]


def _ask_judge(
    args: argparse.Namespace,
    comparisons: Sequence[Comparison],
    contents: Mapping[int, str],
    keep: Callable[[int, str], None],
) -> None:
    """Ask about each of `contents`, which belong to the comparisons at their keys.

    `keep` gets the key and the review, which is empty if the judge refuses.
    """
    dialect = Dialect(args.max_tokens_field, not args.no_temperature)
    service = service_of_environment(Limits(max_tries=NUM_TRIES), dialect)
    places = list(contents)
    num_refused = 0

    def receive(position: int, outcome: ChatReply | RejectedError | ExhaustedError) -> None:
        nonlocal num_refused
        place = places[position]
        if isinstance(outcome, ExhaustedError):
            raise ServiceError(
                f"no review from {service.url}: {outcome}; the reviews there are are kept, run "
                "again to go on"
            )
        refusal = outcome if isinstance(outcome, RejectedError) else outcome.refusal
        if refusal:
            num_refused += 1
            log.warning("%s: the judge refuses (%s)", comparisons[place].where, refusal)
        keep(place, "" if refusal else outcome.text)

    bodies = [
        {
            "model": args.model,
            "messages": [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": content},
            ],
            "max_tokens": args.max_tokens,
            "temperature": TEMPERATURE,
        }
        for content in contents.values()
    ]
    ask_each(service, bodies, NUM_CONCURRENT, receive)
    if num_refused:
        log.warning("%s: %d of %d refused, without scores", args.output, num_refused, len(bodies))


def _read_done(path: str, question_ids: Sequence[Any]) -> set[int]:
    """Places of the comparisons that have a review.

    Raises:
        DataError: a review is not that of the question in its place.
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


def _category_or_default(comparison: Comparison, rules: Rules) -> str:
    category = str(comparison.question.get("category", "default"))
    return category if category in rules else "default"


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and review."""
    parser = make_parser("Let GPT compare two models.", has_context=False)
    run_script(lambda args: review(args, _category_or_default), parser, argv)


if __name__ == "__main__":
    main()
