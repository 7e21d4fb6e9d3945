"""What a cell or a line of text says of an image, to where its bytes are."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

from deit_batch.errors import RowError
from deit_batch.input import tables
from deit_batch.input.columns import BASE64_COLUMNS
from deit_batch.input.elsewhere import Map, find_here
from deit_batch.input.identity import text_of
from deit_batch.io import Base64, LocalFile, Location, Picture, StoredFile, Url
from deit_batch.system import object_store

# The first characters of the base64 of a JPEG, PNG, GIF, WebP, BMP (with its reserved zeros), TIFF and AVIF.
_BASE64_IMAGE = re.compile(r"[/_]9j[/_]|iVBORw0KGgo|R0lGOD|UklGR|Qk[0-9A-Za-z+/_-]{6}AAAA|SUkqA|TU0AK|AAAA..Z0eXB")
_BASE64_ONLY = re.compile(r"[A-Za-z0-9+/_\-\s]+={0,2}")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_DRIVE = re.compile(r"/[A-Za-z]:[/\\]")
SHORTEST_BASE64_IMAGE = 32  # the smallest GIF has 26 bytes
_LONGEST_PATH = 4096  # PATH_MAX on Linux
_LONGEST_URL = 2**16  # no server takes as much


_OF_TABLES = (str, bytes, int, float, list, type(None))
"""What a cell is, but for an image of a Python program, and odd values of Parquet."""


def digest_of_inline(location: Location) -> str | None:
    match location:
        case Base64(text):
            return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        case bytes() as data:
            return hashlib.sha256(data).hexdigest()
        case _:
            return None


def locate_value(
    value: Any, column: str, folder: str, place: str, known: Map = (), suffix: str | None = None
) -> tuple[str | None, Location]:
    """The reference as given, secrets and all (None for inline data), and where its bytes are; `known`: the places of
    prefixes that it may have; `suffix`: how the name of its file ends, if it does not end so itself: with that, a
    number is a name, too."""
    if isinstance(value, Mapping):  # an image of `datasets`: {"bytes": …, "path": …}
        path = value.get("path")
        if isinstance(value.get("bytes"), bytes):
            return path if isinstance(path, str) else None, value["bytes"]
        value = path
    if not isinstance(value, _OF_TABLES):
        from deit_batch.input.held_image import held_image

        try:
            held = held_image(value)
            value = value if held is None else held
        except RowError as error:
            return None, tables.row_failure(f"{place}: {error}")
    if isinstance(value, bytes | Picture):
        return None, value
    if suffix:
        value = text_of(value)
    if not isinstance(value, str) or not value.strip():
        from deit_batch.input.held_image import what_to_give

        is_empty = value is None or isinstance(value, str)
        what = "is empty" if is_empty else f"is {json.dumps(value, default=str):.40}, no text{what_to_give(value)}"
        return None, tables.row_failure(f"{place}: the image {what}")
    try:
        location = locate(find_here(value, known), folder, always_base64=column.lower() in BASE64_COLUMNS)
    except RowError as error:
        name = value if len(value) <= _LONGEST_URL else None
        return name, tables.row_failure(f"{place}: {error}")
    name = None if isinstance(location, Base64 | bytes) else value
    return name, with_suffix(location, suffix) if suffix else location


def with_suffix(location: Location, suffix: str) -> Location:
    """The place whose name ends so, if it does not yet."""
    match location:
        case LocalFile(path, folder) if not path.endswith(suffix):
            return LocalFile(path + suffix, folder)
        case StoredFile(address) if not address.endswith(suffix):
            return StoredFile(address + suffix)
        case Url(url) if not url.endswith(suffix):
            return Url(url + suffix)
        case _:
            return location


def locate(
    text: str, folder: str = "", *, always_base64: bool = False
) -> LocalFile | Url | StoredFile | Base64 | bytes:
    """Tells a URL, an object on a store, a data URI, base64 and a path apart. A relative path is taken from `folder`.

    Base64 of a JPEG starts with `/9j/`, as an absolute path might. So text is base64 only if it starts as an image's
    base64 does, has no other characters, and is long enough for one; or if it is too long for a path. Raises RowError
    for a scheme that is not ours to open."""
    start = text.lstrip()[:16].lower()
    if start.startswith(("http://", "https://")):
        if len(text) > _LONGEST_URL:
            raise RowError(f"a URL of more than {_LONGEST_URL:,} characters")
        return Url(text.strip())
    if start.startswith("data:"):
        header, comma, data = text.partition(",")
        if not comma:
            raise RowError("a data: URI without a comma")
        if not header.rstrip().lower().endswith(";base64"):
            return unquote_to_bytes(data)
        return Base64(unquote(data) if "%" in data else data)
    if always_base64 or len(text) > _LONGEST_PATH:
        return Base64(text)
    if start.startswith("file:"):
        return LocalFile(_path_of_file_url(text.strip()))
    if "://" in text:
        if object_store.is_stored(text):
            return _stored(text)
        if scheme := _SCHEME.match(text):
            raise _unopened(scheme[1])
    stripped = text.strip()
    long_enough = len(stripped) >= SHORTEST_BASE64_IMAGE
    if long_enough and _BASE64_IMAGE.match(stripped) and _BASE64_ONLY.fullmatch(stripped):
        return Base64(text)
    if os.path.isabs(text):
        return LocalFile(text)
    path = os.path.join(folder, text)
    return _stored(path) if object_store.is_stored(path) else LocalFile(path, folder)


def _unopened(scheme: str) -> RowError:
    if scheme.lower() == "azureml":
        return RowError(
            "azureml: is opened inside Azure ML alone; say where its files are by --map, such as "
            "azureml://datastores/NAME/paths/=FOLDER (of a mount or a download) or …=abfs://CONTAINER/"
        )
    return RowError(f"{scheme}: is not opened; give a path, an http(s) or s3 URL, or base64")


def _path_of_file_url(url: str) -> str:
    """The path on this machine that it names (RFC 8089). Raises RowError if it names another machine."""
    path = url[len("file:") :]
    for start in ("//localhost/", "///"):
        if path.lower().startswith(start):
            path = f"/{path[len(start) :]}"
    if not path.startswith("/") or path.startswith("//"):
        raise RowError("a file: URL of another machine, or of no absolute path; file:///path is one of this machine")
    path = unquote(path, errors="surrogateescape")
    return path[1:] if os.name == "nt" and _DRIVE.match(path) else path


def _stored(address: str) -> StoredFile:
    scheme, path = object_store.parse(address)
    return StoredFile(f"{scheme}://{path}")
