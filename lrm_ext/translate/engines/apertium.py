"""Engine `apertium`: Debian's rule-based translator, offline and deterministic.

It covers few of our languages, French and Italian only via Spanish, and its translations are poor:
use it for tests and demonstrations, not for training data. The pipeline of a pair translates each
segment by itself (null-flush mode).
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lrm_ext.translate.cache import Cache
from lrm_ext.translate.engines.base import (
    EngineError,
    EngineSpec,
    Outcome,
    Reply,
    TextSegment,
    TranslationEngine,
    Usage,
    code_of,
    languages_of,
)

_NAME = "apertium"
_INSTALL = (
    "apt-get install apertium apertium-eng-spa apertium-hbs-eng apertium-fr-es apertium-spa-ita"
)
_MODES = Path("/usr/share/apertium/modes")
_BATCH = 500
_TIMEOUT_S = 120
_SPECIAL = re.compile(r"([\[\]{}^$/\\@<>~])")
_ESCAPED = re.compile(r"\\(.)")
# A blank that every stage passes through; it marks the end of a segment.
_END = "[]"


@dataclass(frozen=True)
class ApertiumOptions:
    """Options of the engine.

    Attributes:
        mark_unknown: Put "*" before words that are not in the dictionary.
    """

    mark_unknown: bool = False


class ApertiumEngine(TranslationEngine):
    """Pipes segments through one mode, or through several in sequence."""

    name = _NAME
    mask_styles = ("angle", "word", "tag")

    def __init__(self, options: ApertiumOptions, source: str, target: str, ledger: Cache) -> None:
        self._modes = code_of(_NAME, target).split()
        self._check_installed(target)
        self.version = _data_version(self._modes)
        self.options = asdict(options)

    def translate(self, segments: Sequence[TextSegment]) -> Iterator[Reply]:
        """Translates a batch; see `TranslationEngine.translate`."""
        for start in range(0, len(segments), _BATCH):
            texts = [segment.text for segment in segments[start : start + _BATCH]]
            for mode in self._modes:
                texts = self._pipe(mode, texts)
            outcomes = tuple(
                Outcome(i, text or None, None if text else "empty answer")
                for i, text in enumerate(texts, start)
            )
            yield Reply(outcomes, Usage(requests=1))

    def _pipe(self, mode: str, texts: Sequence[str]) -> list[str]:
        # the pipeline gives no answer to an empty segment
        kept = [i for i, text in enumerate(texts) if text.strip()]
        stream = "".join(
            _SPECIAL.sub(r"\\\1", texts[i].replace("\0", " ")) + _END + "\0" for i in kept
        )
        unmarked = [] if self.options["mark_unknown"] else ["-u"]
        command = [_NAME, "-z", *unmarked, "-f", "none", mode]
        try:
            process = subprocess.run(
                command, input=stream.encode(), capture_output=True, timeout=_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise EngineError(f"{' '.join(command)}: {error}") from error
        answers = process.stdout.decode("utf-8", "replace").split("\0")[: len(kept)]
        if len(answers) != len(kept) or not all(a.endswith(_END) for a in answers):
            said = process.stderr.decode("utf-8", "replace").strip()[-300:]
            raise EngineError(
                f"{' '.join(command)} ended with code {process.returncode} and {len(answers)} "
                f"answers to {len(kept)} segments. Its error output: {said or 'none'}."
            )
        result = [""] * len(texts)
        for i, answer in zip(kept, answers, strict=True):
            result[i] = _ESCAPED.sub(r"\1", answer[: -len(_END)]).strip()
        return result

    def _check_installed(self, target: str) -> None:
        if shutil.which(_NAME) is None:
            raise EngineError(f"the program {_NAME!r} is not installed: {_INSTALL}")
        missing = [mode for mode in self._modes if not (_MODES / f"{mode}.mode").is_file()]
        if missing:
            raise EngineError(
                f"apertium lacks {', '.join(missing)} (for {target!r}) in {_MODES}: {_INSTALL}"
            )


def _data_version(modes: Sequence[str]) -> str:
    """Returns a digest of the pairs' dictionaries and rules."""
    digest = hashlib.sha256()
    for mode in modes:
        text = (_MODES / f"{mode}.mode").read_text(encoding="utf-8")
        for name in re.findall(r"'([^']+)'", text):
            digest.update(Path(name).read_bytes())
    return digest.hexdigest()[:12]


SPEC = EngineSpec(
    name=_NAME,
    summary="rule-based, offline, deterministic; for tests and demonstrations",
    licence="GPL",
    cost="free; about 1,000 sentences a second on one core",
    options=ApertiumOptions,
    build=ApertiumEngine,
    languages=lambda: languages_of(_NAME),
    install=_INSTALL,
    likely_code=lambda tag, names: f"eng-{names.iso_639_3}",
)
