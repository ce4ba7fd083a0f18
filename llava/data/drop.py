"""Raises or counts when a sample cannot be used.

Role: nothing is left out silently. By default the first bad sample raises; with a rate, bad
samples are counted by reason and language, the counts are shown, and too many raise.
Input: the errors that reading met. Output: a `DropReport`, or a `DataError`.
Non-goals: finding the errors (`sample.py`, `dataset.py`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from llava.data.sample import SampleError
from llava.errors import ConfigError, DataError

UNKNOWN_LANG = "-"
"""Stands in tables for samples that name no language."""


@dataclass
class DropReport:
    """Counts of one data file.

    Attributes:
        read: Samples read, by language.
        dropped: Samples left out, by (reason, language).
        examples: The first error of each reason, as text.
        notes: Other countable remarks, by (what, language).
    """

    read: Counter[str] = field(default_factory=Counter)
    dropped: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    notes: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def num_read(self) -> int:
        """Number of samples read."""
        return self.read.total()

    @property
    def num_dropped(self) -> int:
        """Number of samples left out."""
        return self.dropped.total()

    def table(self) -> str:
        """Returns the counts as text, with a line for each reason and language."""
        num_kept = self.num_read - self.num_dropped
        lines = [f"{self.num_read} samples read, {num_kept} kept, {self.num_dropped} dropped"]
        for (reason, lang), count in sorted(self.dropped.items()):
            share = count / max(self.read[lang], 1)
            lines.append(f"  dropped  {reason:<16} {lang:<4} {count:>8}  ({share:.2%} of it)")
        lines += [
            f"  noted    {what:<16} {lang:<4} {count:>8}"
            for (what, lang), count in sorted(self.notes.items())
        ]
        lines += [f"  e.g. {text}" for _, text in sorted(self.examples.items())]
        return "\n".join(lines)


class DropPolicy:
    """Raises or counts, as `max_drop_rate` says.

    Args:
        max_drop_rate: Share of the samples that may be left out, overall and in each language, so
            that a language with a broken template cannot vanish among the others. 0 raises at the
            first bad sample.

    Raises:
        ConfigError: The rate is not in [0, 1).
    """

    def __init__(self, max_drop_rate: float = 0.0) -> None:
        if not 0.0 <= max_drop_rate < 1.0:
            raise ConfigError(f"max_drop_rate is {max_drop_rate}, expected 0 <= rate < 1.")
        self.max_drop_rate = max_drop_rate
        self.report = DropReport()

    def keep(self, lang: str | None) -> None:
        """Counts a sample that is used."""
        self.report.read[lang or UNKNOWN_LANG] += 1

    def note(self, what: str, lang: str | None) -> None:
        """Counts a remark on a sample that is used."""
        self.report.notes[what, lang or UNKNOWN_LANG] += 1

    def drop(self, error: SampleError) -> None:
        """Counts a sample that cannot be used.

        Raises:
            SampleError: `error`, if no sample may be dropped.
        """
        if self.max_drop_rate == 0.0:
            raise error
        lang = error.lang or UNKNOWN_LANG
        self.report.read[lang] += 1
        self.report.dropped[error.reason, lang] += 1
        self.report.examples.setdefault(error.reason, str(error))

    def finish(self) -> DropReport:
        """Returns the counts.

        Raises:
            DataError: More samples were dropped than allowed, overall or in a language.
        """
        by_lang: Counter[str] = Counter()
        for (_, lang), count in self.report.dropped.items():
            by_lang[lang] += count
        checks = [("all samples", self.report.num_dropped, self.report.num_read)]
        checks += [(f"language {lang}", n, self.report.read[lang]) for lang, n in by_lang.items()]
        for what, dropped, read in checks:
            if read and dropped / read > self.max_drop_rate:
                raise DataError(
                    f"{dropped} of {read} samples ({dropped / read:.1%}) of {what} cannot be used; "
                    f"max_drop_rate allows {self.max_drop_rate:.1%}. Fix the data or raise the "
                    f"rate.\n{self.report.table()}"
                )
        return self.report
