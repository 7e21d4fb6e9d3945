"""The file that a result grows in, and the one of its stamps."""

from __future__ import annotations

import os
from itertools import takewhile

from deit_batch.input import stamps
from deit_batch.output.file_names import Files


class Growing:
    """The records of a run, and what its images' files were, as far as they have come."""

    def __init__(self, files: Files, *, keeps_stamps: bool, goes_on: bool) -> None:
        self.read_files = False
        """Whether any of its images was a file."""
        self._keeps_stamps = keeps_stamps
        self._lines = open(files.partial, "r+b" if goes_on else "x+b")  # noqa: SIM115 - to the end of the run
        self._stamps = open(files.partial_stamps, "a+b")  # noqa: SIM115
        self._stamps.seek(0)

    def read(self, count: int) -> tuple[list[bytes], list[bytes]]:
        """The next lines, and the stamps of so many; fewer where they end."""
        lines = list(takewhile(bool, (self._lines.readline() for _ in range(count))))
        noted = (
            stamps.split_stamps(self._stamps.read(count * stamps.WIDTH))
            if self._keeps_stamps
            else [stamps.NONE] * count
        )
        self.read_files |= any(stamp != stamps.NONE for stamp in noted)
        return lines, noted

    def tell(self) -> int:
        return self._lines.tell()

    def cut_off(self, place: int, records: int) -> None:
        """Whatever stands behind this byte, which is the end of so many records."""
        self._lines.seek(place)
        self._lines.truncate()
        self._stamps.truncate(records * stamps.WIDTH)

    def append(self, lines: bytes, noted: bytes) -> None:
        if self._keeps_stamps:
            self._stamps.write(noted)
            self._stamps.flush()  # first: a record without a stamp would be scored again
            self.read_files |= noted.strip(b"\0") != b""
        self._lines.write(lines)
        self._lines.flush()

    def sync(self) -> None:
        for file in (self._stamps, self._lines):
            os.fsync(file.fileno())

    def close(self) -> None:
        for file in (self._stamps, self._lines):
            file.close()
