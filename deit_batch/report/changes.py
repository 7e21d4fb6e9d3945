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
from deit_batch.report.page import SETTINGS_IN_WORDS, recipe_in_words, render, settings_of
from deit_batch.report.pictures import pictures_of
from deit_batch.report.table import Bar, Column, PageRow, PageTable, joined
from deit_batch.report.verdict import verdict_in_words

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
            run = comparison.runs[1]
            pictures = pictures_of(
                {change.place: change.record for change in comparison.standing_out},
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
        yield f"{name}  {_said_of(name, values['old'])} → {_said_of(name, values['new'])}"
    if document["accuracy"]:
        yield f"accuracy  {verdict_in_words(document['accuracy'])}"
        yield from _unjudged(document["accuracy"])
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


def _unjudged(accuracy: Mapping[str, Any]) -> Iterator[str]:
    if number := accuracy["not_judged"]:
        images = counted(number, "image")
        yield f"not judged  {images} with a label, which a file has no prediction of, or its model does not know"


def _said_of(name: str, value: Any) -> str:
    """A setting's value."""
    if name == "recipe" and isinstance(value, Mapping):
        return recipe_in_words(value)
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
    shown = [
        ("Now wrong", "By their labels, and right before: those of the highest score.", comparison.now_wrong),
        ("Now right", "And wrong before: those of the highest score.", comparison.now_right),
        ("Largest changes", "Of the score of the label that was the best before.", comparison.largest),
    ]
    return render(
        "comparison.html",
        title=f"{comparison.old.path.name} → {comparison.new.path.name}",
        document=document,
        answer=_answer_in_words(document),
        unjudged=list(_unjudged(document["accuracy"] or {"not_judged": 0})),
        settings=_settings(comparison),
        flips=flips,
        more_flips=max(0, len(document["flips"]) - MOST_FLIPS),
        classes=[row for row in document["classes"] if row["old"] != row["new"] or row["lost"] or row["gained"]],
        galleries=[
            {
                "title": title,
                "note": f"{note} The first bar is before, the second now.",
                "cards": [_card(change, pictures[change.place]) for change in found],
            }
            for title, note, found in shown
            if found
        ],
        sampled=comparison.sampled,
        changed=changed,
        data=table.as_data(links),
    )


def _answer_in_words(document: Mapping[str, Any]) -> str:
    """Which is better; or else why that can't be told."""
    if document["accuracy"]:
        return verdict_in_words(document["accuracy"])
    if document["agreement"] is None:
        return "No image was scored in either file."
    flipped = counted(document["images"]["flipped"], "image has", "images have")
    return f"{flipped} another best label than before. Which is better, only labels can tell."


def _settings(comparison: Comparison) -> dict[str, list[str]]:
    """Before and now: what the scores depend on, in words, and what else differs."""
    before, now = comparison.runs
    told = {}
    if before and now:
        was, is_ = settings_of(before), settings_of(now)
        told = {name: [was[name], is_[name]] for name in is_}
    others = {name: values for name, values in comparison.settings.items() if name not in SETTINGS_IN_WORDS}
    return told | {name: [_said_of(name, value) for value in values] for name, values in others.items()}


def _table(comparison: Comparison) -> PageTable:
    columns = [
        Column("before", "Before", "label"),
        Column("score_before", "Score", "score"),
        Column("label", "Now", "label"),
        Column("score", "Score now", "score"),
        Column("change", "Change", "change"),
        Column("state", "State", "state"),
    ]
    if comparison.verdict:
        columns += [Column("truth", "True label", "label"), Column("outcome", "Right or wrong", "state")]
    rows = [
        PageRow(
            change.place,
            change.record,
            [
                *_answer(change.before),
                *_answer(change.now),
                change.change,
                change.state,
                *([_truth(change), change.outcome] if comparison.verdict else []),
            ],
            [_bars(change.before), _bars(change.now)],
            _reason(change),
        )
        for change in comparison.changed
    ]
    return PageTable(columns, ["Before", "Now"], rows)


def _answer(answer: Answer | None) -> tuple[str | None, float | None]:
    return (None, None) if answer is None or answer.failed else (answer.label, answer.score)


def _truth(change: Change) -> str | None:
    return None if change.truth is None else joined(change.truth)


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
        "tint": None,
        "missing": picture.message if isinstance(picture, Failure) else None,
        "bars": _bars(change.before) + _bars(change.now),
        "truth": _truth(change),
    }
