"""The tables of docs/towers.md are those of the code."""

from pathlib import Path

from llava.model.multimodal_encoder.families import DEVIATIONS, FAMILIES

PAGE = Path(__file__).parents[3] / "docs" / "towers.md"


def code(names):
    return ", ".join(f"`{name}`" for name in names)


def family_row(family):
    before = [f"{family.num_class_tokens} class token"] if family.num_class_tokens else []
    before += [f"`{family.registers_key}`"] if family.registers_key else []
    size = "image processor" if family.any_size else "`image_size`"
    cells = (family.name, code(family.model_types), f"`{family.example}`",
             ", ".join(before) or "nothing", size)  # fmt: skip
    return f"| {' | '.join(cells)} |"


def deviation_row(each):
    what = {
        (1, 0): "leaves out the first patch",
        (0, 1): "lacks the last layer; features are the output of the one before it",
    }[each.num_dropped, each.num_cut_layers]
    return f"| {each.checkpoints} | {code(each.names)} | {each.family} | {what} |"


def rows_after(header):
    lines = PAGE.read_text(encoding="utf-8").split(header, 1)[1].splitlines()[2:]
    return lines[: lines.index("")]


def test_kinds():
    header = "| Kind | `model_type` | Example | Before the patches | Size of an image |"
    assert rows_after(header) == [family_row(family) for family in FAMILIES]


def test_deviations():
    header = "| Checkpoints | by | Tower | What is reproduced |"
    assert rows_after(header) == [deviation_row(each) for each in DEVIATIONS]
