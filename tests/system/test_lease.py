"""One run at a time on a store: who lives keeps others away, who is dead does not, who was taken for dead finds out."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from faulty_store import Bucket

from deit_batch.errors import OutputError, UsageError
from deit_batch.system import lease
from deit_batch.system.lease import Lease
from deit_batch.system.object_store import StoreError, open_store
from deit_batch.system.process import identify_process


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """As quick as can be where the store tells whole seconds."""
    monkeypatch.setattr(lease, "RENEWED", 1.2)


@pytest.fixture
def take(bucket: Bucket) -> Callable[[], Lease]:
    store, _ = open_store(bucket.address("out"))
    return lambda: Lease(store, f"{bucket.name}/out.lock/", bucket.address("out"))


def test_who_lives_keeps_others_away(bucket: Bucket, take: Callable[[], Lease]) -> None:
    first = take()
    with pytest.raises(OutputError, match=rf"/out is being written by process {os.getpid()} on .*; wait for it"):
        take()
    first.require()
    first.release()
    assert bucket.names() == []
    take().release()


def test_of_some_that_begin_together_one_goes_on(bucket: Bucket, take: Callable[[], Lease]) -> None:
    def tried() -> Lease | None:
        try:
            return take()
        except OutputError:
            return None

    with ThreadPoolExecutor(3) as pool:
        (held,) = (each for each in pool.map(lambda _: tried(), range(3)) if each)
    held.release()
    assert bucket.names() == []


def test_who_gives_up_as_it_is_looked_at_is_no_reason_to_give_up_too(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or of two runs that begin together none would go on."""
    store, _ = open_store(bucket.address("out"))
    sign, text = f"out.lock/{'f' * 32}", b"process 1 on pod-7, since 2026-11-27 08:00:00\n\nwaits"
    bucket.put(sign, text)
    original, reads = store.read_whole, []

    def read_whole(path: str) -> bytes:
        reads.append(path)
        if len(reads) < 3:
            bucket.put(sign, text)
        else:
            store.remove(path)
        return original(path)

    monkeypatch.setattr(store, "read_whole", read_whole)
    Lease(store, f"{bucket.name}/out.lock/", bucket.address("out")).release()
    assert len(reads) == 3
    assert bucket.names() == []


def test_who_is_dead_is_waited_for_and_then_followed(
    bucket: Bucket, take: Callable[[], Lease], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "DEAD", 3.0)
    monkeypatch.setattr(lease, "RENEWED", 0.3)  # many looks within that time
    bucket.put(f"out.lock/{'d' * 32}", b"process 1 on pod-7, since 2026-11-27 08:00:00")
    with caplog.at_level(logging.INFO, "deit_batch"):
        take().release()
    who = "process 1 on pod-7, since 2026-11-27 08:00:00"
    *waiting, last = (message.partition(": ")[2] for message in caplog.messages)
    assert last == f"going on for {who}, which gives no sign of life"
    told = [
        f"waiting to see whether {who} still lives",
        f"still waiting for a sign of life of {who}; without one, this run goes on after 3 s",
    ]
    assert waiting in (told, [])  # not where so much time has passed already
    for record in caplog.records:
        assert hasattr(record, "even_if_quiet") == ("still waiting" in record.message)
    assert bucket.names() == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says which process one is")
def test_who_was_killed_on_this_machine_is_followed_at_once(
    bucket: Bucket, take: Callable[[], Lease], caplog: pytest.LogCaptureFixture
) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        sign = f"process {process.pid} on here, since 2026-11-27 08:00:00\n{identify_process(process.pid)}"
        process.kill()
    bucket.put(f"out.lock/{'d' * 32}", sign.encode())
    with caplog.at_level(logging.INFO, "deit_batch"):
        take().release()
    told = f"going on for process {process.pid} on here, since 2026-11-27 08:00:00, which has ended without a word"
    assert [message.partition(": ")[2] for message in caplog.messages] == [told]
    assert bucket.names() == []


def test_what_stands_on_a_store_is_asked_for_before_it_is_relied_on(bucket: Bucket, take: Callable[[], Lease]) -> None:
    """A machine that was stopped and goes on does not know that time has passed."""
    held = take()
    bucket.delete(bucket.names()[0])
    held.require()  # as far as is known
    with pytest.raises(OutputError, match="is another run's"):
        held.ask()
    held.release()


def test_who_was_taken_for_dead_finds_out(bucket: Bucket, take: Callable[[], Lease]) -> None:
    held = take()
    bucket.delete(bucket.names()[0])
    bucket.proxy.requests.clear()
    while bucket.seen("HEAD ") < 2:  # the second time, it has seen what it found out at the first
        time.sleep(0.05)
    with pytest.raises(OutputError, match="is another run's: it has gone on with this, as this run gave no sign of"):
        held.require()
    held.release()
    assert bucket.names() == []


def test_a_store_that_is_away_for_long_is_asked_again_before_anything_is_trusted(
    bucket: Bucket, take: Callable[[], Lease], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = take()
    bucket.fault("AccessDenied", "(PUT|HEAD|GET) ")
    monkeypatch.setattr(lease, "DEAD", -1.0)
    with pytest.raises(StoreError, match="not permitted"):
        held.require()
    bucket.proxy.faults.clear()
    held.require()
    held.release()


def test_a_place_where_nothing_can_be_written_is_none(bucket: Bucket, take: Callable[[], Lease]) -> None:
    bucket.fault("AccessDenied", "PUT ")
    with pytest.raises(StoreError, match="not permitted"):
        take()


def test_a_sign_that_comes_back_after_another_run_has_taken_over_keeps_nobody_away(
    bucket: Bucket, take: Callable[[], Lease], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a process that slept between its look and its sign of life, or whose store took so long."""
    slept = take()
    (name,) = bucket.names()
    sign = bucket.get(name)
    bucket.delete(name)
    other = take()
    bucket.put(name, sign)
    monkeypatch.setattr(lease, "DEAD", -1.0)
    with pytest.raises(OutputError, match="is another run's"):
        slept.ask()
    slept.release()
    other.ask()
    other.release()
    assert bucket.names() == []


def test_what_is_no_sign_of_a_run_is_left_alone(bucket: Bucket, take: Callable[[], Lease]) -> None:
    bucket.put("out.lock/notes.txt", b"\xff precious")
    with pytest.raises(UsageError, match=r"out\.lock/notes\.txt is there and is no lock of a run; give another --out"):
        take()
    assert bucket.names() == ["out.lock/notes.txt"]
