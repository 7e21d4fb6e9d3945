"""Items of many clients, as they come, to batches: micro-batching."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Generic, NamedTuple, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Waiting(NamedTuple, Generic[Item, Result]):
    item: Item
    arrived: float
    result: asyncio.Future[Result]


class Batcher(Generic[Item, Result]):
    """`await batcher(item)` is the item's own result of `work`, which gets up to `size` items and gives as many
    results, in order. A batch leaves when it is full, or `window` seconds after its first item came; at most `at_once`
    are being worked on, and while they are, the next one fills. An item that nobody waits for any more (the task was
    cancelled) takes no place in a batch. An exception of `work` is raised for each item of its batch, and no other.

    For one event loop; `run` must be running in it."""

    def __init__(
        self,
        work: Callable[[list[Item]], Awaitable[Sequence[Result]]],
        *,
        size: int,
        window: float,
        at_once: int,
    ) -> None:
        self._work = work
        self._size = size
        self._window = window
        self._waiting: asyncio.Queue[_Waiting[Item, Result]] = asyncio.Queue()
        self._turns = asyncio.Semaphore(at_once)

    async def __call__(self, item: Item) -> Result:
        loop = asyncio.get_running_loop()
        waiting: _Waiting[Item, Result] = _Waiting(item, loop.time(), loop.create_future())
        self._waiting.put_nowait(waiting)
        return await waiting.result

    async def run(self) -> None:
        """Works for ever."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                await self._turns.acquire()
                batch = await self._fill()
                tasks.create_task(self._work_on(batch)).add_done_callback(lambda _: self._turns.release())

    async def _fill(self) -> list[_Waiting[Item, Result]]:
        batch: list[_Waiting[Item, Result]] = []
        while not batch:
            batch.append(await self._next())
            with suppress(TimeoutError):
                # Even after that time it takes what is there: only a wait is cut short.
                async with asyncio.timeout_at(batch[0].arrived + self._window):
                    while len(batch) < self._size:
                        batch.append(await self._next())
            batch = [waiting for waiting in batch if not waiting.result.done()]
        return batch

    async def _next(self) -> _Waiting[Item, Result]:
        while (waiting := await self._waiting.get()).result.done():
            pass  # nobody waits for it any more
        return waiting

    async def _work_on(self, batch: list[_Waiting[Item, Result]]) -> None:
        try:
            results = await self._work([waiting.item for waiting in batch])
        except Exception as error:
            for waiting in batch:
                if not waiting.result.done():
                    waiting.result.set_exception(error)
            return
        for waiting, result in zip(batch, results, strict=True):
            if not waiting.result.done():
                waiting.result.set_result(result)
