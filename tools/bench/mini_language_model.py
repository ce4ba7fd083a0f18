"""Measures the small language model's accuracy on text alone, and the gain from each recipe part.

Usage: python tools/bench/mini_language_model.py                       # the committed model
       python tools/bench/mini_language_model.py --steps 2400 [field=value ...]

With --steps, a model is trained first, with the recipe of `lrm mini build-base`, the given number
of steps and the given fields of `LanguageModelRecipe` (2,400 steps take seven minutes on two
cores). The table shows right answers in percent, by task and language, on held-out scenes that
are described in words.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import logging
import random
import shutil
import tempfile
from collections import defaultdict
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from llava.constants import IGNORE_INDEX
from llava.conversation import get_conversation
from llava.data.sample import Turn
from llava.data.tokenize import encode_turns
from llava.model.tokenizer import load_tokenizer
from lrm_ext.emoji.conversations import TASKS, make_questions, render_question
from lrm_ext.emoji.scenes import LANGUAGES, sample_scene
from lrm_ext.languages.templates import register_templates
from tools.mini.build import models_dir
from tools.mini.language_model import TEMPLATE, collate, describe, train_language_model
from tools.mini.recipe import LanguageModelRecipe

NUM_SCENES = 200
BATCH_SIZE = 100


def main() -> None:
    """Trains if asked, answers and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=models_dir() / "llm")
    parser.add_argument("--steps", type=int, help="train a model for N steps first")
    parser.add_argument("fields", nargs="*", metavar="field=value", help="recipe fields")
    arguments = parser.parse_args()
    if arguments.fields and not arguments.steps:
        parser.error("fields of the recipe need --steps: the committed model is already trained")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    register_templates()
    if not arguments.steps:
        print_accuracies(arguments.model, str(arguments.model))
        return
    changed = {
        key: ast.literal_eval(value)
        for key, value in (field.split("=", 1) for field in arguments.fields)
    }
    recipe = dataclasses.replace(LanguageModelRecipe(), num_steps=arguments.steps, **changed)
    with tempfile.TemporaryDirectory() as folder:
        for path in (models_dir() / "llm").glob("tokenizer*"):
            shutil.copy(path, folder)
        train_language_model(recipe, Path(folder))
        title = " ".join([f"num_steps={arguments.steps}", *arguments.fields])
        print_accuracies(Path(folder), title)


def print_accuracies(model_dir: Path, title: str) -> None:
    """Measures a model in every language and prints a table."""
    model = LlamaForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    tokenizer = load_tokenizer(str(model_dir))
    table = Table("language", *TASKS, title=title)
    for lang in LANGUAGES:
        shares = accuracies(model, tokenizer, lang)
        table.add_row(lang, *[f"{100 * shares[task]:.0f}" for task in TASKS])
    Console().print(table)


@torch.no_grad()
def accuracies(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, lang: str
) -> dict[str, float]:
    """Returns the share of questions per task whose answer tokens are all the likeliest ones."""
    rng = random.Random(0)
    rows, tasks = [], []
    for _ in range(NUM_SCENES):
        scene = sample_scene(rng, "val")
        for question in make_questions(scene, rng):
            text, answer = render_question(question, scene, lang)
            turns = (Turn("human", f"{describe(scene)}\n{text}"), Turn("gpt", answer))
            rows.append(encode_turns(turns, get_conversation(TEMPLATE), tokenizer))
            tasks.append(question.task)
    right: dict[str, list[bool]] = defaultdict(list)
    for start in range(0, len(rows), BATCH_SIZE):
        input_ids, labels = collate(rows[start : start + BATCH_SIZE])
        foretold = model(input_ids=input_ids).logits[:, :-1].argmax(-1)
        targets = labels[:, 1:]
        all_right = ((foretold == targets) | (targets == IGNORE_INDEX)).all(dim=1)
        for task, is_right in zip(tasks[start:], all_right.tolist(), strict=False):
            right[task].append(is_right)
    return {task: sum(right[task]) / len(right[task]) for task in TASKS}


if __name__ == "__main__":
    main()
