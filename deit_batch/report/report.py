"""What a run found, as a page: the order of it all."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deit_batch.input.passed_over import photos_in
from deit_batch.io import Failure, counted, counts
from deit_batch.limits import Limits
from deit_batch.output.read import read_records, read_run_report
from deit_batch.report.files import write_file
from deit_batch.report.page import render, settings_of
from deit_batch.report.pictures import pictures_of
from deit_batch.report.summary import BINS, PREDICTED_FROM, Reason, Seen, Summary, reason_of, summarise
from deit_batch.report.table import SCALE, Column, PageRow, PageTable
from deit_batch.report.truth import Labelling, find_labels

logger = logging.getLogger("deit_batch")

MOST_CLASSES = 25  # that are shown at once
MOST_PAIRS = 50  # of a label and what it was taken for


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportRequest:
    """What `deit-batch report` is asked for. `labels`: where the true labels are, if not in the records themselves;
    `images`: the folder that relative names start from; `fetch`: whether URLs may be asked for pictures; `thumbnails`:
    how many images of each kind stand out; `rows`: of the table, at most."""

    predictions: Path
    out: Path
    labels: str | None = None
    label_column: str | None = None
    id: str | None = None
    label_map: str | None = None
    images: str | None = None
    fetch: bool = False
    thumbnails: int
    rows: int
    limits: Limits


def report(request: ReportRequest) -> Summary:
    """Writes the page. Raises UsageError if the predictions or labels can't be read as such."""
    labelling = find_labels(
        request.predictions,
        request.labels,
        column=request.label_column,
        label_map=request.label_map,
        id=request.id,
    )
    summary = summarise(
        read_records(request.predictions),
        truth=labelling.of if labelling else None,
        several=bool(labelling and labelling.several),
        most_rows=request.rows,
        most_shown=request.thumbnails,
    )
    if labelling:
        _say_how_many(summary, labelling)
    run = read_run_report(request.predictions)
    pictures = pictures_of(
        {seen.place: seen.record for seen in summary.standing_out},
        run and run["settings"],
        folder=request.images,
        fetch=request.fetch,
        limits=request.limits,
    )
    write_file(request.out, as_page(request.predictions, summary, run, labelling, pictures))
    return summary


def _say_how_many(summary: Summary, labelling: Labelling) -> None:
    labelled = summary.confusions.labelled + labelling.unknown_images if summary.confusions else 0
    if missing := labelling.without_record:
        told = ", ".join(f"{images:,} {reason}" for reason, images in missing.items())
        logger.warning("labelled images that are not judged: %s (%s)", f"{missing.total():,}", told)
    if labelling.unknown_images:
        images = counted(labelling.unknown_images, "image has", "images have")
        logger.warning("%s a label that the model does not know", images)
    if labelled < summary.tally.inputs:
        logger.warning(
            "labels for %s of %s (%s); labels of another input are joined by the images' names, or by --id",
            f"{labelled:,}",
            counted(summary.tally.inputs, "image"),
            labelling.origin,
        )


# --- what the page shows --------------------------------------------------------------------------------------------


def as_page(
    predictions: Path,
    summary: Summary,
    run: Mapping[str, Any] | None,
    labelling: Labelling | None,
    pictures: Mapping[int, str | Failure],
) -> bytes:
    """`pictures`: of those that stand out, by place: a `data:` URI, or why there is none."""
    table = _table(summary, labelling)
    highest = max(summary.bins)
    context = {
        "title": predictions.name,
        "file": str(predictions),
        "summary": summary,
        "figures": _figures(summary, run),
        "lost_photos": counts(photos_in(_passed_over(run))),
        "run": _run(run) if run else {},
        "classes": [
            {"name": name, "number": table.label(name), "images": images}
            for name, images in summary.classes.most_common(MOST_CLASSES)
        ],
        "bins": [_bin(number, images, highest) for number, images in enumerate(summary.bins)],
        "galleries": _galleries(summary, pictures),
        "reasons": _reasons(summary, table),
        "labelling": labelling,
        "confusions": _confusions(summary, labelling, table),
        "predicted_from": PREDICTED_FROM,
        "sampled": summary.tally.inputs > len(summary.rows),
    }
    return render("report.html", **context, data=table.as_data())


def _figures(summary: Summary, run: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """The headline."""
    tally = summary.tally
    figures = [("images", f"{tally.inputs:,}"), ("scored", f"{tally.scored:,}"), ("failed", f"{tally.failed:,}")]
    figures.append(("classes found", f"{len(summary.classes):,}"))
    passed_over = _passed_over(run)
    if passed_over:
        figures.append(("passed over", f"{sum(passed_over.values()):,}"))
    if run and run.get("images_per_second"):
        figures.append(("images/s", f"{run['images_per_second']:,}"))
    if summary.confusions and summary.confusions.judged:
        figures.append(("right", f"{100 * summary.confusions.right / summary.confusions.judged:.1f} %"))
    return figures


def _passed_over(run: Mapping[str, Any] | None) -> dict[str, int]:
    """By reason, as the run's report counts what it found and did not score."""
    found: dict[str, int] = ((run or {}).get("counts") or {}).get("passed_over") or {}
    return found


def _run(run: Mapping[str, Any]) -> dict[str, str]:
    seconds = (run.get("seconds") or {}).get("total")
    told = {
        "Input": _listed(run["settings"].get("input")),
        **settings_of(run),
        "Passed over": counts(_passed_over(run)),
        "Machine": run.get("machine"),
        "Devices": ", ".join(run.get("devices") or []),
        "Took": f"{seconds:,.0f} s" if seconds else None,
        "Ended": run.get("ended_at"),
        "Versions": ", ".join(f"{name} {number}" for name, number in (run.get("versions") or {}).items()),
    }
    return {name: str(value) for name, value in told.items() if value}


def _listed(input: object) -> object:
    return ", ".join(map(str, input)) if isinstance(input, list) else input


def _table(summary: Summary, labelling: Labelling | None) -> PageTable:
    columns = [
        Column("label", "Label", "label"),
        Column("score", "Score", "score"),
        Column("state", "State", "state", optional=True),
    ]
    if labelling:
        columns.insert(2, Column("truth", "True label", "label", optional=True))
    return PageTable(columns, ["Predictions"], list(_rows(summary, labelling)))


def _rows(summary: Summary, labelling: Labelling | None) -> Iterator[PageRow]:
    for seen in summary.rows:
        label, score = seen.bars[0] if seen.bars else (None, None)
        values = [label, score, seen.state]
        if labelling:
            values.insert(2, None if seen.truth is None else _joined(seen.truth))
        yield PageRow(seen.place, seen.record, values, [seen.bars], _note(seen))


def _note(seen: Seen) -> str:
    error = seen.record.get("error")
    return f"{error['type']}: {error['message']}" if error else ""


def _reasons(summary: Summary, table: PageTable) -> list[tuple[Reason, int, list[int]]]:
    """Each with how many images it has, and the numbers of its notes in the table."""
    notes: dict[Reason, dict[int, None]] = {reason: {} for reason in summary.reasons}
    for seen in summary.rows:
        if "error" in seen.record:
            reason = reason_of(seen.record)
            notes[reason if reason in notes else Reason(reason.type, "")][table.note(_note(seen))] = None
    return [(reason, images, list(notes[reason])) for reason, images in summary.reasons.most_common()]


def _joined(labels: Sequence[str]) -> str:
    return " + ".join(labels) or "(none)"


def _bin(number: int, images: int, highest: int) -> dict[str, float]:
    """`most`: the highest score in it, as the table shows scores."""
    start, end = number / BINS, (number + 1) / BINS
    most = end if number == BINS - 1 else round(end - 1 / SCALE, 4)
    return {"from": start, "to": end, "most": most, "images": images, "height": images / max(highest, 1)}


def _galleries(summary: Summary, pictures: Mapping[int, str | Failure]) -> list[dict[str, Any]]:
    kinds = [
        ("Least sure", "The lowest scores: odd pictures, or ones between two classes.", summary.least_sure),
        ("Most sure", "The highest scores.", summary.most_sure),
        ("Surest mistakes", "The highest scores of a label that is not the image's.", summary.mistakes),
    ]
    return [
        {"title": title, "note": note, "cards": [_card(seen, pictures) for seen in found]}
        for title, note, found in kinds
        if found
    ]


def _card(seen: Seen, pictures: Mapping[int, str | Failure]) -> dict[str, Any]:
    picture = pictures[seen.place]
    return {
        "place": seen.place,
        "name": seen.record["image"] or "(inline)",
        "picture": picture if isinstance(picture, str) else None,
        "missing": picture.message if isinstance(picture, Failure) else None,
        "bars": seen.bars,
        "truth": None if seen.truth is None else _joined(seen.truth),
    }


def _confusions(summary: Summary, labelling: Labelling | None, table: PageTable) -> dict[str, Any] | None:
    confusions = summary.confusions
    if not (confusions and labelling):
        return None
    missing = labelling.without_record.total()
    wrong = Counter({pair: images for pair, images in confusions.taken.items() if pair[0] != pair[1]})
    counts = {"found": confusions.found, "missed": confusions.missed, "made up": confusions.made_up}
    trouble = confusions.missed + confusions.made_up
    return {
        "several": confusions.several,
        "labelled": confusions.labelled + labelling.unknown_images + missing,
        "judged": confusions.judged,
        "unknown": labelling.unknown_images,
        "missing": missing,
        "right": confusions.right,
        "failed": confusions.failed,
        "without_prediction": confusions.without_prediction,
        "pairs": [
            {"truth": truth, "label": label, "images": images, "filter": _filter(table, truth, label)}
            for (truth, label), images in wrong.most_common(MOST_PAIRS)
        ],
        "more_pairs": max(0, len(wrong) - MOST_PAIRS),
        "by_label": [
            {"label": label, **{name: count[label] for name, count in counts.items()}}
            for label, _ in trouble.most_common(MOST_PAIRS)
        ],
    }


def _filter(table: PageTable, truth: str, label: str) -> dict[str, int]:
    return {"truth": table.label(truth), "label": table.label(label)}
