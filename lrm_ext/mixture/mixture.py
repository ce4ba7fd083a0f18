"""The mixture: index i of epoch e is a row, a language, an instruction and a direction.

Input: a `MixtureSpec` and a corpus. Output: draws, as a pure function of (spec, epoch, index): the
same on every worker and rank, resumable at any index. Every English row is drawn once an epoch, or
as often as the spec says of its corpus. The non-English part is laid out in blocks of languages
and, inside those, of instructions, with exact counts; one keyed permutation shuffles the whole,
another the rows of a language.

All languages walk through the same permutation of their rows, each from where the one before it
ends. So where all rows have text in all languages and the ratio is 1, every English row gets
exactly one twin (how we read the paper); no language repeats a row before it has seen all of its
rows, over epochs too; and a row's twin is in another language each epoch.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llava.data.sample import Sample
from llava.errors import ConfigError
from lrm_ext.corpus.store import AnyCorpus, Corpus, JoinedCorpus, ShiftedRows, parts_of
from lrm_ext.instructions.instruction import ENGLISH
from lrm_ext.instructions.registry import get_instruction
from lrm_ext.mixture.counts import apportion_table, halves
from lrm_ext.mixture.permutation import Permutation
from lrm_ext.mixture.plan import ORDER_STREAM, Block, EnglishPlan, LanguagePlan
from lrm_ext.mixture.spec import MixtureSpec

if TYPE_CHECKING:
    from lrm_ext.mixture.table import TableRow

PLAIN_INSTRUCTION = "mvqa"
# at an epoch's border a loader is ahead of what is learnt
_EPOCHS_KEPT = 4


@dataclass(frozen=True)
class Draw:
    """What sample an index stands for.

    Attributes:
        row: Row number in the corpus.
        lang: The non-English language, or "en" for a plain English sample.
        instruction: Name of the instruction.
        direction: "to_en" or "from_en" for BVQA, else None.
    """

    row: int
    lang: str
    instruction: str
    direction: str | None = None


@dataclass(frozen=True)
class Cell:
    """One language, instruction and direction: `count` positions from `start`."""

    block: Block
    instruction: str
    direction: str | None
    start: int
    count: int


class Layout:
    """An epoch: its order, and what lies where before it is shuffled.

    Args:
        order: From index to position; English comes first, then the other languages.
        english: Blocks of the English part, from position 0.
        others: Blocks of the non-English part, from position 0 of that.
        spec: Gives the shares of the instructions.
    """

    def __init__(
        self, order: Permutation, english: list[Block], others: list[Block], spec: MixtureSpec
    ) -> None:
        self.order = order
        self.english = english
        self.others = others
        self.cells = _cells(others, spec)
        self._english_starts = [block.start for block in english]
        self._starts = [cell.start for cell in self.cells]

    def english_draw(self, position: int) -> Draw:
        """The draw at a position of the English part."""
        block = self.english[bisect_right(self._english_starts, position) - 1]
        return Draw(block.row(position), ENGLISH, PLAIN_INSTRUCTION)

    def draw(self, position: int) -> Draw:
        """The draw at a position of the non-English part."""
        cell = self.cells[bisect_right(self._starts, position) - 1]
        block = cell.block
        return Draw(block.row(position), block.lang, cell.instruction, cell.direction)


class Mixture:
    """A mixture spec applied to a corpus.

    Args:
        spec: What to mix.
        corpus: What to mix it from; several corpora are joined in the order of the spec.

    Raises:
        ConfigError: The corpus is empty, has no usable text in a language that is asked for, or is
            none of those that the spec names.

    Example:
        >>> mixture = Mixture(MixtureSpec.from_toml("mixture.toml"), Corpus.open("corpus"))
        >>> mixture.draw(7, epoch=0)
        Draw(row=12, lang='hr', instruction='bvqa', direction='to_en')
    """

    def __init__(self, spec: MixtureSpec, corpus: AnyCorpus) -> None:
        self.spec = spec
        self.corpus = corpus
        parts = parts_of(corpus)
        if spec.corpora and len(spec.corpora) != len(parts):
            raise ConfigError(
                f"the mixture names {len(spec.corpora)} corpora, but is applied to {len(parts)}; "
                "leave [[corpora]] out to choose another corpus."
            )
        if empty := [str(part.path) for part in parts if not len(part)]:
            raise ConfigError(f"{', '.join(empty)}: the corpus has no rows; nothing can be mixed.")
        english = EnglishPlan(spec, [len(part) for part in parts])
        self.num_english = sum(english.counts)
        self.num_non_english = spec.num_non_english(self.num_english)
        self._english = english
        self._others: LanguagePlan | None = None
        if self.num_non_english:
            languages = tuple(spec.languages_in(corpus.languages))
            rows = self._usable_rows(languages)
            self._others = LanguagePlan(spec, self.num_non_english, rows, english.times)
        self._layouts: OrderedDict[int, Layout] = OrderedDict()

    @property
    def left_out(self) -> tuple[str, ...]:
        """Languages of the corpus that the spec's `languages` do not name."""
        if not self.spec.languages:
            return ()
        taken = {ENGLISH, *self.spec.languages}
        return tuple(lang for lang in self.corpus.languages if lang not in taken)

    @classmethod
    def open(
        cls, spec: MixtureSpec, corpus: Corpus | None = None, image_root: str | None = None
    ) -> Mixture:
        """Apply a spec to the corpora that it names, or to the one that is given.

        Args:
            spec: What to mix.
            corpus: The corpus, if the spec names none.
            image_root: Where the pictures of the spec's corpora are, if not where those say.

        Raises:
            ConfigError: Both name a corpus, or none does; or as for the class.
            DataError: A folder is not a corpus.
        """
        if spec.corpora and corpus is not None:
            named = ", ".join(str(share.path) for share in spec.corpora)
            raise ConfigError(
                f"the mixture names its corpora ({named}), and {corpus.path} was given, too; leave "
                "one of them out."
            )
        if corpus is not None:
            return cls(spec, corpus)
        if not spec.corpora:
            raise ConfigError("no corpus: give one, or name them in the mixture ([[corpora]]).")
        parts = [Corpus.open(share.path, image_root) for share in spec.corpora]
        return cls(spec, parts[0] if len(parts) == 1 else JoinedCorpus(parts))

    def __len__(self) -> int:
        """Samples an epoch."""
        return self.num_english + self.num_non_english

    def __reduce__(self) -> tuple[type[Mixture], tuple[MixtureSpec, AnyCorpus]]:
        # Row lists are opened again in a worker instead of being sent there.
        return (Mixture, (self.spec, self.corpus))

    def layout(self, epoch: int = 0) -> Layout:
        """What lies where in an epoch."""
        layout = self._layouts.get(epoch)
        if layout is None:
            order = Permutation(len(self), (self.spec.seed, ORDER_STREAM, epoch))
            others = self._others.blocks(epoch) if self._others is not None else []
            layout = Layout(order, self._english.blocks(epoch), others, self.spec)
            self._layouts[epoch] = layout
            if len(self._layouts) > _EPOCHS_KEPT:
                self._layouts.popitem(last=False)
        return layout

    def draw(self, index: int, epoch: int = 0) -> Draw:
        """What sample `index` of an epoch is.

        Raises:
            IndexError: The index is not in 0 .. len - 1.
        """
        layout = self._layouts.get(epoch) or self.layout(epoch)
        position = layout.order[index]
        if position < self.num_english:
            return layout.english_draw(position)
        return layout.draw(position - self.num_english)

    def sample(self, index: int, epoch: int = 0) -> Sample:
        """The formatted sample that `index` of an epoch stands for."""
        return self.make_sample(self.draw(index, epoch))

    def make_sample(self, draw: Draw) -> Sample:
        """Fetch a draw's row and format it by its instruction."""
        row = self.corpus.row(draw.row)
        turns = row.turns if draw.lang == ENGLISH else self.corpus.turns(draw.lang, draw.row)
        instruction = get_instruction(draw.instruction)
        return instruction.format(row, turns, draw.lang, draw.direction)

    def table(
        self, count_tokens: Callable[[Sample], int] | None = None, num_measured: int = 100
    ) -> list[TableRow]:
        """What an epoch consists of, per language and instruction; see `table.make_table`."""
        from lrm_ext.mixture.table import make_table

        return make_table(self, count_tokens, num_measured)

    def _usable_rows(self, languages: tuple[str, ...]) -> dict[str, list[Sequence[int]]]:
        """Rows of each language, by corpus; a language without any is an error with all counts."""
        rows: dict[str, list[Sequence[int]]] = {lang: [] for lang in languages}
        start = 0
        for part in parts_of(self.corpus):
            for lang in languages:
                own = part.usable(lang) if lang in part.languages else ()
                rows[lang].append(ShiftedRows(own, start) if start else own)
            start += len(part)
        counts = {lang: sum(map(len, parts)) for lang, parts in rows.items()}
        empty = [lang for lang, count in counts.items() if not count]
        if empty or not languages:
            listed = ", ".join(f"{lang} {count}" for lang, count in counts.items()) or "none"
            raise ConfigError(
                f"{self.corpus.path}: no usable text in {', '.join(empty) or 'any other language'}"
                f", but {self.num_non_english} non-English samples are asked for. Usable rows "
                f"(accepted text, translatable) of {start}: {listed}. Translate the corpus, take "
                "the language out of the mixture, or set non_english_ratio = 0."
            )
        return rows


def _cells(blocks: Sequence[Block], spec: MixtureSpec) -> tuple[Cell, ...]:
    """Lay the instructions out inside the blocks; some cells may be empty."""
    names = tuple(spec.instructions)
    counts = apportion_table([block.count for block in blocks], tuple(spec.instructions.values()))
    split = {
        name: halves([row[i] for row in counts])
        for i, name in enumerate(names)
        if get_instruction(name).directions
    }
    cells: list[Cell] = []
    start = 0
    for b, block in enumerate(blocks):
        for i, name in enumerate(names):
            directions = get_instruction(name).directions or (None,)
            sizes = split[name][b] if name in split else (counts[b][i],)
            for direction, size in zip(directions, sizes, strict=True):
                cells.append(Cell(block, name, direction, start, size))
                start += size
    return tuple(cells)
