"""CSV that a spreadsheet opens as it is meant: as UTF-8, and without taking text for a formula."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

logger = logging.getLogger("deit_batch")

ENCODING = "utf-8-sig"
MARK = "\ufeff"
"""What such a file begins with; without it, Excel takes the text for that of an old code page."""
LONGEST_CELL = 32_767
"""Characters of a cell in Excel
(https://support.microsoft.com/en-us/office/excel-specifications-and-limits-1672b34d-7043-467e-8e27-269d656771c3)."""
FORMULA = tuple("=+-@\t\r\n＝＋－＠")
"""How a formula begins (https://owasp.org/www-community/attacks/CSV_Injection)."""


def harmless_rows(rows: Iterable[list[Any]]) -> Iterator[list[Any]]:
    """The rows, with an apostrophe before each text that would be a formula. Warns of cells that are too long."""
    too_long = 0
    for row in rows:
        cells = [harmless(cell) if isinstance(cell, str) else cell for cell in row]
        too_long += sum(isinstance(cell, str) and len(cell) > LONGEST_CELL for cell in cells)
        yield cells
    if too_long:
        logger.warning(
            "%s cells are longer than the %s characters that Excel takes: use --top-k, or --layout long",
            f"{too_long:,}",
            f"{LONGEST_CELL:,}",
        )


def harmless(text: str) -> str:
    return f"'{text}" if _is_formula(text.lstrip("'")) else text


def original(text: str) -> str:
    """The text that `harmless` was given."""
    return text[1:] if text.startswith("'") and _is_formula(text.lstrip("'")) else text


def _is_formula(text: str) -> bool:
    return text.startswith(FORMULA) and not _is_number(text)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return not text.startswith(("\t", "\r", "\n"))
