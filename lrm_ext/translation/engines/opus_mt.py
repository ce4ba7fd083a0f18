"""Engine `opus-mt`: Helsinki-NLP's small models, one a language or group; they run on a CPU.

The language files name the model of each and, after a blank, the tag that a model of several
languages is given before the text: `Helsinki-NLP/opus-mt-tc-base-en-sh >>hrv<<`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from lrm_ext.translation.engines.base import EngineSpec, Ledger, code_of, languages_of
from lrm_ext.translation.engines.seq2seq import INSTALL, Naming, Seq2SeqEngine, Seq2SeqOptions

_NAME = "opus-mt"


@dataclass(frozen=True)
class OpusOptions(Seq2SeqOptions):
    """Options of the engine; without `model` the language file's, which may end with a tag."""

    model: str = ""


def _build(options: OpusOptions, source: str, target: str, ledger: Ledger) -> Seq2SeqEngine:
    model, _, tag = (options.model or code_of(_NAME, target)).partition(" >>")
    naming = Naming(prefix=f">>{tag}" if tag else "")
    return Seq2SeqEngine(_NAME, replace(options, model=model), naming)


SPEC = EngineSpec(
    name=_NAME,
    summary="Opus-MT, a small model for each language",
    licence="by model: Apache-2.0 or CC-BY-4.0",
    cost="CPU or GPU time",
    options=OpusOptions,
    build=_build,
    languages=lambda: languages_of(_NAME),
    install=INSTALL,
    likely_code=lambda tag, names: f"Helsinki-NLP/opus-mt-en-{tag}",
)
