"""The page and what it asks for, on this machine alone.

Input: `Runs`. Output: an application that answers `/`, `/rows` and `/picture/NUMBER`. A picture is
named by its row's number, never by a path. Requests under another name than this machine's are
refused, so that no web page elsewhere can read answers by a name that points here.
"""

from __future__ import annotations

import json
import secrets
from collections import Counter
from pathlib import Path
from string import Template
from typing import Any, Final

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware

from llava.errors import ConfigError
from lrm_ext.inspecting.rows import Runs, Wanted
from lrm_ext.languages.registry import get_language, list_languages

HOSTS: Final = ("127.0.0.1", "localhost", "[::1]")
PAGE_SIZE: Final = 24
_MAX_TEXT: Final = 200
_TYPES: Final = {
    ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".webp": "image/webp",
    ".gif": "image/gif", ".bmp": "image/bmp",
}  # fmt: skip
_TEMPLATE: Final = Path(__file__).with_name("page.html")


def make_app(runs: Runs) -> FastAPI:
    """The application."""
    app = FastAPI(title="lrm inspect", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(HOSTS))
    template = Template(_TEMPLATE.read_text(encoding="utf-8"))
    about = _about(runs)

    @app.middleware("http")
    async def harden(request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        return response

    @app.get("/")
    def page() -> HTMLResponse:
        nonce = secrets.token_urlsafe(16)
        # "<" would end the script that the data stands in
        data = json.dumps(about, ensure_ascii=False).replace("<", "\\u003c")
        policy = (
            f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; "
            "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'"
        )
        body = template.substitute(nonce=nonce, about=data)
        return HTMLResponse(body, headers={"Content-Security-Policy": policy})

    @app.get("/rows")
    def rows(
        lang: str = "", benchmark: str = "", state: str = "", text: str = "", page: int = 0
    ) -> JSONResponse:
        try:
            wanted = Wanted(lang, benchmark, state, text[:_MAX_TEXT])
        except ConfigError as error:
            raise HTTPException(400, str(error)) from error
        numbers = runs.find(wanted)
        num_pages = max(1, -(-len(numbers) // PAGE_SIZE))
        page = min(max(page, 0), num_pages - 1)
        shown = numbers[page * PAGE_SIZE : (page + 1) * PAGE_SIZE]
        return JSONResponse(
            {
                "rows": [runs.show(number) for number in shown],
                "page": page,
                "num_pages": num_pages,
                "num_found": len(numbers),
                "num_rows": len(runs.rows),
                "counts": _counts(runs, numbers),
            }
        )

    @app.get("/picture/{number}")
    def picture(number: int) -> FileResponse:
        path = runs.picture(number) if 0 <= number < len(runs.rows) else None
        kind = _TYPES.get(path.suffix.lower()) if path is not None else None
        if path is None or kind is None:
            raise HTTPException(404, "no such picture")
        return FileResponse(path, media_type=kind)

    return app


def _about(runs: Runs) -> dict[str, Any]:
    langs = {row.lang for row in runs.rows}
    known = [lang for lang in list_languages() if lang in langs]
    return {
        "runs": list(runs.names),
        "benchmarks": sorted({row.benchmark for row in runs.rows}),
        "languages": [[lang, get_language(lang).name] for lang in known]
        + [[lang, lang] for lang in sorted(langs.difference(known))],
    }


def _counts(runs: Runs, numbers: list[int]) -> list[dict[str, Any]]:
    """Of the rows found: right ones and answered ones of each run."""
    right: Counter[str] = Counter()
    answered: Counter[str] = Counter()
    for number in numbers:
        for name, answer in runs.rows[number].answers.items():
            answered[name] += 1
            right[name] += answer.is_right
    return [{"run": n, "right": right[n], "answered": answered[n]} for n in runs.names]
