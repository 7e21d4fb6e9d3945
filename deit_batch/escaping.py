"""Text that others wrote, as it may be shown on one line of a log or a terminal."""

from __future__ import annotations

import re

_DRIVES = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What ends a line, drives a terminal (C0, DEL and C1), turns the order of the text about
(https://www.unicode.org/reports/tr9/), or can't be written at all."""


def escape_controls(text: str, *, but: str = "") -> str:
    """The text with all of that as Python writes it in a string; `but`: characters that stay."""
    return _DRIVES.sub(lambda found: found[0] if found[0] in but else _escaped(found[0]), text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
