"""The page's safety flags, and what they mean."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.middleware import Middleware

from llava.errors import ConfigError
from llava.serve.page_guard import GuardSettings, PageGuard
from llava.serve.page_text import ENGLISH, ENGLISH_TEXT, PageText
from llava.serve.retention import DAY_S, KEEP_DAYS
from llava.serve.web import PictureLimits

MAX_UPLOADS = 4


@dataclass(frozen=True)
class PageSafety:
    """What a page lets in, and how long it keeps it.

    Attributes:
        guard: What may come in.
        keep_days: Age of stored pictures at which they are deleted; 0 keeps them for ever.
        forwarded_allow_ips: Proxies whose X-Forwarded-For says who the client is; "" for none.
    """

    guard: GuardSettings = field(default_factory=GuardSettings)
    keep_days: float = KEEP_DAYS
    forwarded_allow_ips: str = ""

    @property
    def keep_s(self) -> float:
        """Age in seconds at which stored pictures are deleted."""
        return self.keep_days * DAY_S

    def launch_options(self, log_dir: Path) -> dict[str, Any]:
        """Return what `Blocks.launch` needs.

        Args:
            log_dir: Folder of conversation logs, from which no file may be served.
        """
        return {
            "app_kwargs": {"middleware": [Middleware(PageGuard, settings=self.guard)]},
            "allowed_paths": [],
            "blocked_paths": [str(log_dir.resolve())],
            "enable_monitoring": False,
        }


def add_safety_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    add = parser.add_argument
    add("--max-images", type=int, default=MAX_UPLOADS, help="pictures in an upload")
    add("--max-image-mib", type=int, default=10, help="size of a picture's file")
    add("--max-image-pixels", type=int, default=25_000_000, help="width times height")
    add("--keep-days", type=float, default=KEEP_DAYS, help="for stored pictures; 0: for ever")
    add("--rate-limit", type=int, default=120, help="requests a minute and client; 0: any")
    add(
        "--forwarded-allow-ips",
        default="",
        help="proxies whose X-Forwarded-For says who the client is",
    )


def safety_from(
    args: argparse.Namespace, languages: Mapping[str, PageText] | None = None
) -> PageSafety:
    """Turn flags into settings.

    Args:
        args: Has the flags.
        languages: What the page says, by language; by default English alone.

    Raises:
        ConfigError: A number is below its least value.
    """
    for name, least in (
        ("max_images", 1),
        ("max_image_mib", 1),
        ("max_image_pixels", 1),
        ("keep_days", 0),
        ("rate_limit", 0),
    ):
        if not getattr(args, name) >= least:
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"{flag} is {getattr(args, name)}; expected {least} or more")
    pictures = PictureLimits(
        max_bytes=args.max_image_mib * 2**20,
        max_pixels=args.max_image_pixels,
        max_pictures=args.max_images,
    )
    guard = GuardSettings(
        pictures, per_minute=args.rate_limit, languages=languages or {ENGLISH: ENGLISH_TEXT}
    )
    return PageSafety(guard, args.keep_days, args.forwarded_allow_ips)
