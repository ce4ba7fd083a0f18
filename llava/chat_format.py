"""Writes conversations with a tokenizer's own chat template, and finds each answer in the text.

Role: the chat template is a Jinja program, so where it puts a turn is not known from its source.
It is run once with a mark in place of each turn, which shows the pieces of text between the turns;
they depend on the number of turns and the system text only. A conversation's own text is compared
with pieces and turns, so a template that drops, moves or changes a turn is an error and never a
wrong label. Nothing is tokenised here.
Input: a tokenizer, texts. Output: segments of text, as `llava.conversation` has them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import lru_cache
from typing import Any, Final, NamedTuple

from llava.errors import TemplateError

ROLES: Final = ("user", "assistant")
FIXED_DAY: Final = date(2024, 7, 26)
"""The day that templates with a date are told, so that a prompt is the same on every day. It is the
one that Llama 3.1's template has where none is given."""

_CALL_OF_DATE = re.compile(r"""\bstrftime_now\(\s*(["'])([^"'\\]*)\1\s*\)""")
_ANY_CALL_OF_DATE = re.compile(r"\bstrftime_now\s*\(")
# characters of the private use area, which no template writes or trims
_MARK = "\ue000{}\ue001"
_WHAT_TO_DO = (
    "Name another template with --version (docs/training.md has a table), or correct the "
    "tokenizer's chat template."
)


class ChatPiece(NamedTuple):
    """A piece of a written conversation; see `llava.conversation.PromptSegment`."""

    text: str
    message: int | None
    is_body: bool


class _Frame(NamedTuple):
    """What a template writes around the turns.

    Attributes:
        pieces: Text before each turn, and after the last one; one more than turns.
        bodies: For each turn: how many characters before and after it are learnt with it.
    """

    pieces: tuple[str, ...]
    bodies: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class ChatFormat:
    """A tokenizer's chat template, with what it takes from the tokenizer.

    Attributes:
        source: The Jinja source; calls for today's date are replaced by `FIXED_DAY`.
        special_tokens: Names and texts of the special tokens, such as `("eos_token", "</s>")`.
        bos: What the tokenizer itself writes before a text; it is removed from the template's text.
            Empty if it writes nothing, as where the template does not begin with BOS
            (`apply_to`). Older checkpoints may have one that their template does not write.
    """

    source: str
    special_tokens: tuple[tuple[str, str], ...] = ()
    bos: str = ""

    @classmethod
    def of_tokenizer(cls, tokenizer: Any) -> ChatFormat:
        """Takes the template of a tokenizer, and checks that training can use it.

        From then on the tokenizer adds no BOS that the template does not write, as its
        `apply_chat_template` adds none.

        Raises:
            TemplateError: There is none, or it does not write every turn as it is, once, in order,
                with an end after each answer and a beginning before it that it can be asked with.
        """
        if not getattr(tokenizer, "chat_template", None):
            where = getattr(tokenizer, "name_or_path", "") or "of this model"
            raise TemplateError(
                f"The tokenizer {where} has no chat template, which --version auto uses: it may be "
                "that of a base model and not of its chat (instruct) version. Name a template with "
                "--version (docs/training.md has a table), or put a chat_template.jinja beside the "
                "tokenizer."
            )
        try:
            source = tokenizer.get_chat_template()
        except ValueError as error:  # it has several by name, and none is the default
            raise TemplateError(f"The tokenizer's chat template: {error}. {_WHAT_TO_DO}") from None
        source = _CALL_OF_DATE.sub(lambda call: repr(FIXED_DAY.strftime(call[2])), source)
        if _ANY_CALL_OF_DATE.search(source):
            raise TemplateError(
                "The chat template asks for today's date in a way that cannot be replaced by a "
                f"fixed day, so prompts would change from day to day. {_WHAT_TO_DO}"
            )
        tokens = tokenizer.special_tokens_map.items()
        found = cls(source, tuple((name, text) for name, text in tokens if isinstance(text, str)))
        if _adds_bos(tokenizer):
            text, _ = found._write("", ("a",), True)
            found = replace(found, bos=tokenizer.bos_token * text.startswith(tokenizer.bos_token))
        found.check()
        found.apply_to(tokenizer)
        return found

    @classmethod
    def from_dict(cls, data: Any) -> ChatFormat:
        """Reads what `to_dict` wrote.

        Raises:
            TemplateError: A key is missing or unknown, or a value is of another type.
        """
        types = {"source": str, "special_tokens": Mapping, "bos": str}
        if (
            not isinstance(data, Mapping)
            or data.keys() != types.keys()
            or not all(isinstance(data[key], of) for key, of in types.items())
        ):
            raise TemplateError(
                f"The stored chat template is {str(data)[:200]!r}; expected the keys "
                f"{', '.join(types)}: two texts, and an object of texts."
            )
        return cls(data["source"], tuple(data["special_tokens"].items()), data["bos"])

    def apply_to(self, tokenizer: Any) -> None:
        """Stops a tokenizer from adding a BOS that the model was not trained with."""
        if not self.bos and _adds_bos(tokenizer):
            tokenizer.add_bos_token = False

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for `config.json`."""
        tokens = dict(self.special_tokens)
        return {"source": self.source, "special_tokens": tokens, "bos": self.bos}

    @property
    def terminator(self) -> str:
        """What ends an answer; blanks around it do not belong to it."""
        after = _frame(self, "", 2, False).pieces[-1]
        return after.strip() or after

    @property
    def takes_system(self) -> bool:
        """Whether the template writes a system text, once and unchanged."""
        return _takes_system(self)

    def check(self) -> None:
        """Writes conversations of one to three rounds.

        Raises:
            TemplateError: See `of_tokenizer`.
        """
        texts = ("<image>\nWhy 1 < 2 & so?", 'It\'s "so".', "{{ 1 }}", "Čaj, 茶.", "And?", "No.")
        for system in ("", "Answer briefly.") if self.takes_system else ("",):
            for end in range(1, len(texts) + 1):
                self._match(system, texts[:end], is_open=end % 2 == 1)

    def split(self, system: str, texts: Sequence[str | None]) -> list[ChatPiece]:
        """Returns the pieces of a conversation; concatenated they are its text.

        A turn whose blanks at its ends the template trims is found without them. A conversation
        whose last answer is missing is written to be asked, so there the template may change turns
        (it may leave thoughts out); then the whole text is one piece.

        Args:
            system: System text; empty for the template's own, if it has one.
            texts: What user and assistant say by turns. Without a last answer (None or empty) the
                text ends where the answer begins.

        Raises:
            TemplateError: The template refuses the conversation, or a turn is not in its text.
        """
        if not texts:
            return []
        is_open = len(texts) % 2 == 0 and not texts[-1]
        said = [text or "" for text in (texts[:-1] if is_open else texts)]
        if system and not self.takes_system:
            raise TemplateError(
                "The chat template takes no system text: leave it out, or write it into the "
                "first question."
            )
        try:
            return self._match(system, said, is_open)
        except TemplateError:
            if not is_open:
                raise
        return [ChatPiece(self._write(system, said, is_open)[0], None, False)]

    def _match(self, system: str, said: Sequence[str], is_open: bool) -> list[ChatPiece]:
        """Writes a conversation and finds its turns.

        Raises:
            TemplateError: See `split`.
        """
        frame = _frame(self, system, len(said), is_open)
        rest, _ = self._write(system, said, is_open)
        pieces: list[ChatPiece] = []
        tail = 0
        for i, (text, before, after) in enumerate(
            zip(said, frame.pieces, frame.pieces[1:], strict=False)
        ):
            found = next(
                (each for each in _trimmed(text) if rest.startswith(before + each + after)), None
            )
            if found is None:
                # if the turn is there, what follows it is wrong: the next turn has changed that
                is_there = any(rest.startswith(before + each) for each in _trimmed(text))
                changed = min(i + is_there, len(said) - 1)
                raise TemplateError(
                    f"The chat template does not write turn {changed + 1} as it is: the turn is "
                    f"{said[changed][:80]!r}, the template writes {rest[len(before) :][:160]!r}. "
                    "A turn may hold what the template treats specially, such as </think>. "
                    f"{_WHAT_TO_DO}"
                )
            lead, next_tail = frame.bodies[i]
            cut = len(before) - lead
            pieces.append(ChatPiece(before[tail:cut], i, False))
            pieces.append(ChatPiece(before[cut:] + found + after[:next_tail], i, True))
            rest, tail = rest[len(before) + len(found) :], next_tail
        last = frame.pieces[-1]
        if rest != last:
            raise TemplateError(
                f"The chat template ends this conversation with {rest[-80:]!r}; expected {last!r}, "
                f"as after other turns. {_WHAT_TO_DO}"
            )
        pieces.append(ChatPiece(last[tail:], len(said) if is_open else None, False))
        return pieces

    def _write(
        self, system: str, texts: Sequence[str], is_open: bool
    ) -> tuple[str, list[tuple[int, int]]]:
        """Runs the template; returns its text and the ranges between its generation marks."""
        from transformers.utils.chat_template_utils import render_jinja_template

        turns = [{"role": ROLES[i % 2], "content": text} for i, text in enumerate(texts)]
        if system:
            turns.insert(0, {"role": "system", "content": system})
        render: Any = render_jinja_template  # its annotation says that it returns one text
        try:
            (text,), ranges = render(
                [turns],
                chat_template=self.source,
                return_assistant_tokens_mask=self._has_marks,
                add_generation_prompt=is_open,
                enable_thinking=False,
                **dict(self.special_tokens),
            )
        except Exception as error:  # a Jinja program may raise anything
            roles = ["system"] * bool(system) + [ROLES[i % 2] for i in range(len(texts))]
            shown = ", ".join(roles[:3]) + ", ..." * (len(roles) > 3)
            raise TemplateError(
                f"The chat template refuses a conversation of {shown}: {error}. {_WHAT_TO_DO}"
            ) from None
        num_bos = len(self.bos) if self.bos and text.startswith(self.bos) else 0
        found = [(start - num_bos, end - num_bos) for start, end in (ranges[0] if ranges else ())]
        return text[num_bos:], found

    @property
    def _has_marks(self) -> bool:
        return re.search(r"\{%-?\s*generation\s*-?%\}", self.source) is not None


def _adds_bos(tokenizer: Any) -> bool:
    """Tells whether a tokenizer adds BOS to a text."""
    return bool(tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id])


def _trimmed(text: str) -> Iterator[str]:
    """Yields a text as it is, and without blanks at its ends."""
    yield text
    yield text.strip()
    yield text.lstrip()
    yield text.rstrip()
    yield text.lstrip("\n")


@lru_cache(maxsize=64)
def _takes_system(chat: ChatFormat) -> bool:
    mark = _MARK.format("system")
    turns = ["a", "b", "a", "b"]
    try:
        # both what a model is asked with and what it is trained with: some templates (Mistral's)
        # write it into the last question if no answer follows, and else nowhere
        texts = [chat._write(mark, turns[:end], bool(end % 2))[0] for end in range(1, 5)]
    except TemplateError:
        return False
    return all(text.count(mark) == 1 for text in texts)


@lru_cache(maxsize=512)
def _frame(chat: ChatFormat, system: str, num_turns: int, is_open: bool) -> _Frame:
    """Finds what a template writes around the turns.

    Raises:
        TemplateError: A turn is not written, or an answer has no end or no beginning.
    """
    marks = [_MARK.format(i) for i in range(num_turns)]
    text, ranges = chat._write(system, marks, is_open)
    pieces, start = [], 0
    for i, mark in enumerate(marks):
        place = text.find(mark, start)
        if place < 0 or text.count(mark) != 1:
            raise TemplateError(
                f"The chat template writes turn {i + 1} of {num_turns} {text.count(mark)} times "
                f"or not in its place; expected each turn once, in order. {_WHAT_TO_DO}"
            )
        pieces.append(text[start:place])
        start = place + len(mark)
    pieces.append(text[start:])
    bodies = [(0, 0)] * num_turns
    if num_turns and not num_turns % 2:
        lead = _check_beginning(chat, system, marks, text[: text.index(marks[-1])])
        bodies = _bodies_by_end(pieces, lead)
        if chat._has_marks:
            bodies = _bodies_by_marks(text, marks, ranges)
    return _Frame(tuple(pieces), tuple(bodies))


def _check_beginning(chat: ChatFormat, system: str, marks: Sequence[str], before: str) -> str:
    """Returns the blanks between what a question ends with and its answer.

    Raises:
        TemplateError: The text before the last answer is not the one that the model is asked with.
    """
    asked, _ = chat._write(system, marks[:-1], True)
    blanks = before.removeprefix(asked)
    if not before.startswith(asked) or blanks.strip():
        raise TemplateError(
            f"The chat template asks for an answer with {asked[-60:]!r}, but writes "
            f"{before[-60:]!r} before one, so a model would be asked in another format than it is "
            f"trained in. {_WHAT_TO_DO}"
        )
    return blanks


def _bodies_by_end(pieces: Sequence[str], blanks: str) -> list[tuple[int, int]]:
    """Counts the characters around each answer that are learnt: blanks before it, and its end."""
    after = pieces[-1]
    end = after.strip() or after
    bodies = []
    for i in range(len(pieces) - 1):
        if i % 2 == 0:
            bodies.append((0, 0))
            continue
        before, after = pieces[i], pieces[i + 1]
        place = after.find(end)
        if not end or place < 0 or (after[:place].strip()):
            raise TemplateError(
                f"The chat template writes {after[:60]!r} after answer {i // 2 + 1}; expected its "
                f"end, {end!r}, which is what a model learns to stop with. {_WHAT_TO_DO}"
            )
        bodies.append((len(blanks) if before.endswith(blanks) else 0, place + len(end)))
    return bodies


def _bodies_by_marks(
    text: str, marks: Sequence[str], ranges: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Counts the same by the template's `{% generation %}` marks."""
    bodies = [(0, 0)] * len(marks)
    for i, mark in list(enumerate(marks))[1::2]:
        place = text.index(mark)
        around = [(s, e) for s, e in ranges if s <= place and place + len(mark) <= e]
        if len(around) != 1:
            raise TemplateError(
                f"Answer {i // 2 + 1} of {len(marks) // 2} is not between the chat template's "
                f"generation marks, so nothing would be learnt from it. {_WHAT_TO_DO}"
            )
        ((start, end),) = around
        bodies[i] = place - start, end - place - len(mark)
    return bodies
