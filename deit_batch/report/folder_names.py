"""Names of folders and files for what others have named: one part of a path, legal everywhere, never of two things."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Collection, Iterator

_UNSAFE = re.compile('[\x00-\x1f\x7f-\x9f/\\\\:*?"<>|\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]')
"""What no name may hold on Linux, macOS or Windows, or what is not seen in one."""
_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])", re.IGNORECASE)
"""On Windows, with any ending
(https://learn.microsoft.com/en-us/windows/win32/fileio/naming-a-file#naming-conventions)."""
_MADE = re.compile(" ~[0-9a-f]{12}$")
_LONGEST = 150
"""Bytes of the part of a name that people read: 255 is the most, and the path has more parts."""
_LONGEST_NAME = 255


def is_plain(name: str) -> bool:
    """Whether it can be a folder's name as it is, on every system."""
    return (
        bool(name)
        and not _UNSAFE.search(name)
        and name == name.strip(" .\t")
        and not _is_reserved(name)
        and not _MADE.search(name)
        and len(name.encode()) <= _LONGEST
        and unicodedata.is_normalized("NFC", name)
    )


def folder_name(label: str, taken: Collection[str] = ()) -> str:
    """The label itself where that is plain and none of the names that are `taken`; or else what is left of it that is,
    and a digest of the whole."""
    if is_plain(label) and label.casefold() not in map(str.casefold, taken):
        return label
    digest = hashlib.sha256(label.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    cleaned = _UNSAFE.sub("_", unicodedata.normalize("NFC", label[:_LONGEST])).strip(" .")
    cleaned = cleaned.encode()[:_LONGEST].decode(errors="ignore").strip(" .")
    if _is_reserved(cleaned):
        cleaned = f"_{cleaned}"
    return f"{cleaned or 'label'} ~{digest}"


def file_names(source: str) -> Iterator[str]:
    """Names for a file in a folder with others, the best first: its own, and with digests of its path."""
    name = os.path.basename(source)
    yield name
    stem, ending = os.path.splitext(name)
    digest = hashlib.sha256(os.fsencode(source)).hexdigest()
    for length in (12, len(digest)):
        end = f" ~{digest[:length]}{ending if len(ending) <= 10 else ''}"
        while len(os.fsencode(stem + end)) > _LONGEST_NAME:
            stem = stem[:-1]
        yield stem + end


def _is_reserved(name: str) -> bool:
    return _RESERVED.fullmatch(name.partition(".")[0].rstrip()) is not None
