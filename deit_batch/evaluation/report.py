"""An evaluation's document as a page for people, in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from deit_batch.escaping import escape_controls
from deit_batch.evaluation.names import LOWER_IS_BETTER
from deit_batch.input.passed_over import photos_in
from deit_batch.io import counted, counts

_HEADLINES = {
    "accuracy": "accuracy (top-1)",
    "top_5_accuracy": "top-5 accuracy",
    "balanced_accuracy": "balanced accuracy",
    "f1_macro": "F1, macro",
    "f1_micro": "F1, micro",
    "jaccard_macro": "Jaccard (IoU), macro",
    "jaccard_samples": "Jaccard (IoU), mean of the images",
    "log_loss": "log loss (lower is better)",
    "expected_calibration_error": "expected calibration error (lower is better)",
}
_MOST_ROWS = 30  # of a table of classes, the worst first
_MOST_NAMES = 10


def as_markdown(document: Mapping[str, Any], pictures: Iterable[str]) -> str:
    """`pictures`: the files that lie beside it."""
    single = not document["multi_label"]
    parts = [
        "# Evaluation",
        *_what(document),
        "## Headline",
        _table(["metric", "value", "95 % interval"], headlines(document)),
        *_gates(document),
        *_baseline(document),
        *_pictures(pictures),
        "## Classes",
        *_classes(document, single),
        "## All metrics",
        _table(["metric", "value"], [[name, _number(value)] for name, value in document["metrics"].items()]),
        *_list("Not computed", [f"{name}: {why}" for name, why in document["unavailable"].items()]),
    ]
    return "\n\n".join(parts) + "\n"


def _what(document: Mapping[str, Any]) -> Iterator[str]:
    model = document.get("model")
    labels = escape_controls(document["labels"])
    lines = [f"{_code(document['input'])}, labels from {labels}; predictions in {_code(document['predictions'])}."]
    if model:
        lines.append(f"Model {_code(model['model'])}, {model['dtype']} on {model['device']}.")
    judged, inputs = document["judged"], document["inputs"]
    lines.append(f"Judged: {judged:,} of {counted(inputs, 'image')}.")
    if judged < inputs:
        lines.append(
            f"**Not judged: {inputs - judged:,}**, and no metric knows of these but `accuracy_of_all_inputs`, "
            "which counts them as wrong: "
            f"{_number(document['metrics'].get('accuracy_of_all_inputs')) or 'not computed'}."
        )
    yield "\n".join(lines)
    yield from _list("", notes(document))


def notes(document: Mapping[str, Any]) -> list[str]:
    """What of the input was not judged, or only by a guess; names between backticks, which are nowhere else."""
    notes = [f"{number:,} failed: {kind}" for kind, number in document["failures"].items()]
    if photos := photos_in(document.get("passed_over") or {}):
        notes.append(f"photos that were not read, and are in no figure here: {counts(photos)}")
    if document["unknown_labels"]:
        labels = _some([f"{_code(name)} ({number:,})" for name, number in document["unknown_labels"].items()])
        notes.append(f"{document['images_with_unknown_labels']:,} have a label that the model does not know: {labels}")
    if document["matched"]:
        pairs = _some([f"{_code(label)} as {_code(name)}" for label, name in document["matched"].items()])
        notes.append(f"labels taken for names that are not quite theirs: {pairs}")
    if document.get("predictions_without_label"):
        notes.append(f"predictions of images without a label: {document['predictions_without_label']:,}")
    if document.get("never_predicted"):
        notes.append(
            "labels that no prediction names, which may be unknown to the model, or its name for them another: "
            + _some(map(_code, document["never_predicted"]))
        )
    for key, what in (
        ("classes_without_images", "of the model's classes have no image"),
        ("listed_without_images", "of the data set's classes have no image that is judged"),
    ):
        if document[key]:
            notes.append(f"{len(document[key]):,} {what}: {_some(map(_code, document[key]))}")
    return notes


def headlines(document: Mapping[str, Any]) -> Iterator[list[str]]:
    """Title, value, interval."""
    for name, title in _HEADLINES.items():
        if name in document["metrics"]:
            reach = document["intervals"].get(name)
            if name == "accuracy" and document["multi_label"]:
                title = "accuracy (all labels of an image right)"
            yield [title, _number(document["metrics"][name]), "–".join(map(_number, reach)) if reach else ""]


def _gates(document: Mapping[str, Any]) -> Iterator[str]:
    gates = gates_of(document)
    if gates:
        yield "## Gates"
        rows = (
            [gate.name, _number(gate.value), gate.bound, "passed" if gate.passed else "**not passed**"]
            for gate in gates
        )
        yield _table(["gate", "value", "bound", ""], rows)


class Gate(NamedTuple):
    """As a row: what is held against a bound, which is in words."""

    name: str
    value: float | None
    bound: str
    passed: bool


def gates_of(document: Mapping[str, Any]) -> list[Gate]:
    return [
        *(
            Gate(name, gate["value"], f"at least {gate['least']:g}", gate["passed"])
            for name, gate in document["gates"].items()
        ),
        *(
            Gate(f"drop of {name} against the baseline", gate["drop"], f"at most {gate['most']:g}", gate["passed"])
            for name, gate in document["drops"].items()
        ),
    ]


def _baseline(document: Mapping[str, Any]) -> Iterator[str]:
    baseline = document["baseline"]
    if not baseline:
        return
    yield f"## Against {_code(baseline['file'])}"
    yield f"On the {counted(baseline['images'], 'image')} that both evaluations have judged, with the same labels."
    if baseline["missing"]:
        images = counted(baseline["missing"], "image of the baseline is", "images of the baseline are")
        yield f"**{images} not judged here with the same label.**"
    if baseline["metrics"]:
        yield _table(
            ["metric", "before", "now", "change", "95 % interval", "p", ""],
            (_change(name, change) for name, change in baseline["metrics"].items()),
        )


def _change(name: str, change: Mapping[str, Any]) -> list[str]:
    verdict = verdict_of(name, change)
    interval = " to ".join(f"{value:+.4f}" for value in change["interval"])
    p_value = f"{change['p_value']:.3g}" if "p_value" in change else ""
    return [
        name,
        _number(change["before"]),
        _number(change["now"]),
        f"{change['change']:+.4f}",
        interval,
        p_value,
        verdict if change["within_noise"] else f"**{verdict}**",
    ]


def verdict_of(metric: str, change: Mapping[str, Any]) -> str:
    """Of its change against a baseline."""
    if change["within_noise"]:
        return "within noise"
    return "better" if (change["change"] > 0) != (metric in LOWER_IS_BETTER) else "worse"


def _pictures(pictures: Iterable[str]) -> Iterator[str]:
    for name in pictures:
        yield f"![{name.removesuffix('.png').replace('_', ' ')}]({name})"


def _classes(document: Mapping[str, Any], single: bool) -> Iterator[str]:
    rows = classes_by_f1(document)
    if len(rows) > _MOST_ROWS:
        yield f"The {_MOST_ROWS} of {len(rows):,} with the lowest F1; all are in metrics.json."
    numbers = ["precision", "recall", "f1"]
    numbers += [name for name in ("roc_auc", "average_precision") if any(name in row for row in rows)]
    last = ["most often taken for"] if single else []
    yield _table(
        ["class", "images", *numbers, *last],
        (
            [
                _cell(row["class"]),
                f"{row['images']:,}",
                *(_number(row.get(name)) for name in numbers),
                *([_cell(taken_for(row))] if single else []),
            ]
            for row in rows[:_MOST_ROWS]
        ),
    )


def classes_by_f1(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Those that some image has or is said to have, the worst first."""
    rows = [row for row in document["per_class"] if row["images"] or row.get("fp")]
    return sorted(rows, key=lambda row: row.get("f1", 0))


def taken_for(row: Mapping[str, Any]) -> str:
    """The other class that a class's images were most often taken for, and how many of them."""
    others = [(count, name) for name, count in row["predicted_as"].items() if name != row["class"]]
    return "{1} ({0:,})".format(*max(others)) if others else ""


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows))


def _list(title: str, items: Sequence[str]) -> Iterator[str]:
    if items:
        if title:
            yield f"{title}:"
        yield "\n".join(f"- {item}" for item in items)


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_MOST_NAMES]) + (
        f" and {len(names) - _MOST_NAMES:,} more" if len(names) > _MOST_NAMES else ""
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _code(name: str) -> str:
    return f"`{escape_controls(name).replace('`', chr(39))}`"


def _cell(text: str) -> str:
    return escape_controls(text).replace("|", "\\|")
