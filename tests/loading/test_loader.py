"""Workers that die, decoders that crash or hang: every image accounted for, and no other one lost."""

from __future__ import annotations

import ctypes
import faulthandler
import itertools
import multiprocessing
import multiprocessing.process
import os
import resource
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import jpeg
from torch.utils.data import get_worker_info

from deit_batch.errors import DeitBatchError
from deit_batch.io import Base64, Failure, LocalFile, Reference, Url
from deit_batch.limits import Limits
from deit_batch.loading import decode as decoding
from deit_batch.loading import worker
from deit_batch.loading.fetch import Fetcher
from deit_batch.loading.loader import Decoded, Loader, batched
from deit_batch.model.recipe import Recipe

RECIPE = Recipe((32, 32), 2, None, 1 / 255, (0.5,) * 3, (0.5,) * 3)


def references(photos: Path, count: int) -> Iterator[Reference]:
    for index in range(count):
        path = f"{photos}/{index % 40:02}.jpg"
        yield Reference(index, path, LocalFile(path))


Made = tuple[Loader, Iterator[tuple[list[Reference], Decoded]]]


def failures(made: Made) -> dict[int, Failure]:
    """Runs to the end and closes."""
    loader, stream = made
    failed = read(loader, stream)
    loader.close()
    return failed


def read(loader: Loader, stream: Iterable[tuple[list[Reference], Decoded]]) -> dict[int, Failure]:
    """Checks that every image is there, in order and with its own pixels, and returns the failures."""
    failed: dict[int, Failure] = {}
    expected = itertools.count()
    for batch, decoded in stream:
        rows = iter(decoded.pixels.numpy())
        for place, reference in enumerate(batch):
            assert reference.index == next(expected)
            if place in decoded.settled:
                failure = decoded.settled[place]
                assert isinstance(failure, Failure)
                failed[reference.index] = failure
            else:
                alone = decoding.decode(jpeg(reference.index % 40), RECIPE, Limits())
                assert np.array_equal(next(rows), alone), reference.index
        assert next(rows, None) is None
        loader.give_back(decoded)
    return failed


def load(references: Iterator[Reference], batch_size: int, limits: Limits, *, workers: int) -> Made:
    """As a run loads them."""
    loader = Loader(RECIPE, limits, workers=workers, pin_memory=False, batch_size=batch_size)
    return loader, loader.stream(batched(references, batch_size))


def kill_workers(loader: Loader) -> None:
    for process in loader._workers:
        process.kill()


@pytest.fixture
def traps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoders with faults: some bytes crash the process, some hang it with the interpreter locked."""

    def decode(data: bytes, recipe: Recipe, limits: Limits, **more: Any) -> Any:
        if data == b"crash":
            faulthandler.disable()  # pytest's, which would tell at length
            os.kill(os.getpid(), signal.SIGSEGV)
        if data == b"sly" and get_worker_info():
            os.kill(os.getpid(), signal.SIGKILL)
        if data == b"hang":
            ctypes.PyDLL(None).sleep(600)
        if data.endswith(b"slow"):
            time.sleep(0.8)  # longer than it takes to notice a death
        return decoding.decode(data, recipe, limits, **more)

    monkeypatch.setattr(worker, "decode", decode)


@pytest.mark.usefixtures("traps")
@pytest.mark.parametrize("workers", [1, 3])
def test_an_image_that_kills_its_decoder_fails_alone(photos: Path, workers: int) -> None:
    (photos / "13.jpg").write_bytes(b"crash")
    (photos / "14.jpg").write_bytes(b"broken")
    failed = failures(load(references(photos, 40), 4, Limits(), workers=workers))
    assert set(failed) == {13, 14}
    assert failed[13].type == "DecodeError"
    assert "crashed (SIGSEGV)" in failed[13].message
    assert "not an image" in failed[14].message


@pytest.mark.usefixtures("traps")
def test_no_image_is_blamed_for_what_another_worker_died_of(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """multiprocessing lists its children in the order of a set, here always the last one first."""
    children = multiprocessing.active_children
    last_first = partial(sorted, key=lambda child: child.pid, reverse=True)
    monkeypatch.setattr(multiprocessing, "active_children", lambda: last_first(children()))
    (photos / "00.jpg").write_bytes(jpeg(0) + b"slow")
    (photos / "01.jpg").write_bytes(b"crash")
    assert set(failures(load(references(photos, 2), 2, Limits(), workers=2))) == {1}


@pytest.mark.usefixtures("traps")
def test_an_image_that_hangs_its_decoder_fails_alone(photos: Path) -> None:
    (photos / "02.jpg").write_bytes(b"hang")
    limits = Limits(decode_seconds=1.0)
    failed = failures(load(references(photos, 40), 4, limits, workers=2))
    assert set(failed) == {2}
    assert "did not end in time; at most 1 s" in failed[2].message


@pytest.mark.usefixtures("traps")
def test_an_image_that_kills_workers_but_no_other_process_is_not_tried_for_ever(photos: Path) -> None:
    (photos / "02.jpg").write_bytes(b"sly")
    failed = failures(load(references(photos, 40), 4, Limits(), workers=2))
    assert {index: failure.message for index, failure in failed.items()} == {2: "two decode workers died of it"}


def test_workers_that_die_of_no_image_are_one_clear_line(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fetcher, "fetch_all", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    made = load(references(photos, 8), 4, Limits(), workers=1)
    with pytest.raises(DeitBatchError, match=r"died 11 times in a row, .* with fewer --workers"):
        next(made[1])
    made[0].close()


def test_a_worker_that_is_killed_costs_nothing(photos: Path) -> None:
    loader, stream = load(references(photos, 200), 4, Limits(), workers=2)

    def killing() -> Iterator[tuple[list[Reference], Decoded]]:
        for place, item in enumerate(stream):
            if place == 5:
                kill_workers(loader)
            yield item

    assert failures((loader, killing())) == {}


def test_no_room_in_shared_memory_is_no_obstacle(photos: Path) -> None:
    """As in a container with a small /dev/shm: here no file may grow beyond a kilobyte, those in memory included."""
    multiprocessing.RawArray("q", 1)  # what this process itself shares has its room already
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        made = load(references(photos, 40), 4, Limits(), workers=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert failures(made) == {}


@pytest.mark.usefixtures("traps")
@pytest.mark.parametrize("folder", ["x" * 120, "not there"])
def test_a_folder_for_temporary_files_that_takes_no_sockets_is_no_obstacle(
    photos: Path, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pixels are handed over by a socket in it. A path may be too long for one, or not to be written to."""
    if folder != "not there":
        (tmp_path / folder).mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / folder))
    monkeypatch.setattr(multiprocessing.process.current_process(), "_config", {"authkey": b"key", "semprefix": "/mp"})
    made = load(references(photos, 40), 10, Limits(), workers=2)
    assert failures(made) == {}


def test_inline_images_survive_a_death_too(photos: Path) -> None:
    import base64

    def inline() -> Iterator[Reference]:
        for index in range(12):
            data = b"crash" if index == 5 else jpeg(index)
            yield Reference(index, None, Base64(base64.b64encode(data).decode()))

    failed = failures(load(inline(), 4, Limits(), workers=1))
    assert set(failed) == {5}


def test_a_fault_of_our_own_in_a_worker_is_not_hidden(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(data: bytes, recipe: Recipe, limits: Limits, **more: Any) -> Any:
        raise RuntimeError("a bug")

    monkeypatch.setattr(worker, "decode", decode)
    made = load(references(photos, 8), 4, Limits(), workers=1)
    with pytest.raises(RuntimeError, match="a bug"):
        next(made[1])
    made[0].close()


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("batch_size", [1, 7, 40])
def test_images_that_fail_leave_no_gap_in_a_batch(photos: Path, batch_size: int, workers: int) -> None:
    broken = {0, 3, 4, 17, 38, 39}
    for index in broken:
        (photos / f"{index:02}.jpg").write_bytes(b"broken")
    wanted = {index for index in range(160) if index % 40 in broken}
    assert set(failures(load(references(photos, 160), batch_size, Limits(), workers=workers))) == wanted


def test_pixels_stay_until_they_are_given_back(photos: Path) -> None:
    loader, stream = load(references(photos, 200), 4, Limits(), workers=2)
    kept = list(stream)
    loader.close()
    for references_, decoded in kept:
        for reference, pixels in zip(references_, decoded.pixels.numpy(), strict=True):
            assert np.array_equal(pixels, decoding.decode(jpeg(reference.index % 40), RECIPE, Limits()))


def test_a_few_buffers_are_used_for_all_batches(photos: Path) -> None:
    loader, stream = load(references(photos, 400), 4, Limits(), workers=1)
    used = set()
    for _, decoded in stream:
        used.add(decoded.pixels.data_ptr())
        loader.give_back(decoded)
    loader.close()
    assert len(used) < 40
    assert decoded.buffer is not None


def test_far_images_are_fetched_together_and_large_ones_decoded_one_by_one(photos: Path) -> None:
    loader = Loader(RECIPE, Limits(), workers=2, pin_memory=False, batch_size=64)
    far = [Reference(index, None, Url(f"http://host/{index}.jpg")) for index in range(64)]
    near = list(references(photos, 64))
    loader._fit_tasks_to(seconds=0.1)
    assert [len(task.images) for task in loader._cut_into_tasks(near).tasks] == [1] * 64
    assert [len(task.images) for task in loader._cut_into_tasks(far).tasks] == [32, 32]
    loader._fit_tasks_to(seconds=0.0001)
    assert [len(task.images) for task in loader._cut_into_tasks(near).tasks] == [16] * 4


# --- one stream after another -----------------------------------------------------------------------------------------


@pytest.fixture(params=[0, 2])
def loader(request: pytest.FixtureRequest) -> Iterator[Loader]:
    with closing(Loader(RECIPE, Limits(), workers=request.param, pin_memory=False, batch_size=4)) as made:
        yield made


def test_workers_and_memory_stay_for_the_next_stream(photos: Path, loader: Loader) -> None:
    loader.start()
    workers, places = list(loader._workers), set()
    for count in (40, 0, 3, 40):
        for _, decoded in (stream := loader.stream(batched(references(photos, count), 4))):
            places.add(decoded.buffer)
            loader.give_back(decoded)
        assert next(stream, None) is None
    assert read(loader, loader.stream(batched(references(photos, 40), 4))) == {}
    assert loader._workers == workers
    assert len(places) < 20


def test_two_streams_at_a_time_are_kept_apart(photos: Path, loader: Loader) -> None:
    first = loader.stream(batched(references(photos, 40), 4))
    seen = [next(first)]
    assert read(loader, loader.stream(batched(references(photos, 80), 3))) == {}
    assert read(loader, itertools.chain(seen, first)) == {}


def test_a_stream_that_is_left_early_costs_the_next_one_nothing(photos: Path, loader: Loader) -> None:
    for _ in range(5):
        stream = loader.stream(batched(references(photos, 200), 4))
        _, decoded = next(stream)
        loader.give_back(decoded)
        stream.close()
    assert read(loader, loader.stream(batched(references(photos, 200), 4))) == {}
    free = loader._buffers._free
    assert len(set(free)) == len(free)


def test_workers_that_die_between_two_streams_cost_nothing(photos: Path, loader: Loader) -> None:
    for _ in range(2):
        assert read(loader, loader.stream(batched(references(photos, 40), 4))) == {}
        kill_workers(loader)


@pytest.mark.usefixtures("traps")
def test_an_image_that_kills_its_decoder_fails_in_its_own_stream_alone(photos: Path) -> None:
    with closing(Loader(RECIPE, Limits(), workers=1, pin_memory=False, batch_size=4)) as loader:
        good = loader.stream(batched(references(photos, 40), 4))
        seen = [next(good)]
        ((_, decoded),) = loader.stream([[Reference(7, None, b"crash")]])
        assert isinstance(decoded.settled[0], Failure)
        assert read(loader, itertools.chain(seen, good)) == {}  # its own number 7 among them


def test_an_input_that_breaks_off_ends_its_own_stream(photos: Path, loader: Loader) -> None:
    def broken() -> Iterator[list[Reference]]:
        yield list(references(photos, 4))
        raise ValueError("of the caller's own")

    stream = loader.stream(broken())
    assert len(next(stream)[0]) == 4
    with pytest.raises(ValueError, match="of the caller's own"):
        next(stream)
    assert read(loader, loader.stream(batched(references(photos, 40), 4))) == {}


def test_a_closed_loader_says_so_to_who_is_not_through(photos: Path, loader: Loader) -> None:
    stream = loader.stream(batched(references(photos, 40), 4))
    next(stream)
    loader.close()
    with pytest.raises(DeitBatchError, match="ended before all images were decoded"):
        list(stream)
