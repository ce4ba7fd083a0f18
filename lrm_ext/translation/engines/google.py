"""Engine `google`: Google Cloud Translation (v3), with its official client.

Credentials are found as Google's libraries find them (GOOGLE_APPLICATION_CREDENTIALS names a file);
the project is in GOOGLE_CLOUD_PROJECT.
"""

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

_NAME = "google"
# Of a request, as Google's documentation says.
_MAX_TEXTS = 1024
_MAX_CHARACTERS = 30_000
_FATAL = {
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


def _connect(options: GoogleOptions, source: str, target: str) -> Client:
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
        raise EngineError(f"engine {_NAME!r} needs Google's client: {SPEC.install}") from error
    try:
        client = _client(translate_v3, options.endpoint)
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
            raise _fault(error) from error
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


def _client(translate_v3: Any, endpoint: str | None) -> Any:
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


def _fault(error: Any) -> Exception:
    status = int(error.code or 0)
    if status in _FATAL:
        return EngineError(f"Google: {_FATAL[status]}: {error}")
    if status in (408, 409, 429) or status >= 500 or not status:
        return MayPassError(str(error))
    return RejectedError(str(error))


def _build(options: GoogleOptions, source: str, target: str, ledger: Ledger) -> BilledEngine:
    codes = code_of(_NAME, source), code_of(_NAME, target)
    return BilledEngine(
        _NAME,
        f"v3 {options.model or ''}".strip(),
        {"target": codes[1]},
        options,
        ledger,
        lambda: _connect(options, *codes),
        _MAX_TEXTS,
        _MAX_CHARACTERS,
    )


SPEC = EngineSpec(
    name=_NAME,
    summary="Google Cloud Translation",
    licence="Google's terms; they may forbid training",
    cost="by the character",
    options=GoogleOptions,
    build=_build,
    languages=lambda: languages_of(_NAME),
    install="pip install 'lrm-llava[google]'",
    likely_code=lambda tag, names: tag,
    uses_service=True,
)
