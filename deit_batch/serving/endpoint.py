"""A request to score: what it must be, and how much of them there may be."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

from fastapi import HTTPException, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import ClientDisconnect

from deit_batch.errors import RowError, in_words
from deit_batch.input.tables import PARAMETERS, read_request
from deit_batch.input.tables import Request as ImageRequest
from deit_batch.io import Failure, clean, counted
from deit_batch.serving.metrics import ServerMetrics
from deit_batch.serving.scorer import RequestScorer, answer, each

T = TypeVar("T")

BODY_SECONDS = 60.0
"""For a request's body to come."""
BODIES = 16
"""How many bodies of the largest size are held at a time; of small ones as many more."""
COMMAS_AN_IMAGE = 100
"""An image has one in a list, and a URL may have some. Of millions, a JSON parser would make gigabytes of values, and
nobody else would be answered meanwhile."""
RETRY_AFTER = {"Retry-After": "1"}
"""Seconds. Places get free one after the other, so there is one soon."""
SHOWN = 200
"""Characters of what a request had wrong: it may hold the request's own words."""
CLIENT_GONE = 499
"""For the log alone, as nginx has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """How a server takes requests. `keys`: one of them must come with each, if there are any; `queue`: images that may
    be in the server; `body_bytes`: of a request; `window`: seconds that an image waits for others to fill its batch."""

    keys: tuple[bytes, ...]
    queue: int
    body_bytes: int
    window: float


class ScoreRequest(BaseModel):
    """For the OpenAPI page: what is taken is decided by `read_request` of input/tables.py."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"example": {"input_data": ["https://example.org/a.jpg", "/9j/4AAQSkZJRg…"]}},
    )
    input_data: Annotated[
        list[Any] | dict[str, Any],
        Field(
            description="Of each image its base64, data: URI or http(s) URL; or Azure ML's table of them, "
            '{"columns": ["image"], "data": […]}.'
        ),
    ]
    params: Annotated[
        dict[str, float] | None,
        Field(description="top_k: how many labels an image; threshold: leave out labels with a lower score."),
    ] = None


class Endpoint:
    """One server's requests to score. The scorer comes when the event loop runs."""

    def __init__(self, service: Service, metrics: ServerMetrics) -> None:
        self.scorer: RequestScorer | None = None
        self._service = service
        self._metrics = metrics
        self._images = self._bytes = 0
        metrics.queue.set_function(lambda: self._images)

    @property
    def is_ready(self) -> bool:
        return self.scorer is not None and self.scorer.is_ready

    def check_key(self, given: str | None) -> None:
        """Raises HTTPException, 401, for a key that is none of ours; in a time that tells nothing about ours."""
        digest = sha256((given or "").encode("latin-1")).digest()  # of digests not even the length tells
        known = [hmac.compare_digest(digest, sha256(key).digest()) for key in self._service.keys]
        if known and not any(known):
            message = "give the server's key as a header: Authorization: Bearer KEY"
            raise HTTPException(401, message, {"WWW-Authenticate": "Bearer"})

    async def score(self, request: Request) -> Response:
        scorer = self.scorer
        if scorer is None or not scorer.is_ready:
            raise HTTPException(503, "the model is being loaded; see /ready", RETRY_AFTER)
        self._check_head(request)
        if self._images >= self._service.queue:
            raise self._full()  # before its body is read
        try:
            with self._room() as take:
                asked = self._parse(await self._read(request, take))
                with self._places(len(asked.images)):
                    results = await unless_gone(request, each(scorer, asked))
        except ClientDisconnect:
            return Response(status_code=CLIENT_GONE)
        self._metrics.count(results)
        failed = sum(isinstance(result, Failure) for result in results)
        request.state.log = {"images": len(results), "failed": failed}
        return JSONResponse([answer(result) for result in results])

    def _check_head(self, request: Request) -> None:
        """What can be told before the body is read. Raises HTTPException."""
        for name in PARAMETERS:
            if name in request.query_params:
                raise HTTPException(400, f'{name} goes into the body: {{"input_data": […], "params": {{"{name}": …}}}}')
        headers = request.headers
        if not self._service.keys and not _is_own(headers.get("origin")):
            raise HTTPException(403, "pages of other sites may not send requests; a server with keys takes them")
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            # Also keeps out pages that a browser shows: they may send this type only where a server lets them (CORS).
            raise HTTPException(415, "send the request as Content-Type: application/json")
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise HTTPException(415, "send the request without Content-Encoding; bodies are not decompressed")
        if int(headers.get("content-length", 0)) > self._service.body_bytes:  # h11 has seen to it that it is a number
            raise self._too_large()

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"the request is larger than {self._service.body_bytes:,} bytes")

    def _full(self) -> HTTPException:
        return HTTPException(429, "the server has as many images as it may have; try again in a second", RETRY_AFTER)

    async def _read(self, request: Request, take: Callable[[int], None]) -> bytes:
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for chunk in request.stream():
                    take(len(chunk))
                    body += chunk
                    if len(body) > self._service.body_bytes:  # it need not have said how many will come
                        raise self._too_large()
        except TimeoutError:
            raise HTTPException(408, f"the request was not complete within {BODY_SECONDS:g} s") from None
        return bytes(body)

    def _parse(self, body: bytes) -> ImageRequest:
        most = self._service.queue
        if body.count(b",") > COMMAS_AN_IMAGE * most:
            raise HTTPException(413, f"the request holds more than {counted(most, 'image')}")
        try:
            request = read_request(body.decode())
        except (UnicodeDecodeError, RowError) as error:
            what = clean(in_words(error))[:SHOWN]
            raise HTTPException(400, f'not a request of the form {{"input_data": ["…", …]}}: {what}') from None
        if len(request.images) > most:
            count = len(request.images)
            raise HTTPException(
                413, f"the request holds {counted(count, 'image')}; at most {most:,} are taken at a time"
            )
        return request

    @contextmanager
    def _room(self) -> Iterator[Callable[[int], None]]:
        """For the bytes of a body, which are held until it is answered."""
        held = 0

        def take(count: int) -> None:
            nonlocal held
            if self._bytes + count > self._service.body_bytes * BODIES:
                raise self._full()
            held += count
            self._bytes += count

        try:
            yield take
        finally:
            self._bytes -= held

    @contextmanager
    def _places(self, count: int) -> Iterator[None]:
        if self._images + count > self._service.queue:
            raise self._full()
        self._images += count
        try:
            yield
        finally:
            self._images -= count


def _is_own(origin: str | None) -> bool:
    """Whether a request comes from no page, or from one of this machine: /docs, for one. A foreign page can make a
    browser take our address for its own site's (DNS rebinding), and would then need no permission of ours."""
    if origin is None:
        return True
    with suppress(ValueError):  # of what is no URL, and of a name
        host = urlsplit(origin).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    return False


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`. Raises ClientDisconnect, and cancels it, when the client goes away."""
    working, gone = asyncio.create_task(work), asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        gone.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
