"""What to say of a file that is not there: what was tried, and what is there that may have been meant."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator
from urllib.parse import unquote

from deit_batch.names import path_on_disk
from deit_batch.redaction import redact

_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_QUOTES = "\"'`"


def explain_missing(
    path: str,
    folder: str = "",
    *,
    what: str = "No such file",
    is_visible: Callable[[str], bool] = os.path.exists,
    endings: Collection[str] = (),
) -> str:
    """One line. `folder`: where a relative name was taken from, at the start of `path`; `is_visible`: whether something
    is there that may be spoken of; `endings`: those that the name may lack."""
    if os.path.islink(path):
        return f"{what}: {path} is a link to {os.readlink(path)}, which is not there"
    if "://" in path or redact(path) != path:  # a part of it might be a password, and would not be known for one
        return f"{what}: {path}"
    given = path.removeprefix(os.path.join(folder, "")) if folder else path
    base = f" (relative names start from {folder})" if given != path else ""
    clue = next((clue for there, clue in _clues(path, given) if there is None or is_visible(there)), None)
    if not clue and (ending := ending_that_lacks(path, endings, is_visible)):
        clue = f"{path}{ending} is there: name it with its ending, or give --suffix {ending} for all of a table"
    return f"{what}: {os.path.join(os.getcwd(), path)}{base}" + (f"; {clue}" if clue else "")


def ending_that_lacks(
    path: str, endings: Collection[str], is_visible: Callable[[str], bool] = os.path.exists
) -> str | None:
    """The ending with which the name is that of a file."""
    both = (each for ending in sorted(endings) for each in (ending, ending.upper()))
    return next((ending for ending in both if is_visible(path + ending)), None)


def _clues(path: str, given: str) -> Iterator[tuple[str | None, str]]:
    """What may be there, and what to say if it is; None for what is to be said anyway."""
    alike = path_on_disk(path)
    if alike != path:
        yield alike, f"{alike!a} is there, whose name looks the same"
    slashed = path.replace("\\", "/")
    if slashed != path:
        yield slashed, f"{slashed} is there: write / for \\"
    if _DRIVE.match(given):
        yield None, f"{given[:2]} is a drive of Windows, where names are not those of this machine"
    if given != path:
        yield given, f"{given} is there, seen from the working folder: put the table there, or give absolute paths"
    yield unquote(path), f"{unquote(path)} is there: the name is percent-encoded, as in a URL"
    quoted = os.path.join(path[: len(path) - len(given)], given.strip(_QUOTES))
    yield quoted, f"{quoted} is there: write the name without quotes"
    stem, ending = os.path.splitext(path)
    for other in (ending.lower(), ending.upper()):
        yield stem + other, f"{stem}{other} is there: small and capital letters count"
    above = os.path.dirname(path)
    if above and not os.path.isdir(above):
        yield None, f"there is no folder {above}"
