"""Engine `deepl`: DeepL's service, with its official client; the key is in DEEPL_AUTH_KEY."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llava.errors import RejectedError
from lrm_ext.translation.engines.base import EngineError, EngineSpec, Ledger
from lrm_ext.translation.engines.billed import (
    BilledEngine,
    BilledOptions,
    Client,
    MayPassError,
    Translated,
)
from lrm_ext.translation.engines.codes import code_of, languages_of

_NAME = "deepl"
_MAX_TEXTS = 50  # of a request, as DeepL's documentation says
_MAX_CHARACTERS = 30_000  # it may have 128 KiB, and a character up to four bytes


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


def _connect(options: DeepLOptions, source: str, target: str) -> Client:
    key = os.environ.get(options.key_variable)
    if not key:
        raise EngineError(f"the environment has no {options.key_variable}; set it to the key.")
    try:
        import deepl
    except ImportError as error:
        raise EngineError(f"engine {_NAME!r} needs DeepL's client: {SPEC.install}") from error
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
            raise _fault(error) from error
        except (ValueError, KeyError, TypeError) as error:  # a page in place of JSON
            raise MayPassError(f"no answer of DeepL's form: {error!r}") from error
        billed = [r.billed_characters for r in found]
        known = sum(len(text) if n is None else n for text, n in zip(texts, billed, strict=False))
        return Translated([result.text for result in found], known)

    return translate


def _fault(error: Any) -> Exception:
    status = error.http_status_code
    if error.should_retry or status is None or status in (408, 429) or status >= 500:
        return MayPassError(str(error))
    if status == 404:
        return EngineError(f"DeepL: no such address or language: {error}")
    return RejectedError(str(error))


def _build(options: DeepLOptions, source: str, target: str, ledger: Ledger) -> DeepLEngine:
    codes = code_of(_NAME, source), code_of(_NAME, target)
    return DeepLEngine(
        _NAME,
        options.model_type or "",
        {"formality": options.formality, "target": codes[1]},
        options,
        ledger,
        lambda: _connect(options, *codes),
        _MAX_TEXTS,
        _MAX_CHARACTERS,
    )


def _known_codes() -> tuple[str, ...]:
    """Codes that DeepL's client knows; none if it is not installed."""
    try:
        from deepl import Language
    except ImportError:
        return ()
    values = [value for name, value in vars(Language).items() if name.isupper()]
    return tuple(str(value).upper() for value in values)


SPEC = EngineSpec(
    name=_NAME,
    summary="DeepL's service",
    licence="DeepL's terms; they may forbid training",
    cost="by the character",
    options=DeepLOptions,
    build=_build,
    languages=lambda: languages_of(_NAME),
    install="pip install 'lrm-llava[deepl]'",
    likely_code=lambda tag, names: tag.upper(),
    known_codes=_known_codes,
    uses_service=True,
)
