"""A finished file under its name."""

from __future__ import annotations

from pathlib import Path

from deit_batch.errors import OutputError, UsageError
from deit_batch.system.atomic import make_missing_folder, write_atomically

PAGES = (".html", ".htm")
PICTURES = (".png",)
JSON = (".json",)


def require_place(path: Path, endings: tuple[str, ...]) -> None:
    """Before any work: there will be a folder for the --out `path`, and its ending says what is written. A device or a
    pipe, which has none, takes whatever comes. Raises UsageError if not, OutputError if the folder can't be made."""
    is_stream = path.exists() and not path.is_file()
    if path.suffix.lower() not in endings and not is_stream:
        raise UsageError(f"--out {path}: end it in {' or '.join(endings)}, for nothing else is written")
    make_missing_folder(path)


def write_file(path: Path, data: bytes) -> None:
    """Raises OutputError if it can't be written; what was there before then still is."""
    try:
        write_atomically(path, data)
    except OSError as error:
        raise OutputError(f"{path}: can't be written: {error.strerror}") from error
