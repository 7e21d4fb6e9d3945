"""The pictures of the few images that a page shows, ready to stand in it."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from PIL import Image

from deit_batch.io import Failure
from deit_batch.limits import Limits
from deit_batch.report.originals import find_originals

if TYPE_CHECKING:
    from deit_batch.loading.thumbnails import Picture

_QUALITY = 75  # of WebP: some 8 kB a picture


def pictures_of(
    records: Mapping[int, Mapping[str, Any]],
    run: Mapping[str, Any] | None,
    *,
    folder: str | None,
    fetch: bool,
    limits: Limits,
) -> dict[int, str | Failure]:
    """Of each record, under its number, a `data:` URI, or why there is none. The others are as in `find_originals`."""
    if not records:
        return {}
    from deit_batch.loading.thumbnails import thumbnails  # and so torch

    originals = find_originals(records, run, folder=folder, fetch=fetch)
    return {
        original.index: picture if isinstance(picture, Failure) else _as_uri(picture)
        for original, picture in thumbnails(originals, limits)
    }


def _as_uri(picture: Picture) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "WEBP", quality=_QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
