"""A run looked at from a thread beside it: what is done when, where the main thread is, how much memory it takes."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from memory import peak_memory

from deit_batch.io import Tally
from deit_batch.options import Options
from deit_batch.plan import Plan
from deit_batch.runner import RunResult, run

LOOKS = 0.005
"""Seconds from one look to the next."""


class Watch(threading.Thread):
    """`done`: when how many images were written, at each look that found more. `places`: in which function the main
    thread was found how often. `busy`: the share of all cores that was in use, second by second. `peak`: MB of the
    largest of the process and its children."""

    def __init__(self, *, places: bool, memory: bool) -> None:
        super().__init__(daemon=True)
        self.done: list[tuple[float, int]] = []
        self.places: Counter[str] = Counter()
        self.busy: list[float] = []
        self.peak = 0.0
        self._wants_places, self._wants_memory = places, memory
        self._main = threading.get_ident()
        self._over = threading.Event()

    def begin(self, tally: Tally) -> None:
        self._tally = tally
        self.start()

    def run(self) -> None:
        second, before = time.monotonic(), _cpu_seconds()
        looks = 0
        while not self._over.wait(LOOKS):
            self._look()
            looks += 1
            if self._wants_memory and looks % 20 == 0:
                self._weigh()
            if time.monotonic() - second >= 1:
                now = _cpu_seconds()
                self.busy.append((now[0] - before[0]) / max(now[1] - before[1], 1e-9))
                second, before = time.monotonic(), now
        self._look()

    def _look(self) -> None:
        inputs = self._tally.inputs
        if inputs > (self.done[-1][1] if self.done else 0):
            self.done.append((time.monotonic(), inputs))
        if self._wants_places:
            self.places[_place(sys._current_frames().get(self._main))] += 1

    def _weigh(self) -> None:
        with suppress(OSError):  # a process that ends in this moment
            self.peak = max(self.peak, peak_memory(os.getpid()))

    def end(self) -> None:
        self._over.set()
        if self.is_alive():
            self.join()


def _place(frame: FrameType | None) -> str:
    """The function that the thread is in; if it is another's, the one of ours that has called it, too."""
    if frame is None:
        return "?"
    leaf, ours = _name(frame), frame
    while ours.f_back and "deit_batch" not in Path(ours.f_code.co_filename).parts:
        ours = ours.f_back
    return leaf if ours is frame else f"{_name(ours)} > {leaf}"


def _name(frame: FrameType) -> str:
    path = Path(frame.f_code.co_filename)
    return f"{path.parent.name}/{path.name}:{frame.f_code.co_name}"


def _cpu_seconds() -> tuple[float, float]:
    """In use, and in all, of all cores since the start (proc(5), /proc/stat); ticks."""
    try:
        values = [float(value) for value in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    except OSError:  # not Linux
        return 0.0, 0.0
    return sum(values) - values[3] - values[4], sum(values)


@dataclass(frozen=True)
class Watched:
    """`ready`: when the model was loaded, if that was seen."""

    start: float
    ready: float | None
    watch: Watch
    result: RunResult

    @property
    def images_per_second(self) -> float:
        """From the first images that were written to the last, or from the start where all came at once."""
        (first, few), (last, all) = self.watch.done[0], self.watch.done[-1]
        return (all - few) / (last - first) if last > first else all / (last - self.start)

    @property
    def first_record(self) -> float:
        """Seconds from the call."""
        return self.watch.done[0][0] - self.start

    @property
    def first_record_when_ready(self) -> float | None:
        """Seconds from when the model was loaded."""
        return None if self.ready is None else self.watch.done[0][0] - self.ready


def watched(options: Options, out: Path, *, places: bool = False, memory: bool = False) -> Watched:
    watch = Watch(places=places, memory=memory)
    start = time.monotonic()
    with noted_load() as ready:
        try:
            result = run(options, out=str(out), quiet=True, begun=watch.begin)
        finally:
            watch.end()
    return Watched(start, ready[0] if ready else None, watch, result)


@contextmanager
def noted_load() -> Iterator[list[float]]:
    """When a plan has loaded its model."""
    load, ready = Plan.load, []

    def noted(plan: Plan, *values: object, **more: object) -> object:
        classifier = load(plan, *values, **more)  # type: ignore[arg-type]
        ready.append(time.monotonic())
        return classifier

    setattr(Plan, "load", noted)  # noqa: B010
    try:
        yield ready
    finally:
        setattr(Plan, "load", load)  # noqa: B010


@contextmanager
def heard(level: int) -> Iterator[list[str]]:
    """What the package says meanwhile."""
    said: list[str] = []
    handler = logging.Handler(level)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("deit_batch")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield said
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
