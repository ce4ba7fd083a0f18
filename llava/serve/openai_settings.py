"""The flags of the API, and what they mean."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path

from llava.errors import ConfigError
from llava.serve.admission import Admission, RateLimiter, read_api_keys
from llava.serve.web import PictureLimits


@dataclass
class ApiSettings:
    """How an API behaves.

    Attributes:
        controller: The controller's URL.
        pictures: What pictures may be.
        admission: Who may ask, and how often.
        max_body_bytes: Size of a request.
        max_requests: Requests that are answered at the same time.
        moderate: Ask OpenAI's moderation service about each question, as LLaVA's page does.
    """

    controller: str
    pictures: PictureLimits = field(default_factory=PictureLimits)
    admission: Admission = field(default_factory=Admission)
    max_body_bytes: int = 32 * 2**20
    max_requests: int = 256
    moderate: bool = False


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m llava.serve.openai_api", description=__doc__)
    add = parser.add_argument
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=8000)
    add("--controller-address", default="http://localhost:21001")
    add("--api-key-file", type=Path, help="one key a line; LRM_API_KEYS holds them otherwise")
    add("--rate-limit", type=int, default=0, help="requests a minute and client; 0: any")
    add("--max-requests", type=int, default=256, help="answered at the same time")
    add("--max-body-mib", type=int, default=32, help="size of a request")
    add("--max-images", type=int, default=8, help="pictures in a request")
    add("--max-image-mib", type=int, default=10, help="size of a picture's file")
    add("--max-image-pixels", type=int, default=25_000_000, help="width times height")
    add(
        "--allow-url-host",
        action="append",
        default=[],
        metavar="HOST",
        help="fetch pictures from this host (several times for several); none: data URLs only",
    )
    add("--fetch-timeout", type=float, default=10.0, help="seconds for a picture by URL")
    add("--moderate", action="store_true", help="ask OpenAI's moderation (OPENAI_API_KEY)")
    add(
        "--forwarded-allow-ips",
        default="",
        help="proxies whose X-Forwarded-For says who the client is",
    )
    return parser


def settings_from(args: argparse.Namespace) -> ApiSettings:
    """Turn flags into settings.

    Raises:
        ConfigError: A number is below its least value, or the key file is no key file.
    """
    for name in ("max_requests", "max_body_mib", "max_images", "max_image_mib", "fetch_timeout"):
        if getattr(args, name) <= 0:
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"{flag} is {getattr(args, name)}; expected a number above 0")
    pictures = PictureLimits(
        max_bytes=args.max_image_mib * 2**20,
        max_pixels=args.max_image_pixels,
        max_pictures=args.max_images,
        url_hosts=frozenset(host.lower() for host in args.allow_url_host),
        fetch_timeout_s=args.fetch_timeout,
    )
    admission = Admission(read_api_keys(args.api_key_file), RateLimiter(max(0, args.rate_limit)))
    return ApiSettings(
        args.controller_address.rstrip("/"),
        pictures,
        admission,
        args.max_body_mib * 2**20,
        args.max_requests,
        args.moderate,
    )
