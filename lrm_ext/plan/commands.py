"""`lrm plan`: estimates what a preset needs before it runs."""

from __future__ import annotations

import json

import typer
from rich.console import Console

app = typer.Typer()


@app.command("plan", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def plan(
    context: typer.Context,
    preset: str = typer.Option("vicuna-13b", help="A preset of scripts/v1_5/presets/."),
    gpus: int = typer.Option(8, min=0, help="Number of GPUs in total; 0 plans for a CPU."),
    gpu: str = typer.Option("a800-80g", help="Type of GPU; an unknown name lists the choices."),
    samples: int | None = typer.Option(
        None, min=1, help="Samples of each stage; default: the preset's corpus, else the paper's."
    ),
    text_tokens: float | None = typer.Option(
        None, min=1, help="Mean text tokens of a sample; default: measured in the corpus."
    ),
    supervised_tokens: float | None = typer.Option(
        None, min=0, help="Mean supervised tokens; default: measured, else all text tokens."
    ),
    mfu: float | None = typer.Option(
        None, help="Model FLOPs utilization; default: what others report (gpus.json)."
    ),
    price: float | None = typer.Option(None, min=0, help="Price of a GPU hour, in any currency."),
    hours: float | None = typer.Option(
        None, help="Hours that a run took, both stages: print what they imply."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print the plan as JSON."),
) -> None:
    """Plan a preset: memory by part, largest batch, operations, hours and money.

    Flags of training after `--` win over the preset's: `lrm plan --preset vicuna-7b --
    --per_device_train_batch_size 8 --deepspeed scripts/zero3.json`.
    """
    from lrm_ext.plan.plan import Wishes, as_dict, make_plan, render

    wishes = Wishes(samples, text_tokens, supervised_tokens, mfu, price, hours)
    made = make_plan(preset, gpus, gpu, wishes, tuple(context.args))
    console = Console(highlight=False, soft_wrap=as_json)
    if as_json:
        console.print(json.dumps(as_dict(made), indent=1), markup=False)
        return
    for part in render(made):
        console.print(part, markup=False)
