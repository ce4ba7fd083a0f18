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
from llava.errors import DataError, ExhaustedError, RejectedError, ServiceError, run_main
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


def make_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the flags that all review scripts have."""
    parser = argparse.ArgumentParser(description=description)
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


def get_rule(rules: Rules, category: str, where: str) -> Mapping[str, str]:
    """The rule of a category.

    Raises:
        DataError: there is none.
    """
    if category not in rules:
        raise DataError(f"{where}: no rule for {category!r}; there are {', '.join(rules)}")
    return rules[category]


def read_contexts(path: str, describe: Callable[[Mapping[str, Any], str], str]) -> dict[str, str]:
    """What is in each picture, by its name.

    Args:
        path: JSON Lines with `image`.
        describe: makes text of a record, given its place.
    """
    return {
        field(record, "image", where, str): describe(record, where)
        for where, record in read_json_lines(path)
    }


def build_content(comparison: Comparison, rule: Mapping[str, str], context: str | None) -> str:
    """What the judge is asked."""
    role, (first, second) = rule["role"], comparison.answers
    blocks = [] if context is None else [f"[Context]\n{context}"]
    blocks += [
        f"[Question]\n{comparison.question['text']}",
        f"[{role} 1]\n{first['text']}",
        f"[End of {role} 1]",
        f"[{role} 2]\n{second['text']}",
        f"[End of {role} 2]",
        f"[System]\n{rule['prompt']}",
    ]
    return "".join(f"{block}\n\n" for block in blocks)


def review(
    args: argparse.Namespace,
    comparisons: Sequence[Comparison],
    categories: Sequence[str],
    contexts: Mapping[str, str] | None = None,
) -> None:
    """Ask the judge about every comparison that has no review yet, and write the reviews.

    Args:
        args: flags of `make_parser`, perhaps with `context`.
        comparisons: what to compare.
        categories: the rule for each.
        contexts: what is in the pictures, by their names; None if the judge is not told.

    Raises:
        ConfigError: there is no key, or the reviews there are of another run.
        DataError: a rule or a picture's context is missing.
    """
    rules = read_rules(args.rule)
    if contexts is not None:
        images = (field(c.question, "image", c.where) for c in comparisons)
        missing = [image for image in images if image not in contexts]
        refuse_missing("pictures have no context", missing, f"complete {args.context}")
    contents = [
        build_content(
            comparison,
            get_rule(rules, category, comparison.where),
            None if contexts is None else contexts[comparison.question["image"]],
        )
        for comparison, category in zip(comparisons, categories, strict=True)
    ]
    identity = {
        "judge": args.model,
        "max_tokens": args.max_tokens,
        "content_sha256": hashlib.sha256("".join(contents).encode()).hexdigest(),
    }
    if args.no_temperature:
        identity["temperature"] = "the service's own"
    ids = [comparison.question["question_id"] for comparison in comparisons]
    with AnswersFile(Path(args.output), identity, args.fresh) as reviews:
        done = _read_done(args.output, ids)
        todo = [i for i in range(len(contents)) if i not in done]
        if not todo:
            log.info("%s: all %d reviews are there", args.output, len(done))
            return
        _ask_judge(args, reviews, comparisons, categories, contents, todo)
        reviews.sort("id")


def _ask_judge(
    args: argparse.Namespace,
    reviews: AnswersFile,
    comparisons: Sequence[Comparison],
    categories: Sequence[str],
    contents: Sequence[str],
    todo: Sequence[int],
) -> None:
    """Have the comparisons at some places reviewed, and write each review as it comes."""
    dialect = Dialect(args.max_tokens_field, not args.no_temperature)
    service = service_of_environment(Limits(max_tries=NUM_TRIES), dialect)
    num_refused = 0

    def keep(position: int, outcome: ChatReply | RejectedError | ExhaustedError) -> None:
        nonlocal num_refused
        i = todo[position]
        if isinstance(outcome, ExhaustedError):
            raise ServiceError(
                f"no review from {service.url}: {outcome}; the reviews there are are kept, run "
                "again to go on"
            )
        refusal = outcome if isinstance(outcome, RejectedError) else outcome.refusal
        if refusal:
            num_refused += 1
            log.warning("%s: the judge refuses (%s)", comparisons[i].where, refusal)
        text = outcome.text if isinstance(outcome, ChatReply) and not refusal else ""
        reviews.write(_record(i + 1, comparisons[i], categories[i], text))

    ask_each(service, [_body(args, contents[i]) for i in todo], NUM_CONCURRENT, keep)
    if num_refused:
        log.warning("%s: %d of %d refused, without scores", args.output, num_refused, len(todo))


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


def _body(args: argparse.Namespace, content: str) -> dict[str, Any]:
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": content}]
    return {
        "model": args.model,
        "messages": messages,
        "max_tokens": args.max_tokens,
        "temperature": TEMPERATURE,
    }


def _record(number: int, comparison: Comparison, category: str, text: str) -> dict[str, Any]:
    first, second = comparison.answers
    return {
        "id": number,
        "question_id": comparison.question["question_id"],
        "answer1_id": first.get("answer_id", first["question_id"]),
        "answer2_id": second.get("answer_id", second["question_id"]),
        "category": category,
        "content": text,
        "tuple": parse_score(text),
    }


def eval_gpt_review(args: argparse.Namespace) -> None:
    """Review what `args` names; see `review`."""
    comparisons = read_comparisons(args.question, args.answer_list)
    rules = read_rules(args.rule)
    named = [str(comparison.question.get("category", "default")) for comparison in comparisons]
    categories = [name if name in rules else "default" for name in named]
    review(args, comparisons, categories)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and review."""
    args = make_parser("Let GPT compare two models.").parse_args(argv)
    run_main(lambda: eval_gpt_review(args))


if __name__ == "__main__":
    main()
