"""Finding, loading and running an encoder-decoder checkpoint, in transformers or CTranslate2.

Input: options and how the model is told the languages. Output: a `Runner` that turns token ids into
token ids. Which segments make a batch is the engine's business (`seq2seq.py`).
"""

from __future__ import annotations

import gc
import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from lrm_ext.translation.engines.base import EngineError

if TYPE_CHECKING:
    from lrm_ext.translation.engines.seq2seq import Seq2SeqOptions

log = logging.getLogger(__name__)

_SAMPLE_BYTES = 1 << 20


class Naming(NamedTuple):
    """How a model is told the languages.

    Attributes:
        source: What its tokenizer calls the source language; None if it is not told.
        prefix: A token before the text that names the target language; "" for none.
        first: The token that the answer begins with; "" for none.
    """

    source: str | None = None
    prefix: str = ""
    first: str = ""


class Found(NamedTuple):
    """A checkpoint, as exactly as can be said.

    Attributes:
        name: Folder or id on the hub.
        revision: The commit; None for a folder.
        version: For the cache key.
    """

    name: str
    revision: str | None
    version: str


class Answered(NamedTuple):
    """What a model made of one text.

    Attributes:
        ids: Its tokens, without those that begin and end.
        is_ended: False if it was still at it when it reached the limit.
    """

    ids: list[int]
    is_ended: bool


class Runner(Protocol):
    """A model ready to translate."""

    tokenizer: Any
    max_positions: int | None

    def run(self, batch: Sequence[Sequence[int]], limit: int) -> list[Answered]:
        """Translate token ids, at most `limit` new ones each."""
        ...

    def free(self) -> None:
        """Give back memory that is not in use."""
        ...

    def close(self) -> None:
        """Give back all memory."""
        ...


def find_checkpoint(options: Seq2SeqOptions) -> Found:
    """Find out which checkpoint is meant; of one on the hub only `config.json` is fetched.

    Raises:
        EngineError: There is none.
    """
    folder = Path(options.model)
    if folder.is_dir():
        found = Found(options.model, None, f"{folder.resolve().name} {_digest(folder)}")
    else:
        from huggingface_hub import hf_hub_download

        try:
            config = hf_hub_download(
                options.model,
                "config.json",
                revision=options.revision,
                local_files_only=options.local_files_only,
            )
        except Exception as error:  # whatever the hub's client throws: it says what is wrong
            raise EngineError(
                f"model {options.model!r} is neither a folder nor to be had from the hub "
                f"({'only local files are allowed' if options.local_files_only else 'asked'}): "
                f"{_first_line(error)}. Give a folder with --option model=..., or fetch it first: "
                f"hf download {options.model}"
            ) from error
        commit = Path(config).parent.name
        found = Found(options.model, commit, f"{options.model}@{commit[:12]}")
    if options.ct2_model is None:
        return found
    converted = Path(options.ct2_model)
    if not (converted / "model.bin").is_file():
        fault = f"{converted} holds no CTranslate2 model (no model.bin). "
        if options.ct2_fault:
            raise EngineError(f"{fault}{options.ct2_fault}; leave option ct2_model out.")
        raise EngineError(
            f"{fault}To make one: "
            f"ct2-transformers-converter --model {options.model} --output_dir {converted}"
        )
    return found._replace(version=f"{found.version} ct2 {_digest(converted)}")


def load(found: Found, options: Seq2SeqOptions, naming: Naming) -> Runner:
    """Load tokenizer and model.

    Raises:
        EngineError: A file or package is missing, or the model does not know a language.
    """
    tokenizer = _load_tokenizer(found, options, naming)
    if options.ct2_model is not None:
        return CTranslate2Runner(tokenizer, options, naming)
    return TorchRunner(tokenizer, found, options, naming)


class TorchRunner:
    """A model in transformers."""

    def __init__(
        self, tokenizer: Any, found: Found, options: Seq2SeqOptions, naming: Naming
    ) -> None:
        import torch
        from transformers import AutoModelForSeq2SeqLM

        self.tokenizer = tokenizer
        self._torch = torch
        self._device = _device(torch, options.device)
        dtype = _dtype(torch, options.dtype, self._device)
        log.info("loading %s on %s, %s", found.version, self._device, dtype)
        try:
            self.model = AutoModelForSeq2SeqLM.from_pretrained(
                found.name,
                revision=found.revision,
                local_files_only=options.local_files_only,
                dtype=dtype,
            )
            self.model = self.model.to(self._device).eval()
        except (OSError, ValueError, ImportError, RuntimeError) as error:
            raise EngineError(
                f"model {found.name!r} cannot be loaded: {_first_line(error)}"
            ) from error
        config = self.model.config
        self.max_positions = getattr(config, "max_position_embeddings", None)
        self._end, self._pad = config.eos_token_id, config.pad_token_id
        self._first = tokenizer.convert_tokens_to_ids(naming.first) if naming.first else None
        settings = self.model.generation_config
        # a forced end would make a text that was cut look complete; limits are given with each call
        settings.forced_eos_token_id = None
        settings.max_length = None
        settings.num_beams, settings.do_sample = options.beams, False
        settings.no_repeat_ngram_size = options.no_repeat_ngram
        settings.forced_bos_token_id = self._first

    def run(self, batch: Sequence[Sequence[int]], limit: int) -> list[Answered]:
        """Translate token ids; see `Runner`."""
        torch = self._torch
        width = max(map(len, batch))
        ids = torch.full((len(batch), width), self._pad, dtype=torch.long)
        mask = torch.zeros((len(batch), width), dtype=torch.long)
        for row, tokens in enumerate(batch):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
        with torch.inference_mode():
            answers = self.model.generate(
                input_ids=ids.to(self._device),
                attention_mask=mask.to(self._device),
                max_new_tokens=limit,
            ).tolist()
        return [self._read(answer[1:]) for answer in answers]  # without what decoding starts with

    def free(self) -> None:
        """Give back memory that is not in use."""
        gc.collect()
        if self._device.type == "cuda":
            self._torch.cuda.empty_cache()

    def close(self) -> None:
        """Give back all memory."""
        del self.model
        self.free()

    def _read(self, ids: list[int]) -> Answered:
        is_ended = self._end in ids
        ids = ids[: ids.index(self._end)] if is_ended else ids
        return Answered(ids[ids[:1] == [self._first] :], is_ended)


class CTranslate2Runner:
    """A converted model in CTranslate2."""

    def __init__(self, tokenizer: Any, options: Seq2SeqOptions, naming: Naming) -> None:
        try:
            import ctranslate2
        except ImportError as error:
            raise EngineError(
                "option ct2_model needs CTranslate2: pip install 'lrm-llava[ct2]'"
            ) from error
        self.tokenizer = tokenizer
        self.max_positions: int | None = None
        self._first = [naming.first] if naming.first else None
        self._beams, self._no_repeat = options.beams, options.no_repeat_ngram
        kind, _, index = options.device.partition(":")
        try:
            self.model = ctranslate2.Translator(
                str(options.ct2_model),
                device=kind,
                device_index=int(index or 0),
                compute_type="auto" if options.dtype == "auto" else options.dtype,
            )
        except (RuntimeError, ValueError) as error:
            raise EngineError(
                f"{options.ct2_model} cannot be loaded: {_first_line(error)}"
            ) from error

    def run(self, batch: Sequence[Sequence[int]], limit: int) -> list[Answered]:
        """Translate token ids; see `Runner`."""
        results = self.model.translate_batch(
            [self.tokenizer.convert_ids_to_tokens(ids) for ids in batch],
            target_prefix=None if self._first is None else [self._first] * len(batch),
            beam_size=self._beams,
            no_repeat_ngram_size=self._no_repeat,
            max_decoding_length=limit,
            return_end_token=True,
        )
        return [self._read(result.hypotheses[0]) for result in results]

    def free(self) -> None:
        """CTranslate2 does so by itself."""

    def close(self) -> None:
        """Give back all memory."""
        self.model.unload_model()

    def _read(self, tokens: list[str]) -> Answered:
        is_ended = tokens[-1:] == [self.tokenizer.eos_token]
        tokens = tokens[: len(tokens) - is_ended]
        if self._first is not None and tokens[:1] == self._first:
            tokens = tokens[1:]
        return Answered(self.tokenizer.convert_tokens_to_ids(tokens), is_ended)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a smaller batch may help."""
    text = str(error).lower()
    return type(error).__name__ == "OutOfMemoryError" or any(
        words in text for words in ("out of memory", "can't allocate memory")
    )


def _load_tokenizer(found: Found, options: Seq2SeqOptions, naming: Naming) -> Any:
    from transformers import AutoTokenizer

    told = {} if naming.source is None else {"src_lang": naming.source}
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(
            found.name,
            revision=found.revision,
            local_files_only=options.local_files_only,
            **told,
        )
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise EngineError(
            f"the tokenizer of {found.name!r} cannot be loaded: {_first_line(error)}"
        ) from error
    for token in filter(None, (naming.prefix, naming.first)):
        if tokenizer.convert_tokens_to_ids(token) in (None, tokenizer.unk_token_id):
            raise EngineError(
                f"model {found.name!r} has no token {token!r} for the language; correct its code "
                "under [engines] in the language's file, or choose another model."
            )
    return tokenizer


def _device(torch: Any, name: str) -> Any:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise EngineError(f"option device is {name!r}: {_first_line(error)}") from error


def _dtype(torch: Any, name: str, device: Any) -> Any:
    if name == "auto":
        if device.type == "cpu":
            name = "float32"
        else:
            name = "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise EngineError(f"option dtype is {name!r}, expected float32, bfloat16 or float16.")
    return dtype


def _digest(folder: Path) -> str:
    """Of a folder's files; of large ones only size, beginning, middle and end are read."""
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
