"""How a run ended, as metrics for the textfile collector of Prometheus' node exporter: what a scheduled job leaves for
an alarm to look at. The format: https://prometheus.io/docs/instrumenting/exposition_formats/ (text-based format)."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from deit_batch.errors import OutputError, UsageError
from deit_batch.io import Tally
from deit_batch.system.atomic import require_room, write_atomically

logger = logging.getLogger("deit_batch")

_READABLE = 0o644
"""By the exporter, which is another user's, whatever the umask: there is no name of an image in the file."""
_LAST_SUCCESS = "deit_batch_last_success_timestamp_seconds"


@dataclass(slots=True)
class Ending:
    """What is known of a run so far: nothing, until it has begun. `kept`, `vanished`: of an incremental run that has
    seen all its input, images that needed no scoring, and that are not there any more."""

    tally: Tally = field(default_factory=Tally)
    kept: int | None = None
    vanished: int | None = None

    def begun(self, tally: Tally) -> None:
        """`tally` grows with the run."""
        self.tally = tally


@contextmanager
def write_metrics_file(path: Path | None, *, good: int) -> Iterator[Ending]:
    """Writes the file when the run in it ends, however it does. `good` is the exit status of a success. Raises
    UsageError if the collector would not read a file of that name, or there is no room for it, and OutputError if the
    run went well and the file can't be written; if the run did not, that is only said, and the run's status stays."""
    if path is None:
        yield Ending()
        return
    if path.suffix != ".prom":
        raise UsageError(f"--metrics-file {path}: the node exporter reads files that end in .prom")
    require_room(path, "--metrics-file")
    start = time.monotonic()
    ending, status = Ending(), 1
    try:
        yield ending
        status = good
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
        raise
    finally:
        try:
            _write(path, ending, status, status == good, time.monotonic() - start)
        except OutputError as error:
            if status == good:
                raise
            logger.error("%s", error)


def _write(path: Path, ending: Ending, status: int, is_success: bool, seconds: float) -> None:
    now, tally = time.time(), ending.tally
    last_success = now if is_success else _last_success(path)
    found: dict[str, tuple[str, Mapping[str, float]]] = {
        "deit_batch_last_run_timestamp_seconds": ("When the last run ended.", {"": now}),
        _LAST_SUCCESS: (
            "When a run last ended with exit status 0.",
            {} if last_success is None else {"": last_success},
        ),
        "deit_batch_exit_status": ("Of the last run.", {"": status}),
        "deit_batch_run_seconds": ("How long the last run took.", {"": seconds}),
        "deit_batch_images_scored": (
            "Images with predictions, of the last run, as far as it got.",
            {"": tally.scored},
        ),
        "deit_batch_images_failed": (
            "Images without, by the type of their error, likewise.",
            {f',type="{name}"': number for name, number in sorted(tally.failures.items())} or {"": 0},
        ),
        "deit_batch_images_kept": (
            "Of those with predictions, images that an earlier run had scored; with --incremental, of a run that has "
            "seen all its input.",
            {} if ending.kept is None else {"": ending.kept},
        ),
        "deit_batch_images_vanished": (
            "Images that the run before had scored and that are not in the input any more, likewise.",
            {} if ending.vanished is None else {"": ending.vanished},
        ),
    }
    try:
        text = "".join(_metric(name, *metric, task=_task(path)) for name, metric in found.items())
        write_atomically(path, text.encode(), mode=_READABLE)
    except OSError as error:
        message = f"--metrics-file {path}: can't be written: {error.strerror}; all else that this run wrote stands"
        raise OutputError(message) from error


def _task(path: Path) -> str:
    """The file's name as a label: the collector takes the series of several files only if something tells them apart.
    (A label called job would be renamed by Prometheus, which has its own.)"""
    name = path.stem.encode("utf-8", "replace").decode()
    return 'task="' + name.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n") + '"'


def _metric(name: str, help: str, values: Mapping[str, float], *, task: str) -> str:
    """`values`: by their further labels, each with a comma before it."""
    lines = [f"{name}{{{task}{labels}}} {value:.17g}\n" for labels, value in values.items()]
    return "".join([f"# HELP {name} {help}\n# TYPE {name} gauge\n", *lines]) if lines else ""


def _last_success(path: Path) -> float | None:
    """As an earlier run has left it: a failure must not make it forgotten."""
    try:
        found = re.search(rf"^{_LAST_SUCCESS}(?:{{.*}})? (\S+)$", path.read_text("utf-8"), re.MULTILINE)
        return float(found[1]) if found else None
    except (OSError, ValueError):
        return None
