"""What a table calls the column that holds the image."""

from __future__ import annotations

from collections.abc import Sequence

IMAGE_COLUMNS = (
    "image", "image_path", "image_url", "image_base64", "image_b64", "image_file", "img", "url", "uri", "path",
    "file", "filepath", "file_path", "filename", "file_name", "base64", "b64",
)  # fmt: skip
"""The usual names of the column that holds the image, the likeliest first."""

BASE64_COLUMNS = frozenset(("image_base64", "image_b64", "base64", "b64"))


def usual_image_column(columns: Sequence[str]) -> str | None:
    """The likeliest of those with a usual name, in any case."""
    lower = {name.lower(): name for name in reversed(columns)}
    return next((lower[name] for name in IMAGE_COLUMNS if name in lower), None)
