"""Parquet files and data sets to rows, lazily."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import parse_qs, urlsplit

from deit_batch.errors import InputError, UsageError
from deit_batch.input.tables import Row, Table

if TYPE_CHECKING:
    import pyarrow


def open_parquet(stream: BinaryIO, name: str, wanted: Callable[[Sequence[str]], list[str]]) -> Table:
    """Reads only the columns that `wanted` picks from all the names, through a small buffer: a column of images can
    be larger than memory."""
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(stream, buffer_size=2**20, pre_buffer=False)
    except (pyarrow.ArrowException, OSError) as error:
        raise UsageError(f"{name}: not a Parquet file: {error}") from error
    columns = file.schema_arrow.names

    def rows() -> Iterator[Row]:
        line = 0
        try:
            for batch in file.iter_batches(batch_size=16, columns=wanted(columns)):
                for value in batch.to_pylist():
                    line += 1
                    yield Row(line, value)
        except (pyarrow.ArrowException, OSError) as error:
            raise InputError(f"{name}: can't be read past row {line}: {error}") from error

    return Table(rows(), columns, lambda read: int(file.metadata.num_rows), _class_names_of_schema(file.schema_arrow))


def _class_names_of_schema(schema: pyarrow.Schema) -> Mapping[str, Sequence[str]]:
    """What `datasets` has written into a Parquet file beside the numbers of its classes."""
    if b"huggingface" not in (schema.metadata or {}):
        return {}
    import datasets

    return _class_names(datasets.Features.from_arrow_schema(schema))


def _class_names(features: Mapping[str, Any]) -> Mapping[str, Sequence[str]]:
    """Of each column of class numbers, or of lists of them, the names."""
    inner = {column: getattr(feature, "feature", feature) for column, feature in features.items()}
    return {column: feature.names for column, feature in inner.items() if getattr(feature, "names", None)}


def open_dataset(address: str) -> Table:
    """`hf://NAME?split=…&config=…&revision=…`: a Hub data set, or a folder that `datasets` can load, streamed."""
    import datasets

    parts = urlsplit(address)
    name = (parts.netloc + parts.path).removeprefix("datasets/")
    query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
    unknown = set(query) - {"split", "config", "revision"}
    if unknown:
        raise UsageError(f"{address}: unknown {', '.join(sorted(unknown))}; known are split, config, revision")
    datasets.disable_progress_bars()
    try:
        splits = datasets.load_dataset(name, query.get("config"), revision=query.get("revision"), streaming=True)
        split = _choose_split(list(splits), query.get("split"), address)
        stream = splits[split]
        features = stream.features or stream.take(1)._resolve_features().features or {}
    except UsageError:
        raise
    except Exception as error:  # the library raises whatever its many builders and back ends raise
        raise InputError(f"{address}: the data set can't be loaded: {error}") from error
    for column, feature in features.items():
        if isinstance(feature, datasets.Image):
            # The bytes as they are: decoding is ours, with our limits.
            stream = stream.cast_column(column, datasets.Image(decode=False))
    images = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    columns = images + [column for column in features if column not in images]
    info = (stream.info.splits or {}).get(split)

    def rows() -> Iterator[Row]:
        line = 0
        try:
            for value in stream:
                line += 1
                yield Row(line, value)
        except Exception as error:  # as above
            raise InputError(f"{address}: can't be read past row {line}: {error}") from error

    return Table(rows(), columns, lambda read: info.num_examples if info else None, _class_names(features))


def _choose_split(splits: list[str], wanted: str | None, address: str) -> str:
    if wanted is None and len(splits) == 1:
        return splits[0]
    if wanted in splits:
        return str(wanted)
    raise UsageError(f"{address}: name one of its splits with ?split=…: {', '.join(splits)}")
