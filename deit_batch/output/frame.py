"""Records as a DataFrame of pandas."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from types import NoneType
from typing import TYPE_CHECKING, Any

from deit_batch.io import FeatureName, Record, clean, name_fields
from deit_batch.system.extras import needing

if TYPE_CHECKING:
    import pandas

_BEST = ("label", "score", "predictions")
_ERROR = ("error_type", "error_message")
_TEXTS = ("image", "label", *_ERROR)


def frame_of(
    records: Iterable[Record],
    features: Sequence[FeatureName] | None,
    keep: Sequence[str],
    labels: pandas.Index | None = None,
) -> pandas.DataFrame:
    """A row for each record, in its order: as a CSV result has it, but the predictions, or else each of `features`
    (float32 [width], None where it failed), and what is kept stay Python's values. What says which input it is, beside
    its name, is a column if any has it. `labels`: those of all inputs, which become those of the rows.

    A kept column that is called as one of the others is `kept_…`. Text that there is none of is None, whatever the
    other rows have: pandas would choose another value by them.

    Raises UsageError without pandas."""
    with needing("pandas"):
        import pandas

    columns = ["index", "image", *(features or _BEST), *_ERROR]
    kept: dict[str, str] = {}
    for name in keep:
        kept[name] = _name_beside(clean(name), [*columns, *kept.values()])
    rows = [_row(record, kept) for record in records]
    others = dict.fromkeys(name for row in rows for name in row if name not in columns)
    index = None if labels is None else labels.take([row["index"] for row in rows])
    frame = pandas.DataFrame(rows, index, list(dict.fromkeys([*columns, *others, *kept.values()])))
    for name in _TEXTS:
        if name in columns:
            frame[name] = pandas.Series([row[name] for row in rows], frame.index, object)
    for name in {*others, *kept.values()}:
        frame[name] = _as_they_are([row.get(name) for row in rows], frame.index)
    return frame


def _as_they_are(values: list[Any], index: pandas.Index) -> pandas.Series:
    """A column in which whole numbers stay whole, truth values are no numbers, and None is what is missing (of numbers,
    what pandas has for it): pandas itself would make floats of numbers, and round them."""
    import pandas

    kinds = {type(value) for value in values}
    if kinds == {int, NoneType}:
        with suppress(OverflowError):
            return pandas.Series(values, index, "Int64")
    is_plain = kinds <= {float, NoneType} or len(kinds) == 1
    return pandas.Series(values, index, None if is_plain else object)


def _name_beside(name: str, others: Collection[str]) -> str:
    return _name_beside(f"kept_{name}", others) if name in others else name


def _row(record: Record, kept: Mapping[str, str]) -> dict[str, Any]:
    """Text as it can be written: pandas takes no other. `kept`: what kept columns are called."""
    error = record.error
    return {
        **name_fields(record),
        **(_best(record) if record.features is None else dict(record.features)),
        "error_type": error.type if error else None,
        "error_message": clean(error.message) if error else None,
        **{kept[name]: clean(value) if isinstance(value, str) else value for name, value in record.keep.items()},
    }


def _best(record: Record) -> dict[Any, Any]:
    predictions = [{"label": clean(each["label"]), "score": each["score"]} for each in record.predictions]
    best = predictions[0] if predictions else {"label": None, "score": math.nan}
    return {**best, "predictions": predictions}
