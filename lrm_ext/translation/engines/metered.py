"""Engines on services that bill by the character: DeepL and Google, with their official clients.

Input: segments. Output: replies as they come. Several requests are under way at once; what may pass
is tried again with back-off; a request that is at fault is halved until the text at fault is alone.
After an error nothing new is asked, and what is under way is waited for: it is paid.

DeepL's key is in DEEPL_AUTH_KEY. Google's credentials are found as its libraries find them
(GOOGLE_APPLICATION_CREDENTIALS names a file); the project is in GOOGLE_CLOUD_PROJECT.
"""

from __future__ import annotations

import os
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

from llava.errors import ConfigError, ExhaustedError, RejectedError
from lrm_ext.translation.engines.base import (
    BudgetError,
    EngineError,
    EngineSpec,
    Ledger,
    OptionValue,
    Outcome,
    Reply,
    Segment,
    Usage,
    code_of,
    languages_of,
)

_MAX_WAIT_S = 60.0
# Requests in a row that nobody answers before the service is taken to be down.
_MAX_SILENT = 3


@dataclass(frozen=True)
class BilledOptions:
    """Options of the engines on services that bill by the character.

    Attributes:
        concurrency: Requests under way at once.
        timeout_s: Longest wait for one answer.
        max_tries: Tries for one request.
        first_wait_s: Wait before the second try; it doubles.
        usd_per_million_characters: Price; without it money is not counted, only characters.
        budget_usd: Stop before more is spent, counting all runs with this cache.
        budget_characters: Stop before more is sent, counting all runs with this cache.
    """

    concurrency: int = 8
    timeout_s: float = 60.0
    max_tries: int = 6
    first_wait_s: float = 1.0
    usd_per_million_characters: float | None = None
    budget_usd: float | None = None
    budget_characters: int | None = None

    def __post_init__(self) -> None:
        for name in ("concurrency", "timeout_s", "max_tries"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected more than 0.")
        if self.budget_usd is not None and self.usd_per_million_characters is None:
            raise ConfigError("budget_usd needs a price: set usd_per_million_characters.")


class MayPassError(Exception):
    """The service did not answer, and may if it is asked again."""


class Translated(NamedTuple):
    """What a service made of some texts.

    Attributes:
        texts: Translations, in order.
        num_billed: Characters that are billed.
    """

    texts: list[str]
    num_billed: int


# Has texts translated that answer one question (or ""). Raises MayPassError, RejectedError for what
# is the texts' fault, EngineError for what will not pass.
Client = Callable[[Sequence[str], str], Translated]


class BilledEngine:
    """Translates with a service that bills by the character.

    Args:
        name: The engine's name.
        version: The service's model, as far as it says which.
        decisive: Options that change a translation.
        options: How the service may be asked.
        ledger: Knows what earlier runs have cost.
        connect: Makes the client.
        max_texts: Texts that a request may hold.
        max_characters: Characters that a request may hold.
    """

    context = "joined"
    mask_styles: tuple[str, ...] = ("angle", "tag", "word")
    is_table = False
    is_sentence_level = False

    def __init__(
        self,
        name: str,
        version: str,
        decisive: Mapping[str, OptionValue],
        options: BilledOptions,
        ledger: Ledger,
        connect: Callable[[], Client],
        max_texts: int,
        max_characters: int,
    ) -> None:
        self.name = name
        self.version = version
        self.options = decisive
        self._settings = options
        self._ledger = ledger
        self._connect = connect
        self._client: Client | None = None
        self._max_texts, self._max_characters = max_texts, max_characters
        self._spent = Usage()
        self._num_pending = 0

    def translate(self, segments: Sequence[Segment]) -> Iterator[Reply]:
        """Translate a batch; see `Engine.translate`."""
        if self._client is None:
            self._client = self._connect()
        self._spent, self._num_pending = self._ledger.spent(self.name), 0
        working = _Working(self, segments, self._settings.concurrency)
        yield from working.replies()

    def close(self) -> None:
        """Forget the client."""
        self._client = None

    def requests(self, segments: Sequence[Segment]) -> Iterator[tuple[int, ...]]:
        """Numbers of segments that go together."""
        by_context = sorted(range(len(segments)), key=lambda i: segments[i].context)
        for _, group in groupby(by_context, key=lambda i: segments[i].context):
            request: list[int] = []
            size = 0
            for i in group:
                length = len(segments[i].text)
                full = len(request) == self._max_texts or size + length > self._max_characters
                if request and full:
                    yield tuple(request)
                    request, size = [], 0
                request.append(i)
                size += length
            yield tuple(request)

    def send(self, texts: Sequence[str], context: str) -> Translated:
        """Have texts translated, with as many tries as are allowed.

        Raises:
            EngineError: The service cannot be used at all.
            RejectedError: It does not take this request.
            ExhaustedError: It did not answer in `max_tries` tries.
        """
        assert self._client is not None
        fault = ""
        for attempt in range(self._settings.max_tries):
            if attempt:
                wait_s = self._settings.first_wait_s * 2 ** (attempt - 1)
                time.sleep(min(_MAX_WAIT_S, wait_s * random.uniform(0.5, 1.5)))
            try:
                return self._client(texts, context)
            except MayPassError as error:
                fault = str(error)
        raise ExhaustedError(f"{fault} ({self._settings.max_tries} tries)")

    def reserve(self, num_characters: int) -> None:
        """Set money aside for a request.

        Raises:
            BudgetError: With it, more would be spent than is allowed.
        """
        options = self._settings
        total = self._spent.input_tokens + self._num_pending + num_characters
        usd = self._spent.usd + self._price(self._num_pending + num_characters)
        spent: list[str] = []
        if options.budget_characters is not None and total > options.budget_characters:
            spent.append(f"{options.budget_characters:,} characters")
        if options.budget_usd is not None and usd > options.budget_usd:
            spent.append(f"{options.budget_usd:g} USD")
        if spent:
            raise BudgetError(
                f"the budget of {spent[0]} is spent: {self._spent.input_tokens:,} characters, "
                f"{self._spent.usd:.4f} USD in all runs with this cache. What was answered is in "
                "the cache; run again with a larger budget to go on."
            )
        self._num_pending += num_characters

    def settle(self, num_characters: int, num_billed: int, num_received: int) -> Usage:
        """Replace what was set aside by what it came to; say what that is."""
        self._num_pending -= num_characters
        usage = Usage(int(num_billed > 0), num_billed, num_received, self._price(num_billed))
        self._spent += usage
        return usage

    def _price(self, num_characters: int) -> float:
        return num_characters * (self._settings.usd_per_million_characters or 0.0) / 1e6


class _Working:
    """One batch under way."""

    def __init__(self, engine: BilledEngine, segments: Sequence[Segment], concurrency: int) -> None:
        self._engine = engine
        self._segments = segments
        self._work = deque(engine.requests(segments))
        self._concurrency = concurrency
        self._running: dict[Future[Translated], tuple[int, ...]] = {}
        self._fault: EngineError | None = None
        self._num_silent = 0
        self._is_answered = False

    def replies(self) -> Iterator[Reply]:
        """Ask until all is answered or an error ends it."""
        with ThreadPoolExecutor(self._concurrency, "translate") as pool:
            while True:
                self._start(pool)
                if not self._running:
                    break
                done, _ = wait(self._running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield self._finish(future, self._running.pop(future))
        if self._fault is not None:
            raise self._fault

    def _start(self, pool: ThreadPoolExecutor) -> None:
        while self._work and self._fault is None and len(self._running) < self._concurrency:
            request = self._work[0]
            try:
                self._engine.reserve(self._size(request))
            except BudgetError as error:
                # what is under way may come cheaper than thought, and leave room for this
                if not self._running:
                    self._fault = error
                return
            self._work.popleft()
            texts = [self._segments[i].text for i in request]
            context = self._segments[request[0]].context
            self._running[pool.submit(self._engine.send, texts, context)] = request

    def _finish(self, future: Future[Translated], request: tuple[int, ...]) -> Reply:
        size = self._size(request)
        outcomes: tuple[Outcome, ...] = ()
        found = Translated([], 0)
        try:
            found = future.result()
        except EngineError as error:
            self._fault = self._fault or error
        except RejectedError as error:
            if not self._is_answered:
                self._fault = EngineError(
                    f"{self._engine.name}: the first request is not accepted: {error}"
                )
            else:
                outcomes = self._halve(request, f"rejected: {error}")
        except ExhaustedError as error:
            self._num_silent += 1
            limit = max(_MAX_SILENT, self._concurrency)
            if not self._is_answered or self._num_silent >= limit:
                self._fault = self._fault or EngineError(
                    f"{self._engine.name}: the service does not answer: {error}. What was answered "
                    "before is in the cache; run again to go on."
                )
            else:
                outcomes = self._halve(request, f"no answer: {error}")
        else:
            self._num_silent, self._is_answered = 0, True
            if len(found.texts) == len(request):
                outcomes = tuple(
                    Outcome(i, text if text.strip() else None, None if text.strip() else "empty")
                    for i, text in zip(request, found.texts, strict=True)
                )
            else:  # which is whose nobody can say
                fault = f"{len(found.texts)} answers to {len(request)} texts"
                outcomes = self._halve(request, fault)
        num_received = sum(map(len, found.texts))
        return Reply(outcomes, self._engine.settle(size, found.num_billed, num_received))

    def _halve(self, request: tuple[int, ...], fault: str) -> tuple[Outcome, ...]:
        if len(request) == 1:
            return (Outcome(request[0], None, fault, is_final=False),)
        middle = len(request) // 2
        self._work += request[:middle], request[middle:]
        return ()

    def _size(self, request: tuple[int, ...]) -> int:
        return sum(len(self._segments[i].text) for i in request)


_DEEPL = "deepl"
_DEEPL_TEXTS = 50  # of a request, as DeepL's documentation says
_DEEPL_CHARACTERS = 30_000  # it may have 128 KiB, and a character up to four bytes


@dataclass(frozen=True)
class DeepLOptions(BilledOptions):
    """Options of the engine.

    Attributes:
        key_variable: Environment variable that holds the key.
        formality: default, more, less, prefer_more or prefer_less; not every language has it.
        model_type: quality_optimized, latency_optimized, ...; left out: DeepL's choice.
        server_url: Another address; left out: the one that the key belongs to.
    """

    key_variable: str = "DEEPL_AUTH_KEY"
    formality: str | None = None
    model_type: str | None = None
    server_url: str | None = None


class DeepLEngine(BilledEngine):
    """DeepL reads the question of a short answer, and does not bill it."""

    context = "question"


def _connect_deepl(options: DeepLOptions, source: str, target: str) -> Client:
    key = os.environ.get(options.key_variable)
    if not key:
        raise EngineError(f"the environment has no {options.key_variable}; set it to the key.")
    try:
        import deepl
    except ImportError as error:
        raise EngineError(
            f"engine {_DEEPL!r} needs DeepL's client: {DEEPL_SPEC.install}"
        ) from error
    # tries and waits are counted in one place for all services
    deepl.http_client.max_network_retries = 0
    deepl.http_client.min_connection_timeout = options.timeout_s
    client = deepl.Translator(key, server_url=options.server_url)
    client.set_app_info("lrm-llava", "1")

    def translate(texts: Sequence[str], context: str) -> Translated:
        try:
            found: Any = client.translate_text(
                list(texts),
                source_lang=source,
                target_lang=target,
                context=context or None,
                formality=options.formality,
                model_type=options.model_type,
                preserve_formatting=True,
            )
        except deepl.AuthorizationException as error:
            raise EngineError(f"DeepL: the key is refused: {error}") from error
        except deepl.QuotaExceededException as error:
            raise EngineError(f"DeepL: the account's characters are used up: {error}") from error
        except deepl.DeepLException as error:
            raise _deepl_fault(error) from error
        except (ValueError, KeyError, TypeError) as error:  # a page in place of JSON
            raise MayPassError(f"no answer of DeepL's form: {error!r}") from error
        billed = [r.billed_characters for r in found]
        known = sum(len(text) if n is None else n for text, n in zip(texts, billed, strict=False))
        return Translated([result.text for result in found], known)

    return translate


def _deepl_fault(error: Any) -> Exception:
    status = error.http_status_code
    if error.should_retry or status is None or status in (408, 429) or status >= 500:
        return MayPassError(str(error))
    if status == 404:
        return EngineError(f"DeepL: no such address or language: {error}")
    return RejectedError(str(error))


def _build_deepl(options: DeepLOptions, source: str, target: str, ledger: Ledger) -> DeepLEngine:
    codes = code_of(_DEEPL, source), code_of(_DEEPL, target)
    return DeepLEngine(
        _DEEPL,
        options.model_type or "",
        {"formality": options.formality, "target": codes[1]},
        options,
        ledger,
        lambda: _connect_deepl(options, *codes),
        _DEEPL_TEXTS,
        _DEEPL_CHARACTERS,
    )


def _deepl_codes() -> tuple[str, ...]:
    """Codes that DeepL's client knows; none if it is not installed."""
    try:
        from deepl import Language
    except ImportError:
        return ()
    values = [value for name, value in vars(Language).items() if name.isupper()]
    return tuple(str(value).upper() for value in values)


DEEPL_SPEC = EngineSpec(
    name=_DEEPL,
    summary="DeepL's service",
    licence="DeepL's terms; they may forbid training",
    cost="by the character",
    options=DeepLOptions,
    build=_build_deepl,
    languages=lambda: languages_of(_DEEPL),
    install="pip install 'lrm-llava[deepl]'",
    likely_code=lambda tag, names: tag.upper(),
    known_codes=_deepl_codes,
    uses_service=True,
)


_GOOGLE = "google"
# Of a request, as Google's documentation says.
_GOOGLE_TEXTS = 1024
_GOOGLE_CHARACTERS = 30_000
_GOOGLE_FATAL = {
    401: "the credentials are refused",
    403: "access is refused",
    404: "there is no such model or language",
}


@dataclass(frozen=True)
class GoogleOptions(BilledOptions):
    """Options of the engine.

    Attributes:
        project: The project that pays; left out: GOOGLE_CLOUD_PROJECT.
        location: Where it is translated; a model of one's own is in one place only.
        model: general/nmt, general/translation-llm, or one's own; left out: Google's choice.
        endpoint: Another address, such as translate-eu.googleapis.com. One that begins with http://
            is a server on this machine, and gets no credentials.
    """

    project: str | None = None
    location: str = "global"
    model: str | None = None
    endpoint: str | None = None


def _connect_google(options: GoogleOptions, source: str, target: str) -> Client:
    project = options.project or os.environ.get("GOOGLE_CLOUD_PROJECT")
    if not project:
        raise EngineError(
            "which project pays? Set GOOGLE_CLOUD_PROJECT, or --option google.project=..."
        )
    try:
        from google.api_core import exceptions
        from google.auth.exceptions import GoogleAuthError, TransportError
        from google.cloud import translate_v3
        from google.protobuf.json_format import ParseError
    except ImportError as error:
        raise EngineError(
            f"engine {_GOOGLE!r} needs Google's client: {GOOGLE_SPEC.install}"
        ) from error
    try:
        client = _google_client(translate_v3, options.endpoint)
    except GoogleAuthError as error:
        raise EngineError(
            f"Google: no credentials ({error}); set GOOGLE_APPLICATION_CREDENTIALS to their file."
        ) from error
    parent = f"projects/{project}/locations/{options.location}"
    request: dict[str, Any] = {
        "parent": parent,
        "mime_type": "text/plain",
        "source_language_code": source,
        "target_language_code": target,
    }
    if options.model:
        request["model"] = f"{parent}/models/{options.model}"

    def translate(texts: Sequence[str], context: str) -> Translated:
        try:
            found = client.translate_text(
                request={**request, "contents": list(texts)},
                retry=None,
                timeout=options.timeout_s,
            )
        except exceptions.GoogleAPICallError as error:
            raise _google_fault(error) from error
        except TransportError as error:
            raise MayPassError(f"Google: {error}") from error
        except GoogleAuthError as error:
            raise EngineError(f"Google: the credentials are refused: {error}") from error
        except (
            OSError,
            ValueError,
            ParseError,
        ) as error:  # no connection, or a page in place of JSON
            raise MayPassError(f"{type(error).__name__}: {error}") from error
        answers = [translation.translated_text for translation in found.translations]
        return Translated(answers, sum(map(len, texts)))

    return translate


def _google_client(translate_v3: Any, endpoint: str | None) -> Any:
    if endpoint is None:
        return translate_v3.TranslationServiceClient()
    if not endpoint.startswith("http://"):
        return translate_v3.TranslationServiceClient(client_options={"api_endpoint": endpoint})
    from google.auth.credentials import AnonymousCredentials
    from google.cloud.translate_v3.services.translation_service.transports import (
        TranslationServiceRestTransport,
    )

    transport = TranslationServiceRestTransport(
        host=endpoint.removeprefix("http://"),
        url_scheme="http",
        credentials=AnonymousCredentials(),
    )
    return translate_v3.TranslationServiceClient(transport=transport)


def _google_fault(error: Any) -> Exception:
    status = int(error.code or 0)
    if status in _GOOGLE_FATAL:
        return EngineError(f"Google: {_GOOGLE_FATAL[status]}: {error}")
    if status in (408, 409, 429) or status >= 500 or not status:
        return MayPassError(str(error))
    return RejectedError(str(error))


def _build_google(options: GoogleOptions, source: str, target: str, ledger: Ledger) -> BilledEngine:
    codes = code_of(_GOOGLE, source), code_of(_GOOGLE, target)
    return BilledEngine(
        _GOOGLE,
        f"v3 {options.model or ''}".strip(),
        {"target": codes[1]},
        options,
        ledger,
        lambda: _connect_google(options, *codes),
        _GOOGLE_TEXTS,
        _GOOGLE_CHARACTERS,
    )


GOOGLE_SPEC = EngineSpec(
    name=_GOOGLE,
    summary="Google Cloud Translation",
    licence="Google's terms; they may forbid training",
    cost="by the character",
    options=GoogleOptions,
    build=_build_google,
    languages=lambda: languages_of(_GOOGLE),
    install="pip install 'lrm-llava[google]'",
    likely_code=lambda tag, names: tag,
    uses_service=True,
)
