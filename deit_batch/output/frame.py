"""Records as a DataFrame of pandas."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from deit_batch.errors import UsageError
from deit_batch.io import FeatureName, Record, clean, name_fields
from deit_batch.system.extras import needing

if TYPE_CHECKING:
    import pandas

_BEST = ("label", "score", "predictions")
_ERROR = ("error_type", "error_message")


def frame_of(
    records: Iterable[Record],
    features: Sequence[FeatureName] | None,
    keep: Sequence[str],
    labels: pandas.Index | None = None,
) -> pandas.DataFrame:
    """A row for each record, in its order: as a CSV result has it, but the predictions, or else each of `features`
    (float32 [width], None where it failed), and what is kept stay Python's values. What says which input it is, beside
    its name, is a column if any has it. `labels`: those of all inputs, which become those of the rows.

    Raises UsageError, before a record is asked for, if a column to `keep` has one of these names, or without pandas."""
    with needing("pandas"):
        import pandas

    columns = ["index", "image", *(features or _BEST), *_ERROR]
    for name in keep:
        if name in columns:
            raise UsageError(
                f"--keep {name}: the DataFrame has a column of that name already; give the table's another name"
            )
    rows = [_row(record) for record in records]
    others = dict.fromkeys(name for row in rows for name in row if name not in columns)
    index = None if labels is None else labels.take([row["index"] for row in rows])
    return pandas.DataFrame(rows, index, [*columns, *dict.fromkeys([*others, *map(clean, keep)])])


def _row(record: Record) -> dict[str, Any]:
    """Text as it can be written: pandas takes no other."""
    error = record.error
    return {
        **name_fields(record),
        **(_best(record) if record.features is None else dict(record.features)),
        "error_type": error.type if error else None,
        "error_message": clean(error.message) if error else None,
        **{clean(name): clean(value) if isinstance(value, str) else value for name, value in record.keep.items()},
    }


def _best(record: Record) -> dict[Any, Any]:
    predictions = [{"label": clean(each["label"]), "score": each["score"]} for each in record.predictions]
    best = predictions[0] if predictions else {"label": None, "score": math.nan}
    return {**best, "predictions": predictions}
