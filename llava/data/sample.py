"""Defines the two core types, `Turn` and `Sample`, and reads and writes them as LLaVA's JSON.

Role: a record is checked once, here; whatever holds a `Sample` may rely on it. Nothing is left out
silently: by default the first record that cannot become a sample raises; with a rate, such records
are counted by reason and language, the counts are shown, and too many raise (`DropPolicy`).
Input: one decoded JSON object and its position. Output: a frozen `Sample`.
Non-goals: reading files (`dataset.py`), templates (`tokenize.py`), opening images.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal

import msgspec

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.errors import ConfigError, DataError

ROLES: Final = ("human", "gpt")
_SPEAKERS: Final = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt"}
# Fields that change what a conversation means, each with the reason under which it is counted.
UNSUPPORTED_FIELDS: Final = {
    "video": "video",
    "videos": "video",
    "audio": "audio",
    "audios": "audio",
    "system": "system_prompt",
}
MAX_IMAGES: Final = 200
"""Images of one sample at most: more fit into no context here, and are an error of the file."""
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
VIDEO_TOKEN: Final = "<video>"
_PLACEHOLDERS: Final = {VIDEO_TOKEN: "video", "<audio>": "audio"}


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
        text: The text; each `<image>` marks the place of an image, or of the sample's video.
        supervised: Whether the answer counts in the loss. It means nothing for `human`.
    """

    role: str
    text: str
    supervised: bool = True


@dataclass(frozen=True)
class Sample:
    """One training sample: a conversation about images, or a video, or text only.

    Attributes:
        id: Name of the sample, for messages.
        image: Path of its image below the image folder, the paths of several in the order of their
            places in the turns, or None for text only.
        turns: The conversation, `human` first and alternating.
        lang: Language code of the answers.
        task: What kind of question it is.
        source: Data set that it comes from.
        instruction: Task instruction that shaped it.
        video: Paths of the frames of its video below the image folder, in order; it has then no
            image.
    """

    id: str
    image: str | tuple[str, ...] | None
    turns: tuple[Turn, ...]
    lang: str | None = None
    task: str | None = None
    source: str | None = None
    instruction: str | None = None
    video: tuple[str, ...] | None = None

    @classmethod
    def from_record(
        cls, record: Mapping[str, Any], where: str, takes_video: bool = False
    ) -> Sample:
        """Checks one LLaVA record.

        Args:
            record: `{"id", "image"?, "conversations": [{"from", "value"}, ...]}`; also read are
                `lang`, `task`, `source`, `instruction` and, in a turn, `supervised`. `image` may
                be a list, and may be called `images`; the turns may be `messages` of `role` and
                `content` (text or a list of parts), or `texts`, pairs of `user` and `assistant`;
                `user` and `assistant` are read as `human` and `gpt`.
            where: `file:line` of the record, for messages.
            takes_video: `video` may be a list of frames, which are images; `<video>` (or
                `<image>`) in a question is their place.

        Returns:
            The sample. One `gpt` turn before the first `human` turn is left out, as LLaVA does.

        Raises:
            SampleError: Something is missing, of the wrong type, out of order or contradictory, or
                the record has sound, a system prompt of its own or a video that is not taken.

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
        sample_id = where if record.get("id") is None else str(record["id"])
        lang = record.get("lang")
        try:
            video = _read_video(record) if takes_video else None
            _check_fields(record, {"video"} if video else ())
            fields = {key: record.get(key) for key in _EXTRA_FIELDS}
            turns = _read_turns(record, bool(video))
            sample = cls(sample_id, _read_image(record), turns, **fields, video=video)
            _check_placeholders(sample)
            _check_characters(sample)
        except SampleError as error:
            raise SampleError(
                f"{where}, sample {sample_id!r}: {error}",
                error.reason,
                lang if isinstance(lang, str) else None,
            ) from None
        return sample

    @property
    def images(self) -> tuple[str, ...]:
        """Paths of the images, in the order of their places; empty for text only."""
        return images_of(self.image)

    @property
    def num_places(self) -> int:
        """Places that the turns hold: one of each image, or one of the video."""
        return 1 if self.video else len(self.images)

    def to_record(self) -> dict[str, Any]:
        """Returns the sample as a LLaVA JSON object; fields that are None are left out."""
        turns: list[dict[str, Any]] = [
            {"from": turn.role, "value": turn.text}
            | ({} if turn.supervised else {"supervised": False})
            for turn in self.turns
        ]
        image = list(self.image) if isinstance(self.image, tuple) else self.image
        record: dict[str, Any] = {"id": self.id, "image": image, "conversations": turns}
        if self.video:
            record["video"] = list(self.video)
        record |= {key: getattr(self, key) for key in _EXTRA_FIELDS}
        return {key: value for key, value in record.items() if value is not None}


_EXTRA_FIELDS: Final = ("lang", "task", "source", "instruction")
_Nothing = Literal[""] | Annotated[list[Any], msgspec.Meta(max_length=0)] | None
_PLACEHOLDER: Final = re.compile("<(?:image|video|audio)>")


class LlavaTurn(msgspec.Struct, gc=False):
    """A turn as LLaVA writes it; see `Turn`."""

    role: Literal["human", "gpt"] = msgspec.field(name="from")
    text: str = msgspec.field(name="value")
    supervised: bool = True


class LlavaRecord(msgspec.Struct, gc=False):
    """A record with the fields of LLaVA's own data; other forms cannot be decoded as one."""

    turns: tuple[LlavaTurn, ...] = msgspec.field(name="conversations")
    id: str | int | None = None
    image: str | tuple[str, ...] | None = None
    lang: str | None = None
    source: str | None = None
    task: str | None = None
    instruction: str | None = None
    also: _Nothing = msgspec.field(default=None, name="images")
    messages: _Nothing = None
    texts: _Nothing = None
    video: _Nothing = None
    videos: _Nothing = None
    audio: _Nothing = None
    audios: _Nothing = None
    system: _Nothing = None

    def is_plain(self) -> bool:
        """Tells whether it is surely a sample, of one image before the first question or of none.

        `Sample.from_record` decides on all others; it takes thirty times as long.
        """
        if len(self.turns) < 2 or not (
            self.image is None or (self.image and type(self.image) is str)
        ):
            return False
        places, previous = [DEFAULT_IMAGE_TOKEN] * (self.image is not None), "gpt"
        for turn in self.turns:
            text = turn.text
            if turn.role == previous or not text or text.isspace():
                return False
            if (_PLACEHOLDER.findall(text) if "<" in text else []) != places:
                return False
            places, previous = [], turn.role
        return True


def has_leading_answer(record: Mapping[str, Any]) -> bool:
    """Tells whether `Sample.from_record` leaves out the record's first turn."""
    turns = _raw_turns(record)
    return (
        isinstance(turns, list)
        and len(turns) > 1
        and isinstance(turns[0], Mapping)
        and turns[0].get("from", turns[0].get("role")) in ("gpt", "assistant")
    )


def images_of(image: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Returns the paths that a sample's `image` names, in order."""
    return () if image is None else (image,) if isinstance(image, str) else image


def record_images(record: Mapping[str, Any]) -> list[Any]:
    """Lists the images of a record, whatever form they have in the file.

    Returns:
        Paths, and for images that are embedded in the file, objects with `bytes`.
    """
    images: list[Any] = []
    for key in ("image", "images"):
        value = record.get(key)
        for image in value if isinstance(value, list) else [value]:
            if isinstance(image, bytes):
                image = {"bytes": image}
            elif isinstance(image, Mapping) and image.get("bytes") is None:
                image = image.get("path")
            if image is not None and image != "":
                images.append(image)
    return images


def _check_fields(record: Mapping[str, Any], taken: Collection[str] = ()) -> None:
    """Refuses fields of a wrong type, and those that would be left out in silence.

    The answers depend on the latter, except for those that are taken.
    """
    for key in _EXTRA_FIELDS:
        if not isinstance(record.get(key), str | None):
            kind = type(record[key]).__name__
            raise SampleError(f"`{key}` is {kind}, expected a string.", "structure")
    for key, reason in UNSUPPORTED_FIELDS.items():
        if key not in taken and record.get(key) not in (None, "", []):
            what = "a system prompt of its own" if reason == "system_prompt" else f"{reason} data"
            raise SampleError(
                f"the record has {what} (`{key}`: {_describe(record[key])}), which is not "
                "supported here. Leave it out, or take the field away to train without it."
                + (_TAKING_VIDEO if reason == "video" else ""),
                reason,
            )


_TAKING_VIDEO: Final = (
    " llava.train.train takes `video` with the paths of the frames of one, given --video_frames."
)


def _read_video(record: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Returns the paths of the frames of a record's video; None without one."""
    frames = record.get("video")
    if frames in (None, "", []):
        return None
    if not isinstance(frames, list) or not all(isinstance(path, str) and path for path in frames):
        raise SampleError(
            f"`video` is {_describe(frames)}, expected a list of its frames: paths of images. "
            "Extract them from a video file first, e.g. with ffmpeg -i a.mp4 -vf fps=1 a/%04d.jpg.",
            "video",
        )
    if record_images(record):
        raise SampleError(
            "the record has images and a video, expected one of both. Leave it out.", "video"
        )
    return tuple(frames)


def _read_image(record: Mapping[str, Any]) -> str | tuple[str, ...] | None:
    images = record_images(record)
    if len(images) > MAX_IMAGES:
        raise SampleError(
            f"{len(images)} images, expected at most {MAX_IMAGES} in a sample. Leave the sample "
            "out, or split it.",
            "too_many_images",
        )
    for image in images:
        if not isinstance(image, str):
            kind = type(image).__name__
            raise SampleError(f"the image is {kind}, expected a path as a string.", "structure")
    return images[0] if len(images) == 1 else tuple(images) or None


def _raw_turns(record: Mapping[str, Any]) -> Any:
    """Finds the turns of a record, whatever their key."""
    named = next((record[key] for key in ("conversations", "messages") if record.get(key)), None)
    texts = record.get("texts")
    if named is None and isinstance(texts, list):
        return list(_turns_of_pairs(texts, len(record_images(record))))
    return named


def _turns_of_pairs(pairs: list[Any], num_images: int) -> Iterator[Any]:
    """Makes turns of pairs of `user` and `assistant`, which do not say where the images go."""
    place = f"{DEFAULT_IMAGE_TOKEN}\n" * num_images
    for pair in pairs:
        if isinstance(pair, Mapping):
            yield {"from": "human", "value": f"{place}{pair.get('user') or ''}"}
            yield {"from": "gpt", "value": pair.get("assistant")}
        else:
            yield pair
        place = ""


def _read_turns(record: Mapping[str, Any], has_video: bool = False) -> tuple[Turn, ...]:
    value = _raw_turns(record)
    if not isinstance(value, list) or not value:
        raise SampleError(
            f"`conversations` is {_describe(value)}, expected a list of turns.", "structure"
        )
    turns = [_read_turn(turn, f"turn {number}", has_video) for number, turn in enumerate(value, 1)]
    first = 1 if turns[0].role == "gpt" and len(turns) > 1 else 0
    for i, turn in enumerate(turns[first:]):
        if turn.role != ROLES[i % 2]:
            raise SampleError(
                f"turn {i + first + 1} is from {turn.role!r}, expected {ROLES[i % 2]!r}. "
                "Turns alternate, beginning with 'human'.",
                "turn_order",
            )
    if len(turns) - first < 2:
        raise SampleError(
            "there is no answer. A sample needs a 'gpt' turn after a 'human' turn.", "no_answer"
        )
    return tuple(turns[first:])


def _read_turn(turn: Any, here: str, has_video: bool) -> Turn:
    if not isinstance(turn, Mapping) or not (
        {"from", "role"} & turn.keys() and {"value", "content"} & turn.keys()
    ):
        raise SampleError(
            f"{here} is {_describe(turn)}, expected an object with `from` and `value`, or `role` "
            "and `content`.",
            "structure",
        )
    speaker, text = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
    supervised = turn.get("supervised", True)
    role = _SPEAKERS.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        raise SampleError(
            f"{here} is from {speaker!r}, expected one of {', '.join(_SPEAKERS)}.", "unknown_role"
        )
    if isinstance(text, list):
        text = "\n".join(_read_part(part, here, has_video) for part in text)
    if not isinstance(text, str) or not isinstance(supervised, bool):
        raise SampleError(
            f"{here}: `value` must be a string and `supervised` true or false.", "structure"
        )
    if not text.strip():
        raise SampleError(
            f"{here} ({role}) is empty. Templates read an empty turn as one that is "
            "still to be written; fill it or leave the sample out.",
            "empty_turn",
        )
    if role == "human":
        if has_video:  # from here on its place is that of an image
            text = text.replace(VIDEO_TOKEN, DEFAULT_IMAGE_TOKEN)
        _refuse_placeholders(text, here)
    return Turn(role, text, supervised)


def _read_part(part: Any, here: str, has_video: bool) -> str:
    """Reads a part of a message: text, or the place of an image or of the record's video."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in ("image", "image_url") or (has_video and kind == "video"):
        return DEFAULT_IMAGE_TOKEN
    text = part.get("text") if isinstance(part, Mapping) else part
    if not isinstance(text, str):
        raise SampleError(
            f"{here} holds the part {_describe(part)}, expected text or an image.",
            "video" if kind in ("video", "video_url") else "structure",
        )
    return text


def _refuse_placeholders(text: str, here: str) -> None:
    """Refuses a question that begins or ends with `<video>`; elsewhere it is text about HTML."""
    asked = text.replace(DEFAULT_IMAGE_TOKEN, "").strip()
    for placeholder, reason in _PLACEHOLDERS.items():
        if asked.startswith(placeholder) or asked.endswith(placeholder):
            raise SampleError(
                f"{here} holds {placeholder}, for which nothing but text would be trained on; "
                f"{reason} is not supported. Leave the sample out.",
                reason,
            )


def _check_placeholders(sample: Sample) -> None:
    """Demands `<image>` in human turns only: once for each image, and nowhere without.

    A single image may have several in one turn, which LLaVA reads as one.
    """
    counts = [turn.text.count(DEFAULT_IMAGE_TOKEN) for turn in sample.turns]
    holders = [i for i, count in enumerate(counts) if count]
    num_images = len(sample.images)
    if sample.video and sum(counts) != 1:
        fault = (
            f"the turns hold {sum(counts)} places of a video ({VIDEO_TOKEN} or "
            f"{DEFAULT_IMAGE_TOKEN}), expected one, in a question."
        )
    elif not sample.num_places and holders:
        fault = (
            f"turn {holders[0] + 1} holds {DEFAULT_IMAGE_TOKEN}, but the record has no `image`. "
            "Add the image or take the placeholder out."
        )
    elif num_images == 1 and len(holders) != 1:
        fault = (
            f"{len(holders)} turns hold {DEFAULT_IMAGE_TOKEN}, expected one, because the record "
            f"has one `image` ({sample.images[0]})."
        )
    elif num_images > 1 and sum(counts) != num_images:
        fault = (
            f"the turns hold {sum(counts)} {DEFAULT_IMAGE_TOKEN}, expected {num_images}, one for "
            "each of the record's images, at its place."
        )
    elif any(sample.turns[i].role != "human" for i in holders):
        fault = f"{DEFAULT_IMAGE_TOKEN} stands in an answer, expected in a 'human' turn."
    else:
        return
    raise SampleError(fault, "image_mismatch")


def _check_characters(sample: Sample) -> None:
    """Refuses characters that are not text: tokenizers fail on them, and they cannot be stored."""
    parts = {key: getattr(sample, key) for key in ("id", *_EXTRA_FIELDS)}
    parts |= {f"image {number}": path for number, path in enumerate(sample.images, start=1)}
    parts |= {f"frame {number}": path for number, path in enumerate(sample.video or (), start=1)}
    parts |= {f"turn {number}": turn.text for number, turn in enumerate(sample.turns, start=1)}
    for name, text in parts.items():
        if text is not None and (found := _SURROGATE.search(text)):
            is_byte = "\udc80" <= found[0] <= "\udcff"  # how `RecordReader` decodes invalid bytes
            what = "a byte that is not UTF-8" if is_byte else "half of a character"
            shown = f"0x{ord(found[0]) - 0xDC00:02X}" if is_byte else f"{found[0]!r}"
            raise SampleError(
                f"{name} holds {what} ({shown} at {found.start()}); write the file as UTF-8.",
                "invalid_utf8" if is_byte else "half_character",
            )


def _describe(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


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
        by_lang = Counter(lang for _, lang in self.report.dropped.elements())
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
