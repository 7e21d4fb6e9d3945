"""What a name given as input is: asked here alone, by every ending and, where it matters, of the disk.

Another kind is an `InputKind` here, with the rule or the ending that tells it; a function that opens it; and its
case in `open.py`.
"""

from __future__ import annotations

import glob
import os
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from functools import cache

from deit_batch.system import object_store
from deit_batch.system.extras import how_to_install, is_installed


class InputKind(Enum):
    FOLDER = auto()
    IMAGE = auto()
    GLOB = auto()
    STDIN = auto()
    DATA_SET = auto()
    TARS = auto()
    """One, numbered ones, a glob, or a folder of nothing else."""
    ZIP = auto()
    LIST = auto()
    CSV = auto()
    TSV = auto()
    JSON_LINES = auto()
    DOCUMENT = auto()
    PARQUET = auto()
    MLTABLE = auto()
    """A folder that holds one, or its file."""
    SAVED = auto()
    """A folder that save_to_disk of `datasets` has left."""
    UNKNOWN = auto()


IMAGES = frozenset(".jpg .jpeg .jpe .jfif .png .webp .gif .tif .tiff .bmp .avif".split())
"""Of the formats that loading.decode.FORMATS names, but for those of HEIF."""

HEIF = frozenset(".heic .heif .hif".split())
HOW_TO_READ_HEIF = how_to_install("heic")

MLTABLE = "MLTable"
SAVED, SAVED_DICT = ("state.json", "dataset_info.json"), "dataset_dict.json"
"""By which a folder can be told that `datasets` has saved: a data set, or a dict of them."""

PACKINGS = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}
"""How a file is packed, as its last ending says; a table or tar may have one behind its own (packed.py)."""

TARS = (".tar", *(f".tar{ending}" for ending in PACKINGS), ".tgz", ".tbz2", ".txz", ".tzst")

TABLES = {
    ".txt": InputKind.LIST,
    ".csv": InputKind.CSV,
    ".tsv": InputKind.TSV,
    ".jsonl": InputKind.JSON_LINES,
    ".ndjson": InputKind.JSON_LINES,
    ".json": InputKind.DOCUMENT,
    ".parquet": InputKind.PARQUET,
}
"""All but .parquet also packed."""


@dataclass(frozen=True, slots=True)
class InputName:
    """`exists`: whether the disk has something of that name, be it a link that leads nowhere; a store is not asked."""

    kind: InputKind
    stored: bool = False
    exists: bool = False

    @property
    def names_image_files(self) -> bool:
        """Whether it is image files, found by their names: so there are no rows, and no columns."""
        return self.kind in (InputKind.FOLDER, InputKind.IMAGE, InputKind.GLOB)


def parse_input_name(spec: str) -> InputName:
    """Of a name as the user gives it, whatever it is."""
    stored = object_store.is_stored(spec)
    exists = not stored and os.path.lexists(spec)
    return InputName(_kind_of(spec, stored, exists), stored, exists)


def packed_by_name(name: str) -> str | None:
    """What a file is packed by, as its name says."""
    return PACKINGS.get(_ending(name))


def parts_of(spec: str) -> list[str]:
    """The files that are meant by a glob of tables or zips, or by a folder of Parquet files or of zips (`files_of`), in
    the order of their names. Else the name itself: several tars are one input."""
    if object_store.is_stored(spec):
        return [spec]
    if glob.has_magic(spec) and "://" not in spec and not os.path.lexists(spec):
        is_part = by_ending_of(spec) in (*TABLES.values(), InputKind.ZIP)
        return (is_part and sorted(glob.glob(spec, recursive=True), key=os.fsencode)) or [spec]
    return files_of(spec, InputKind.PARQUET) or files_of(spec, InputKind.ZIP) or [spec]


def files_of(folder: str, kind: InputKind) -> list[str]:
    """Those of a folder that holds nothing but files of that kind, and what is hidden or begins with an underscore, as
    Spark and pandas write it; in the order of their names. None of any other folder, nor of what is none."""
    files = []
    with suppress(OSError, ValueError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith((".", "_")):
                continue
            if by_ending_of(entry.name) is not kind or entry.is_dir():
                return []
            files.append(os.path.join(folder, entry.name))
    return sorted(files, key=os.fsencode)


def _kind_of(spec: str, stored: bool, exists: bool) -> InputKind:
    """The first that holds. A folder on the disk is one whatever it is called (`x.tar`), and what is there is no
    pattern (`a[1].jpg`). A store has no folders to ask for: there, it is what has no known ending."""
    if spec == "-":
        return InputKind.STDIN
    by_ending = by_ending_of(spec)
    if os.path.basename(spec) == MLTABLE and not (exists and os.path.isdir(spec)):
        return InputKind.MLTABLE
    if exists and os.path.isdir(spec):
        return _kind_of_folder(spec)
    if exists and by_ending is InputKind.IMAGE:
        return InputKind.IMAGE
    if glob.has_magic(spec) and not exists and "://" not in spec and by_ending is not InputKind.TARS:
        return InputKind.GLOB
    if spec.startswith("hf://") and not stored:
        return InputKind.DATA_SET
    return InputKind.FOLDER if stored and by_ending is InputKind.UNKNOWN else by_ending


def _kind_of_folder(path: str) -> InputKind:
    """Of one on the disk: images, unless it holds what says something else of it."""

    def holds(name: str) -> bool:
        return os.path.isfile(os.path.join(path, name))

    if holds(MLTABLE):
        return InputKind.MLTABLE
    if files_of(path, InputKind.TARS):
        return InputKind.TARS
    return InputKind.SAVED if is_saved_dict(path) or all(map(holds, SAVED)) else InputKind.FOLDER


def is_saved_dict(folder: str) -> bool:
    """Whether `datasets` has saved several data sets there, each in a folder of its name."""
    return os.path.isfile(os.path.join(folder, SAVED_DICT))


def by_ending_of(name: str) -> InputKind:
    """Of a file's name, wherever it lies."""
    if _ending(name) in IMAGES | HEIF:  # a photo that is named is an input, whether it can be read or not
        return InputKind.IMAGE
    name = name.lower()
    if name.endswith(TARS):
        return InputKind.TARS
    stem, ending = os.path.splitext(name)
    if ending == ".zip":
        return InputKind.ZIP
    return TABLES.get(_ending(stem) if ending in PACKINGS else ending, InputKind.UNKNOWN)


def is_image_name(name: str) -> bool:
    """Of what is found, and could be passed over."""
    return _ending(name) in image_endings()


@cache
def image_endings() -> frozenset[str]:
    """Of all that can be read here."""
    return IMAGES | HEIF if is_installed("pi_heif") else IMAGES


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()
