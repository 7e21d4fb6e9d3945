"""Records on stdout."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from deit_batch.errors import OutputError
from deit_batch.io import Record, Reference, Tally
from deit_batch.output import formats
from deit_batch.output.formats import Format


class Stream:
    """Records to stdout as they come; nothing to continue from."""

    complete = False

    def __init__(self, stream: BinaryIO, format: Format) -> None:
        self.tally = Tally()
        self._stream = stream
        self._format = format

    def plain_report(self) -> Mapping[str, Any]:
        return {}

    def records_with_stamps(self) -> Iterator[tuple[Mapping[str, Any], bytes]]:
        return iter(())

    def recall(self, references: Iterable[Reference]) -> Iterable[Reference]:
        return references

    def remaining(self, batches: Iterator[list[Reference]]) -> Iterator[list[Reference]]:
        return batches

    def write(self, records: Sequence[Record]) -> None:
        lines = []
        for record in records:
            values = record.as_dict()
            self.tally.count(values)
            lines.append(formats.line(values, self._format))
        try:
            self._stream.write(b"".join(lines))
            self._stream.flush()
        except OSError as error:
            # What is left in Python's buffer would fail once more, at the very end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            if isinstance(error, BrokenPipeError):
                raise  # whoever reads, such as head, has enough: no fault, and no line
            raise OutputError(f"stdout: can't be written: {error.strerror}") from error

    def finish(self, report: Mapping[str, object]) -> None:
        pass

    def interrupt(self, report: Mapping[str, object], *, gave_up: bool) -> None:
        pass

    def close(self) -> None:
        pass
