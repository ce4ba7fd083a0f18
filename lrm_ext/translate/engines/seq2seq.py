"""Engines for encoder-decoder models, in transformers or CTranslate2.

A batch holds segments of one length class, so that the length limit of an answer depends only on
its segment: the rest of the batch changes a translation only by floating-point effects (in bfloat16
a near tie may go the other way). Text is never truncated: a segment that is too long, or an answer
that does not end, is an error.
"""

from __future__ import annotations

import gc
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import msgspec

from lrm_ext.languages.tags import NLLB_CODES
from lrm_ext.translate.cache import Cache
from lrm_ext.translate.engines.base import (
    AtLeastOne,
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

log = logging.getLogger(__name__)

_SAMPLE_BYTES = 1 << 20
INSTALL = "nothing but lrm-llava itself; lrm-llava[ct2] for CTranslate2"
_SHORTEST_CLASS = 16
# Tokens that an answer may have beyond twice those of the text.
_MORE_TOKENS = 16


# Codes of languages in the models, where they are not those of ISO 639-3 (NLLB) or BCP-47.
_NLLB_NAMES = {"fil": "tgl_Latn", "ko": "kor_Hang", "no": "nob_Latn", "qu": "quy_Latn"}
_OTHER_NAMES = {"fil": "tl"}
# All that M2M100 has, of MADLAD-400 those with the most text, and of Opus-MT those with a model
# `opus-mt-en-..` for one language: from the model cards.
_M2M100_CODES = tuple(
    """
    af am ar ast az ba be bg bn br bs ca ceb cs cy da de el en es et fa ff fi fr fy ga gd gl
    gu ha he hi hr ht hu hy id ig ilo is it ja jv ka kk km kn ko lb lg ln lo lt lv mg mk ml mn
    mr ms my ne nl no ns oc or pa pl ps pt ro ru sd si sk sl so sq sr ss su sv sw ta th tl tn
    tr uk ur uz vi wo xh yi yo zh zu
    """.split()
)
_MADLAD_CODES = tuple(
    """
    en ru es fr de it pt pl nl vi tr sv id ro cs zh hu ja th fi fa uk da el no bg sk ko ar lt
    ca sl he et lv hi sq ms az sr ta hr kk is ml mr te af gl fil be mk eu bn ka mn bs uz ur sw
    yue ne kn kaa gu si cy eo la hy ky tg ga mt my km tt so ku ps pa rw lo ha dv fy lb ckb mg
    gd am ug ht grc hmn sd jv mi tk ceb yi ba fo or xh su kl ny sm sn co zu ig yo pap st haw
    as oc cv lus tet gsw sah br rm sa bo om se ce cnh ilo hil udm os lg ti vec ts tyv kbd ee
    iba av kha to tn nso fj zza ak ada otq dz bua cfm ln chm gn krc wa hif yua srn war rom bik
    pam sg lu ady kbp syr ltg myv iso kac bho ay kum qu
    """.split()
)
_OPUS_MODEL = "Helsinki-NLP/opus-mt-en-"
_OPUS_CODES = tuple(
    _OPUS_MODEL + code
    for code in """
    af ar az bg ca ceb cs cy da de el eo es et eu fi fr ga gl ha he hi ht hu hy id ig ilo is
    it kg lg ln lu mg mh mk ml mr mt nl nso ny om pag pap rn ro ru rw sg sk sm sn sq ss st sv
    sw ti tl tn to ts uk ur vi xh zh
    """.split()
)


@dataclass(frozen=True)
class Seq2SeqOptions:
    """Options of the engines for encoder-decoder models.

    Attributes:
        model: A folder, or an id on the Hugging Face hub.
        revision: Branch, tag or commit on the hub.
        local_files_only: Download nothing; a missing file is an error.
        device: auto (a GPU if there is one), cpu, cuda, cuda:1, ...
        dtype: auto (bfloat16 on a GPU, float32 on a CPU), float32, bfloat16 or float16; for a
            CTranslate2 model also int8 and so on.
        beams: Width of the beam search; 1 is greedy, faster, and worse.
        no_repeat_ngram: Length of token sequences that may not repeat in an answer; 0 for no limit.
        max_source_tokens: Longer segments are not translated.
        tokens_per_batch: Tokens in a batch, including padding; halved when memory runs out.
        ct2_model: Folder of the same model converted for CTranslate2.
        ct2_fault: Why CTranslate2's converter cannot convert the model; "" if it can.
    """

    ct2_fault: ClassVar[str] = ""

    model: str
    revision: str | None = None
    local_files_only: bool = False
    device: str = "auto"
    dtype: str = "auto"
    beams: AtLeastOne = 4
    no_repeat_ngram: Annotated[int, msgspec.Meta(ge=0)] = 0
    max_source_tokens: AtLeastOne = 256
    tokens_per_batch: AtLeastOne = 4096
    ct2_model: str | None = None


class Naming(NamedTuple):
    """The names of the languages in a model's input.

    Attributes:
        source: The tokenizer's name for the source language; None if it takes none.
        prefix: A token before the text that names the target language; "" for none.
        first: The first token of the answer; "" for none.
    """

    source: str | None = None
    prefix: str = ""
    first: str = ""


class Found(NamedTuple):
    """Identifies a checkpoint.

    Attributes:
        revision: The commit; None for a folder.
        version: The version for the cache key.
    """

    revision: str | None
    version: str


class DecodedText(NamedTuple):
    """A model's answer to one text.

    Attributes:
        ids: Its tokens, without the first and last special tokens.
        is_ended: Whether it ended before the length limit.
    """

    ids: list[int]
    is_ended: bool


def find_checkpoint(options: Seq2SeqOptions) -> Found:
    """Identifies the checkpoint; from the hub only `config.json` is downloaded.

    Raises:
        EngineError: The checkpoint does not exist.
    """
    folder = Path(options.model)
    if folder.is_dir():
        found = Found(None, f"{folder.resolve().name} {_digest(folder)}")
    else:
        from huggingface_hub import hf_hub_download

        try:
            config = hf_hub_download(
                options.model,
                "config.json",
                revision=options.revision,
                local_files_only=options.local_files_only,
            )
        except Exception as error:  # the hub's client raises many types, with useful messages
            raise EngineError(
                f"model {options.model!r} is neither a folder nor to be had from the hub "
                f"({'only local files are allowed' if options.local_files_only else 'asked'}): "
                f"{_first_line(error)}. Give a folder with --option model=..., or fetch it first: "
                f"hf download {options.model}"
            ) from error
        commit = Path(config).parent.name
        found = Found(commit, f"{options.model}@{commit[:12]}")
    if options.ct2_model is None:
        return found
    converted = Path(options.ct2_model)
    if not (converted / "model.bin").is_file():
        how = (
            f"{options.ct2_fault}; leave option ct2_model out."
            if options.ct2_fault
            else "To make one: ct2-transformers-converter "
            f"--model {options.model} --output_dir {converted}"
        )
        raise EngineError(f"{converted} holds no CTranslate2 model (no model.bin). {how}")
    return found._replace(version=f"{found.version} ct2 {_digest(converted)}")


def _without_specials(ids: list[int], first: int | None, end: int) -> DecodedText:
    """Takes the special tokens off an answer."""
    is_ended = end in ids
    ids = ids[: ids.index(end)] if is_ended else ids
    return DecodedText(ids[1:] if ids[:1] == [first] else ids, is_ended)


class TorchRunner:
    """A model in transformers."""

    def __init__(
        self, tokenizer: Any, found: Found, options: Seq2SeqOptions, naming: Naming
    ) -> None:
        import torch
        from transformers import AutoModelForSeq2SeqLM

        self.tokenizer, self._torch = tokenizer, torch
        self._device = _device(torch, options.device)
        dtype = _dtype(torch, options.dtype, self._device)
        log.info("loading %s on %s, %s", found.version, self._device, dtype)
        with _loading(f"model {options.model!r}"):
            self.model = AutoModelForSeq2SeqLM.from_pretrained(
                options.model,
                revision=found.revision,
                local_files_only=options.local_files_only,
                dtype=dtype,
            )
            self.model = self.model.to(self._device).eval()
        self.max_positions = getattr(self.model.config, "max_position_embeddings", None)
        self._end, self._pad = self.model.config.eos_token_id, self.model.config.pad_token_id
        self._first = tokenizer.convert_tokens_to_ids(naming.first) if naming.first else None
        settings = self.model.generation_config
        # a forced end would make a truncated text look complete; each call sets its own limit
        settings.forced_eos_token_id = settings.max_length = None
        settings.num_beams, settings.do_sample = options.beams, False
        settings.no_repeat_ngram_size = options.no_repeat_ngram
        settings.forced_bos_token_id = self._first

    def run(self, batch: Sequence[Sequence[int]], limit: int) -> list[DecodedText]:
        """Translates token ids, with at most `limit` new ones each."""
        torch = self._torch
        rows = [torch.tensor(tokens) for tokens in batch]
        pad = torch.nn.utils.rnn.pad_sequence
        ids = pad(rows, batch_first=True, padding_value=self._pad)
        mask = pad([torch.ones_like(row) for row in rows], batch_first=True)
        with torch.inference_mode():
            answers = self.model.generate(
                input_ids=ids.to(self._device),
                attention_mask=mask.to(self._device),
                max_new_tokens=limit,
            ).tolist()
        # without the start token
        return [_without_specials(ids[1:], self._first, self._end) for ids in answers]

    def free(self) -> None:
        """Frees unused memory."""
        gc.collect()
        if self._device.type == "cuda":
            self._torch.cuda.empty_cache()

    def close(self) -> None:
        """Frees all memory."""
        del self.model
        self.free()


class CTranslate2Runner:
    """A converted model in CTranslate2."""

    max_positions: int | None = None

    def __init__(self, tokenizer: Any, options: Seq2SeqOptions, naming: Naming) -> None:
        try:
            import ctranslate2
        except ImportError as error:
            raise EngineError(
                "option ct2_model needs CTranslate2: pip install 'lrm-llava[ct2]'"
            ) from error
        self.tokenizer, self._options = tokenizer, options
        self._first = [naming.first] if naming.first else None
        kind, _, index = options.device.partition(":")
        with _loading(str(options.ct2_model)):
            self.model = ctranslate2.Translator(
                str(options.ct2_model),
                device=kind,
                device_index=int(index or 0),
                compute_type=options.dtype,
            )

    def run(self, batch: Sequence[Sequence[int]], limit: int) -> list[DecodedText]:
        """Translates token ids, with at most `limit` new ones each."""
        results = self.model.translate_batch(
            [self.tokenizer.convert_ids_to_tokens(ids) for ids in batch],
            target_prefix=None if self._first is None else [self._first] * len(batch),
            beam_size=self._options.beams,
            no_repeat_ngram_size=self._options.no_repeat_ngram,
            max_decoding_length=limit,
            return_end_token=True,
        )
        ids_of = self.tokenizer.convert_tokens_to_ids
        first = None if self._first is None else ids_of(self._first[0])
        end = self.tokenizer.eos_token_id
        return [_without_specials(ids_of(r.hypotheses[0]), first, end) for r in results]

    def free(self) -> None:
        """Does nothing: CTranslate2 frees unused memory itself."""

    def close(self) -> None:
        """Frees all memory."""
        self.model.unload_model()


Runner = TorchRunner | CTranslate2Runner


def _load_tokenizer(found: Found, options: Seq2SeqOptions, naming: Naming) -> Any:
    from transformers import AutoTokenizer

    told = {} if naming.source is None else {"src_lang": naming.source}
    with _loading(f"the tokenizer of {options.model!r}"):
        tokenizer: Any = AutoTokenizer.from_pretrained(
            options.model,
            revision=found.revision,
            local_files_only=options.local_files_only,
            **told,
        )
    for token in filter(None, (naming.prefix, naming.first)):
        if tokenizer.convert_tokens_to_ids(token) in (None, tokenizer.unk_token_id):
            raise EngineError(
                f"model {options.model!r} has no token {token!r} for the language; correct its "
                "code under [engines] in the language's file, or choose another model."
            )
    return tokenizer


def _device(torch: Any, name: str) -> Any:
    found = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.device(found if name == "auto" else name)
    except RuntimeError as error:
        raise EngineError(f"option device is {name!r}: {_first_line(error)}") from error


def _dtype(torch: Any, name: str, device: Any) -> Any:
    if name == "auto" and device.type == "cpu":
        name = "float32"  # without a question to CUDA, which would occupy memory of a GPU
    elif name == "auto":
        name = "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise EngineError(f"option dtype is {name!r}, expected float32, bfloat16 or float16.")
    return dtype


@contextmanager
def _loading(what: str) -> Iterator[None]:
    """Turns a library's error into one that names what could not be loaded."""
    try:
        yield
    except (OSError, ValueError, ImportError, RuntimeError, KeyError) as error:
        raise EngineError(f"{what} cannot be loaded: {_first_line(error)}") from error


def _digest(folder: Path) -> str:
    """Returns a digest of a folder's files; samples the beginning, middle and end of large ones."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            for start in sorted({0, max(0, size // 2), max(0, size - _SAMPLE_BYTES)}):
                file.seek(start)
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:12]


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


class Seq2SeqEngine(TranslationEngine):
    """Translates with a model in this process.

    Args:
        name: The engine's name.
        options: Its options.
        naming: How the languages are named to the model.

    Raises:
        EngineError: The model does not exist.
    """

    mask_styles = ("underscores", "word", "tag")
    is_sentence_level = True

    def __init__(self, name: str, options: Seq2SeqOptions, naming: Naming) -> None:
        self.name = name
        self._settings = options
        self._naming = naming
        self._found = find_checkpoint(options)
        self._runner: Runner | None = None
        self._tokens_per_batch = options.tokens_per_batch
        self.version = self._found.version
        self.options = {
            "beams": options.beams,
            "dtype": options.dtype,
            "max_source_tokens": options.max_source_tokens,
            "no_repeat_ngram": options.no_repeat_ngram,
            "target": naming.prefix + naming.first,
        }

    def translate(self, segments: Sequence[TextSegment]) -> Iterator[Reply]:
        """Translates a batch; see `TranslationEngine.translate`."""
        if self._runner is None:
            tokenizer = _load_tokenizer(self._found, self._settings, self._naming)
            self._runner = (
                TorchRunner(tokenizer, self._found, self._settings, self._naming)
                if self._settings.ct2_model is None
                else CTranslate2Runner(tokenizer, self._settings, self._naming)
            )
        runner = self._runner
        prefix = f"{self._naming.prefix} " if self._naming.prefix else ""
        tokens = [runner.tokenizer(prefix + segment.text).input_ids for segment in segments]
        most = self._settings.max_source_tokens
        if runner.max_positions is not None:
            # special tokens around the text need a few positions
            most = min(most, runner.max_positions - 4)
        too_long = [
            Outcome(i, None, f"too long: {len(ids)} tokens, at most {most}")
            for i, ids in enumerate(tokens)
            if len(ids) > most
        ]
        if too_long:
            yield Reply(tuple(too_long))
        lengths = {i: len(ids) for i, ids in enumerate(tokens) if len(ids) <= most}
        waiting = make_batches(lengths, self._tokens_per_batch)
        while waiting:
            batch = waiting.pop(0)
            limit = max_new_tokens(max(lengths[i] for i in batch), runner.max_positions)
            answers = self._run(runner, [tokens[i] for i in batch], limit)
            if answers is not None:
                yield self._reply(runner, batch, answers, sum(lengths[i] for i in batch), limit)
            elif len(batch) == 1:
                fault = f"out of memory with {lengths[batch[0]]} tokens"
                yield Reply((Outcome(batch[0], None, fault, is_final=False),))
            else:
                self._tokens_per_batch = max(1, self._tokens_per_batch // 2)
                log.warning(
                    "%s: memory ran out with %d segments; batches now have at most %d tokens",
                    self.name,
                    len(batch),
                    self._tokens_per_batch,
                )
                left = sorted(i for some in (*waiting, batch) for i in some)
                waiting = make_batches({i: lengths[i] for i in left}, self._tokens_per_batch)

    def close(self) -> None:
        """Frees the model's memory."""
        runner, self._runner = self._runner, None
        if runner is not None:
            runner.close()

    def _run(
        self, runner: Runner, batch: Sequence[Sequence[int]], limit: int
    ) -> list[DecodedText] | None:
        """Translates token ids; returns None if memory ran out."""
        try:
            return runner.run(batch, limit)
        except RuntimeError as error:
            text = f"{type(error).__name__} {error}".lower()
            if not any(
                w in text for w in ("outofmemory", "out of memory", "can't allocate memory")
            ):
                raise
        # outside the handler, because the error keeps references to the tensors
        runner.free()
        return None

    def _reply(
        self,
        runner: Runner,
        batch: Sequence[int],
        answers: Sequence[DecodedText],
        num_tokens: int,
        limit: int,
    ) -> Reply:
        texts = runner.tokenizer.batch_decode(
            [answer.ids for answer in answers],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        outcomes: list[Outcome] = []
        for i, answer, text in zip(batch, answers, map(str.strip, texts), strict=True):
            fault = "empty answer" if answer.is_ended else f"no end after {limit} tokens"
            is_good = answer.is_ended and text
            outcomes.append(Outcome(i, text) if is_good else Outcome(i, None, fault))
        usage = Usage(1, num_tokens, sum(len(answer.ids) for answer in answers))
        return Reply(tuple(outcomes), usage)


def make_batches(lengths: Mapping[int, int], tokens_per_batch: int) -> list[list[int]]:
    """Groups segments of similar lengths, the longest first.

    Args:
        lengths: Tokens of each segment, by its position.
        tokens_per_batch: Most tokens in a batch, including padding; a longer segment is alone.

    Returns:
        Positions of the segments of each batch, which are of one length class.

    Example:
        >>> make_batches({0: 3, 1: 40, 2: 5, 3: 39}, 80)
        [[1, 3], [2, 0]]
    """
    batches: list[list[int]] = []
    for i in sorted(lengths, key=lambda i: (-lengths[i], i)):
        batch = batches[-1] if batches else []
        longest = lengths[batch[0]] if batch else 0
        fits = longest * (len(batch) + 1) <= tokens_per_batch
        if batch and fits and length_class(longest) == length_class(lengths[i]):
            batch.append(i)
        else:
            batches.append([i])
    return batches


def length_class(num_tokens: int) -> int:
    """Returns the length up to which segments may share a batch: 16, 32, 64, ..."""
    return max(_SHORTEST_CLASS, 1 << (num_tokens - 1).bit_length())


def max_new_tokens(num_tokens: int, max_positions: int | None) -> int:
    """Returns the length limit of an answer to a segment of this length, in tokens."""
    limit = 2 * length_class(num_tokens) + _MORE_TOKENS
    return limit if max_positions is None else min(limit, max_positions - 2)


@dataclass(frozen=True)
class NllbOptions(Seq2SeqOptions):
    """Options of the engine; larger models: facebook/nllb-200-distilled-1.3B, nllb-200-3.3B."""

    model: str = "facebook/nllb-200-distilled-600M"


@dataclass(frozen=True)
class MadladOptions(Seq2SeqOptions):
    """Options of the engine; larger models: google/madlad400-7b-mt, google/madlad400-10b-mt."""

    model: str = "google/madlad400-3b-mt"


@dataclass(frozen=True)
class M2M100Options(Seq2SeqOptions):
    """Options of the engine; the larger model is facebook/m2m100_1.2B."""

    ct2_fault: ClassVar[str] = (
        "Under transformers 5 its converter misses the languages of M2M100, which it looks for "
        "among additional_special_tokens"
    )

    model: str = "facebook/m2m100_418M"


@dataclass(frozen=True)
class OpusOptions(Seq2SeqOptions):
    """Options of the engine; the default model is in the language file and may end with a tag."""

    model: str = ""


# Returns the options with the model, and how the languages are named to it, given the options, a
# function that returns the engine's code of a language, and the codes of both languages.
Tell = Callable[[Any, Callable[[str], str], str, str], tuple[Seq2SeqOptions, Naming]]


def _spec(name: str, tell: Tell, cost: str = "GPU or CPU time", **known: Any) -> EngineSpec:
    def build(options: Any, source: str, target: str, ledger: Cache) -> Seq2SeqEngine:
        options, naming = tell(options, lambda lang: code_of(name, lang), source, target)
        return Seq2SeqEngine(name, options, naming)

    return EngineSpec(
        name=name,
        cost=cost,
        build=build,
        languages=lambda: languages_of(name),
        install=INSTALL,
        **known,
    )


def _tell_opus(
    options: OpusOptions, code: Callable[[str], str], source: str, target: str
) -> tuple[Seq2SeqOptions, Naming]:
    """Takes the model from the language file.

    A model for several languages needs a tag before the text, which the file gives after a space:
    `Helsinki-NLP/opus-mt-tc-base-en-sh >>hrv<<`.
    """
    model, _, tag = (options.model or code(target)).partition(" >>")
    return replace(options, model=model), Naming(prefix=f">>{tag}" if tag else "")


NLLB = _spec(
    "nllb",
    lambda o, code, source, target: (o, Naming(source=code(source), first=code(target))),
    summary="NLLB-200, a sentence model",
    licence="CC-BY-NC-4.0: not for commercial use",
    options=NllbOptions,
    likely_code=lambda tag, names: _NLLB_NAMES.get(tag, f"{names.iso_639_3}_{names.script}"),
    known_codes=NLLB_CODES,
    lists_all=True,
)
MADLAD = _spec(
    "madlad",  # a T5 that reads the language before the text
    lambda o, code, source, target: (o, Naming(prefix=f"<2{code(target)}>")),
    summary="MADLAD-400, the widest open licence",
    licence="Apache-2.0",
    cost="GPU time (3 billion parameters)",
    options=MadladOptions,
    likely_code=lambda tag, names: tag,
    known_codes=_MADLAD_CODES,
)
M2M100 = _spec(
    "m2m100",
    lambda o, code, source, target: (o, Naming(source=code(source), first=f"__{code(target)}__")),
    summary="M2M100, a sentence model; older, invents more",
    licence="MIT",
    options=M2M100Options,
    likely_code=lambda tag, names: _OTHER_NAMES.get(tag, tag),
    known_codes=_M2M100_CODES,
    lists_all=True,
)
OPUS_MT = _spec(
    "opus-mt",
    _tell_opus,
    summary="Opus-MT, a small model for each language",
    licence="by model: Apache-2.0 or CC-BY-4.0",
    cost="CPU or GPU time",
    options=OpusOptions,
    likely_code=lambda tag, names: _OPUS_MODEL + (_OTHER_NAMES.get(tag) or tag),
    known_codes=_OPUS_CODES,
)
