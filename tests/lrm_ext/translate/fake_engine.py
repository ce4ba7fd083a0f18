"""An engine whose answers a test decides."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from lrm_ext.translate.engines.base import OptionValue, Outcome, Reply, TextSegment
from lrm_ext.translate.protect import STYLES


class FakeEngine:
    """Answers each segment by a function of its text; what it was asked is in `asked`."""

    version = "1"
    options: Mapping[str, OptionValue] = {}
    is_table = False

    def __init__(
        self,
        answer: Callable[[str], str | None],
        name: str = "fake",
        context: str = "none",
        mask_styles: Sequence[str] = tuple(STYLES),
        is_sentence_level: bool = False,
    ) -> None:
        self.name = name
        self.context = context
        self.mask_styles = tuple(mask_styles)
        self.is_sentence_level = is_sentence_level
        self.answer = answer
        self.asked: list[TextSegment] = []

    def translate(self, segments: Sequence[TextSegment]) -> Iterator[Reply]:
        self.asked += segments
        for i, segment in enumerate(segments):
            text = self.answer(segment.text)
            yield Reply((Outcome(i, text, None if text else "refused"),))

    def close(self) -> None:
        pass
