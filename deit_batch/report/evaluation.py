"""An evaluation as a page."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deit_batch.evaluation.evaluate import Shown
from deit_batch.evaluation.judged import Judged, SingleLabel
from deit_batch.evaluation.report import classes_by_f1, gates_of, headlines, notes, taken_for, verdict_of
from deit_batch.io import counted
from deit_batch.report.chosen import Sample
from deit_batch.report.matrix import as_matrix
from deit_batch.report.originals import find_links
from deit_batch.report.page import render, settings_of
from deit_batch.report.pictures import as_uri
from deit_batch.report.summary import MOST_LABELS
from deit_batch.report.table import Bar, Column, PageRow, PageTable, joined

MOST_ROWS = 100_000  # images in the table
MOST_CLASSES = 100  # in theirs

_PLOTS = {
    "confusion_matrix.png": ("Labels", "That were found, missed and made up, the most wrong first."),
    "reliability.png": ("Calibration", "How often answers of each confidence are right: on the dashed line, as often."),
    "precision_recall.png": ("Precision and recall", "At every threshold."),
}


def as_page(shown: Shown) -> bytes:
    document, judged = shown.document, shown.judged
    rows, numbers = _Rows(judged), _rows_shown(document, judged)
    table = _table(rows, numbers)
    matrix = as_matrix(_taken(document), table)
    images: list[dict[str, Any]] = [{"image": judged.images[row]} for row in numbers]
    beside = Path(document["predictions"])
    links = find_links(images, document.get("model"), folder=None, beside=beside, root=shown.root)
    return render(
        "evaluation.html",
        title=f"Evaluation of {document['input']}",
        document=document,
        answer=_answer_in_words(document),
        notes=notes(document),
        headlines=list(headlines(document)),
        gates=gates_of(document),
        model=settings_of({"settings": document["model"]}) if "model" in document else {},
        gallery=_gallery(shown, rows),
        matrix=matrix,
        plots=[plot for plot in _plots(shown.plots) if not (matrix and plot["id"] == "confusion_matrix")],
        changes=[
            (name, change, verdict_of(name, change))
            for name, change in ((document["baseline"] or {}).get("metrics") or {}).items()
        ],
        classes=[
            {
                **row,
                "taken_for": taken_for(row) if "predicted_as" in row else "",
                "filter": {"truth": table.label(row["class"])},
            }
            for row in classes_by_f1(document)[:MOST_CLASSES]
        ],
        more_classes=max(0, len(classes_by_f1(document)) - MOST_CLASSES),
        data=table.as_data(links),
    )


def _answer_in_words(document: Mapping[str, Any]) -> str:
    """What the model is worth, and of how many images that is said."""
    unjudged = ""
    if missing := document["inputs"] - document["judged"]:
        unjudged = f" Not judged: {missing:,}, which count in accuracy_of_all_inputs alone, as wrong."
    accuracy, reach = document["metrics"].get("accuracy"), document["intervals"].get("accuracy")
    images = counted(document["judged"], "image")
    if accuracy is None:
        return f"{images} judged; how many answers are right can't be told of these predictions.{unjudged}"
    interval = f" (95 % interval {100 * reach[0]:.1f} to {100 * reach[1]:.1f})" if reach else ""
    what = "have all their labels right, and no other" if document["multi_label"] else "are right"
    return f"{100 * accuracy:.1f} % of {images} {what}{interval}.{unjudged}"


class _Rows:
    """Of each judged image, by its number, what the page says."""

    def __init__(self, judged: Judged) -> None:
        self._judged, self._outcomes, self._classes = judged, judged.outcomes, judged.outcomes.classes

    def truth(self, row: int) -> str:
        outcomes = self._outcomes
        if isinstance(outcomes, SingleLabel):
            return self._classes[int(outcomes.labels[row])]
        return joined([self._classes[number] for number in np.flatnonzero(outcomes.truth[row])])

    def predicted(self, row: int) -> str | None:
        outcomes = self._outcomes
        if isinstance(outcomes, SingleLabel):
            return self._classes[int(outcomes.predicted[row])]
        if outcomes.predicted is None:
            return None
        return joined([self._classes[number] for number in np.flatnonzero(outcomes.predicted[row])])

    def state(self, row: int) -> str | None:
        predicted = self.predicted(row)
        return None if predicted is None else "right" if predicted == self.truth(row) else "wrong"

    def bars(self, row: int) -> list[Bar]:
        scores, outcomes = self._judged.scores, self._outcomes
        if scores is not None:
            best = np.argsort(-scores[row], kind="stable")[:MOST_LABELS]
            return [Bar(self._classes[number], float(scores[row, number])) for number in best]
        if isinstance(outcomes, SingleLabel):
            return [Bar(self._classes[outcomes.predicted[row]], float(outcomes.confidence[row]))]
        return []

    def as_page_row(self, row: int) -> PageRow:
        bars = self.bars(row)
        score = bars[0].score if bars else None
        values = [self.predicted(row), score, self.truth(row), self.state(row)]
        return PageRow(row, {"image": self._judged.images[row]}, values, [bars])


def _rows_shown(document: Mapping[str, Any], judged: Judged) -> list[int]:
    """All, or a random sample and the mistakes that have cards."""
    sample = Sample[int](MOST_ROWS)
    for row in range(len(judged.images)):
        sample.offer(row)
    return sorted({*sample.kept, *_rows_of_mistakes(document, judged)})


def _rows_of_mistakes(document: Mapping[str, Any], judged: Judged) -> list[int]:
    by_place = {place: row for row, place in enumerate(judged.places)}
    return [by_place[mistake["place"]] for mistake in document["mistakes"]]


def _taken(document: Mapping[str, Any]) -> Counter[tuple[str, str]]:
    """Images by label and by what they were taken for; none, where they may have several labels."""
    rows = document["per_class"]
    return Counter(
        {(row["class"], name): images for row in rows for name, images in row.get("predicted_as", {}).items()}
    )


def _table(rows: _Rows, numbers: Sequence[int]) -> PageTable:
    columns = [
        Column("label", "Predicted", "label"),
        Column("score", "Best score", "score"),
        Column("truth", "True label", "label"),
        Column("state", "State", "state"),
    ]
    return PageTable(columns, ["Predictions"], [rows.as_page_row(row) for row in numbers])


def _gallery(shown: Shown, rows: _Rows) -> dict[str, Any] | None:
    document, judged = shown.document, shown.judged
    mistakes, numbers = document["mistakes"], _rows_of_mistakes(document, judged)
    pictures = list(shown.thumbnails) or [None] * len(mistakes)
    cards = [
        {
            "place": row,
            "name": mistake["image"],
            "picture": None if picture is None else as_uri(picture),
            "tint": None,
            "missing": "no picture: the image can't be had",
            "bars": rows.bars(row) or [Bar(mistake["predicted"], mistake["score"])],
            "truth": mistake["label"],
        }
        for mistake, row, picture in zip(mistakes, numbers, pictures, strict=True)
    ]
    note = "The highest scores of a label that is not the image's: wrong labels of the data set are often among them."
    return {"title": "Most confident mistakes", "note": note, "cards": cards} if cards else None


def _plots(plots: Mapping[str, bytes]) -> Iterator[dict[str, str]]:
    for name, (title, note) in _PLOTS.items():
        if name in plots:
            picture = f"data:image/png;base64,{base64.b64encode(plots[name]).decode()}"
            yield {"id": name.removesuffix(".png"), "title": title, "note": note, "picture": picture}
