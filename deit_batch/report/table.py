"""The rows of a page's table, as columns of small numbers for its script (page.js)."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

from deit_batch.output.spreadsheet import FORMULA, MARK
from deit_batch.report.confidence import SCALE

NONE = -1


class Bar(NamedTuple):
    """A prediction: in a tenth of the memory that JSON's has, for there are hundreds of thousands."""

    label: str
    score: float


class Column(NamedTuple):
    """`kind`: what its numbers mean: one of the table's labels or states, a score, or the change of one."""

    name: str
    title: str
    kind: Literal["label", "state", "score", "change"]


@dataclass(slots=True)
class PageRow:
    """`place` is the row's own number, by which the page's cards name it; `values`: a label or state by its name, a
    score or change as it is, None where there is nothing to say; `bars`: lists of predictions, one for each of the
    table's `bars`; `note`: a message, if the image failed."""

    place: int
    record: Mapping[str, Any]
    values: Sequence[str | float | None]
    bars: Sequence[Sequence[Bar]]
    note: str = ""


def joined(labels: Sequence[str]) -> str:
    """Those of one image, as one."""
    return " + ".join(labels) or "(none)"


class _Names:
    """Texts by number, in the order in which they come."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def number(self, name: str | None) -> int:
        return NONE if name is None else self.numbers.setdefault(name, len(self.numbers))


@dataclass(slots=True)
class PageTable:
    """`bars`: the titles of the lists of predictions that a row has."""

    columns: Sequence[Column]
    bars: Sequence[str]
    rows: Iterable[PageRow]
    _names: dict[str, _Names] = field(default_factory=lambda: {kind: _Names() for kind in ("label", "state", "note")})

    def label(self, name: str) -> int:
        """Its number, for a filter."""
        return self._names["label"].number(name)

    def note(self, text: str) -> int:
        """Its number, for a filter."""
        return self._names["note"].number(text)

    def as_data(self, links: Sequence[str | None] = ()) -> dict[str, Any]:
        """In JSON's types. Names are without the folder that all share, which is `folder`. `links`: the address of each
        row's image, None for one that has none."""
        rows = list(self.rows)
        names = [row.record["image"] for row in rows]
        given = [name for name in names if name is not None]
        shared = os.path.commonprefix([min(given), max(given)]) if given else ""  # noqa: RUF071 - cut below
        folder = shared[: shared.rfind("/") + 1]
        return {
            "columns": [column._asdict() for column in self.columns],
            "folder": folder,
            "names": [name and name[len(folder) :] for name in names],
            "places": [row.place for row in rows],
            "values": {
                column.name: [self._value(column.kind, row.values[number]) for row in rows]
                for number, column in enumerate(self.columns)
            },
            "bars": [
                {"title": title, "rows": [self._bar(row.bars[number]) for row in rows]}
                for number, title in enumerate(self.bars)
            ],
            "notes": [self._names["note"].number(row.note or None) for row in rows],
            "labels": list(self._names["label"].numbers),
            "states": list(self._names["state"].numbers),
            "messages": list(self._names["note"].numbers),
            "csv": {"mark": MARK, "formula": FORMULA},
            "links": _links([row.record["image"] for row in rows], links),
        }

    def _value(self, kind: str, value: str | float | None) -> int | None:
        if kind in self._names:
            return self._names[kind].number(None if value is None else str(value))
        return None if value is None else round(float(value) * SCALE)

    def _bar(self, bars: Sequence[Bar]) -> list[int]:
        """Label, score, label, score, …"""
        flat = ((self.label(bar.label), round(bar.score * SCALE)) for bar in bars)
        return [number for pair in flat for number in pair]


def _links(names: Sequence[str | None], links: Sequence[str | None]) -> dict[str, Any]:
    """Most are a name with a folder's address before it, `start`, or are the name itself, or are none, all alike. The
    script puts those together; `others` are, by row, those that it would not."""
    pairs = list(zip(names, links, strict=False))
    starts = Counter(start for name, link in pairs if (start := _start(name, link)) is not None)
    start = starts.most_common(1)[0][0] if starts else None
    others = {
        row: link
        for row, (name, link) in enumerate(pairs)
        if link != (name if _is_url(name) else None if start is None or name is None else start + quote(name))
    }
    return {"start": start, "others": others}


def _start(name: str | None, link: str | None) -> str | None:
    """What stands before the name in its link; None where it is no part of it."""
    if name is None or link is None or _is_url(name) or not link.endswith(quote(name)):
        return None
    return link.removesuffix(quote(name))


def _is_url(name: str | None) -> bool:
    return name is not None and name.startswith(("http://", "https://"))
