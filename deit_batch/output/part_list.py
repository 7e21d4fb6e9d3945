"""What a run knows of the parts of its result, of which there may be millions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from struct import Struct

from deit_batch.output.part import Part

_ROW = Struct("<?QQ32s32s32s")
"""Whether the part is there; its images that were scored; its file's bytes and SHA-256; `before` and `after`."""


class PartList:
    """Parts in the order of their numbers, added in any: 113 bytes for each, and a dict where images failed."""

    def __init__(self) -> None:
        self._rows = bytearray()
        self._failures: dict[int, Mapping[str, int]] = {}
        self._count = 0

    def __len__(self) -> int:
        """How many are there: some may be missing between them."""
        return self._count

    def add(self, part: Part) -> None:
        """In place of one that has its number."""
        start, end = part.number * _ROW.size, (part.number + 1) * _ROW.size
        self._rows.extend(bytes(max(0, end - len(self._rows))))
        self._count += not self._rows[start]
        digests = map(bytes.fromhex, (str(part.output["sha256"]), part.before, part.after))
        self._rows[start:end] = _ROW.pack(True, part.scored, part.output["bytes"], *digests)
        if part.failures:
            self._failures[part.number] = part.failures

    def __iter__(self) -> Iterator[Part]:
        """Those that are there. Others may be put in the place of these meanwhile."""
        for number, start in enumerate(range(0, len(self._rows), _ROW.size)):
            is_there, scored, size, sha256, before, after = _ROW.unpack_from(self._rows, start)
            if is_there:
                output = {"bytes": size, "sha256": sha256.hex()}
                failures = self._failures.get(number, {})
                yield Part(number, scored, failures, output, before.hex(), after.hex())
