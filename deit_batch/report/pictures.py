"""The pictures of the images that a page shows, ready to stand in it."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from deit_batch.errors import FetchError
from deit_batch.io import Failure, LocalFile, Reference
from deit_batch.limits import Limits
from deit_batch.loading.local_file import why_missing
from deit_batch.names import path_on_disk
from deit_batch.report.originals import find_originals

if TYPE_CHECKING:
    from deit_batch.loading.thumbnails import Picture

_QUALITIES = (75, 50, 25)
"""Of WebP: some 8 kB a picture of a photograph; a lower one for a picture that takes more than its share."""
_LARGEST = 20_000
"""Bytes, so that a thousand pictures stay under 30 MB, in base64, too."""


def pictures_of(
    records: Mapping[int, Mapping[str, Any]],
    run: Mapping[str, Any] | None,
    *,
    folder: str | None,
    beside: Path,
    fetch: bool,
    limits: Limits,
) -> dict[int, str | Failure]:
    """Of each record, under its number, a `data:` URI, or why there is none. The others are as in `find_originals`."""
    found: dict[int, str | Failure] = {}
    originals = _readable(find_originals(records, run, folder=folder, beside=beside, fetch=fetch), found, limits)
    first = next(originals, None)
    if first is None:
        return found
    from deit_batch.loading.thumbnails import thumbnails  # and so torch, and workers

    for original, picture in thumbnails(chain([first], originals), limits):
        found[original.index] = picture if isinstance(picture, Failure) else as_uri(picture)
    return found


def _readable(originals: Iterator[Reference], failed: dict[int, str | Failure], limits: Limits) -> Iterator[Reference]:
    """Those that there may be a picture of; why there is none of the others goes into `failed`."""
    for original in originals:
        place = original.location
        if isinstance(place, LocalFile) and not os.path.exists(path_on_disk(place.path)):
            place = Failure.of(FetchError(why_missing(place, limits.root)))
        if isinstance(place, Failure):
            failed[original.index] = place
        else:
            yield original


def as_uri(picture: Picture) -> str:
    for quality in _QUALITIES:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "WEBP", quality=quality)
        if buffer.tell() <= _LARGEST:
            break
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
