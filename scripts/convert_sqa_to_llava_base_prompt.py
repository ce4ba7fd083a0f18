"""Word ScienceQA's problems as prompts.

In: problems as `problems.json` has them. Out: the text of a question, and of its answer. A format
is `<input>-<output>`, letters that say what comes in which order: C context, Q question, M multiple
choices, L lecture, E explanation, A answer. In `LEPA` a line break parts the reasoning from the
answer. No files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from llava.errors import ConfigError
from llava.eval.eval_science_qa import OPTIONS

INPUT_FORMATS: Final = ("CQM", "QCM", "QCML", "QCME", "QCMLE", "QCLM", "QCEM", "QCLEM")
OUTPUT_FORMATS: Final = ("A", "AL", "AE", "ALE", "AEL", "LA", "EA", "LEA", "ELA", "LEPA")


def get_context_text(problem: Mapping[str, Any], use_caption: bool) -> str:
    """The hint, with the caption where there is one and it is wanted; `N/A` without either."""
    parts = [problem.get("hint", ""), problem.get("caption", "") if use_caption else ""]
    return " ".join(part for part in parts if part) or "N/A"


def get_choice_text(problem: Mapping[str, Any], options: Sequence[str] = OPTIONS) -> str:
    """The choices in one line: `(A) red (B) green`."""
    pairs = zip(options, problem["choices"], strict=False)  # fewer choices than letters
    return " ".join(f"({letter}) {choice}" for letter, choice in pairs)


def get_answer(problem: Mapping[str, Any], options: Sequence[str] = OPTIONS) -> str:
    """The letter of the right choice."""
    answer: int = problem["answer"]
    return options[answer]


def create_one_example(
    prompt_format: str,
    problem: Mapping[str, Any],
    options: Sequence[str] = OPTIONS,
    use_caption: bool = False,
) -> tuple[str, str]:
    r"""Word a problem.

    Args:
        prompt_format: such as `QCM-LEA`.
        problem: with `question`, `choices`, `answer`, perhaps `hint`, `lecture`, `solution`.
        options: letters of the choices.
        use_caption: show a picture's caption as context.

    Returns:
        The question and the answer.

    Raises:
        ConfigError: there is no such format.

    Example:
        >>> create_one_example("QCM-A", {"question": "Q?", "choices": ["x", "y"], "answer": 1})
        ('Question: Q?\nContext: N/A\nOptions: (A) x (B) y', 'The answer is B.')
    """
    input_format, _, output_format = prompt_format.partition("-")
    if input_format not in INPUT_FORMATS or output_format not in OUTPUT_FORMATS:
        raise ConfigError(
            f"unknown format {prompt_format!r}; expected <input>-<output> with an input of "
            f"{', '.join(INPUT_FORMATS)} and an output of {', '.join(OUTPUT_FORMATS)}"
        )
    lines = {
        "Q": f"Question: {problem['question']}",
        "C": f"Context: {get_context_text(problem, use_caption)}",
        "M": f"Options: {get_choice_text(problem, options)}",
        # these have line breaks of their own, and are often empty
        "L": " ".join(problem.get("lecture", "").split()),
        "E": " ".join(problem.get("solution", "").split()),
        "A": f"The answer is {get_answer(problem, options)}.",
    }
    question = "\n".join(lines[letter] for letter in input_format if lines[letter])
    paragraphs = [
        " ".join(lines[letter] for letter in part if lines[letter])
        for part in output_format.split("P")
    ]
    return question, "\n".join(paragraph for paragraph in paragraphs if paragraph)


def build_prompt(
    problems: Mapping[str, Mapping[str, Any]],
    ids: Sequence[str],
    prompt_format: str,
    use_caption: bool = False,
    options: Sequence[str] = OPTIONS,
) -> dict[str, tuple[str, str]]:
    """Word several problems; see `create_one_example`."""
    return {
        problem_id: create_one_example(prompt_format, problems[problem_id], options, use_caption)
        for problem_id in ids
    }
