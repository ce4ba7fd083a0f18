"""Asks services that bill per request, within a budget; has the engines `deepl` and `google`.

Several requests are under way at once, and no new one is sent before the last reply is stored.
Segments without an answer are asked for again; a request that fails is halved until the text at
fault is alone. After an error nothing new is sent, but the requests under way are awaited, because
they are billed. The engine `openai` uses the same loop.

DeepL's key is read from DEEPL_AUTH_KEY. Google's libraries find their own credentials
(GOOGLE_APPLICATION_CREDENTIALS names a file); the project is read from GOOGLE_CLOUD_PROJECT.
"""

from __future__ import annotations

import asyncio
import os
import random
from abc import abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

from llava.errors import ConfigError, ExhaustedError, RejectedError, ServiceError
from lrm_ext.translate.cache import Cache
from lrm_ext.translate.engines.base import (
    AtLeastOne,
    BudgetError,
    EngineError,
    EngineSpec,
    Outcome,
    Positive,
    Reply,
    TextSegment,
    TranslationEngine,
    Usage,
    code_of,
    languages_of,
)

_MAX_WAIT_S = 60.0
# Requests in a row that nobody answers before the service is taken to be down.
_MAX_SILENT = 3


@dataclass(frozen=True)
class BilledOptions:
    """Options of engines that bill by the character.

    Attributes:
        concurrency: Requests under way at once.
        timeout_s: Time limit of one request.
        max_tries: Attempts per request.
        first_wait_s: Wait before the second attempt; it doubles each time.
        usd_per_million_characters: Price; without it only characters are counted, not money.
        budget_usd: Stop before more is spent, counting all runs with this cache.
        budget_characters: Stop before more is sent, counting all runs with this cache.
    """

    concurrency: AtLeastOne = 8
    timeout_s: Positive = 60.0
    max_tries: AtLeastOne = 6
    first_wait_s: float = 1.0
    usd_per_million_characters: float | None = None
    budget_usd: float | None = None
    budget_characters: int | None = None

    def __post_init__(self) -> None:
        if self.budget_usd is not None and self.usd_per_million_characters is None:
            raise ConfigError("budget_usd needs a price: set usd_per_million_characters.")


class Budget:
    """Counts what an engine has spent in all runs and what is reserved for requests under way.

    Args:
        budget: How many units may be spent; None for no limit.
        budget_usd: How much money may be spent; None for no limit.
        unit: What the service bills: "characters" or "tokens".
    """

    def __init__(self, budget: int | None, budget_usd: float | None, unit: str) -> None:
        self._budget, self._budget_usd, self._unit = budget, budget_usd, unit
        self._spent = self._pending = Usage()

    def open(self, spent: Usage) -> None:
        """Starts with what earlier runs have spent."""
        self._spent, self._pending = spent, Usage()

    def reserve(self, estimate: Usage) -> None:
        """Reserves what a request may cost.

        Raises:
            BudgetError: The request might exceed the budget.
        """
        total = self._spent + self._pending + estimate
        budget = None
        if self._budget is not None and self._units(total) > self._budget:
            budget = f"{self._budget:,} {self._unit}"
        elif self._budget_usd is not None and total.usd > self._budget_usd:
            budget = f"{self._budget_usd:g} USD"
        if budget is not None:
            raise BudgetError(
                f"the budget of {budget} is spent: {self._spent.requests:,} requests used "
                f"{self._units(self._spent):,} {self._unit}, {self._spent.usd:.4f} USD, in all "
                "runs with this cache. What was answered is in the cache; run again with a larger "
                "budget to go on."
            )
        self.hold(estimate)

    def hold(self, estimate: Usage) -> None:
        """Reserves what a request under way may cost, without checking the budget."""
        self._pending += estimate

    def settle(self, estimate: Usage, usage: Usage) -> None:
        """Replaces a reservation by the actual cost."""
        self._pending -= estimate
        self._spent += usage

    def _units(self, usage: Usage) -> int:
        # characters are billed where they are sent, tokens both ways
        received = usage.output_tokens if self._unit == "tokens" else 0
        return usage.input_tokens + received


class Work(NamedTuple):
    """Segments that share a request.

    Attributes:
        indices: Their positions in the batch.
        num_useless: How many useless answers they have had so far.
    """

    indices: tuple[int, ...]
    num_useless: int = 0

    def halves(self) -> list[Work]:
        """Splits the request, to isolate the segment at fault."""
        middle = len(self.indices) // 2
        parts = self.indices[:middle], self.indices[middle:]
        return [Work(part, self.num_useless) for part in parts]


# The outcomes of a request, what to ask for again, and the cost.
Judged = tuple[list[Outcome], list[Work], Usage]


class PaidEngine(TranslationEngine):
    """An engine that uses a service that bills, with several requests at once.

    Args:
        ledger: Knows the cost of earlier runs.
        account: The budget.
        concurrency: Requests under way at once.

    Attributes:
        ledger: As above.
        account: As above.
        concurrency: As above.
        is_answered: Whether the service has answered any request.
    """

    def __init__(self, ledger: Cache, account: Budget, concurrency: int) -> None:
        self.ledger, self.account, self.concurrency = ledger, account, concurrency
        self.is_answered = False
        self._num_silent = 0

    @abstractmethod
    def estimate(self, segments: Sequence[TextSegment]) -> Usage:
        """Estimates the cost of a request for some segments."""

    @abstractmethod
    async def send(self, segments: Sequence[TextSegment]) -> Any:
        """Sends one request.

        Raises:
            EngineError: The service cannot be used at all; so does `ServiceError`.
            RejectedError: The service refuses this request.
            ExhaustedError: The service did not answer.
        """

    @abstractmethod
    def read(self, work: Work, answer: Any) -> tuple[list[Outcome], tuple[int, ...], Usage]:
        """Returns an answer's outcomes, the segments to ask for again, and the cost."""

    async def disconnect(self) -> None:
        """Closes connections."""

    def ask(
        self, segments: Sequence[TextSegment], requests: Iterable[tuple[int, ...]]
    ) -> Iterator[Reply]:
        """Yields the service's replies to requests.

        Nothing new is sent before the last replies are stored: a kill loses no more than the
        requests under way. A caller that stops early cancels these.

        Args:
            segments: What to translate.
            requests: Positions of the segments of each request.

        Raises:
            EngineError: The service cannot be used, or the budget is spent. Replies to requests
                under way are yielded first.
        """
        todo = deque(map(Work, requests))
        running: dict[asyncio.Task[Any], tuple[Work, Usage]] = {}
        fault: EngineError | None = None
        self._num_silent = 0
        loop = asyncio.new_event_loop()
        loop.set_default_executor(ThreadPoolExecutor(self.concurrency, "translate"))
        try:
            while True:
                while todo and fault is None and len(running) < self.concurrency:
                    asked = [segments[i] for i in todo[0].indices]
                    estimate = self.estimate(asked)
                    try:
                        self.account.reserve(estimate)
                    except BudgetError as error:
                        # the requests under way may cost less than estimated and leave room
                        fault = None if running else error
                        break
                    running[loop.create_task(self.send(asked))] = todo.popleft(), estimate
                if not running:
                    break
                waiting = asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in loop.run_until_complete(waiting)[0]:
                    work, estimate = running.pop(task)
                    judged: Judged = [], [], Usage()
                    try:
                        judged = self._judge(task, work)
                    except EngineError as error:
                        fault = fault or error
                    outcomes, again, usage = judged
                    todo += again
                    self.account.settle(estimate, usage)
                    if outcomes or usage != Usage():
                        yield Reply(tuple(outcomes), usage)
        finally:
            loop.run_until_complete(self._stop(running))
            loop.close()
        if fault is not None:
            raise fault

    def _judge(self, task: asyncio.Task[Any], work: Work) -> Judged:
        """Returns what became of a request.

        Raises:
            EngineError: The service cannot be used, or does not answer any more.
        """
        is_final = False
        try:
            answer = task.result()
        except ServiceError as error:
            raise EngineError(str(error)) from error
        except RejectedError as error:
            why, is_final = f"refused: {error}", error.is_final
        except ExhaustedError as error:
            self._num_silent += 1
            if not self.is_answered or self._num_silent >= max(_MAX_SILENT, self.concurrency):
                raise EngineError(
                    f"the service does not answer: {error}. What was answered before is in the "
                    "cache; run again to go on."
                ) from error
            why = f"no answer: {error}"
        else:
            self._num_silent, self.is_answered = 0, True
            outcomes, left, usage = self.read(work, answer)
            rest = Work(left, work.num_useless)
            if not outcomes and len(left) > 1:
                return outcomes, rest.halves(), usage
            if not outcomes:
                rest = rest._replace(num_useless=work.num_useless + 1)
            return outcomes, [rest] if left else [], usage
        if len(work.indices) > 1:
            return [], work.halves(), Usage()
        return [Outcome(work.indices[0], None, why, is_final)], [], Usage()

    async def _stop(self, tasks: Iterable[asyncio.Task[Any]]) -> None:
        """Cancels requests under way and closes connections."""
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.disconnect()
        await asyncio.get_running_loop().shutdown_default_executor()


# A service's translations of some texts, in order, and the number of characters billed.
BilledAnswer = tuple[list[str], int]


class BilledEngine(PaidEngine):
    """Translates with a service that bills by the character, through its official client.

    Args:
        options: A subclass of `BilledOptions`.
        source: Code of the language to translate from.
        target: Code of the language to translate into.
        ledger: Knows the cost of earlier runs.

    Attributes:
        max_texts: Most texts in a request.
        max_characters: Most characters in a request.
        codes: The service's codes of the two languages.
    """

    max_texts: int
    max_characters: int = 30_000

    def __init__(self, options: Any, source: str, target: str, ledger: Cache) -> None:
        account = Budget(options.budget_characters, options.budget_usd, "characters")
        super().__init__(ledger, account, options.concurrency)
        self.codes = code_of(self.name, source), code_of(self.name, target)
        self._settings = options
        self._client: Any = None

    @abstractmethod
    def connect(self) -> Any:
        """Makes the client.

        Raises:
            EngineError: The client or its credentials are missing.
        """

    @abstractmethod
    def translate_texts(self, texts: list[str], context: str) -> BilledAnswer:
        """Translates texts that answer one question (or "").

        Raises:
            ExhaustedError: The service did not answer, but may if it is asked again.
            RejectedError: The service refuses these texts.
            EngineError: The service cannot be used.
        """

    def translate(self, segments: Sequence[TextSegment]) -> Iterator[Reply]:
        """Translates a batch; see `TranslationEngine.translate`."""
        self._client = self._client or self.connect()
        self.account.open(self.ledger.spent(self.name))
        yield from self.ask(segments, self._requests(segments))

    def close(self) -> None:
        """Drops the client."""
        self._client = None

    def _requests(self, segments: Sequence[TextSegment]) -> Iterator[tuple[int, ...]]:
        """Groups segments into requests by context and size."""
        request: list[int] = []
        size = 0
        for i in sorted(range(len(segments)), key=lambda i: segments[i].context):
            text, context = segments[i].text, segments[i].context
            is_full = len(request) == self.max_texts or size + len(text) > self.max_characters
            if request and (is_full or context != segments[request[0]].context):
                yield tuple(request)
                request, size = [], 0
            request.append(i)
            size += len(text)
        if request:
            yield tuple(request)

    def estimate(self, segments: Sequence[TextSegment]) -> Usage:
        """See `PaidEngine`."""
        return self._cost(sum(len(segment.text) for segment in segments), 0)

    async def send(self, segments: Sequence[TextSegment]) -> BilledAnswer:
        """See `PaidEngine`; makes at most `max_tries` attempts.

        The clients' own retries are not used: Google's are limited by time and not by number, and
        neither client retries after a page in place of JSON.
        """
        texts, context = [segment.text for segment in segments], segments[0].context
        fault = ""
        for attempt in range(self._settings.max_tries):
            if attempt:
                wait_s = self._settings.first_wait_s * 2 ** (attempt - 1)
                await asyncio.sleep(min(_MAX_WAIT_S, wait_s * random.uniform(0.5, 1.5)))
            try:
                return await asyncio.to_thread(self.translate_texts, texts, context)
            except ExhaustedError as error:
                fault = str(error)
            except RejectedError as error:
                if self.is_answered:
                    raise
                raise EngineError(
                    f"{self.name}: the first request is not accepted: {error}"
                ) from error
        raise ExhaustedError(f"{self.name}: {fault} ({self._settings.max_tries} tries)")

    def read(
        self, work: Work, answer: BilledAnswer
    ) -> tuple[list[Outcome], tuple[int, ...], Usage]:
        """See `PaidEngine`."""
        texts, num_billed = answer
        usage = self._cost(num_billed, sum(map(len, texts)))
        if len(texts) == len(work.indices):
            outcomes = [
                Outcome(i, text) if text.strip() else Outcome(i, None, "empty")
                for i, text in zip(work.indices, texts, strict=True)
            ]
            return outcomes, (), usage
        if len(work.indices) > 1:  # answers have no ids to tell which is missing
            return [], work.indices, usage
        fault = f"{len(texts)} answers to 1 text"
        return [Outcome(work.indices[0], None, fault, is_final=False)], (), usage

    def _cost(self, num_billed: int, num_received: int) -> Usage:
        usd = num_billed * (self._settings.usd_per_million_characters or 0.0) / 1e6
        return Usage(int(num_billed > 0), num_billed, num_received, usd)


def _fault(service: str, error: Any, status: Any, fatal: Mapping[int, str]) -> Exception:
    """Returns the error to raise for an HTTP status; `fatal` has the reasons to end the run."""
    if status in fatal:
        return EngineError(f"{service}: {fatal[status]}: {error}")
    if not status or status in (408, 409, 429) or status >= 500:
        return ExhaustedError(str(error))
    return RejectedError(str(error))


@dataclass(frozen=True)
class DeepLOptions(BilledOptions):
    """Options of the engine.

    Attributes:
        key_variable: Environment variable that holds the key.
        formality: default, more, less, prefer_more or prefer_less; not for every language.
        model_type: quality_optimized, latency_optimized, ...; DeepL's choice by default.
        server_url: Another address; by default the one that the key belongs to.
    """

    key_variable: str = "DEEPL_AUTH_KEY"
    formality: str | None = None
    model_type: str | None = None
    server_url: str | None = None


_DEEPL_FATAL = {
    403: "the key is refused",
    404: "there is no such address or language",
    456: "the account's characters are used up",
}


class DeepLEngine(BilledEngine):
    """DeepL, which reads the question of a short answer and does not bill it."""

    name = "deepl"
    context = "question"
    # as its documentation says; a request may have 128 KiB, and a character up to four bytes
    max_texts = 50

    def __init__(self, options: DeepLOptions, source: str, target: str, ledger: Cache) -> None:
        super().__init__(options, source, target, ledger)
        self.version = options.model_type or ""
        self.options = {"formality": options.formality, "target": self.codes[1]}

    def connect(self) -> Any:
        """See `BilledEngine`."""
        variable = self._settings.key_variable
        key = os.environ.get(variable)
        if not key:
            raise EngineError(f"the environment has no {variable}; set it to the key.")
        try:
            import deepl
        except ImportError as error:
            raise EngineError(f"engine 'deepl' needs its client: {DEEPL_SPEC.install}") from error
        # `send` counts attempts and waits for all services
        deepl.http_client.max_network_retries = 0
        deepl.http_client.min_connection_timeout = self._settings.timeout_s
        client = deepl.Translator(key, server_url=self._settings.server_url)
        return client.set_app_info("lrm-llava", "1")

    def translate_texts(self, texts: list[str], context: str) -> BilledAnswer:
        """See `BilledEngine`."""
        import deepl

        try:
            found: Any = self._client.translate_text(
                texts,
                source_lang=self.codes[0],
                target_lang=self.codes[1],
                context=context or None,
                formality=self._settings.formality,
                model_type=self._settings.model_type,
                preserve_formatting=True,
            )
        except deepl.DeepLException as error:
            raise _fault("DeepL", error, error.http_status_code, _DEEPL_FATAL) from error
        except (ValueError, KeyError, TypeError) as error:  # a page in place of JSON
            raise ExhaustedError(f"no answer of DeepL's form: {error!r}") from error
        billed = [r.billed_characters for r in found]
        known = sum(len(text) if n is None else n for text, n in zip(texts, billed, strict=False))
        return [result.text for result in found], known


# Codes of DeepL's client 1.32, and where they are not those of BCP-47 in capitals.
_DEEPL_CODES = tuple(
    """
    ACE AF AN AR AS AY AZ BA BE BG BHO BN BR BS CA CEB CKB CS CY DA DE EL EN EN-GB EN-US EO ES
    ES-419 ET EU FA FI FR GA GL GN GOM GU HA HE HI HR HT HU HY ID IG IS IT JA JV KA KK KMR KO
    KY LA LB LMO LN LT LV MAI MG MI MK ML MN MR MS MT MY NB NE NL OC OM PA PAG PAM PL PRS PS
    PT PT-BR PT-PT QU RO RU SA SCN SK SL SQ SR ST SU SV SW TA TE TG TH TK TL TN TR TS TT UK UR
    UZ VI WO XH YI YUE ZH ZH-HANS ZH-HANT ZU
    """.split()
)
_DEEPL_NAMES = {"fil": "TL", "no": "NB", "pt": "PT-BR", "zh": "ZH-HANS"}


DEEPL_SPEC = EngineSpec(
    name=DeepLEngine.name,
    summary="DeepL's service",
    licence="DeepL's terms; they may forbid training",
    cost="by the character",
    options=DeepLOptions,
    build=DeepLEngine,
    languages=lambda: languages_of(DeepLEngine.name),
    install="pip install 'lrm-llava[deepl]'",
    likely_code=lambda tag, names: _DEEPL_NAMES.get(tag, tag.upper()),
    known_codes=_DEEPL_CODES,
    lists_all=True,
    uses_service=True,
)


_GOOGLE_FATAL = {
    401: "the credentials are refused",
    403: "access is refused",
    404: "there is no such model or language",
}


@dataclass(frozen=True)
class GoogleOptions(BilledOptions):
    """Options of the engine.

    Attributes:
        project: The project to bill; GOOGLE_CLOUD_PROJECT by default.
        location: Region; a custom model exists in one region only.
        model: general/nmt, general/translation-llm, or a custom model; Google's choice by default.
        endpoint: Another address, such as translate-eu.googleapis.com. One that begins with http://
            is a server on this machine and receives no credentials.
    """

    project: str | None = None
    location: str = "global"
    model: str | None = None
    endpoint: str | None = None


class GoogleEngine(BilledEngine):
    """Google Translate, which receives question and answer together and bills both."""

    name = "google"
    max_texts = 1024  # as its documentation says

    def __init__(self, options: GoogleOptions, source: str, target: str, ledger: Cache) -> None:
        super().__init__(options, source, target, ledger)
        self.version = f"v3 {options.model or ''}".strip()
        self.options = {"target": self.codes[1]}

    def connect(self) -> Any:
        """See `BilledEngine`."""
        project = self._settings.project or os.environ.get("GOOGLE_CLOUD_PROJECT")
        if not project:
            raise EngineError(
                "no project to bill; set GOOGLE_CLOUD_PROJECT, or --option google.project=..."
            )
        try:
            from google.auth.credentials import AnonymousCredentials
            from google.auth.exceptions import GoogleAuthError
            from google.cloud.translate_v3 import TranslationServiceClient
        except ImportError as error:
            raise EngineError(f"engine 'google' needs its client: {GOOGLE_SPEC.install}") from error
        parent = f"projects/{project}/locations/{self._settings.location}"
        self._request: dict[str, Any] = {
            "parent": parent,
            "mime_type": "text/plain",
            "source_language_code": self.codes[0],
            "target_language_code": self.codes[1],
        }
        if self._settings.model:
            self._request["model"] = f"{parent}/models/{self._settings.model}"
        endpoint = self._settings.endpoint
        try:
            if endpoint is None or not endpoint.startswith("http://"):
                options = {"api_endpoint": endpoint} if endpoint else None
                return TranslationServiceClient(client_options=options)
        except GoogleAuthError as error:
            raise EngineError(
                f"Google: no credentials ({error}); set GOOGLE_APPLICATION_CREDENTIALS to their "
                "file."
            ) from error
        rest = TranslationServiceClient.get_transport_class("rest")(
            host=endpoint.removeprefix("http://"),
            url_scheme="http",
            credentials=AnonymousCredentials(),
        )
        return TranslationServiceClient(transport=rest)

    def translate_texts(self, texts: list[str], context: str) -> BilledAnswer:
        """See `BilledEngine`."""
        from google.api_core import exceptions
        from google.auth.exceptions import GoogleAuthError, TransportError
        from google.protobuf.json_format import ParseError

        try:
            found = self._client.translate_text(
                request={**self._request, "contents": texts},
                retry=None,
                timeout=self._settings.timeout_s,
            )
        except exceptions.GoogleAPICallError as error:
            raise _fault("Google", error, error.code, _GOOGLE_FATAL) from error
        except TransportError as error:
            raise ExhaustedError(f"Google: {error}") from error
        except GoogleAuthError as error:  # some are an OSError or a ValueError, too
            raise EngineError(f"Google: the credentials are refused: {error}") from error
        except (OSError, ValueError, ParseError) as error:
            # no connection, or a page in place of JSON
            raise ExhaustedError(f"{type(error).__name__}: {error}") from error
        answers = [translation.translated_text for translation in found.translations]
        return answers, sum(map(len, texts))


# Codes of https://cloud.google.com/translate/docs/languages, 2022, and where they are not BCP-47's.
_GOOGLE_CODES = tuple(
    """
    af am ar as ay az be bg bho bm bn bs ca ceb ckb co cs cy da de doi dv ee el en eo es et eu
    fa fi fil fr fy ga gd gl gn gom gu ha haw he hi hmn hr ht hu hy id ig ilo is it ja jv ka
    kk km kn ko kri ku ky la lb lg ln lo lt lus lv mai mg mi mk ml mn mr ms mt my ne nl no nso
    ny om or pa pl ps pt qu ro ru rw sa sd si sk sl sm sn so sq sr st su sv sw ta te tg th ti
    tk tr ts tt ug uk ur uz vi xh yi yo zh-CN zh-TW zu
    """.split()
)
_GOOGLE_NAMES = {"zh": "zh-CN", "zh-Hant": "zh-TW"}

GOOGLE_SPEC = EngineSpec(
    name=GoogleEngine.name,
    summary="Google Cloud Translation",
    licence="Google's terms; they may forbid training",
    cost="by the character",
    options=GoogleOptions,
    build=GoogleEngine,
    languages=lambda: languages_of(GoogleEngine.name),
    install="pip install 'lrm-llava[google]'",
    likely_code=lambda tag, names: _GOOGLE_NAMES.get(tag, tag),
    known_codes=_GOOGLE_CODES,
    uses_service=True,
)
