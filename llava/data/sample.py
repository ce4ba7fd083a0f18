"""The two core types, a turn and a sample, and their way from and to LLaVA's JSON.

Role: a record is checked once, here; whatever holds a `Sample` may rely on it.
Input: one decoded JSON object and where it stands. Output: a frozen `Sample`.
Non-goals: reading files (`dataset.py`), templates (`render.py`), opening pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.errors import DataError

ROLES: Final = ("human", "gpt")


class SampleError(DataError):
    """A record that cannot become a sample.

    Attributes:
        reason: A short, countable name of what is wrong, such as `turn_order`.
        lang: The record's language where it is known.
    """

    def __init__(self, message: str, reason: str, lang: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.lang = lang

    def __reduce__(self) -> tuple[Any, ...]:
        # A loader's worker process pickles what it raises.
        return type(self), (str(self), self.reason, self.lang)


@dataclass(frozen=True)
class Turn:
    """One message of a conversation.

    Attributes:
        role: `human` or `gpt`.
        text: What is said; `<image>` stands where the picture goes.
        supervised: Whether the answer counts in the loss. It means nothing for `human`.
    """

    role: str
    text: str
    supervised: bool = True


@dataclass(frozen=True)
class Sample:
    """One training sample: a conversation about at most one picture.

    Attributes:
        id: Name of the sample, for messages.
        image: Path of the picture below the image folder, or None for text only.
        turns: The conversation, `human` first and alternating.
        lang: Language code of the answers.
        task: What kind of question it is.
        source: Data set that it comes from.
        instruction: Task instruction that shaped it.
    """

    id: str
    image: str | None
    turns: tuple[Turn, ...]
    lang: str | None = None
    task: str | None = None
    source: str | None = None
    instruction: str | None = None

    @classmethod
    def from_record(cls, record: Mapping[str, Any], where: str) -> Sample:
        """Check one LLaVA record.

        Args:
            record: `{"id", "image"?, "conversations": [{"from", "value"}, ...]}`; also read are
                `lang`, `task`, `source`, `instruction` and, in a turn, `supervised`.
            where: `file:line` of the record, for messages.

        Returns:
            The sample. One `gpt` turn before the first `human` turn is left out, as LLaVA does.

        Raises:
            SampleError: Something is missing, of the wrong type, out of order or contradictory.

        Example:
            >>> Sample.from_record({"id": 7, "conversations": [
            ...     {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
            ...     "a.json:1").turns[1].text
            'Hello'
        """
        if not isinstance(record, Mapping):
            raise SampleError(
                f"{where}: found {type(record).__name__}, expected a JSON object with "
                "`conversations`.",
                "structure",
            )
        sample_id = str(record.get("id", where))
        at = f"{where}, sample {sample_id!r}"
        fields = {key: _optional_str(record, key, at) for key in _EXTRA_FIELDS}
        image = _optional_str(record, "image", at) or None
        try:
            turns = _read_turns(record.get("conversations"), at)
            _check_placeholders(turns, image, at)
        except SampleError as error:
            error.lang = fields["lang"]
            raise
        return cls(sample_id, image, turns, **fields)

    def to_record(self) -> dict[str, Any]:
        """Return the sample as a LLaVA JSON object; fields that are None are left out."""
        record: dict[str, Any] = {"id": self.id}
        if self.image is not None:
            record["image"] = self.image
        record["conversations"] = [_turn_to_record(turn) for turn in self.turns]
        for key in _EXTRA_FIELDS:
            value = getattr(self, key)
            if value is not None:
                record[key] = value
        return record


_EXTRA_FIELDS: Final = ("lang", "task", "source", "instruction")


def has_leading_answer(record: Mapping[str, Any]) -> bool:
    """Tell whether `Sample.from_record` leaves out the record's first turn."""
    turns = record.get("conversations")
    return (
        isinstance(turns, list)
        and len(turns) > 1
        and isinstance(turns[0], Mapping)
        and turns[0].get("from") == "gpt"
    )


def _optional_str(record: Mapping[str, Any], key: str, at: str) -> str | None:
    value = record.get(key)
    if value is None or isinstance(value, str):
        return value
    hint = " One picture a sample is supported." if key == "image" else ""
    raise SampleError(
        f"{at}: `{key}` is {type(value).__name__}, expected a string.{hint}", "structure"
    )


def _read_turns(value: Any, at: str) -> tuple[Turn, ...]:
    if not isinstance(value, list) or not value:
        raise SampleError(
            f"{at}: `conversations` is {_describe(value)}, expected a list of turns.", "structure"
        )
    turns = [_read_turn(turn, i, at) for i, turn in enumerate(value)]
    first = 1 if turns[0].role == "gpt" and len(turns) > 1 else 0
    turns = turns[first:]
    for i, turn in enumerate(turns):
        if turn.role != ROLES[i % 2]:
            raise SampleError(
                f"{at}: turn {i + first + 1} is from {turn.role!r}, expected {ROLES[i % 2]!r}. "
                "Turns alternate, beginning with 'human'.",
                "turn_order",
            )
    if len(turns) < 2:
        raise SampleError(
            f"{at}: there is no answer. A sample needs a 'gpt' turn after a 'human' turn.",
            "no_answer",
        )
    return tuple(turns)


def _read_turn(turn: Any, i: int, at: str) -> Turn:
    if not isinstance(turn, Mapping) or "from" not in turn or "value" not in turn:
        raise SampleError(
            f"{at}: turn {i + 1} is {_describe(turn)}, expected an object with `from` and `value`.",
            "structure",
        )
    role, text, supervised = turn["from"], turn["value"], turn.get("supervised", True)
    if role not in ROLES:
        raise SampleError(
            f"{at}: turn {i + 1} is from {role!r}, expected one of {', '.join(ROLES)}.",
            "unknown_role",
        )
    if not isinstance(text, str) or not isinstance(supervised, bool):
        raise SampleError(
            f"{at}: turn {i + 1}: `value` must be a string and `supervised` true or false.",
            "structure",
        )
    if not text.strip():
        raise SampleError(
            f"{at}: turn {i + 1} ({role}) is empty. Templates read an empty turn as one that is "
            "still to be written; fill it or leave the sample out.",
            "empty_turn",
        )
    return Turn(role, text, supervised)


def _check_placeholders(turns: tuple[Turn, ...], image: str | None, at: str) -> None:
    """Demand `<image>` in exactly one human turn with an image, and nowhere without."""
    holders = [i for i, turn in enumerate(turns) if DEFAULT_IMAGE_TOKEN in turn.text]
    if image is None:
        if holders:
            raise SampleError(
                f"{at}: turn {holders[0] + 1} holds {DEFAULT_IMAGE_TOKEN}, but the record has no "
                "`image`. Add the picture or take the placeholder out.",
                "image_mismatch",
            )
        return
    if len(holders) != 1:
        raise SampleError(
            f"{at}: {len(holders)} turns hold {DEFAULT_IMAGE_TOKEN}, expected one, because the "
            f"record has one `image` ({image}).",
            "image_mismatch",
        )
    if turns[holders[0]].role != "human":
        raise SampleError(
            f"{at}: {DEFAULT_IMAGE_TOKEN} stands in an answer, expected in a 'human' turn.",
            "image_mismatch",
        )


def _turn_to_record(turn: Turn) -> dict[str, Any]:
    record: dict[str, Any] = {"from": turn.role, "value": turn.text}
    if not turn.supervised:
        record["supervised"] = False
    return record


def _describe(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
