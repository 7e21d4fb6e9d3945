"""What a person or a log sees while a run goes on. Everything goes to stderr."""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NoReturn

from tqdm import tqdm

from deit_batch.io import Tally, counted

SECONDS_BETWEEN_LINES = 30.0

logger = logging.getLogger("deit_batch")


@dataclass(slots=True)
class Stopwatch:
    """Seconds by stage."""

    start: float = field(default_factory=time.monotonic)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.monotonic() - start

    def report(self) -> dict[str, float]:
        total = time.monotonic() - self.start
        return {stage: round(seconds, 3) for stage, seconds in {**self.seconds, "total": total}.items()}


def is_watched() -> bool:
    """Whether somebody waits and looks: stderr is a terminal, and what is said there is not to be quiet."""
    return logger.isEnabledFor(logging.INFO) and sys.stderr is not None and sys.stderr.isatty()


class Progress:
    """A bar where stderr is a terminal, or `always_bar`; a plain line now and then where it is a log; nothing if
    `quiet`.

    `total(n)` is as in `io.Source`; what is in `tally` already, an earlier run has left. `state()`: other numbers to be
    shown, by what they count."""

    def __init__(
        self,
        total: Callable[[int], int | None],
        tally: Tally,
        stopwatch: Stopwatch,
        *,
        quiet: bool,
        always_bar: bool = False,
        state: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        self._total = total
        self._state = state
        self._tally = tally
        self._stopwatch = stopwatch
        self._quiet = quiet
        self._start = self._last = time.monotonic()
        self._done_before = tally.inputs
        self._bar: tqdm[NoReturn] | None = None
        if always_bar or (not quiet and sys.stderr.isatty()):
            # 80 by 24 where the terminal doesn't say; tqdm would take that for 0 by 0, and show nothing.
            columns, rows = shutil.get_terminal_size()
            self._bar = tqdm(
                total=total(0),
                initial=tally.inputs,
                unit="images",
                smoothing=0.05,
                ncols=columns,
                nrows=rows,
                file=sys.stderr,
            )

    def take_over(self, records: int) -> None:
        """So many more, which this run has found in the tally, an earlier one has left."""
        self._done_before += records

    def update(self, read: int) -> None:
        """After each batch; `read` counts the references read so far."""
        tally = self._tally
        if self._bar is not None:
            self._bar.total = self._total(read)
            self._bar.set_postfix({"failed": tally.failed, **self._state()}, refresh=False)
            self._bar.update(tally.inputs - self._bar.n)
        elif not self._quiet and time.monotonic() - self._last >= SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            total = self._total(read)
            logger.info(
                "%s, %.1f images/s%s, %s failed%s",
                f"{tally.inputs:,} of {counted(total, 'image')}" if total else counted(tally.inputs, "image"),
                self.images_per_second,
                self._time_left(total),
                f"{tally.failed:,}",
                "".join(f", {number:,} {what}" for what, number in self._state().items()),
            )

    @property
    def images_per_second(self) -> float:
        """Of this run alone, and without the time that the model took to load."""
        seconds = time.monotonic() - self._start - self._stopwatch.seconds.get("load", 0.0)
        return (self._tally.inputs - self._done_before) / seconds if seconds else 0.0

    def _time_left(self, total: int | None) -> str:
        speed = self.images_per_second
        if not total or not speed:
            return ""
        return f", {tqdm.format_interval((total - self._tally.inputs) / speed)} left"

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
