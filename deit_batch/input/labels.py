"""What the user names as input, to references and the labels of each: lazily, in the order in which `score` reads them.

| the input | the labels of an image |
| --- | --- |
| a folder that holds `labels.csv` (or that file itself) | its field `labels`, separated by spaces; several an image |
| any other folder | the name of the folder in it that the image lies in, at whatever depth; one an image |
| a glob, or one image | the name of the folder that the image lies in; one an image |
| a table | its label column: text or a number is one; a list, also as JSON text, is several |
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import BinaryIO, TypeAlias

from deit_batch.errors import RowError, UsageError
from deit_batch.input.kinds import InputKind, InputName, parse_input_name
from deit_batch.input.open import open_source
from deit_batch.io import Failure, Reference, Source, clean
from deit_batch.names import alike
from deit_batch.system import object_store

logger = logging.getLogger("deit_batch")

LABEL_COLUMNS = ("label", "labels", "class", "class_name", "category", "target", "cls")
"""The usual names of the column that holds the label, the likeliest first."""

LABELS_FILE = "labels.csv"
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Example:
    """An input and its labels, in the data set's own names: exactly one, or any number (none, too) where the data set
    has several an image. A row whose labels can't be read has none, and a `Failure` for its reference's location."""

    reference: Reference
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LabelledSource:
    """An opened input with labels. `multi_label`: whether an image may have several. `class_names` are those that the
    input itself lists (folders, or a data set's own), None if only its rows tell. The others are as in `Source`."""

    examples: Iterator[Example]
    layout: str
    multi_label: bool
    class_names: list[str] | None
    total: Callable[[int], int | None]
    passed_over: Counter[str]

    def as_source(self) -> Source:
        """The references alone, each with its labels to be kept in its record as `label`: text, or a list of
        it where an image may have several."""
        return Source(map(self._with_label, self.examples), self.total, self.passed_over)

    def _with_label(self, example: Example) -> Reference:
        labels = example.labels
        label = list(labels) if self.multi_label else labels[0] if labels else None
        return replace(example.reference, keep={"label": label})


def open_labelled(
    spec: str,
    *,
    column: str | None = None,
    id: str | None = None,
    label_column: str | None = None,
    recursive: bool = True,
    limit: int | None = None,
    stdin: BinaryIO | None = None,
    again: bool = False,
    image_optional: bool = False,
) -> LabelledSource:
    """Opens what `spec` names, as `open.open_source` does, with labels; says in one line where those come from, if
    it is not opened `again`. `image_optional`: as in open.Fields.

    Raises UsageError if there is no such input, or nothing in it that could be a label.
    """
    given = parse_input_name(spec)
    table = labels_table(spec)
    by_name = not table and given.names_image_files
    if label_column and by_name:
        raise UsageError(f"{spec} has no columns; --label-column is for tables")
    if given.kind is InputKind.LIST:
        raise UsageError(f"{spec}: a list has no labels; give a table with a label column, or class folders")
    source = open_source(
        table or spec,
        column=column,
        id=id,
        recursive=recursive,
        limit=limit,
        stdin=stdin,
        image_optional=image_optional,
        label=None if by_name else partial(_label_column, named=label_column),
        folder=_images_folder(table) if table else None,
    )
    labelled = (
        _by_folder(spec, given, source) if by_name else _by_column(table or spec, source, separated=table is not None)
    )
    if not again:
        logger.info("labels: %s", labelled.layout)
    return labelled


# --- by folder ------------------------------------------------------------------------------------------------------


def _folders(spec: str, given: InputName) -> list[str]:
    """The names of the folders in a folder."""
    if not given.stored:
        return [entry.name for entry in os.scandir(spec) if entry.is_dir()]
    store, path = object_store.open_store(spec)
    found = store.list(path.rstrip("/") + "/", recursive=False)
    return [os.path.basename(folder.rstrip("/")) for folder in found if isinstance(folder, str)]


def _by_folder(spec: str, given: InputName, source: Source) -> LabelledSource:
    names, root = None, None
    layout = "the folder that an image lies in"
    if given.kind is InputKind.FOLDER:
        root = spec
        folders = Counter(alike(clean(name)) for name in _folders(spec, given) if not name.startswith("."))
        for name in (name for name, count in folders.items() if count > 1):
            logger.warning("%s: %s folders whose names look the same are one class: %s", spec, folders[name], name)
        names = sorted(folders)
        if not names:
            raise UsageError(f"{spec} has no class folders and no {LABELS_FILE}: nothing says what its images show")
        layout = f"class folders, {_counted(names)}"
    examples = (_of_folder(reference, root) for reference in source.references)
    return LabelledSource(examples, layout, False, names, source.total, source.passed_over)


def _of_folder(reference: Reference, root: str | None) -> Example:
    folder = os.path.dirname(str(reference.image))
    name = os.path.basename(folder) if root is None else os.path.relpath(folder, root).split(os.sep)[0]
    if name in ("", os.curdir):
        return _unlabelled(reference, RowError("it lies in no class folder"))
    return Example(reference, (alike(clean(name)),))


def _unlabelled(reference: Reference, error: RowError) -> Example:
    return Example(replace(reference, location=Failure.of(error)), ())


def _counted(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
    return f"{len(names):,} class{'es' if len(names) > 1 else ''} ({shown})"


# --- by column ------------------------------------------------------------------------------------------------------


def labels_table(spec: str) -> str | None:
    """The path of the labels.csv that `spec` is, or that is in it."""
    path = os.path.join(spec, LABELS_FILE) if parse_input_name(spec).kind is InputKind.FOLDER else spec
    return (
        path if os.path.basename(path) == LABELS_FILE and (object_store.exists(path) or os.path.isfile(path)) else None
    )


def _images_folder(table: str) -> str | None:
    """The folder that the names in a labels.csv start from, if it is not the file's own."""
    folder = os.path.join(os.path.dirname(table), "images")
    return folder if object_store.exists(folder) or os.path.isdir(folder) else None


def _label_column(columns: Sequence[str], named: str | None) -> str:
    """The column that holds the label. Raises UsageError, naming the columns there are, if it is not to be found."""
    lower = {name.lower(): name for name in reversed(columns)}
    chosen = next((lower[name] for name in LABEL_COLUMNS if name in lower), None) if named is None else named
    if chosen is None or chosen not in columns:
        problem = (
            f"no column is called {named!r}" if named else "no column looks like the label; name it with --label-column"
        )
        raise UsageError(f"{problem}. Columns seen: {', '.join(columns) or 'none'}")
    return chosen


Form: TypeAlias = str | tuple[str, ...] | RowError
"""A row's labels: one, several, or why they can't be read."""


def _by_column(spec: str, source: Source, *, separated: bool) -> LabelledSource:
    """The first row that can be read tells whether an image may have several labels, and which column holds them."""
    rows = ((reference, _form(reference, source.class_names, separated)) for reference in source.references)
    start: list[tuple[Reference, Form]] = []
    for row in rows:
        start.append(row)
        if not isinstance(row[1], RowError):
            break
    column, form = (next(iter(start[-1][0].keep), ""), start[-1][1]) if start else ("", "")
    several = isinstance(form, tuple)
    layout = f"column {column!r} of {spec}, {'any number' if several else 'one'} an image"
    names = [alike(name) for name in source.class_names.get(column, ())] or None
    examples = (_example(reference, form, several) for reference, form in chain(start, rows))
    return LabelledSource(examples, layout, several, names, source.total, source.passed_over)


def _form(reference: Reference, class_names: Mapping[str, Sequence[str]], separated: bool) -> Form:
    if not reference.keep:
        return RowError("no label")  # the row is malformed, as its location says
    ((column, value),) = reference.keep.items()
    try:
        if separated and column.lower() == "labels" and isinstance(value, str):
            return tuple(dict.fromkeys(map(alike, value.split())))
        return parse_labels(value, class_names.get(column, ()))
    except RowError as error:
        return error


def _example(reference: Reference, form: Form, several: bool) -> Example:
    bare = replace(reference, keep={})
    if isinstance(reference.location, Failure):
        return Example(bare, ())
    if isinstance(form, RowError):
        return _unlabelled(bare, form)
    if isinstance(form, str):
        return Example(bare, (form,))
    if not several and len(form) != 1:
        return _unlabelled(bare, RowError(f"{len(form)} labels, where the first row has text for one: {form!r:.60}"))
    return Example(bare, form)


def parse_labels(value: object, class_names: Sequence[str] = ()) -> str | tuple[str, ...]:
    """The label that a field holds (text, or the number of a class), or the labels (a list of those, also as the JSON
    text of one, without doubles). A number is looked up in `class_names` where there are any, and is its own name
    elsewhere. Raises RowError if it is empty or something else."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        with suppress(ValueError, RecursionError):
            value = json.loads(value)
    if isinstance(value, list | tuple):
        return tuple(dict.fromkeys(_label(item, class_names) for item in value))
    return _label(value, class_names)


def _label(value: object, class_names: Sequence[str]) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # as a table writes whole numbers if some are missing
    if isinstance(value, int) and not isinstance(value, bool):
        if not class_names:
            return str(value)
        if 0 <= value < len(class_names):
            return alike(class_names[value])
        raise RowError(f"the label is {value}, but the classes are 0 to {len(class_names) - 1}")
    if isinstance(value, str) and value.strip():
        return alike(clean(value.strip()))
    raise RowError("the label is empty" if value is None or isinstance(value, str) else f"the label is {value!r:.60}")
