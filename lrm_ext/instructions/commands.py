"""`lrm sample`: prints one training sample as text, as prompt, and as ids and labels."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.console import Console

from lrm_ext.instructions.registry import get_instruction
from lrm_ext.languages.registry import canonical_code, get_language

# Part of the repository; built by `lrm mini build-base`.
MINI_TOKENIZER = Path(__file__).parents[2] / "playground" / "models" / "mini" / "llm"


def register(app: typer.Typer) -> None:
    """Adds the command to `lrm`."""
    app.command("sample")(show_sample)


def show_sample(
    lang: str = typer.Option("en", help="Language code."),
    instruction: str = typer.Option("mvqa", help="Task instruction: mvqa, epvqa or bvqa."),
    direction: str | None = typer.Option(
        None, help="For bvqa: to_en (the default), or from_en for questions in English."
    ),
    index: int = typer.Option(0, help="Row of the corpus."),
    corpus: Path | None = typer.Option(None, help="A corpus folder; default: the built-in one."),
    tokenizer: Path | None = typer.Option(
        None, help="Folder of a tokenizer; default: that of the mini preset."
    ),
    template: str = typer.Option(
        "lrm_bare", help="Conversation template; auto is the tokenizer's own chat template."
    ),
) -> None:
    """Print one training sample as text, as prompt, and as token ids and labels."""
    from lrm_ext.emoji.unpack import open_corpus
    from lrm_ext.instructions import inspection

    lang = get_language(canonical_code(lang)).code
    rule = get_instruction(instruction)
    if direction is None and rule.directions:
        direction = rule.directions[0]
    if tokenizer is None and MINI_TOKENIZER.is_dir():
        tokenizer = MINI_TOKENIZER
    opened = open_corpus(corpus)
    row = opened.row(index)
    sample = rule.format(row, opened.turns(lang, index), lang, direction)
    loaded = None if tokenizer is None else inspection.load_tokenizer(tokenizer)
    name, conv = inspection.conversation_for(sample, template, loaded)

    console = Console(highlight=False, soft_wrap=True)
    color = console.color_system is not None
    mark = "green" if color else " ... ".join(inspection.MARKS)
    console.rule("sample", align="left")
    console.print(inspection.describe_sample(sample), end="")
    console.rule(f"prompt, template {name} (supervised: {mark})", align="left")
    console.print(inspection.describe_prompt(sample, conv, color))
    if loaded is None:
        console.print(
            "\nFor ids and labels pass --tokenizer DIR, a folder with a tokenizer "
            f"(the mini preset's is not there: {MINI_TOKENIZER}).",
            markup=False,
        )
        return
    encoded = inspection.encode_sample(sample, template, loaded)
    console.rule(f"tokens, {tokenizer}", align="left")
    console.print(inspection.describe_tokens(encoded, loaded, color))
