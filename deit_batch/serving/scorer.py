"""One image of one client to its predictions: fetched, decoded, and scored in a batch with those of others."""

from __future__ import annotations

import asyncio
import io
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from deit_batch.errors import RowError
from deit_batch.input.kinds import InputKind, by_ending_of
from deit_batch.input.locate import SHORTEST_BASE64_IMAGE, locate
from deit_batch.input.tables import Request, image_of
from deit_batch.io import Base64, Failure, Prediction, Url, Wanted, clean
from deit_batch.loading.fetch import MOST_AT_ONCE, Fetcher
from deit_batch.options import Options
from deit_batch.plan import Plan
from deit_batch.predictions import as_wanted, top_predictions, widest_bounds
from deit_batch.serving.batcher import Batcher
from deit_batch.serving.decoders import Decoders, Pixels

logger = logging.getLogger("deit_batch")

BATCHES_A_CARD = 2
"""So that the next is there when one is done: a core or a card that waits for Python scores nothing."""

Result: TypeAlias = list[Prediction] | Failure


class RequestScorer:
    """`await scorer(image)`; `run` must be running in the same event loop. `batched(n)` is told the size of each batch.

    The event loop waits for nothing here: URLs are fetched in threads, images decoded in processes, and the model has a
    thread that loads it and starts every batch (what torch compiles for one thread another can't use)."""

    def __init__(self, plan: Plan, options: Options, *, window: float, batched: Callable[[int], None]) -> None:
        """Begins to load the model."""
        self._plan, self._options = plan, options
        at_once = BATCHES_A_CARD * len(plan.devices)
        self._batched = batched
        self._fetcher = Fetcher(options.limits)
        self._fetches = asyncio.Semaphore(MOST_AT_ONCE)
        self._decoders = Decoders(plan.recipe, options.limits, workers=plan.workers)
        self._batcher: Batcher[tuple[Pixels, Wanted | None], Result] = Batcher(
            self._score, size=plan.round_size, window=window, at_once=at_once
        )
        if plan.device.type == "cuda":
            torch.set_num_threads(1)  # as engines.one_thread_beside, in a process that does nothing else
        self._model_thread = ThreadPoolExecutor(1, "model")
        self._waiting_threads = ThreadPoolExecutor(at_once, "wait for scores")
        self._classifier = asyncio.get_running_loop().run_in_executor(self._model_thread, plan.load)
        self.is_ready = False

    async def run(self) -> None:
        """Warms all up, then works for ever. Raises DeitBatchError if that can't be done."""
        await asyncio.gather(self._classifier, self._decoders.warm_up(_black_png()))
        recipe = self._plan.recipe
        await self._score([(np.zeros((*recipe.size, 3), recipe.dtype), None)] * self._plan.round_size)
        self.is_ready = True
        logger.info("ready")
        await self._batcher.run()

    async def __call__(self, image: object, wanted: Wanted | None = None) -> Result:
        """`image`, as a request holds it: base64 text, a data: URI or an http(s) URL; what is none of them is a
        failure, as is one whose bytes can't be had or decoded. `wanted`: of its predictions."""
        location = place(image)
        if isinstance(location, Failure):
            return location
        data: Base64 | bytes | Failure
        if isinstance(location, Url):
            data = await self._fetch(location)
        else:
            data = location
        pixels = data if isinstance(data, Failure) else await self._decoders(data)
        return pixels if isinstance(pixels, Failure) else await self._batcher((pixels, wanted))

    async def _fetch(self, url: Url) -> bytes | Failure:
        """A thread that nobody waits for any more ends soon, but not at once: so many there may be, and no more."""
        await self._fetches.acquire()
        loop, gone = asyncio.get_running_loop(), threading.Event()

        def ended(_: Future[bytes | Failure]) -> None:
            with suppress(RuntimeError):  # the loop is closed: the program ends
                loop.call_soon_threadsafe(self._fetches.release)

        fetch = self._fetcher.start(url, gone)
        fetch.add_done_callback(ended)
        try:
            return await asyncio.wrap_future(fetch)
        finally:
            gone.set()

    async def _score(self, images: list[tuple[Pixels, Wanted | None]]) -> Sequence[Result]:
        classifier = await self._classifier
        labels, options = self._plan.checkpoint.labels, self._options

        def start() -> Callable[[], Tensor]:
            return classifier.submit(torch.from_numpy(np.stack([pixels for pixels, _ in images])))

        def finish(scores: Callable[[], Tensor]) -> Sequence[Result]:
            wanted = [one for _, one in images]
            found = top_predictions(scores(), labels, *widest_bounds(wanted, options))
            return [as_wanted(result, one, options) for result, one in zip(found, wanted, strict=True)]

        if self.is_ready:
            self._batched(len(images))
        loop = asyncio.get_running_loop()
        under_way = await loop.run_in_executor(self._model_thread, start)
        return await loop.run_in_executor(self._waiting_threads, finish, under_way)

    def close(self) -> None:
        self._decoders.close()
        for threads in (self._model_thread, self._waiting_threads):
            threads.shutdown(wait=False, cancel_futures=True)
        if self.is_ready:
            self._classifier.result().close()


def answer(result: Result) -> object:
    """In JSON's types: of an image its labels, as on the model card; or what kept it from being scored."""
    if isinstance(result, Failure):
        return {"error": {"type": result.type, "message": clean(result.message)}}
    return [{"label": clean(one["label"]), "score": one["score"]} for one in result]


async def each(scorer: RequestScorer, request: Request) -> list[Result]:
    """The results of all its images at a time. Cancelled, or where one raises, it cancels the others."""
    async with asyncio.TaskGroup() as tasks:
        under_way = [tasks.create_task(scorer(image, request.wanted)) for image in request.images]
    return [task.result() for task in under_way]


def place(image: object) -> Url | Base64 | bytes | Failure:
    """Where an image is, as a client gives it. Never a file of this machine: what is no URL is taken for base64."""
    try:
        image = image_of(image) if isinstance(image, Mapping) else image
    except RowError as error:
        return Failure.of(error)
    if isinstance(image, Failure):
        return image
    if not isinstance(image, str) or not image.strip():
        what = "is empty" if image is None or isinstance(image, str) else "is no text"
        return Failure.of(RowError(f"the image {what}"))
    try:
        location = locate(image, always_base64=True)
    except RowError as error:
        return Failure.of(error)
    if not isinstance(location, Url | Base64 | bytes) or (isinstance(location, Base64) and _is_path(image)):
        return Failure.of(RowError("paths are not read: send the image's bytes in base64, or its URL"))
    return location


def _is_path(text: str) -> bool:
    """Whether it can be no base64 of an image. That of a JPEG begins with a slash, too, and is longer."""
    text = text.strip()
    is_short = len(text) < SHORTEST_BASE64_IMAGE
    return by_ending_of(text) is InputKind.IMAGE or (is_short and text.startswith(("/", "./", "../", "~")))


def _black_png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    return buffer.getvalue()
