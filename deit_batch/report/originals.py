"""The images that records are of, found again: in the run's own input where that can still be read, or else by name."""

from __future__ import annotations

import base64
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deit_batch.errors import DeitBatchError, FetchError, ImageError
from deit_batch.input.elsewhere import Map, find_here
from deit_batch.input.identity import identity_of
from deit_batch.input.kinds import InputKind, parse_input_name
from deit_batch.input.labels import labels_table, open_labelled
from deit_batch.input.locate import locate, with_suffix
from deit_batch.input.open import open_source
from deit_batch.io import Failure, LocalFile, Location, Reference, Url, name_fields
from deit_batch.loading.local_file import confined
from deit_batch.names import path_on_disk
from deit_batch.redaction import HIDDEN

logger = logging.getLogger("deit_batch")


def find_originals(
    records: Mapping[int, Mapping[str, Any]],
    run: Mapping[str, Any] | None,
    *,
    folder: str | None,
    beside: Path,
    fetch: bool,
) -> Iterator[Reference]:
    """A reference for each record, its `index` the number that `records` has it under. `run`: the settings of the run,
    if they are known; `folder`: where relative names start from instead; `beside`: the file of the predictions, in
    whose folder they are looked for, too, if there is no `folder`. URLs are failures unless they are to be fetched."""
    names = _Names(run, folder, beside)
    missing = dict(records)
    by_index = {record["index"]: number for number, record in records.items()}
    if run and folder is None:
        for reference in _in_input(run, names.known, fetch):
            number = by_index.get(reference.index)
            # The input may have changed: what counts is that it is the same image in the same place.
            if number in missing and identity_of(name_fields(reference)) == identity_of(missing[number]):
                del missing[number]
                yield Reference(number, reference.image, _allowed(reference.location, fetch))
                if not missing:
                    return
    for number, record in missing.items():
        yield Reference(number, record["image"], _allowed(names.locate(record), fetch))


def find_links(
    records: Sequence[Mapping[str, Any]],
    run: Mapping[str, Any] | None,
    *,
    folder: str | None,
    beside: Path,
    root: str | None,
) -> list[str | None]:
    """Of each record the address under which a browser on this machine opens its image: of a file that is there (in the
    folder `root`, if that is set), or of the web. None for any other. The rest is as in `find_originals`."""
    names = _Names(run, folder, beside)
    return [_link(names.locate(record), names, root) for record in records]


def _link(location: Location, names: _Names, root: str | None) -> str | None:
    if isinstance(location, Url):
        return None if HIDDEN in location.url else location.url
    if not (isinstance(location, LocalFile) and names.is_there(location)):
        return None
    path = path_on_disk(location.path)
    try:
        confined(path, root)
    except FetchError:
        return None
    return Path(os.path.abspath(path)).as_uri()


class _Names:
    """Where images are by their names. The arguments are those of `find_originals`."""

    def __init__(self, run: Mapping[str, Any] | None, folder: str | None, beside: Path) -> None:
        run = run or {}
        self.known: Map = [(str(prefix), str(place)) for prefix, place in run.get("map") or []]
        given = run.get("input")
        of_table = [os.path.dirname(given)] if isinstance(given, str) and os.path.isfile(given) else []
        base = run.get("base")
        likely = [*([str(base)] if base else []), "", *of_table, str(beside.absolute().parent)]
        self._folders = list(dict.fromkeys(likely)) if folder is None else [folder]
        self._suffix = str(run.get("suffix") or "")
        self._there: dict[str, bool] = {}

    def locate(self, record: Mapping[str, Any]) -> Location:
        """In the first of the folders that has it."""
        name = record["image"]
        if name is None:
            return Failure.of(FetchError("it is in the run's input, which is not at hand"))
        if "image_id" in record and "://" in name and HIDDEN in name:
            return Failure.of(FetchError("its whole address is in the run's input alone, which is not at hand"))
        try:
            if "image_bytes" in record:
                name = os.fsdecode(base64.b64decode(record["image_bytes"]))
            found = [locate(find_here(name, self.known), folder) for folder in self._folders]
        except (ImageError, ValueError) as error:
            return Failure.of(FetchError(str(error)))
        places = [with_suffix(place, self._suffix) for place in found]
        first, *others = places
        if not (others and isinstance(first, LocalFile)):
            return first
        return next((place for place in places if isinstance(place, LocalFile) and self.is_there(place)), first)

    def is_there(self, file: LocalFile) -> bool:
        if os.path.exists(file.path):
            return True
        folder = os.path.dirname(file.path)
        if folder not in self._there:  # where it is not, a hundred thousand files need not be looked for
            self._there[folder] = os.path.isdir(path_on_disk(folder) or ".")
        return self._there[folder] and os.path.exists(path_on_disk(file.path))


def _in_input(run: Mapping[str, Any], known: Map, fetch: bool) -> Iterator[Reference]:
    """The references of a run's input, if a table is in it: what is in a folder is found by its name, and sooner."""
    given = run.get("input")
    specs = [find_here(str(spec), known) for spec in (given if isinstance(given, list) else [given])]
    table = labels_table(specs[0]) if len(specs) == 1 else None
    how: dict[str, Any] = {name: run.get(name) for name in ("column", "id", "limit", "base", "suffix", "delimiter")}
    try:
        if table:
            for example in open_labelled(specs[0], again=True, map=known, **how).examples:
                yield example.reference
        elif any(_is_table(spec, fetch) for spec in specs):
            recursive = bool(run.get("recursive", True))
            source = open_source(specs, recursive=recursive, map=known, **how)
            yield from source.references
    except DeitBatchError as error:
        logger.warning("images are looked for by their names alone: %s", error)


def _is_table(spec: str, fetch: bool) -> bool:
    kind = parse_input_name(spec).kind
    in_parts = kind in (InputKind.TARS, InputKind.MLTABLE, InputKind.SAVED)
    return os.path.isfile(spec) or in_parts or (spec.startswith("hf://") and fetch)


def _allowed(location: Location, fetch: bool) -> Location:
    if isinstance(location, Url) and not fetch:
        return Failure.of(FetchError("a URL: shown only with --fetch"))
    return location
