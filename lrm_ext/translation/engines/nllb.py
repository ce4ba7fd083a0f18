"""Engine `nllb`: Meta's NLLB-200, 200 languages in one model; not for commercial use."""

from __future__ import annotations

from dataclasses import dataclass

from lrm_ext.languages.tags import nllb_codes
from lrm_ext.translation.engines.base import EngineSpec, Ledger, code_of, languages_of
from lrm_ext.translation.engines.seq2seq import INSTALL, Naming, Seq2SeqEngine, Seq2SeqOptions

_NAME = "nllb"


@dataclass(frozen=True)
class NllbOptions(Seq2SeqOptions):
    """Options of the engine; larger models: facebook/nllb-200-distilled-1.3B, nllb-200-3.3B."""

    model: str = "facebook/nllb-200-distilled-600M"


def _build(options: NllbOptions, source: str, target: str, ledger: Ledger) -> Seq2SeqEngine:
    naming = Naming(source=code_of(_NAME, source), first=code_of(_NAME, target))
    return Seq2SeqEngine(_NAME, options, naming)


SPEC = EngineSpec(
    name=_NAME,
    summary="NLLB-200, a sentence model",
    licence="CC-BY-NC-4.0: not for commercial use",
    cost="GPU or CPU time",
    options=NllbOptions,
    build=_build,
    languages=lambda: languages_of(_NAME),
    install=INSTALL,
    likely_code=lambda tag, names: f"{names.iso_639_3}_{names.script}",
    known_codes=nllb_codes,
)
