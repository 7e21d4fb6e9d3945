"""Names that look alike: of classes, files and inputs, as two machines or two programs have written them down."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches

_LONGEST = 4096
"""Characters, as in the longest path of Linux. Normalisation takes the square of a run of accents."""

_LONGEST_COMPARED = 100


def alike(name: str) -> str:
    """One spelling for all names that look the same: without white space around it, and in the Unicode form NFC, in
    which an é is one character (macOS writes an e and an accent, NFD). A name that is too long for one stays as it
    is."""
    if len(name) > _LONGEST:
        return name
    stripped = name.strip()
    return stripped if stripped.isascii() else unicodedata.normalize("NFC", stripped)


def what_is_meant(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """What a message says behind a name that is none of the known ones, if it may be a misspelling of one. `cutoff`:
    how alike they must be, 0 to 1 (difflib)."""
    close = get_close_matches(name, known, 1, cutoff) if len(name) <= _LONGEST_COMPARED else []
    return f" (do you mean {close[0]}?)" if close else ""


def path_on_disk(path: str) -> str:
    """The path itself if something is there, or if nothing is there that looks the same; or else what is: each part of
    it as it is, without white space around it, or in another Unicode form."""
    if len(path) > _LONGEST or _is_there(path):
        return path
    found = ""
    for part in path.replace(os.sep, "/").split("/"):
        spellings = dict.fromkeys([part, part.strip(), *_forms(part.strip())])
        there = (spelling for spelling in spellings if spelling and _is_there(found + spelling))
        found += next(there, part) + "/"
    return found[:-1] if _is_there(found[:-1]) else path


def other_forms(name: str) -> list[str]:
    """The name in the Unicode forms that it is not in; none for a name without accents."""
    return [] if len(name) > _LONGEST else [form for form in dict.fromkeys(_forms(name)) if form != name]


def _forms(name: str) -> list[str]:
    return [unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)]


def _is_there(path: str) -> bool:
    try:
        return os.path.lexists(path)
    except ValueError:  # a NUL byte, or half a surrogate pair
        return False
