"""What a run found, as a page: the order of it all."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from deit_batch.input.passed_over import counts_of, files_in, photos_in
from deit_batch.io import counted, counts
from deit_batch.limits import Limits
from deit_batch.output.read import read_records, read_run_report
from deit_batch.report.attention import Attention, attention_of, open_model
from deit_batch.report.confidence import SCALE, Confidence
from deit_batch.report.files import write_file
from deit_batch.report.gallery import OPEN_CLASSES, Pictures, choose_pictures, classes, galleries, seen_at_once
from deit_batch.report.headline import answer, date_in_words, share
from deit_batch.report.matrix import as_matrix
from deit_batch.report.originals import find_links, find_originals
from deit_batch.report.page import render, settings_of
from deit_batch.report.pictures import pictures_of
from deit_batch.report.summary import PREDICTED_FROM, Reason, Seen, Summary, reason_of, summarise
from deit_batch.report.table import Column, PageRow, PageTable, joined
from deit_batch.report.truth import Labelling, find_labels, warn_of_missing

logger = logging.getLogger("deit_batch")

_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
BINS = 10  # of the distribution of confidence
MOST_CLASSES = 25  # that are shown at once


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportRequest:
    """What `deit-batch report` is asked for. `title`: of the page, instead of the file's name; `labels`: where the true
    labels are, if not in the records themselves; `gallery`: of how many images a picture is in the page, at most;
    `images`: the folder that relative names start from; `fetch`: whether URLs may be asked for pictures; `attention`:
    the model whose attention is laid over them, of which `revision`, and whether its weights may be pickled;
    `thumbnails`: how many images of each kind stand out; `rows`: of the table, at most."""

    predictions: Path
    out: Path
    title: str | None = None
    labels: str | None = None
    label_column: str | None = None
    id: str | None = None
    label_map: str | None = None
    images: str | None = None
    fetch: bool = False
    attention: str | None = None
    revision: str | None = None
    allow_pickle: bool = False
    thumbnails: int
    gallery: int
    rows: int
    limits: Limits


def report(request: ReportRequest) -> Summary:
    """Writes the page. Raises UsageError if the predictions or labels can't be read as such, or the model of
    `attention` does not tell what it looks at."""
    checkpoint = None
    if request.attention:
        checkpoint = open_model(request.attention, revision=request.revision, allow_pickle=request.allow_pickle)
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
        most_shown=min(request.thumbnails, request.gallery),
        most_pictures=request.gallery,
    )
    if labelling:
        _say_how_many(summary, labelling)
    run = read_run_report(request.predictions)
    settings = run and run["settings"]
    places: dict[str, Any] = {"folder": request.images, "beside": request.predictions}
    chosen = choose_pictures(summary, request.gallery)
    found = pictures_of(chosen, settings, **places, fetch=request.fetch, limits=request.limits)
    attention = None
    if checkpoint:
        there = {seen.place: seen.record for seen in seen_at_once(summary) if isinstance(found.get(seen.place), str)}
        images = find_originals(there, settings, **places, fetch=request.fetch)
        attention = attention_of(checkpoint, images, settings, request.limits)
    pictures = Pictures(found | attention.pictures, attention.tints) if attention else Pictures(found)
    if trouble := pictures.trouble():
        logger.warning("%s", trouble)
    links = find_links([seen.record for seen in summary.rows], settings, **places, root=request.limits.root)
    date = _date(request.predictions, run)
    page = as_page(
        request.predictions, summary, run, labelling, pictures, links, attention, title=request.title, date=date
    )
    write_file(request.out, page)
    return summary


def _date(predictions: Path, run: Mapping[str, Any] | None) -> str:
    """When the run ended; where that is not known, when its file was last written."""
    try:
        return date_in_words(datetime.strptime((run or {})["ended_at"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC))
    except (KeyError, TypeError, ValueError):
        written = datetime.fromtimestamp(predictions.stat().st_mtime, UTC)
        return f"file of {date_in_words(written)}"


def _say_how_many(summary: Summary, labelling: Labelling) -> None:
    labelled = summary.confusions.labelled + labelling.unknown_images if summary.confusions else 0
    warn_of_missing(labelling)
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
    pictures: Pictures,
    links: Sequence[str | None],
    attention: Attention | None = None,
    *,
    title: str | None = None,
    date: str = "",
) -> bytes:
    """`links`: the address of the image of each of the summary's rows, or None; `date`: in words."""
    table = _table(summary, labelling)
    of_classes, lists = list(classes(summary, pictures, table)), galleries(summary, pictures)
    confusions = _confusions(summary, labelling, table)
    total = summary.confidence.total
    context = {
        "title": title or predictions.name,
        "file": str(predictions),
        "date": date,
        "summary": summary,
        "answer": answer(summary, files_in(_passed_over(run))),
        "tiles": _tiles(summary, run),
        "lost_photos": counts(photos_in(_passed_over(run))),
        "run": _run(run) if run else {},
        "classes": [
            {"name": name, "number": table.label(name), "images": images, "share": share(images, total)}
            for name, images in summary.classes.most_common(MOST_CLASSES)
        ],
        "bins": _bins(summary.confidence),
        "thresholds": _thresholds(summary.confidence),
        "pictures": pictures,
        "attention": attention,
        "class_pictures": of_classes,
        "open_classes": OPEN_CLASSES,
        "galleries": lists,
        "reasons": _reasons(summary, table),
        "labelling": labelling,
        "confusions": confusions,
        "predicted_from": PREDICTED_FROM,
        "sampled": summary.tally.inputs > len(summary.rows),
        "parts": [
            *([("pictures", "Pictures by class")] if of_classes else []),
            *((f"gallery-{gallery['id']}", gallery["title"]) for gallery in lists),
            ("classes", "Classes"),
            ("confidence", "Confidence"),
            *([("threshold-title", "Threshold")] if total else []),
            *([("confusions", "Against the labels")] if confusions else []),
            ("failures", "Failures"),
            ("run", "The run"),
            ("records", "Images"),
        ],
    }
    data = table.as_data(links) | {"pictures": pictures.left(), "thresholds": _steps(summary.confidence)}
    return render("report.html", **context, data=data)


class Tile(NamedTuple):
    """A figure of the headline; `part`: the id of what on the page says more of it; `alarm`: whether it is bad news."""

    name: str
    figure: str
    part: str
    alarm: bool = False


def _tiles(summary: Summary, run: Mapping[str, Any] | None) -> list[Tile]:
    tally, passed_over = summary.tally, _passed_over(run)
    tiles = [
        Tile("images", f"{tally.inputs:,}", "records"),
        Tile("scored", f"{tally.scored:,}", "confidence"),
        Tile("failed", f"{tally.failed:,}", "failures", alarm=tally.failed > 0),
        Tile("classes found", f"{len(summary.classes):,}", "classes"),
    ]
    if passed_over:
        tiles.append(Tile("passed over", f"{sum(passed_over.values()):,}", "run", alarm=bool(photos_in(passed_over))))
    if run and run.get("images_per_second"):
        tiles.append(Tile("images/s", f"{run['images_per_second']:,}", "run"))
    if summary.confusions and summary.confusions.judged:
        right = summary.confusions.right / summary.confusions.judged
        tiles.append(Tile("right", f"{100 * right:.1f} %", "confusions"))
    return tiles


def _passed_over(run: Mapping[str, Any] | None) -> dict[str, int]:
    """By reason, as the run's report counts what it found and did not score."""
    found: dict[str, int] = ((run or {}).get("counts") or {}).get("passed_over") or {}
    return found


def _run(run: Mapping[str, Any]) -> dict[str, str]:
    seconds = run.get("seconds") or {}
    total, load = seconds.get("total"), seconds.get("load")
    speed = run.get("images_per_second")
    told = {
        "Input": _listed(run["settings"].get("input")),
        **settings_of(run),
        "Passed over": counts_of(_passed_over(run)),
        "Machine": run.get("machine"),
        "Devices": ", ".join(run.get("devices") or []),
        "Took": f"{total:,.0f} s{f', with {load:,.0f} s for loading the model' if load else ''}" if total else None,
        "Speed": f"{speed:,} images/s once the model was loaded" if speed else None,
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
        Column("state", "State", "state"),
    ]
    if labelling:
        columns.insert(2, Column("truth", "True label", "label"))
    return PageTable(columns, ["Predictions"], list(_rows(summary, labelling)))


def _rows(summary: Summary, labelling: Labelling | None) -> Iterator[PageRow]:
    for seen in summary.rows:
        label, score = seen.bars[0] if seen.bars else (None, None)
        values = [label, score, seen.state]
        if labelling:
            values.insert(2, None if seen.truth is None else joined(seen.truth))
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


def _bins(confidence: Confidence) -> list[dict[str, Any]]:
    """`most`: the highest score in it, as the table shows scores; `share`: of all images that were scored."""
    found = confidence.bins(BINS)
    highest, total = max(*found, 1), max(confidence.total, 1)
    return [
        {
            "from": number / BINS,
            "to": (number + 1) / BINS,
            "most": 1 if number == BINS - 1 else round((number + 1) / BINS - 1 / SCALE, 4),
            "images": images,
            "height": images / highest,
            "share": share(images, total),
        }
        for number, images in enumerate(found)
    ]


def _thresholds(confidence: Confidence) -> list[dict[str, Any]]:
    """Of some thresholds, in words, how many images have a best score from there up, and how many of them are right."""
    return [
        {
            "from": threshold,
            "images": kept.images,
            "share": share(kept.images, confidence.total),
            "right": share(kept.right, kept.judged) if kept.judged else "",
        }
        for threshold in _THRESHOLDS
        if confidence.total and (kept := confidence.kept_from(threshold))
    ]


def _steps(confidence: Confidence) -> list[str]:
    """The same for every hundredth, as sentences for the page's script to choose from."""
    return [_at(step / 100, confidence) for step in range(101)] if confidence.total else []


def _at(threshold: float, confidence: Confidence) -> str:
    kept, total = confidence.kept_from(threshold), confidence.total
    said = f"At {threshold:.2f}: {share(kept.images, total)} of the images kept ({kept.images:,} of {total:,})"
    if not kept.judged:
        return said
    which = "them" if kept.judged == kept.images else f"the {kept.judged:,} with a label to judge by"
    return f"{said}, {share(kept.right, kept.judged)} of {which} right"


def _confusions(summary: Summary, labelling: Labelling | None, table: PageTable) -> dict[str, Any] | None:
    confusions = summary.confusions
    if not (confusions and labelling):
        return None
    missing = labelling.without_record.total()
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
        "matrix": as_matrix(confusions.taken, table),
        "by_label": [
            {"label": label, **{name: count[label] for name, count in counts.items()}}
            for label, _ in trouble.most_common(MOST_CLASSES)
        ],
    }
