"""Engine `m2m100`: Meta's M2M100, 100 languages in one model; older than NLLB, and MIT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lrm_ext.languages.tags import m2m100_codes
from lrm_ext.translation.engines.base import EngineSpec, Ledger, code_of, languages_of
from lrm_ext.translation.engines.seq2seq import INSTALL, Naming, Seq2SeqEngine, Seq2SeqOptions

_NAME = "m2m100"


@dataclass(frozen=True)
class M2M100Options(Seq2SeqOptions):
    """Options of the engine; the larger model is facebook/m2m100_1.2B."""

    ct2_fault: ClassVar[str] = (
        "Under transformers 5 its converter misses the languages of M2M100, which it looks for "
        "among additional_special_tokens"
    )

    model: str = "facebook/m2m100_418M"


def _build(options: M2M100Options, source: str, target: str, ledger: Ledger) -> Seq2SeqEngine:
    naming = Naming(source=code_of(_NAME, source), first=f"__{code_of(_NAME, target)}__")
    return Seq2SeqEngine(_NAME, options, naming)


SPEC = EngineSpec(
    name=_NAME,
    summary="M2M100, a sentence model; older, invents more",
    licence="MIT",
    cost="GPU or CPU time",
    options=M2M100Options,
    build=_build,
    languages=lambda: languages_of(_NAME),
    install=INSTALL,
    likely_code=lambda tag, names: tag,
    known_codes=m2m100_codes,
)
