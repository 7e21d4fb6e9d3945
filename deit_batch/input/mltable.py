"""Azure ML's MLTable: a YAML file that says which files are a table, and how they are read.

Followed is what the tables of images need (learn.microsoft.com/azure/machine-learning/reference-yaml-mltable): files of
JSON lines, of delimited text and of Parquet. A step that would change which rows there are, or what is in them, is
refused: it is never passed over.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shown  # bounded: by its aliases, a few lines of YAML may be endless lists
from typing import Any

from deit_batch.errors import UsageError
from deit_batch.input.elsewhere import Map, find_here
from deit_batch.input.kinds import MLTABLE, InputKind
from deit_batch.system import object_store
from deit_batch.system.regular_file import MOST_SETTINGS_BYTES, read_settings, require_settings

_READERS = {"read_json_lines": InputKind.JSON_LINES, "read_parquet": InputKind.PARQUET}
_DELIMITERS = {",": InputKind.CSV, "\t": InputKind.TSV}
_HEADERS = ("all_files_same_headers", "all_files_different_headers")
_ENCODINGS = frozenset(("utf8", "utf-8", "ascii"))
_CHANGE_NO_TEXT = frozenset(("convert_column_types",))
"""What types columns have: a name of an image is a text all the same."""
_CHANGE_NOTHING = frozenset(
    ("include_path_column", "invalid_lines", "infer_column_types", "empty_as_string", "support_multi_line")
)


@dataclass(frozen=True, slots=True)
class MlTable:
    """The files, each to be read as `kind`."""

    files: list[str]
    kind: InputKind


def read_mltable(spec: str, known: Map = ()) -> MlTable:
    """`spec`: a folder with an MLTable in it, or that file. Raises UsageError if it can't be read, or asks for what is
    not followed here."""
    import yaml  # here, for it takes a while, and few inputs need it

    path = spec if os.path.basename(spec) == MLTABLE and not os.path.isdir(spec) else os.path.join(spec, MLTABLE)
    try:
        document = yaml.safe_load(_bytes_of(path))
        if not isinstance(document, Mapping):
            raise ValueError("it is no list of fields")
        unknown = sorted(map(str, document.keys() - {"paths", "transformations", "type", "$schema", "metadata"}))
        if unknown:
            raise ValueError(f"it has {', '.join(unknown)}, which we don't know")
        kind = _kind_of(document.get("transformations") or [])
        return MlTable(_files_of(document.get("paths"), os.path.dirname(path), known), kind)
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: not YAML: {' '.join(str(error).split()):.200}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"{path}: it can't be read as an MLTable: {getattr(error, 'strerror', None) or error}"
        ) from error


def _bytes_of(path: str) -> bytes:
    if not object_store.is_stored(path):
        return read_settings(Path(path))
    with object_store.open_stream(path) as stream:
        return require_settings(stream.read(MOST_SETTINGS_BYTES + 1))


def _kind_of(steps: object) -> InputKind:
    kind = None
    for step in steps if isinstance(steps, list) else [steps]:
        name, settings = _step(step)
        if name in _READERS or name == "read_delimited":
            kind = _READERS.get(name) or _of_delimited(settings)
            _check(name, settings)
        elif name not in _CHANGE_NO_TEXT:
            raise ValueError(f"{name} is a step that is not followed here; make a table of its result")
    if kind is None:
        raise ValueError("no step says how its files are read (read_json_lines, read_delimited, read_parquet)")
    return kind


def _step(step: object) -> tuple[str, Mapping[str, Any]]:
    """A step is its name, or an object of its name and its settings."""
    if isinstance(step, str):
        return step, {}
    if isinstance(step, Mapping) and len(step) == 1:
        ((name, settings),) = step.items()
        return str(name), settings if isinstance(settings, Mapping) else {}
    raise ValueError(f"{shown(step)} is no step")


def _of_delimited(settings: Mapping[str, Any]) -> InputKind:
    delimiter, header = _text(settings, "delimiter", ","), _text(settings, "header", _HEADERS[0])
    if delimiter not in _DELIMITERS:
        raise ValueError(f"the delimiter {shown(delimiter)} is not followed here; comma and tab are")
    if header not in _HEADERS:
        raise ValueError(f"header: {shown(header)} is not followed here; each file must begin with its titles")
    return _DELIMITERS[delimiter]


def _check(name: str, settings: Mapping[str, Any]) -> None:
    encoding = _text(settings, "encoding", "utf8").lower()
    if encoding not in _ENCODINGS:
        raise ValueError(f"the encoding {shown(encoding)} is not followed here; utf8 is")
    known = {"encoding", *_CHANGE_NOTHING, *(("delimiter", "header") if name == "read_delimited" else ())}
    if unknown := sorted(map(str, settings.keys() - known)):
        raise ValueError(f"{name} has {', '.join(unknown)}, which is not followed here")


def _text(settings: Mapping[str, Any], name: str, default: str) -> str:
    value = settings.get(name, default)
    if not isinstance(value, str):
        raise ValueError(f"{name} is {shown(value)}, no text")
    return value


def _files_of(paths: object, folder: str, known: Map) -> list[str]:
    found: list[str] = []
    for entry in paths if isinstance(paths, list) else []:
        if not (isinstance(entry, Mapping) and len(entry) == 1):
            raise ValueError(f"{shown(entry)} is no path")
        ((how, name),) = entry.items()
        if how not in ("file", "pattern") or not isinstance(name, str):
            raise ValueError(f"a path by {shown(how)} is not followed here; file and pattern are")
        found += _named(name, folder, known) if how == "file" else _matching(name, folder, known)
    if not found:
        raise ValueError("it names no file")
    return found


def _named(name: str, folder: str, known: Map) -> list[str]:
    here = find_here(name.removeprefix("file://"), known)
    if "://" in here:
        return [here]
    return [f"{folder}/{here}" if "://" in folder else os.path.normpath(os.path.join(folder, here))]


def _matching(name: str, folder: str, known: Map) -> list[str]:
    pattern = find_here(name.removeprefix("file://"), [(prefix, _literal(place)) for prefix, place in known])
    if "://" in pattern or "://" in folder:
        raise ValueError(f"a pattern is for files on a disk: {pattern:.60}")
    found = glob.glob(os.path.join(glob.escape(folder), pattern), recursive=True)
    if not found:
        raise ValueError(f"the pattern {name:.200} matches no file")
    return sorted(map(os.path.normpath, found), key=os.fsencode)


def _literal(place: str) -> str:
    """Of what --map gives, as a pattern of that place alone."""
    if "://" in place:
        return place
    return glob.escape(os.path.abspath(place)) + ("/" if place.endswith("/") else "")
