"""What a server tells of itself: counters for Prometheus, and a line for each request."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from urllib.parse import quote

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deit_batch.io import Failure, counted
from deit_batch.redaction import redact

logger = logging.getLogger("deit_batch")

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class ServerMetrics:
    """Of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        name = "deit_batch_"
        self.requests = Counter(
            f"{name}requests", "Requests to /score, by HTTP status; 499: the client went away.", ["status"],
            registry=self._registry,
        )  # fmt: skip
        self.seconds = Histogram(
            f"{name}request_seconds", "From the request's head to the end of the answer, where it is 200.",
            buckets=SECONDS, registry=self._registry,
        )  # fmt: skip
        self.images = Counter(
            f"{name}images", 'Images answered, by result: "scored", or the type of the failure.', ["result"],
            registry=self._registry,
        )  # fmt: skip
        self.batches = Histogram(
            f"{name}batch_images", "Images in a batch.", buckets=BATCH_SIZES, registry=self._registry
        )
        self.queue = Gauge(f"{name}queue_images", "Images that are in the server, by now.", registry=self._registry)
        self.ready = Gauge(f"{name}ready", "1 if the model is loaded and warm.", registry=self._registry)
        for result in ("scored", "RowError", "FetchError", "DecodeError", "ScoreError"):
            self.images.labels(result)  # is there from the start, as 0: a rate can be taken of it
        for status in (200, 429):
            self.requests.labels(status)

    def count(self, results: Iterable[object]) -> None:
        for result in results:
            self.images.labels(result.type if isinstance(result, Failure) else "scored").inc()

    def page(self) -> bytes:
        """In the text format of Prometheus (prometheus.io/docs/instrumenting/exposition_formats)."""
        return generate_latest(self._registry)


class Watched:
    """An application whose requests are counted and logged; one that raises is logged in a line. `unanswered` counts
    those that were cut off when the server had to end."""

    def __init__(self, app: ASGIApp, metrics: ServerMetrics, counted: str) -> None:
        """`counted` is the path whose requests go into the metrics."""
        self.unanswered = 0
        self._app, self._metrics, self._counted = app, metrics, counted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.monotonic()
        status, started = 500, False

        async def watched(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except asyncio.CancelledError:
            self.unanswered += 1
            if not started:
                await JSONResponse({"detail": "the server is stopping"}, 503)(scope, receive, watched)
        except Exception as error:  # a fault of ours; it has been answered with 500
            trace = error if logger.isEnabledFor(logging.DEBUG) else None
            logger.error("unexpected %s (--verbose shows where): %s", type(error).__name__, error, exc_info=trace)
        finally:
            self._tell(scope, status, time.monotonic() - start)

    def _tell(self, scope: Scope, status: int, seconds: float) -> None:
        if scope["path"] == self._counted:
            self._metrics.requests.labels(status).inc()
            if status == 200:
                self._metrics.seconds.observe(seconds)
        client = scope["client"][0] if scope.get("client") else None
        fields = {
            "method": scope["method"],
            "path": quote(redact(scope["path"]), safe="/*"),  # it may hold line breaks, or a URL with a password
            "status": status,
            "seconds": round(seconds, 4),
            "client": client,
            **scope.get("state", {}).get("log", {}),
        }
        message = "%(method)s %(path)s %(status)s, %(seconds).3f s, %(client)s"
        if "images" in fields:
            message += f", {counted(fields['images'], 'image')}, %(failed)s failed"
        told = logging.INFO if scope["path"] == self._counted or status >= 400 else logging.DEBUG  # probes come often
        logger.log(told, message, fields, extra={"fields": fields})
