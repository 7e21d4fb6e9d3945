"""Made-up records, and pages read as a browser would, for the tests of what is made of results."""

from __future__ import annotations

import json
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from deit_batch.cli import main

Json = dict[str, Any]


def record(
    index: int, image: str | None, *predictions: tuple[str, float], error: str | None = None, **more: Any
) -> Json:
    values: Json = {"index": index, "image": image}
    values["predictions"] = [{"label": label, "score": score} for label, score in predictions]
    return values | ({"error": {"type": "DecodeError", "message": error}} if error is not None else {}) | more


def write(path: Path, records: list[Json]) -> Path:
    path.write_text("".join(json.dumps(values) + "\n" for values in records))
    return path


def invoke(*args: str | Path) -> Result:
    return CliRunner().invoke(main, [*map(str, args)])


class Page(HTMLParser):
    """What a browser would make of it: `texts` between tags, `tags`, `data` of the script, `pictures`, and the places
    of the records that have one, `pictured`, `ids`, and the `links` of anchors."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: Counter[str] = Counter()
        self.pictures: list[str] = []
        self.pictured: set[str] = set()
        self.ids: list[str] = []
        self._place = ""
        self.links: list[str] = []
        self._raw = ""
        self._goes_on = False  # whether what comes is of the same word
        self.feed(page)
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        values = dict(attrs)
        if values.get("id"):
            self.ids.append(str(values["id"]))
        self._goes_on = tag == "wbr"
        if tag == "a":
            self.links.append(str(values.get("href")))
        self._place = values.get("data-place") or self._place
        if tag == "img":
            self.pictured.add(self._place)
            self.pictures.append(str(values["src"]))
        self._raw = "data" if values.get("id") == "data" else tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:
        self._raw = ""

    def handle_data(self, data: str) -> None:
        if self._raw == "data":
            self.data: Json = json.loads(data)
        elif self._goes_on and self.texts:
            self.texts[-1] += data
        elif not self._raw:
            self.texts.append(data)
        self._goes_on = False
