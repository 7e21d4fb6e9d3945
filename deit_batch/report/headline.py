"""What a page of a run says first, to somebody who reads no further."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from deit_batch.io import counted
from deit_batch.report.summary import Summary

SURE, UNSURE = 0.8, 0.5
"""The score from which the page calls the model sure, and below which unsure."""


def answer(summary: Summary, passed_over: int) -> str:
    """How many images, how many that could not be scored or were passed over, how sure, and how often right."""
    return " ".join(_sentences(summary, passed_over))


def _sentences(summary: Summary, passed_over: int) -> Iterator[str]:
    tally, confidence = summary.tally, summary.confidence
    images = counted(tally.inputs, "image")
    if not tally.failed:
        yield f"{images}, all scored." if tally.inputs else "No images."
    elif not tally.scored:
        yield f"{images}, and none could be scored."
    else:
        yield f"{images}: {tally.scored:,} scored, {tally.failed:,} unreadable."
    if passed_over:
        yield f"{counted(passed_over, 'other file was', 'other files were')} passed over."
    total = confidence.total
    if total:
        sure = share(confidence.kept_from(SURE).images, total)
        unsure = share(confidence.kept_from(0).images - confidence.kept_from(UNSURE).images, total)
        said = f"The model is sure of {sure} (a score from {SURE:.2f} up), and unsure of {unsure} (below {UNSURE:.2f})"
        without = counted(confidence.without, "image has", "images have")
        yield f"{said}; {without} no label from the run's threshold up." if confidence.without else f"{said}."
    if summary.confusions and summary.confusions.judged:
        right = share(summary.confusions.right, summary.confusions.judged)
        said = f"Of {summary.confusions.judged:,} with a label to judge by, {right} are right"
        unjudged = counted(summary.confusions.without_prediction, "more has", "more have")
        beside = f"; {unjudged} no prediction, and can't be judged" if summary.confusions.without_prediction else ""
        yield f"{said}{beside}."


def share(part: int, whole: int) -> str:
    """In whole per cent, where none and all mean just that."""
    percent = round(100 * part / whole)
    if part and percent == 0:
        return "under 1 %"
    return "over 99 %" if part < whole and percent == 100 else f"{percent} %"


def date_in_words(moment: datetime) -> str:
    """As in "7 November 2026, 08:12 UTC"."""
    moment = moment.astimezone(UTC)
    return f"{moment.day} {moment:%B %Y, %H:%M} UTC"
