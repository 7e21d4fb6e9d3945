"""An evaluation as pictures, by matplotlib: PNG bytes by file name."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve

from deit_batch.evaluation.confused import MOST_CLASSES, most_confused
from deit_batch.evaluation.judged import Bools, Judged, MultiLabel, SingleLabel
from deit_batch.evaluation.metrics import Metrics, confusion
from deit_batch.evaluation.mistakes import Mistake
from deit_batch.evaluation.names import PLOTS

MOST_CURVES = 6

_RIGHT, _WRONG, _REST = "#2a6f97", "#c1440e", "#b8c4cc"


def draw(
    judged: Judged, metrics: Metrics, mistakes: Sequence[tuple[Mistake, NDArray[np.uint8] | None]]
) -> Iterator[tuple[str, bytes]]:
    """Those of PLOTS that there is something for. `mistakes` with their pictures, None for one that can't be had."""
    outcomes = judged.outcomes
    matrix, reliability, precision_recall, contact_sheet = PLOTS
    if isinstance(outcomes, SingleLabel):
        yield matrix, _png(_confusion(outcomes))
    elif outcomes.predicted is not None:
        yield matrix, _png(_counts(outcomes.classes, outcomes.truth, outcomes.predicted))
    if metrics.bins:
        yield reliability, _png(_reliability(metrics))
    if judged.scores is not None and "average_precision_micro" in metrics.values:
        yield precision_recall, _png(_precision_recall(outcomes, judged.scores, metrics))
    if mistakes:
        yield contact_sheet, _png(_contact_sheet(mistakes))


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # of a name that the font can't write
        figure.savefig(buffer, format="png", dpi=120, bbox_inches="tight", metadata={"Software": None})
    return buffer.getvalue()


def _short(name: str, longest: int = 22) -> str:
    """The first of its synonyms, cut; a dollar sign would start a formula."""
    name = name.split(",")[0]
    return (name if len(name) <= longest else name[: longest - 1] + "…").replace("$", r"\$")


def _confusion(outcomes: SingleLabel) -> Figure:
    """In per cent of a row. Of many classes, those that are confused the most."""
    matrix = confusion(outcomes)
    met = matrix.sum(0) + matrix.sum(1)
    there = most_confused(met, met - 2 * np.diag(matrix))
    title = "Confusion matrix: of a class's images, per cent taken for"
    if len(there) < np.count_nonzero(met):
        title = (
            f"The {MOST_CLASSES} of {len(matrix):,} classes that are confused the most: per cent of a class's images"
        )
    totals = np.maximum(matrix.sum(1, keepdims=True), 1)
    shares = (100 * matrix / totals)[np.ix_(there, there)]
    side = max(4.0, 0.45 * len(there) + 1)
    figure = Figure(figsize=(side, side))
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    names = [_short(outcomes.classes[number]) for number in there]
    axes.set_xticks(range(len(there)), names, rotation=90)
    axes.set_yticks(range(len(there)), [f"{name} ({matrix[n].sum():,})" for name, n in zip(names, there, strict=True)])
    axes.set(xlabel="predicted", ylabel="label (images)")
    axes.set_title(title, loc="left", fontsize=10)
    for (row, column), share in np.ndenumerate(shares):
        if share > 0.5:
            axes.text(
                column, row, f"{share:.0f}", ha="center", va="center", fontsize=8, color="w" if share > 55 else "k"
            )
    return figure


def _counts(classes: list[str], truth: Bools, predicted: Bools) -> Figure:
    """Where images have several labels there is no confusion matrix: of each label, found, missed and made up."""
    parts = {"found": truth & predicted, "missed": truth & ~predicted, "made up": predicted & ~truth}
    counts = {name: part.sum(0) for name, part in parts.items()}
    wrong = counts["missed"] + counts["made up"]
    chosen = np.argsort(-wrong, kind="stable")[:MOST_CLASSES][::-1]
    figure = Figure(figsize=(7, 0.35 * len(chosen) + 1.2))
    axes = figure.add_subplot()
    left = np.zeros(len(chosen))
    for (name, count), colour in zip(counts.items(), (_RIGHT, _REST, _WRONG), strict=True):
        axes.barh(range(len(chosen)), count[chosen], left=left, color=colour, label=name)
        left += count[chosen]
    axes.set_yticks(range(len(chosen)), [_short(classes[number]) for number in chosen])
    axes.set(xlabel="images")
    axes.set_title("Labels that were found, missed and made up, the most wrong first", loc="left", fontsize=10)
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _reliability(metrics: Metrics) -> Figure:
    """Confidence against accuracy, and how many images have which confidence."""
    bins = metrics.bins
    figure = Figure(figsize=(5, 5.6))
    upper, lower = figure.subplots(2, sharex=True, height_ratios=(4, 1))
    middles = [(bin_["from"] + bin_["to"]) / 2 for bin_ in bins]
    width = bins[0]["to"] - bins[0]["from"]
    upper.bar(middles, [bin_["accuracy"] for bin_ in bins], width * 0.92, color=_RIGHT, label="right")
    upper.plot([0, 1], [0, 1], "--", color=_WRONG, linewidth=1, label="as confident as right")
    upper.set(ylabel="share that is right", xlim=(0, 1), ylim=(0, 1))
    error = metrics.values["expected_calibration_error"]
    upper.set_title(f"Reliability: expected calibration error {error:.3f}", loc="left", fontsize=10)
    upper.legend(frameon=False, loc="upper left")
    lower.bar(middles, [bin_["samples"] for bin_ in bins], width * 0.92, color=_REST)
    lower.set(xlabel="confidence", ylabel="samples")
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _precision_recall(outcomes: SingleLabel | MultiLabel, scores: NDArray[np.float32], metrics: Metrics) -> Figure:
    """All classes together, and those of the lowest average precision."""
    if isinstance(outcomes, SingleLabel):
        truth = outcomes.labels[:, None] == np.arange(len(outcomes.classes))
    else:
        truth = outcomes.truth
    figure = Figure(figsize=(6, 5))
    axes = figure.add_subplot()
    ranked = sorted(
        (row["average_precision"], number) for number, row in enumerate(metrics.per_class) if "average_precision" in row
    )
    curves = [(f"{_short(outcomes.classes[n])} {value:.3f}", truth[:, n], scores[:, n], 1.0) for value, n in ranked]
    micro = metrics.values["average_precision_micro"]
    together = (f"all together {micro:.3f}", truth.ravel(), scores.ravel(), 2.5)
    for name, there, score, width in [together, *curves[:MOST_CURVES]]:
        precision, recall, _ = precision_recall_curve(there, score, drop_intermediate=True)
        axes.step(recall, precision, where="post", linewidth=width, label=name, color="k" if width > 1 else None)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.02))
    which = f", the {MOST_CURVES} lowest of {len(curves)} classes" if len(curves) > MOST_CURVES else ""
    axes.set_title(f"Precision and recall (average precision){which}", loc="left", fontsize=10)
    axes.legend(frameon=False, loc="lower left", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _contact_sheet(mistakes: Sequence[tuple[Mistake, NDArray[np.uint8] | None]]) -> Figure:
    columns = min(6, len(mistakes))
    rows = -(-len(mistakes) // columns)
    figure = Figure(figsize=(1.9 * columns, 2.5 * rows + 0.4), layout="constrained")
    figure.suptitle("The most confident mistakes: predicted, and the label", x=0.01, ha="left", fontsize=10)
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.set_axis_off()
    for axes, (mistake, picture) in zip(figure.axes, mistakes, strict=False):
        axes.imshow(np.full((2, 2, 3), 230, np.uint8) if picture is None else picture)
        said = f"{_short(mistake.predicted, 16)} {mistake.score:.2f}"
        axes.set_title(said, fontsize=9, color=_WRONG, loc="left", pad=14)
        axes.text(0, 1.02, _short(mistake.label, 22), fontsize=8, transform=axes.transAxes)
        axes.text(0, -0.09, mistake.image[-28:], fontsize=5.5, transform=axes.transAxes, color="0.4", parse_math=False)
    return figure
