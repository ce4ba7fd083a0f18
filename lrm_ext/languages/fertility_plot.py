"""Draws tokens relative to English, language by language (`lrm languages fertility --out`).

In: results of `fertility.measure`. Out: a picture that reads the same without colours: tokenizers
differ in shade and hatching, every bar has its number, languages are named in words.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lrm_ext.files import save_figure
from lrm_ext.languages.fertility import Fertility
from lrm_ext.languages.registry import get_language

_SHADES = ("#4d4d4d", "#c6c6c6", "#8c8c8c", "#ededed")
_HATCHES = ("", "///", "...", "xxx")
MAX_TOKENIZERS = len(_SHADES)
ENDINGS = (".png", ".svg", ".pdf")
_BAR_HEIGHT_IN = 0.24
_LEGEND_CHARACTERS = 60  # names that lie side by side
_ON_WHITE = {"facecolor": "white", "edgecolor": "none", "pad": 1}
_GAP = 0.25  # between languages, of the place of one


def plot_fertility(results: Sequence[Fertility], out: Path) -> None:
    """Draw bars, one for each language and tokenizer.

    Args:
        results: At most `MAX_TOKENIZERS` tokenizers, with the same languages.
        out: The picture; its name ends in one of `ENDINGS`.
    """
    from matplotlib.figure import Figure

    tokenizers = list(dict.fromkeys(result.tokenizer for result in results))
    languages = list(dict.fromkeys(result.lang for result in results))
    values = {(result.tokenizer, result.lang): result.relative for result in results}
    height = (1 - _GAP) / len(tokenizers)
    size = len(languages) * len(tokenizers) * _BAR_HEIGHT_IN / (1 - _GAP)
    figure = Figure(figsize=(8, 1.6 + size), layout="constrained")
    axes = figure.add_subplot()
    for number, name in enumerate(tokenizers):
        offset = (number - (len(tokenizers) - 1) / 2) * height
        bars = axes.barh(
            [place + offset for place in range(len(languages))],
            [values[name, lang] for lang in languages],
            height,
            color=_SHADES[number],
            hatch=_HATCHES[number],
            edgecolor="black",
            linewidth=0.6,
            label=name,
        )
        # on white: near 1 the line would run through the figures
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=9, bbox=_ON_WHITE, zorder=3)
    axes.axvline(1.0, color="black", linestyle="--", linewidth=1, zorder=0)
    axes.set_yticks(range(len(languages)), [get_language(lang).name for lang in languages])
    axes.invert_yaxis()
    axes.margins(y=0.02)
    axes.set_xlim(0, 1.12 * max(values.values()))
    axes.set_xlabel("tokens for the same sentences, English = 1")
    axes.spines[["top", "right"]].set_visible(False)
    title = "Tokens that a language needs"
    if len(tokenizers) == 1:
        axes.set_title(f"{title}: tokenizer {tokenizers[0]}", loc="left")
    else:
        axes.set_title(title, loc="left")
        fits = sum(map(len, tokenizers)) < _LEGEND_CHARACTERS
        columns = len(tokenizers) if fits else 1
        figure.legend(title="tokenizer", loc="outside lower center", ncols=columns)
    save_figure(figure, out, dpi=120)
