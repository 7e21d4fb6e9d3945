"""Where the records of a run go: to one file, or to stdout."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from deit_batch.errors import DeitBatchError, UsageError
from deit_batch.io import Record, Reference, Tally
from deit_batch.output.file import File
from deit_batch.output.file_names import Files
from deit_batch.output.formats import Columns, Format
from deit_batch.output.resume import Mode
from deit_batch.output.stream import Stream
from deit_batch.system.atomic import beginning, behind_links, make_missing_folder
from deit_batch.system.lock import Lock

Batch = list[Reference]


class Output(Protocol):
    tally: Tally

    @property
    def complete(self) -> bool:
        """Whether an earlier run has finished all this already."""

    def plain_report(self) -> Mapping[str, Any]:
        """The report of the finished run without --incremental whose result stands; empty if there is none."""

    def records_with_stamps(self) -> Iterator[tuple[Mapping[str, Any], bytes]]:
        """Of the result that stands: each record, and what its image's file was when it was read."""

    def recall(self, references: Iterable[Reference]) -> Iterable[Reference]:
        """The references, with what the run whose failures are tried again has found in the others."""

    def remaining(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches that are still to be scored."""

    def write(self, records: Sequence[Record]) -> None: ...

    def finish(self, report: Mapping[str, object]) -> None: ...

    def interrupt(self, report: Mapping[str, object], *, gave_up: bool) -> None: ...

    def close(self) -> None: ...


def open_output(
    out: str,
    format: Format,
    *,
    settings: Mapping[str, object],
    columns: Columns,
    mode: Mode,
    name: str,
    remedies: str = "--fresh",
) -> Output:
    """`name` is what messages call it; `remedies` are the options of the command that replace a finished result whose
    input has changed.

    Raises UsageError if what stands at `out` is not this run's and was not told to be replaced, OutputError if
    nothing can be written there."""
    if out == "-":
        return Stream(sys.stdout.buffer, format)
    if mode == "retry-failed" and format.write:
        raise UsageError(
            f"--retry-failed can't read {format.name} files back, only jsonl; --incremental works with all"
        )
    files = Files(behind_links(out), has_rows=format.has_rows)
    make_missing_folder(files.result)
    for path in files.results:
        if path.is_dir():
            raise UsageError(f"--out {name}: {path} is a folder; give the name of a file")
    with beginning(files.result):
        lock = Lock(files.beside("lock"), name)
        try:
            return File(files, lock, format, {**settings, "format": format.name}, columns, mode, name, remedies)
        except DeitBatchError:
            lock.release()
            raise
