"""What Prometheus may read of the API at `/metrics`: counts and durations, no contents."""

from __future__ import annotations

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

__all__ = ["CONTENT_TYPE_LATEST", "Metrics"]

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """The figures of one API, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "lrm_api_requests", "Answered requests", ["status"], registry=self.registry
        )
        self.running = Gauge(
            "lrm_api_running_requests", "Requests that are being answered", registry=self.registry
        )
        self.tokens = Counter(
            "lrm_api_tokens", "Tokens that workers counted", ["kind"], registry=self.registry
        )
        self.pictures = Counter("lrm_api_pictures", "Pictures read", registry=self.registry)
        self.first_token = Histogram(
            "lrm_api_first_token_seconds",
            "From the request to the first text",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.duration = Histogram(
            "lrm_api_request_seconds",
            "From the request to the end of the answer",
            buckets=_SECONDS,
            registry=self.registry,
        )

    def text(self) -> bytes:
        """Return the figures as Prometheus reads them."""
        return generate_latest(self.registry)
