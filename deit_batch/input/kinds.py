"""What a name given as input is: asked here alone, by every ending and, where it matters, of the disk.

Another kind is a `What` here, with the rule or the ending that tells it; a function that opens it; and its case in
`open.py`.
"""

from __future__ import annotations

import glob
import os
from dataclasses import dataclass
from enum import Enum, auto

from deit_batch.system import object_store


class What(Enum):
    FOLDER = auto()
    IMAGE = auto()
    GLOB = auto()
    STDIN = auto()
    DATA_SET = auto()
    TARS = auto()
    """One, numbered ones, or a glob."""
    LIST = auto()
    CSV = auto()
    TSV = auto()
    JSON_LINES = auto()
    DOCUMENT = auto()
    PARQUET = auto()
    UNKNOWN = auto()


IMAGES = frozenset(".jpg .jpeg .jpe .jfif .png .webp .gif .tif .tiff .bmp .avif".split())
"""Of the formats that loading.decode.FORMATS names."""

TARS = (".tar", ".tar.gz", ".tgz")

TABLES = {
    ".txt": What.LIST,
    ".csv": What.CSV,
    ".tsv": What.TSV,
    ".jsonl": What.JSON_LINES,
    ".ndjson": What.JSON_LINES,
    ".json": What.DOCUMENT,
    ".parquet": What.PARQUET,
}
"""All but .parquet also with .gz."""


@dataclass(frozen=True, slots=True)
class Kind:
    """`exists`: whether the disk has something of that name, be it a link that leads nowhere; a store is not asked."""

    what: What
    stored: bool = False
    exists: bool = False
    gzipped: bool = False

    @property
    def is_by_name(self) -> bool:
        """Whether it is image files, found by their names: so there are no rows, and no columns."""
        return self.what in (What.FOLDER, What.IMAGE, What.GLOB)


def kind_of(spec: str) -> Kind:
    """Of a name as the user gives it, whatever it is."""
    stored = object_store.is_stored(spec)
    exists = not stored and os.path.lexists(spec)
    return Kind(_what(spec, stored, exists), stored, exists, gzipped=spec.lower().endswith(".gz"))


def _what(spec: str, stored: bool, exists: bool) -> What:
    """The first that holds. A folder on the disk is one whatever it is called (`x.tar`), and what is there is no
    pattern (`a[1].jpg`). A store has no folders to ask for: there, it is what has no known ending."""
    if spec == "-":
        return What.STDIN
    by_ending = by_ending_of(spec)
    if exists and os.path.isdir(spec):
        return What.FOLDER
    if exists and by_ending is What.IMAGE:
        return What.IMAGE
    if glob.has_magic(spec) and not exists and "://" not in spec and by_ending is not What.TARS:
        return What.GLOB
    if spec.startswith("hf://") and not stored:
        return What.DATA_SET
    return What.FOLDER if stored and by_ending is What.UNKNOWN else by_ending


def by_ending_of(name: str) -> What:
    """Of a file's name, wherever it lies."""
    if is_image_name(name):
        return What.IMAGE
    name = name.lower()
    if name.endswith(TARS):
        return What.TARS
    return TABLES.get(os.path.splitext(name.removesuffix(".gz"))[1], What.UNKNOWN)


def is_image_name(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGES
