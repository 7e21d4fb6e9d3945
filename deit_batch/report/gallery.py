"""Which images a page has pictures of, and how it shows them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from deit_batch.io import Failure, counted
from deit_batch.report.summary import Seen, Summary
from deit_batch.report.table import PageTable, joined

OPEN_CLASSES = 12  # whose pictures are seen at once; those of the others by a click

Json = dict[str, Any]


def choose_pictures(summary: Summary, number: int) -> dict[int, Json]:
    """At most so many records by place, the most telling first, then as they stand in the file. What failed has none:
    there is nothing to be seen that was not tried."""
    chosen: dict[int, Json] = {}
    for seen in (*summary.standing_out, *summary.rows):
        if len(chosen) == number:
            break
        if seen.state != "failed":
            chosen[seen.place] = seen.record
    return chosen


@dataclass(slots=True)
class Pictures:
    """`found`: by place, a `data:` URI, or why there is none; `tints`: what is laid over some of them, another;
    `shown`: the places that cards have asked for."""

    found: Mapping[int, str | Failure]
    tints: Mapping[int, str] = field(default_factory=dict)
    shown: set[int] = field(default_factory=set)

    @property
    def number(self) -> int:
        return sum(isinstance(picture, str) for picture in self.found.values())

    @property
    def missing(self) -> list[Failure]:
        return [picture for picture in self.found.values() if isinstance(picture, Failure)]

    def trouble(self) -> str:
        """What to say of those that are missing; nothing if none is."""
        missing = self.missing
        if not missing:
            return ""
        first = f"the first: {missing[0].message}"
        if self.number:
            return f"{counted(len(missing), 'picture')} of {len(self.found):,} could not be had; {first}"
        return f"none of {counted(len(missing), 'picture')} was found; {first}"

    def card(self, seen: Seen) -> Json:
        picture = self.found[seen.place]
        self.shown.add(seen.place)
        return {
            "place": seen.place,
            "name": seen.record["image"] or "(inline)",
            "picture": picture if isinstance(picture, str) else None,
            "tint": self.tints.get(seen.place),
            "missing": picture.message if isinstance(picture, Failure) else None,
            "bars": seen.bars,
            "truth": None if seen.truth is None else joined(seen.truth),
            "wrong": seen.state == "wrong",
        }

    def first_cards(self, chosen: Sequence[Seen]) -> list[Json]:
        """Up to the first of which the page holds no picture: what follows it has not the rank that a list claims."""
        return [self.card(seen) for seen in takewhile(lambda seen: seen.place in self.found, chosen)]

    def cards(self, chosen: Sequence[Seen]) -> list[Json]:
        return [self.card(seen) for seen in chosen if seen.place in self.found]

    def left(self) -> dict[int, str]:
        """The pictures that no card has shown."""
        return {
            place: picture
            for place, picture in self.found.items()
            if isinstance(picture, str) and place not in self.shown
        }


def seen_at_once(summary: Summary) -> list[Seen]:
    """Of those that stand out, the ones that a page shows without a click."""
    of_classes = list(summary.by_class.values())[:OPEN_CLASSES]
    pictures = [seen for shown in of_classes for seen in (*shown.surest, *shown.least_sure)]
    return [*summary.mistakes, *summary.least_sure, *pictures]


def galleries(summary: Summary, pictures: Pictures) -> list[Json]:
    """Those that stand out, with all that is known of each."""
    mistakes = {
        "id": "mistakes",
        "title": "Surest mistakes",
        "note": "The highest scores of a label that is not the image's, one of each confusion before a second of it.",
        "cards": pictures.cards(summary.mistakes),
    }
    least_sure = {
        "id": "least-sure",
        "title": "Least sure",
        "note": "The lowest scores, one of each class before a second of it: odd ones, or ones between two classes.",
        "cards": pictures.cards(summary.least_sure),
    }
    return [gallery for gallery in (mistakes, least_sure) if gallery["cards"]]


def classes(summary: Summary, pictures: Pictures, table: PageTable) -> Iterator[Json]:
    """Of each class some pictures, the most frequent class first; nothing where no picture was found. `number`: by
    which the table is filtered."""
    for name, shown in summary.by_class.items() if pictures.number else ():
        surest, least_sure = pictures.first_cards(shown.surest), pictures.first_cards(shown.least_sure)
        if surest or least_sure:
            images, number = summary.classes[name], table.label(name)
            yield {"name": name, "number": number, "images": images, "surest": surest, "least_sure": least_sure}
