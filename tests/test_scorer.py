"""One scorer for many streams: the same workers, the same model, and for each the records that it has alone."""

from __future__ import annotations

import http.server
import itertools
import os
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from helpers import jpeg

from deit_batch import Limits, score
from deit_batch.errors import UsageError
from deit_batch.io import LocalFile, Record, Reference
from deit_batch.options import Options
from deit_batch.plan import Plan
from deit_batch.scorer import Scorer


def references(photos: Path, count: int = 40) -> Iterator[Reference]:
    for index in range(count):
        path = f"{photos}/{index % 40:02}.jpg"
        yield Reference(index, path, LocalFile(path))


class Kept:
    """A scorer with its plan."""

    def __init__(self, photos: Path, model: Path, workers: int) -> None:
        options = Options(input=str(photos), model=str(model), workers=workers, batch_size=8, top_k=None)
        self.plan = Plan.of(options)
        self.scorer = Scorer(self.plan, options)
        self.close = self.scorer.close

    def scored(self, references: Iterator[Reference]) -> Iterator[Record]:
        for records in self.scorer.scored(self.plan.batches(references)):
            yield from records


@pytest.fixture(params=[0, 2])
def kept(photos: Path, vit: Path, request: pytest.FixtureRequest) -> Iterator[Kept]:
    made = Kept(photos, vit, request.param)
    yield made
    if hasattr(made, "close"):
        made.close()


@pytest.fixture
def expected(photos: Path, vit: Path) -> list[Record]:
    with closing(Kept(photos, vit, 1)) as made:
        return list(made.scored(references(photos)))


def test_each_stream_has_the_records_that_it_has_alone(photos: Path, kept: Kept, expected: list[Record]) -> None:
    kept.scorer.start()
    model, workers = kept.scorer._load(None), list(kept.scorer._loader._workers)
    for count in (40, 0, 5, 40):
        assert list(kept.scored(references(photos, count))) == expected[:count]
    assert kept.scorer._load(None) is model
    assert kept.scorer._loader._workers == workers


def test_streams_of_several_threads_take_turns(photos: Path, kept: Kept, expected: list[Record]) -> None:
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: list(kept.scored(references(photos))), range(3), timeout=60))
    assert found == [expected] * 3


def test_a_stream_within_another(photos: Path, kept: Kept, expected: list[Record]) -> None:
    outer = []
    for number, record in enumerate(kept.scored(references(photos))):
        outer.append(record)
        if number % 20 == 0:
            assert list(kept.scored(references(photos))) == expected
    assert outer == expected


def test_a_stream_that_is_left_early_is_over(photos: Path, kept: Kept, expected: list[Record]) -> None:
    numbers: Iterator[int] = itertools.count()
    for _ in range(4):
        stream = kept.scored(Reference(number, None, LocalFile(f"{photos}/00.jpg")) for number in numbers)
        assert next(stream).predictions == expected[0].predictions
        stream.close()  # type: ignore[attr-defined]
    count = next(numbers)
    assert list(kept.scored(references(photos))) == expected
    assert next(numbers) == count + 1


def test_a_stream_of_what_the_same_scorer_finds(photos: Path, kept: Kept, expected: list[Record]) -> None:
    first = kept.scored(references(photos))
    second = (Reference(record.index, record.image, LocalFile(str(record.image))) for record in first)
    assert list(kept.scored(second)) == expected


def test_a_stream_of_what_another_thread_finds(photos: Path, kept: Kept, expected: list[Record]) -> None:
    """It asks before there is anything."""
    found: queue.Queue[Record | None] = queue.Queue(2)
    is_asked = threading.Event()

    def handed_over() -> Iterator[Reference]:
        is_asked.set()
        while record := found.get(timeout=10):
            yield Reference(record.index, record.image, LocalFile(str(record.image)))

    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(lambda: list(kept.scored(handed_over())))
        assert is_asked.wait(10)
        for record in kept.scored(references(photos)):
            found.put(record, timeout=10)
        found.put(None)
        assert second.result(10) == expected


def test_who_waits_for_images_keeps_nobody_waiting(photos: Path, kept: Kept, expected: list[Record]) -> None:
    """The images come when others have been scored, and the scorer is closed."""
    others_are_done = threading.Event()

    def awaited() -> Iterator[Reference]:
        yield from references(photos, 2)
        assert others_are_done.wait(10)
        yield from references(photos)

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lambda: list(kept.scored(awaited())))
        assert list(kept.scored(references(photos))) == expected
        kept.close()
        others_are_done.set()
        with pytest.raises(UsageError, match="the model is closed: load it again"):
            waiting.result(10)


def test_an_interrupted_stream_leaves_a_scorer_that_works(photos: Path, kept: Kept, expected: list[Record]) -> None:
    def interrupted() -> Iterator[Reference]:
        yield from references(photos, 12)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(kept.scored(interrupted()))
    assert list(kept.scored(references(photos))) == expected


def test_a_closed_scorer_says_so(photos: Path, kept: Kept) -> None:
    stream = kept.scored(references(photos))
    next(stream)
    kept.close()
    kept.close()
    for rest in (stream, kept.scored(references(photos))):
        with pytest.raises(UsageError, match="the model is closed: load it again"):
            list(rest)


def test_a_scorer_that_nobody_has_any_more_ends_its_workers(photos: Path, kept: Kept) -> None:
    """At once, and not when the garbage collector looks; but not while one of its streams is there."""
    stream = kept.scored(references(photos))
    next(stream)
    loader, workers = kept.scorer._loader, list(kept.scorer._loader._workers)
    del kept.scorer, kept.close
    assert all(worker.is_alive() for worker in workers)
    assert len(list(stream)) == 39
    assert loader._sent is None
    assert not any(worker.is_alive() for worker in workers)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks")
def test_a_fork_is_told_to_load_its_own(photos: Path, kept: Kept, expected: list[Record]) -> None:
    """What it does, and its end, is no trouble for the process that has the scorer."""
    stream = kept.scored(references(photos))
    begun = [next(stream)]
    said, saying = os.pipe()
    child = os.fork()
    if not child:
        for records in (stream, kept.scored(references(photos))):
            try:
                list(records)
            except UsageError as error:
                os.write(saying, f"{error}\n".encode())
        kept.close()
        kept.scorer._loader._end_workers()  # as when the program ends
        os._exit(0)
    os.close(saying)
    with open(said) as lines:
        message = "the model was loaded in another process, and this was forked from it: load it here\n"
        assert list(lines) == [message] * 2
    os.waitpid(child, 0)
    assert all(worker.is_alive() for worker in kept.scorer._loader._workers)
    assert [*begun, *stream] == list(kept.scored(references(photos))) == expected


def test_the_first_records_do_not_wait_for_the_second_batch(photos: Path, vit: Path, tmp_path: Path) -> None:
    """The server answers when the first record is there."""
    is_there, came_first = threading.Event(), []

    class Waits(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            came_first.append(is_there.wait(10))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(jpeg())

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Waits) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        images = [f"{photos}/{number:02}.jpg" for number in range(16)] + [f"http://127.0.0.1:{httpd.server_port}"] * 8
        (tmp_path / "t.txt").write_text("\n".join(images))
        limits = Limits(allow_private_hosts=True)
        records = score(tmp_path / "t.txt", model=str(vit), workers=2, batch_size=64, limits=limits)
        next(records)
        is_there.set()
        assert sum(1 for record in records if record.predictions) == 23
        httpd.shutdown()
    assert came_first == [True] * 8


def test_the_records_of_all_before_an_empty_batch_come_without_the_next_one(
    photos: Path, kept: Kept, expected: list[Record]
) -> None:
    """As where batches are handed in one by one, each when the records of the last have come."""
    found: list[Record] = []

    def batches() -> Iterator[list[Reference]]:
        for batch in kept.plan.batches(references(photos)):
            yield batch
            while len(found) < batch[-1].index + 1:
                yield []

    for records in kept.scorer.scored(batches()):
        found += records
    assert found == expected
