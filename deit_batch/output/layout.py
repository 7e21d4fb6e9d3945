"""Tables of plain columns: a row for each image with all its labels beside each other, or a row for each label."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, TypeAlias

from deit_batch.io import NAME_FIELDS
from deit_batch.output.formats import as_text, write_csv_rows

Layout: TypeAlias = Literal["record", "wide", "long"]

_ROWS = 1000  # at a time
_ERROR = ("error_type", "error_message")


def columns_of(layout: Layout, most: int, keep: Sequence[str]) -> dict[str, str]:
    """The type of each column, by its name; `most`: how many labels a row of `wide` has room for."""
    if layout == "wide":
        labels = {f"{name}_{rank}": kind for rank in range(1, most + 1) for name, kind in _LABEL.items()}
    else:
        labels = {"rank": "int64", **_LABEL}
    texts = (*_ERROR, *NAME_FIELDS[1:], *keep)
    return {"index": "int64", "image": "string", **labels, **dict.fromkeys(texts, "string")}


_LABEL = {"label": "string", "score": "double"}


def rows_of(records: Iterable[dict[str, Any]], layout: Layout, most: int, keep: Sequence[str]) -> Iterator[list[Any]]:
    """In the order of `columns_of`. An image without a label, as one that failed, has a row all the same."""
    for record in records:
        error = record.get("error", {})
        start = [record["index"], record["image"]]
        end = [error.get("type"), error.get("message"), *map(record.get, NAME_FIELDS[1:])]
        end += [as_text(record.get(name)) for name in keep]
        labels = [[each["label"], float(each["score"])] for each in record["predictions"]]
        if layout == "wide":
            yield [*start, *chain.from_iterable(labels), *[None] * 2 * (most - len(labels)), *end]
        else:
            ranked = [[rank, *label] for rank, label in enumerate(labels, 1)]
            yield from ([*start, *label, *end] for label in ranked or [[None, None, None]])


def write_layout(columns: dict[str, str], rows: Iterator[list[Any]], target: Path, *, name: str, excel: bool) -> None:
    """As the format of that name, which is csv or parquet."""
    if name == "csv":
        write_csv_rows(list(columns), rows, target, for_spreadsheet=excel)
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(column, pa.type_for_alias(kind)) for column, kind in columns.items()])
    with pq.ParquetWriter(target, schema) as writer:
        while some := list(islice(rows, _ROWS)):
            arrays = [
                pa.array(values, field.type) for values, field in zip(zip(*some, strict=True), schema, strict=True)
            ]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
