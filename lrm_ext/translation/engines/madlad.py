"""Engine `madlad`: Google's MADLAD-400, a T5 that reads the language before the text."""

from __future__ import annotations

from dataclasses import dataclass

from lrm_ext.translation.engines.base import EngineSpec, Ledger, code_of, languages_of
from lrm_ext.translation.engines.seq2seq import INSTALL, Naming, Seq2SeqEngine, Seq2SeqOptions

_NAME = "madlad"


@dataclass(frozen=True)
class MadladOptions(Seq2SeqOptions):
    """Options of the engine; larger models: google/madlad400-7b-mt, google/madlad400-10b-mt."""

    model: str = "google/madlad400-3b-mt"


def _build(options: MadladOptions, source: str, target: str, ledger: Ledger) -> Seq2SeqEngine:
    return Seq2SeqEngine(_NAME, options, Naming(prefix=f"<2{code_of(_NAME, target)}>"))


SPEC = EngineSpec(
    name=_NAME,
    summary="MADLAD-400, the widest open licence",
    licence="Apache-2.0",
    cost="GPU time (3 billion parameters)",
    options=MadladOptions,
    build=_build,
    languages=lambda: languages_of(_NAME),
    install=INSTALL,
    likely_code=lambda tag, names: tag,
)
