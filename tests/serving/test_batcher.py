"""Items of many clients to batches: each gets its own result, whatever becomes of the others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deit_batch.serving.batcher import Batcher

LONG = 3600.0  # seconds: no window of a test ends by itself


class Work:
    """Doubles numbers; a batch is done when `go` is set. A negative number in it is a fault."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = asyncio.Event()
        self.batcher: asyncio.Future[None] | None = None

    async def __call__(self, items: list[int]) -> list[int]:
        self.batches.append(items)
        await self.go.wait()
        if min(items) < 0:
            raise ValueError(items)
        return [2 * item for item in items]


async def settled() -> None:
    """Lets all tasks run until each waits."""
    for _ in range(20):
        await asyncio.sleep(0)


def run(test: Callable[[Work], Awaitable[None]]) -> None:
    async def main() -> None:
        work = Work()
        await test(work)
        if work.batcher:
            work.batcher.cancel()
            await asyncio.wait([work.batcher])

    asyncio.run(main())


def batcher(work: Work, *, size: int, window: float = LONG, at_once: int = 1) -> Batcher[int, int]:
    made: Batcher[int, int] = Batcher(work, size=size, window=window, at_once=at_once)
    work.batcher = asyncio.ensure_future(made.run())
    return made


def test_a_full_batch_leaves_at_once_and_the_next_fills_meanwhile() -> None:
    async def test(work: Work) -> None:
        one = batcher(work, size=3)
        results = [asyncio.ensure_future(one(number)) for number in range(8)]
        await settled()
        assert work.batches == [[0, 1, 2]]  # one at a time
        work.go.set()
        await settled()
        assert work.batches[1:] == [[3, 4, 5]]  # 6 and 7 wait for a third
        results.append(asyncio.ensure_future(one(8)))
        assert await asyncio.gather(*results) == [2 * number for number in range(9)]

    run(test)


def test_a_batch_that_is_not_full_leaves_when_its_window_ends() -> None:
    async def test(work: Work) -> None:
        one = batcher(work, size=100, window=0.001)
        work.go.set()
        assert [*await asyncio.gather(one(1), one(2))] == [2, 4]
        assert work.batches == [[1, 2]]

    run(test)


def test_what_has_waited_longer_than_the_window_leaves_in_full_batches() -> None:
    async def test(work: Work) -> None:
        one = batcher(work, size=4, window=0.0)
        first = asyncio.ensure_future(one(0))
        while not work.batches:
            await asyncio.sleep(0)
        results = [asyncio.ensure_future(one(number)) for number in range(1, 7)]
        await settled()
        work.go.set()
        assert await asyncio.gather(first, *results) == [2 * number for number in range(7)]
        assert work.batches == [[0], [1, 2, 3, 4], [5, 6]]

    run(test)


def test_so_many_batches_are_worked_on_at_once() -> None:
    async def test(work: Work) -> None:
        one = batcher(work, size=1, at_once=2)
        results = [asyncio.ensure_future(one(number)) for number in range(5)]
        await settled()
        assert work.batches == [[0], [1]]
        work.go.set()
        assert await asyncio.gather(*results) == [0, 2, 4, 6, 8]

    run(test)


def test_who_has_gone_takes_no_place() -> None:
    async def test(work: Work) -> None:
        one = batcher(work, size=2)
        first = [asyncio.ensure_future(one(number)) for number in (1, 2)]
        await settled()
        gone, stays = asyncio.ensure_future(one(3)), [asyncio.ensure_future(one(number)) for number in (4, 5)]
        await settled()
        gone.cancel()
        first[0].cancel()  # while it is being worked on: its neighbour is none the worse
        await settled()
        work.go.set()
        assert await asyncio.gather(first[1], *stays) == [4, 8, 10]
        assert work.batches[0] == [1, 2]
        assert work.batches[1:] == [[4, 5]]

    run(test)


def test_a_fault_is_told_to_those_of_its_batch_alone() -> None:
    async def test(work: Work) -> None:
        one = batcher(work, size=2)
        work.go.set()
        results = await asyncio.gather(*[one(number) for number in (1, 2, -3, 4, 5, 6)], return_exceptions=True)
        assert results[:2] == [2, 4]
        assert [type(result) for result in results[2:4]] == [ValueError, ValueError]
        assert results[4:] == [10, 12]

    run(test)


@pytest.mark.filterwarnings("error::RuntimeWarning")  # nothing is left un-awaited
@given(
    clients=st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=30),
    size=st.integers(1, 5),
    at_once=st.integers(1, 3),
)
def test_however_clients_come_and_go_each_gets_his_own(
    clients: list[tuple[int, bool]], size: int, at_once: int
) -> None:
    """Each client comes some turns of the event loop after the last, and may be gone when it next turns."""

    async def test(work: Work) -> None:
        one = batcher(work, size=size, window=0.0, at_once=at_once)
        work.go.set()
        asked: list[tuple[int, asyncio.Future[int]]] = []
        result: asyncio.Future[int]
        for number, (turns, leaves) in enumerate(clients):
            result = asyncio.ensure_future(one(number))
            for _ in range(turns):
                await asyncio.sleep(0)
            if leaves:
                result.cancel()
            else:
                asked.append((number, result))
        for number, result in asked:
            assert await result == 2 * number
        assert all(len(batch) <= size for batch in work.batches)

    run(test)
