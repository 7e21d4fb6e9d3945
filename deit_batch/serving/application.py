"""The routes of a server, as its OpenAPI page describes them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypeAlias

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel, Field
from starlette.types import Lifespan

from deit_batch import __version__
from deit_batch.options import Options
from deit_batch.plan import Plan
from deit_batch.serving.endpoint import RETRY_AFTER, Endpoint, ScoreRequest, Service
from deit_batch.serving.metrics import CONTENT_TYPE, ServerMetrics
from deit_batch.serving.scorer import RequestScorer

Failed: TypeAlias = Callable[[BaseException], None]
"""Told if the model can't be loaded, or if the work ends otherwise."""


class Prediction(BaseModel):
    label: str
    score: Annotated[float, Field(ge=0, le=1)]


class Problem(BaseModel):
    type: Annotated[str, Field(description="RowError, FetchError, DecodeError or ScoreError.")]
    message: str


class Unscored(BaseModel):
    """In the place of an image that can't be scored."""

    error: Problem


class Refusal(BaseModel):
    detail: Annotated[str, Field(description="One sentence: what is wrong with the request.")]


REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"description": "Not a request as described"},
    401: {"description": "No key, or a wrong one"},
    403: {"description": "From another site's page, and the server has no keys"},
    408: {"description": "The body took too long to come"},
    413: {"description": "Too many bytes or images"},
    415: {"description": "Not application/json"},
    429: {"description": "As much is waiting as may; try again after the seconds of Retry-After"},
    503: {"description": "The model is being loaded, or the server is stopping"},
}

BEARER = HTTPBearer(auto_error=False, description="One of the keys of --api-key-file.")


def application(plan: Plan, options: Options, service: Service, metrics: ServerMetrics, failed: Failed) -> FastAPI:
    endpoint = Endpoint(service, metrics)

    def start() -> RequestScorer:
        metrics.ready.set_function(lambda: endpoint.is_ready)
        endpoint.scorer = RequestScorer(plan, options, window=service.window, batched=metrics.batches.observe)
        return endpoint.scorer

    app = FastAPIOffline(
        title="deit-batch",
        version=__version__,
        description=f"Real-time image classification with {plan.checkpoint.name}.",
        lifespan=_scoring(start, failed),
        redoc_url=None,
        redirect_slashes=False,  # it would lead wherever the request's Host says
    )

    async def key(given: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)]) -> None:
        endpoint.check_key(given.credentials if given else None)

    guarded = [Depends(key)] if service.keys else []
    _route_score(app, endpoint, guarded)
    _route_probes(app, endpoint, plan.checkpoint.name)

    @app.get("/metrics", summary="Counters for Prometheus", dependencies=guarded, response_class=Response)
    async def page() -> Response:
        return Response(metrics.page(), media_type=CONTENT_TYPE)

    return app


def _scoring(start: Callable[[], RequestScorer], failed: Failed) -> Lifespan[FastAPI]:
    """The scorer's work, from the start of the event loop to its end."""

    def ended(work: asyncio.Task[Any]) -> None:
        problem = None if work.cancelled() else work.exception()
        if problem:
            failed(problem)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        scorer = start()
        work = asyncio.create_task(scorer.run())
        work.add_done_callback(ended)
        try:
            yield
        finally:  # by a second Ctrl-C, too
            work.cancel()
            scorer.close()

    return lifespan


def _route_score(app: FastAPI, endpoint: Endpoint, guarded: list[Any]) -> None:
    @app.post(
        "/score",
        summary="Score images",
        dependencies=guarded,
        response_model=list[list[Prediction] | Unscored],
        responses={status: {"model": Refusal, **refusal} for status, refusal in REFUSALS.items()},
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": ScoreRequest.model_json_schema()}},
            }
        },
    )
    async def score(request: Request) -> Response:
        """For each image, in order, its labels, best first; or the error that kept it from being scored."""
        return await endpoint.score(request)


def _route_probes(app: FastAPI, endpoint: Endpoint, model: str) -> None:
    @app.head("/health", include_in_schema=False)
    @app.get("/health", summary="Whether the process answers")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.head("/ready", include_in_schema=False)
    @app.get("/ready", summary="Whether images are scored", responses={503: {"model": Refusal}})
    async def ready() -> dict[str, str]:
        if not endpoint.is_ready:
            raise HTTPException(503, "the model is being loaded", RETRY_AFTER)
        return {"status": "ready", "model": model}
