"""Questions of a benchmark: their files, their checks, and what a model is asked and answers.

A file holds one question per line, as JSON. Reading it gives frozen `Item`s in file order, or an
error that names file and line. An `Answerer` gets `Request`s and returns `Answer`s. Images are not
opened here.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Final, Protocol

import msgspec

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.data.sample import MAX_IMAGES, VIDEO_TOKEN, images_of
from llava.errors import ConfigError, DataError, ServiceError
from llava.eval.records import OPTION_LETTERS, read_json_lines
from llava.files import convert
from lrm_ext.languages.registry import Language, answer_request

LETTERS: Final = OPTION_LETTERS
AnswerType = Annotated[str, msgspec.Meta(pattern="^(yesno|text|letter|caption|number)$")]
Text = Annotated[str, msgspec.Meta(pattern=r"\S")]
"""A text that is not empty."""


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        question_id: Unique within its file; the same question has the same id in every language.
        image: Path of the image, relative to the benchmark's image folder, or of several; () for a
            question about none; of a video, those of its frames. A file has these as `video`.
        text: What the model is asked. Each `<image>` in it is the place of an image, in order; if
            there is none, the images come before it. A video has one place.
        category: The task that it belongs to.
        answer: The expected answer in `lang`; a letter if there are options. Empty if the owner of
            the benchmark keeps the letters back, or if a judge compares answers by what is in
            `extra`: such a question can be asked, but not scored.
        lang: Language code of the question.
        answer_type: `yesno`, `text`, `letter`, `caption` or `number`.
        options: Texts of the options A, B, ...
        answers: Every accepted answer of a free question, if there are several.
        question: The question alone, if `text` has options and an instruction, too.
        hint: What is said before the question.
        group: What the rotations of one question share.
        image_id: What questions on the same image share; `image` if empty.
        source_id: Its id in the benchmark's own files, if that is not unique.
        supercategory: The group of categories that its category belongs to.
        answer_lang: Language that the answer is expected in; `lang` if empty.
        extra: What else its owner says of it, such as a rubric for a judge; values as JSON has.
        is_video: The images are the frames of a video, in order.
    """

    question_id: Text
    image: Text | tuple[Text, ...]
    text: Text
    category: Text
    answer: str
    lang: Text
    answer_type: AnswerType
    options: tuple[Text, ...] = ()
    answers: tuple[Text, ...] = ()
    question: str = ""
    hint: str = ""
    group: str = ""
    image_id: str = ""
    source_id: str = ""
    supercategory: str = ""
    answer_lang: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)
    is_video: bool = False

    @property
    def images(self) -> tuple[str, ...]:
        """Paths of the images, in order; empty if an answer does not tell them."""
        return images_of(self.image or None)

    @property
    def num_places(self) -> int:
        """Places for images in the text: one of each image, or one of the video."""
        return 1 if self.is_video else len(self.images)

    @property
    def image_name(self) -> str:
        """The path of the image; of several, their paths joined."""
        return " + ".join(self.images)

    @property
    def unit(self) -> str:
        """The unit of the bootstrap: the image (of several, all together), else the question."""
        return self.image_id or self.image_name or self.group or self.question_id

    def lettered(self) -> dict[str, str]:
        """Returns the option texts by letter."""
        return dict(zip(LETTERS, self.options, strict=False))

    def to_record(self) -> dict[str, Any]:
        """Returns the line of a question file; optional fields only if they say something."""
        needed = {f.name for f in fields(self) if f.default is f.default_factory is MISSING}
        record = {key: value for key, value in vars(self).items() if value or key in needed}
        if record.pop("is_video", False):
            record["video"] = list(images_of(record.pop("image")))
        return record

    @classmethod
    def from_record(cls, record: Mapping[str, Any], where: str) -> Item:
        """Checks one decoded line.

        Args:
            record: The JSON object; further keys are ignored.
            where: `file:line`, for messages.

        Raises:
            DataError: A field is missing, empty, not text, or `answer_type` is unknown; or the text
                has not as many places as there are images.
        """
        name = f"{where}: question {record.get('question_id', '?')}"
        if isinstance(record.get("question_id"), int):
            record = {**record, "question_id": str(record["question_id"])}
        if record.get("video") not in (None, "", []):
            record = _with_frames(record, name)
        if isinstance(images := record.get("image"), list):
            record = {**record, "image": images[0] if len(images) == 1 else images}
        try:
            item = convert(record, cls, name)
        except ConfigError as error:
            raise DataError(str(error)) from error
        may_be_empty = item.answer_type == "letter" or item.extra
        if not (item.answer.strip() or (may_be_empty and item.answer == "")):
            raise DataError(f"{name}: answer is {item.answer!r}; expected text that is not empty")
        check_places(item.text, item.num_places, name)
        if item.answer_type == "letter":
            check_options(item, name)
        return item


def _with_frames(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns a record with a `video` as one with the images that are its frames."""
    frames = record["video"]
    if not isinstance(frames, list) or not all(isinstance(each, str) and each for each in frames):
        raise DataError(
            f"{name}: video is {str(frames)[:80]!r}; expected a list of its frames, paths of "
            "images (ffmpeg -i a.mp4 -vf fps=1 a/%04d.jpg makes some of a file)"
        )
    if record.get("image"):
        raise DataError(f"{name}: it has `image` and `video`; expected one of both")
    text = str(record.get("text", "")).replace(VIDEO_TOKEN, DEFAULT_IMAGE_TOKEN)
    return {**record, "image": frames, "text": text, "is_video": True}


def check_places(text: str, num_images: int, name: str) -> None:
    """Refuses a text that has places for images, but not as many as there are.

    Raises:
        DataError: The number is neither 0 nor that of the images, or those are too many.
    """
    if num_images > MAX_IMAGES:
        raise DataError(f"{name}: {num_images} images; expected at most {MAX_IMAGES}")
    places = text.count(DEFAULT_IMAGE_TOKEN)
    if places not in (0, num_images):
        raise DataError(
            f"{name}: {places} {DEFAULT_IMAGE_TOKEN} in the text, but {num_images} in `image`; "
            "expected one at the place of each image, or none, and they come before the text"
        )


def check_options(item: Item, name: str) -> None:
    """Refuses a multiple-choice question that cannot be answered.

    Raises:
        DataError: There are too few options or too many, or the letter names none of them.
    """
    if not 2 <= len(item.options) <= len(LETTERS):
        raise DataError(f"{name}: {len(item.options)} options; expected 2 to {len(LETTERS)}")
    if item.answer and item.answer not in item.lettered():
        raise DataError(
            f"{name}: the answer is {item.answer!r}; expected one of {', '.join(item.lettered())}"
        )


BLIND_SIDE_PX: Final = 336  # of the canvas that stands for a withheld image
REFUSED_REASON: Final = "refused"  # `finish_reason` of a question that a service refused


class RefusedAnswer(str):
    """The text of a question that a service refused: empty, but no empty answer.

    It is a string because whoever shows or exports answers has nothing else to do about it; what
    scores them counts it, and never reads a yes or a no into its emptiness.
    """

    __slots__ = ()


def text_of(record: Mapping[str, Any], text: str) -> str:
    """Returns the text of a recorded answer, told apart if the question was refused."""
    return RefusedAnswer() if record.get("finish_reason") == REFUSED_REASON else text


def stated_gold(record: Mapping[str, Any]) -> Any:
    """Returns the expected answer that a recorded answer names, by any tool's name for it."""
    return next((record[name] for name in ("gold", "answer", "label") if name in record), None)


def read_items(path: Path, lang: str) -> list[Item]:
    """Reads the questions of one language.

    Raises:
        DataError: The file is missing or empty, a line is wrong, an id occurs twice, or a question
            is marked with another language.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected the questions in language {lang}")
    items: dict[str, tuple[str, Item]] = {}
    for where, record in read_json_lines(path):
        item = Item.from_record(record, where)
        name = f"{where}: question {item.question_id}"
        if item.lang != lang:
            raise DataError(f"{name}: lang is {item.lang}, expected {lang}")
        if item.question_id in items:
            raise DataError(f"{name}: {items[item.question_id][0]} has this id already")
        items[item.question_id] = where, item
    if not items:
        raise DataError(f"{path}: no questions in it")
    return [item for _, item in items.values()]


def limit_items(items: Sequence[Item], limit: int | None) -> list[Item]:
    """Takes about `limit` questions: whole images, the same ones in every language.

    Images are taken in the order of a hash of their path, so that a file that is sorted by task
    still gives every task; the questions stay in file order.

    Args:
        items: All questions.
        limit: How many are wanted at least; None for all.
    """
    if limit is None or limit >= len(items):
        return list(items)

    def drawn(item: Item) -> str:
        return item.image_name or item.question_id

    per_image = Counter(map(drawn, items))
    chosen: set[str] = set()
    num_items = 0
    for image in sorted(per_image, key=lambda image: hashlib.sha256(image.encode()).digest()):
        if num_items >= limit:
            break
        chosen.add(image)
        num_items += per_image[image]
    return [item for item in items if drawn(item) in chosen]


Prompt = Callable[[str, str, Sequence[str], Language], str]
"""From question, hint, options and language to what the model is asked."""


def llava_prompt(
    question: str, hint: str, options: Sequence[str], language: Language, answer_lang: str = ""
) -> str:
    """Returns hint, question, lettered options and LLaVA's request for a letter or short answer.

    Args:
        question: The question.
        hint: What is said before it; "" for nothing.
        options: Texts of the options.
        language: The language of the question, whose file words the request.
        answer_lang: The language of the answer, if it is not that of the question.
    """
    lines = [hint, question, *(f"{a}. {text}" for a, text in zip(LETTERS, options, strict=False))]
    if not options and answer_lang not in ("", language.code):
        lines.append(answer_request(language.code, answer_lang))
    lines.append(language.option_letter if options else language.short_answer)
    return "\n".join(filter(None, lines))


def bare_prompt(
    question: str, hint: str, options: Sequence[str], language: Language, answer_lang: str = ""
) -> str:
    """Returns the question alone, as models are asked that never saw LLaVA's requests."""
    return f"{hint}\n{question}" if hint else question


LLAVA: Final = "llava"
QUESTION: Final = "question"
PROMPT_STYLES: Final[Mapping[str, Prompt]] = {LLAVA: llava_prompt, QUESTION: bare_prompt}


@dataclass(frozen=True)
class Request:
    """A question.

    Attributes:
        text: Without template. Each `<image>` in it is the place of an image, in order; if there is
            none, the images come before it.
        lang: Its language, which may have a template of its own.
        images: The images; None for one that is withheld. Empty if the question is about none.
        options: Answers to choose from by their likelihood; empty to have it write one.
        is_video: The images are the frames of a video, which has one place in the text.
    """

    text: str
    lang: str
    images: tuple[Path | None, ...]
    options: tuple[str, ...] = ()
    is_video: bool = False

    @property
    def num_places(self) -> int:
        """Places in the text: one of each image, or one of the video."""
        return 1 if self.is_video else len(self.images)

    @property
    def parts(self) -> list[str]:
        """The text before, between and after the images: one part more than there are places.

        Raises:
            DataError: The text has places, but not as many as there are images.
        """
        check_places(self.text, self.num_places, repr(self.text[:80]))
        if DEFAULT_IMAGE_TOKEN in self.text or not self.images:
            return self.text.split(DEFAULT_IMAGE_TOKEN)
        return ["", *["\n"] * (self.num_places - 1), f"\n{self.text}"]


@dataclass(frozen=True)
class Answer:
    """The answer of a model.

    Attributes:
        text: Decoded and stripped, without special tokens.
        num_new_tokens: Its length; the end token is not counted.
        finish_reason: `stop`, `length` if it was cut off, `refused` if a service refused it.
    """

    text: str
    num_new_tokens: int
    finish_reason: str


class BrokenBatchError(ServiceError):
    """Raised if a batch could not be answered to its end.

    Attributes:
        answers: What was answered, in the batch's order; None where nothing was.
    """

    def __init__(self, message: str, answers: Sequence[Answer | None]) -> None:
        super().__init__(message)
        self.answers = answers


class Answerer(Protocol):
    """Answers batches of questions."""

    def num_tokens(self, request: Request) -> int:
        """Returns the length of a question's prompt, with its images, as far as it is known."""
        ...

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Answers a batch, in its order.

        Raises:
            BrokenBatchError: Not all of it can be answered.
        """
        ...


def content_parts(request: Request, images: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Returns the parts of a chat message: images and the texts between them, in order.

    Args:
        request: The question.
        images: What stands for each of its images.

    Raises:
        ConfigError: The question is about a video.
    """
    if request.is_video:
        raise ConfigError(
            "questions about videos are asked of checkpoints of this code only, which tell how "
            f"many frames they saw in training; found {len(images)} frames: {request.text[:80]!r}"
        )
    first, *rest = request.parts
    # a line end next to an image separates it from the text, which parts are anyway
    texts = [first, *(text.removeprefix("\n") for text in rest)]
    parts: list[Mapping[str, Any]] = []
    for text, image in zip_longest(texts, images):
        said = text if image is None else text.removesuffix("\n")
        if said.strip():
            parts.append({"type": "text", "text": said})
        if image is not None:
            parts.append(image)
    return parts
