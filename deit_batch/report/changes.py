"""A comparison as text, as JSON and as a page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deit_batch.escaping import escape_controls
from deit_batch.io import Failure, counted
from deit_batch.limits import Limits
from deit_batch.report.comparison import Answer, Change, Comparison
from deit_batch.report.files import write_file
from deit_batch.report.originals import find_links
from deit_batch.report.page import render
from deit_batch.report.pictures import pictures_of
from deit_batch.report.table import Bar, Column, PageRow, PageTable

MOST_LINES = 10  # of one kind in the text
MOST_FLIPS = 50  # pairs of labels on the page


def write(
    comparison: Comparison,
    document: Mapping[str, Any],
    paths: Sequence[Path],
    *,
    images: str | None,
    fetch: bool,
    limits: Limits,
) -> None:
    """Each in the format that its ending says."""
    for path in paths:
        if path.suffix.lower() == ".json":
            write_file(path, as_json(document))
        else:
            run = comparison.run
            pictures = pictures_of(
                {change.place: change.record for change in comparison.largest},
                run and run["settings"],
                folder=images,
                beside=comparison.new.path,
                fetch=fetch,
                limits=limits,
            )
            links = find_links(
                [change.record for change in comparison.changed],
                run and run["settings"],
                folder=images,
                beside=comparison.new.path,
                root=limits.root,
            )
            write_file(path, _as_page(comparison, document, pictures, links))


def as_json(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=2, allow_nan=False) + "\n").encode()


def as_text(document: Mapping[str, Any]) -> bytes:
    """What would end a line, drive a terminal or turn the order of the text about, in a name or label, is escaped."""
    return "".join(f"{escape_controls(line)}\n" for line in _lines(document)).encode()


def _lines(document: Mapping[str, Any]) -> Iterator[str]:
    images, agreement = document["images"], document["agreement"]
    for name in ("old", "new"):
        side = document[name]
        yield f"{name}  {side['file']}: {counted(side['inputs'], 'image')}, {side['failed']:,} failed"
    for name, values in document["settings"].items():
        yield f"{name}  {_brief(values['old'])} → {_brief(values['new'])}"
    same = images["same_label"]
    share = "none, for no image was scored in either" if agreement is None else f"{100 * agreement:.2f} %"
    yield f"agreement  {share}: the same best label for {same:,} of {counted(document['compared'], 'image')} in both"
    counts = ", ".join(f"{number:,} {state.replace('_', ' ')}" for state, number in images.items() if number)
    yield f"images  {counts}"
    for flip in document["flips"][:MOST_LINES]:
        yield f"flip  {flip['before']} → {flip['now']}: {flip['images']:,}"
    yield from _rest("flip", document["flips"])
    for change in document["largest_changes"][:MOST_LINES]:
        yield f"change  {change['change']:+.4f} {_said(change['before'])} → {_said(change['now'])}: {change['image']}"


def _rest(name: str, items: Sequence[Any]) -> Iterator[str]:
    if len(items) > MOST_LINES:
        yield f"{name}  … and {len(items) - MOST_LINES:,} more kinds"


def _said(answer: Mapping[str, Any]) -> str:
    return f"{answer['label']} {answer['score']:.4f}"


def _brief(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _as_page(
    comparison: Comparison,
    document: Mapping[str, Any],
    pictures: Mapping[int, str | Failure],
    links: Sequence[str | None],
) -> bytes:
    table = _table(comparison)
    flips = [
        {**flip, "filter": {"before": table.label(flip["before"]), "label": table.label(flip["now"])}}
        for flip in document["flips"][:MOST_FLIPS]
    ]
    changed = sum(images for state, images in comparison.states.items() if state != "same label")
    return render(
        "comparison.html",
        title=f"{comparison.old.path.name} → {comparison.new.path.name}",
        document=document,
        settings={name: [_brief(value) for value in values] for name, values in comparison.settings.items()},
        flips=flips,
        more_flips=max(0, len(document["flips"]) - MOST_FLIPS),
        classes=[row for row in document["classes"] if row["old"] != row["new"] or row["lost"] or row["gained"]],
        cards={
            "title": "Largest changes",
            "note": "Of the score of the label that was the best before. The first bar is before, the second now.",
            "cards": [_card(change, pictures[change.place]) for change in comparison.largest],
        },
        sampled=comparison.sampled,
        changed=changed,
        data=table.as_data(links),
    )


def _table(comparison: Comparison) -> PageTable:
    columns = [
        Column("before", "Before", "label"),
        Column("score_before", "Score", "score"),
        Column("label", "Now", "label"),
        Column("score", "Score now", "score"),
        Column("change", "Change", "change"),
        Column("state", "State", "state"),
    ]
    rows = [
        PageRow(
            change.place,
            change.record,
            [*_answer(change.before), *_answer(change.now), change.change, change.state],
            [_bars(change.before), _bars(change.now)],
            _reason(change),
        )
        for change in comparison.changed
    ]
    return PageTable(columns, ["Before", "Now"], rows)


def _answer(answer: Answer | None) -> tuple[str | None, float | None]:
    return (None, None) if answer is None or answer.failed else (answer.label, answer.score)


def _bars(answer: Answer | None) -> list[Bar]:
    return [] if answer is None or answer.failed else [Bar(answer.label, answer.score)]


def _reason(change: Change) -> str:
    error = change.record.get("error")
    return f"{error['type']}: {error['message']}" if error else ""


def _card(change: Change, picture: str | Failure) -> dict[str, Any]:
    return {
        "place": change.place,
        "name": change.record["image"] or "(inline)",
        "picture": picture if isinstance(picture, str) else None,
        "missing": picture.message if isinstance(picture, Failure) else None,
        "bars": _bars(change.before) + _bars(change.now),
        "truth": None,
    }
