"""All parts of a result together: whether they are of one reading of the input, and the manifest that says which they
are."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from deit_batch.errors import MALFORMED, DeitBatchError, UsageError, in_words
from deit_batch.io import Tally
from deit_batch.output.part import NOTHING_YET, Part, digest_of_data, part_name
from deit_batch.output.place import LocalPlace, Place
from deit_batch.output.run_report import parse_report
from deit_batch.system.object_store import StoreError

MANIFEST, REPORT = "manifest.json", "run.json"


class Parts(Protocol):
    """Parts in their order, which can be gone through more than once."""

    def __iter__(self) -> Iterator[Part]: ...


def require_all(parts: Parts, digest: str) -> None:
    """Raises DeitBatchError unless they are all parts of one reading of an input, whose references have this digest."""
    misfit = _first_misfit(parts)
    if misfit:
        raise UsageError(
            f"the input changed while it was being scored: {part_name(misfit.number)} does not fit behind what was "
            "read before it; run the same command with --fresh"
        )
    if end_of(parts) != digest:
        raise DeitBatchError(f"{part_name(sum(1 for _ in parts))} is missing; run the same command again, it goes on")


def _first_misfit(parts: Parts) -> Part | None:
    """The first that does not go on where the one before it ends."""
    end = NOTHING_YET
    for place, part in enumerate(parts):
        if (part.number, part.before) != (place, end):
            return part
        end = part.after
    return None


def end_of(parts: Parts) -> str:
    """The digest of all their references."""
    end = NOTHING_YET
    for part in parts:
        end = part.after
    return end


def read_document(folder: Place, name: str = REPORT) -> dict[str, Any]:
    """As run_report.read_report. Raises StoreError if a store does not say whether it is there."""
    try:
        return parse_report(folder.read(name))
    except StoreError:
        raise
    except OSError:
        return {}


def read_manifest(folder: Place) -> list[Part]:
    """The parts of a finished folder, in order. Raises UsageError if there is none, or they are not as it says; if it
    does not hold all of them in that order, or is not of the run that the report is of."""
    try:
        manifest = read_document(folder, MANIFEST)
        if not manifest:
            raise UsageError(f"{folder} is no finished result in parts: there is no {MANIFEST} in it")
        parts = [Part(**{key: row[key] for key in row if key != "name"}) for row in manifest["parts"]]
        names = [part_name(part.number, manifest["format"]) for part in parts]
        tally = tally_of(parts)
        said = [row["name"] for row in manifest["parts"]], manifest["inputs"], manifest["failed"]
        if _first_misfit(parts) or said != (names, tally.inputs, tally.failed):
            raise _not_ours(folder, MANIFEST)
        if read_document(folder).get("references_sha256") != end_of(parts):
            raise UsageError(f"{folder}: {MANIFEST} and {REPORT} are not of one run; score it again, with --fresh")
        changed = folder.first_unlike({name: part.output for name, part in zip(names, parts, strict=True)})
    except (*MALFORMED, OSError) as error:
        raise UsageError(f"{folder} is no finished result in parts: {MANIFEST}: {in_words(error)}") from error
    if changed:
        raise _not_ours(folder, changed)
    return parts


def files_of(folder: Path) -> list[Path]:
    """Those with the records of a finished folder of this machine, in order. Raises as `read_manifest`."""
    name = read_document(LocalPlace(folder), MANIFEST).get("format", "jsonl")
    return [folder / part_name(part.number, name) for part in read_manifest(LocalPlace(folder))]


def read_parts(folder: Place, parts: Sequence[Part]) -> Generator[bytes, None, None]:
    """Their files, in turn. Raises UsageError if one is not as the manifest says."""
    names = [part_name(part.number) for part in parts]
    with closing(folder.read_each(names)) as files:
        for name, part, data in zip(names, parts, files, strict=True):
            if data is None or digest_of_data(data) != part.output:
                raise _not_ours(folder, name)
            yield data


def _not_ours(folder: Place, name: str) -> UsageError:
    if not folder.has(name):
        return UsageError(
            f"{folder}/{name} is missing, of a result that was finished; bring that one file back, or score all of it "
            "again, with --fresh"
        )
    return UsageError(f"{folder}/{name} is not what its run has left there; score it again, with --fresh")


def manifest_lines(parts: Parts, format: str) -> Iterator[bytes]:
    """A row a line: there may be millions."""
    tally = tally_of(parts)
    head = json.dumps({"format": format, "inputs": tally.inputs, "failed": tally.failed})
    yield f'{head[:-1]}, "parts": ['.encode()
    for place, part in enumerate(parts):
        row = {"name": part_name(part.number, format), **asdict(part)}
        yield (b",\n" if place else b"\n") + json.dumps(row).encode()
    yield b"\n]}\n"


def tally_of(parts: Parts) -> Tally:
    """Of all these."""
    tally = Tally()
    for part in parts:
        tally.scored += part.scored
        tally.failures += Counter(part.failures)
    return tally
