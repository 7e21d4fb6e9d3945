"""What the user names as input, to references and the labels of each: lazily, in the order in which `score` reads them.

| the input | the labels of an image |
| --- | --- |
| a folder that holds `labels.csv`, or that file | its field `labels`: a list, or split at spaces; several an image |
| a folder with metadata.csv, metadata.jsonl or metadata.parquet (input/image_folder.py) | its label column |
| any other folder | the name of the folder in it that the image lies in, at whatever depth; one an image |
| a glob, or one image, or a zip of images | the name of the folder that the image lies in; one an image |
| a table | its label column: text, a number or a truth value is one; a list, also as the text of one, is several |

Text that stands for a missing value (`MISSING`) is no label in a table; a class folder may be called anything.

A folder of class folders for each part of a split (train/ and val/) is no folder of classes: `find_split`.
"""

from __future__ import annotations

import ast
import json
import logging
import os
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import BinaryIO, TypeAlias

from deit_batch.errors import RowError, UsageError
from deit_batch.input.elsewhere import Map
from deit_batch.input.kinds import InputKind, InputName, is_image_name, is_saved_dict, parse_input_name, parts_of
from deit_batch.input.open import find_metadata, open_source
from deit_batch.input.rows import columns_seen
from deit_batch.input.zipped import holds_images
from deit_batch.io import Failure, Reference, Source, clean, counted
from deit_batch.names import alike
from deit_batch.system import object_store

logger = logging.getLogger("deit_batch")

LABEL_COLUMNS = ("label", "labels", "class", "class_name", "category", "target", "cls")
"""The usual names of the column that holds the label, the likeliest first."""

MISSING = frozenset(
    ("#N/A", "#N/A N/A", "#NA", "-NaN", "-nan", "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null")
)
"""Text for a value that is missing: what pandas' read_csv takes for it (na_values), and what str() makes of it."""

LABELLED_TWICE = "labelled twice, differently"
"""Why an image is left out that `find_unclear` finds."""

LABELS_FILE = "labels.csv"
TRAINING_FOLDERS = ("train", "training")
VALIDATION_FOLDERS = ("val", "valid", "validation", "test")
"""What the parts of a split are called, in any case; of several, the first is validated with."""
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
        return replace(example.reference, keep={"label": label}, wanted=None)  # an evaluation asks for its own


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
    map: Map = (),
    base: str | None = None,
    suffix: str | None = None,
    delimiter: str | None = None,
    called: str = "labels",
) -> LabelledSource:
    """Opens what `spec` names, as `open.open_source` does, with labels; says in one line where those come from, if
    it is not opened `again`, and what they are `called`. `image_optional`: as in open.Fields.

    Raises UsageError if there is no such input, or nothing in it that could be a label.
    """
    given = parse_input_name(spec)
    table = labels_table(spec)
    zips = _zips_of_images(spec)
    by_name = bool(zips) or (not table and given.names_image_files and not _has_label_metadata(spec, label_column))
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
        map=map,
        base=base,
        suffix=suffix,
        delimiter=delimiter,
    )
    labelled = (
        _by_folder(spec, given, source, zips)
        if by_name
        else _by_column(table or spec, source, separated=table is not None, again=again)
    )
    if not again:
        logger.info("%s: %s", called, labelled.layout)
    return labelled


def find_unclear(images: Sequence[tuple[Collection[str | bytes | None], Collection[str]]]) -> dict[int, int]:
    """The places, from 0, of images that are there more than once, and not every time with the same labels; of each a
    place where the labels are others. An image is known by any of its identities: by name (input/identity.py), by its
    bytes; None is none."""
    firsts: dict[str | bytes, int] = {}
    others: dict[str | bytes, int] = {}
    for place, (identities, labels) in enumerate(images):
        for identity in identities:
            if identity is not None and set(labels) != set(images[firsts.setdefault(identity, place)][1]):
                others.setdefault(identity, place)
    unclear: dict[int, int] = {}
    for place, (identities, labels) in enumerate(images) if others else ():
        for identity in identities:
            if identity in others:
                first = firsts[identity]
                unclear[place] = others[identity] if set(labels) == set(images[first][1]) else first
    return unclear


# --- by folder ------------------------------------------------------------------------------------------------------


def _folders(spec: str, given: InputName) -> list[str]:
    """The names of the folders in a folder."""
    if not given.stored:
        return [entry.name for entry in os.scandir(spec) if entry.is_dir()]
    store, path = object_store.open_store(spec)
    found = store.list(path.rstrip("/") + "/", recursive=False)
    return [os.path.basename(folder.rstrip("/")) for folder in found if isinstance(folder, str)]


@dataclass(frozen=True, slots=True)
class Split:
    """The parts of a data set, each with class folders of its own: their paths, and the names of all."""

    training: str
    validation: str
    names: list[str]


def find_split(spec: str) -> Split | None:
    """The parts that a folder holds, if all folders in it are called as parts are, one of them is to train on, and
    each holds folders or says its labels in a table: a class may be called "train". Raises UsageError if there are
    images beside them."""
    given = parse_input_name(spec)
    is_folder = given.kind is InputKind.FOLDER or (given.kind is InputKind.SAVED and is_saved_dict(spec))
    if not is_folder or labels_table(spec):
        return None
    try:
        names = sorted(name for name in _folders(spec, given) if not name.startswith("."))
    except OSError:
        return None  # to open it says why
    parts = {name.casefold(): os.path.join(spec, name) for name in names}
    training = [parts[name] for name in TRAINING_FOLDERS if name in parts]
    validation = [parts[name] for name in VALIDATION_FOLDERS if name in parts]
    if len(training) != 1 or not validation or len(names) > 1 + len(validation):
        return None
    if not all(_holds_labels(part) for part in parts.values()):
        return None
    if _has_image(spec, given):
        raise UsageError(f"{spec} is split into {', '.join(names)}, and there are images beside them, in no part")
    return Split(training[0], validation[0], names)


def _holds_labels(part: str) -> bool:
    given = parse_input_name(part)
    if given.kind is not InputKind.FOLDER:
        return True  # a saved data set, or an MLTable
    return bool(_folders(part, given) or labels_table(part) or _has_label_metadata(part, None))


def _has_image(spec: str, given: InputName) -> bool:
    if not given.stored:
        return any(is_image_name(entry.name) and entry.is_file() for entry in os.scandir(spec))
    store, path = object_store.open_store(spec)
    found = store.list(path.rstrip("/") + "/", recursive=False)
    return any(not isinstance(file, str) and is_image_name(file.address) for file in found)


def _zips_of_images(spec: str) -> list[str]:
    """Those that are meant, if all hold images."""
    parts = parts_of(spec)
    is_zip = [parse_input_name(part).kind is InputKind.ZIP for part in parts]
    return parts if all(is_zip) and all(map(holds_images, parts)) else []


def _by_folder(spec: str, given: InputName, source: Source, zips: Collection[str]) -> LabelledSource:
    names, root = None, None
    layout = "the folder that an image lies in"
    if given.kind is InputKind.FOLDER and not zips:
        if split := find_split(spec):
            raise UsageError(
                f"{spec} is split into {', '.join(split.names)}, which are no classes; give one of them, as "
                f"{split.validation}"
            )
        root = spec
        folders = Counter(alike(clean(name)) for name in _folders(spec, given) if not name.startswith("."))
        for name in (name for name, count in folders.items() if count > 1):
            logger.warning("%s: %s folders whose names look the same are one class: %s", spec, folders[name], name)
        names = sorted(folders)
        if not names:
            raise UsageError(f"{spec} has no class folders and no {LABELS_FILE}: nothing says what its images show")
        layout = f"class folders, {_counted(names)}"
    examples = (_of_folder(reference, root, zips) for reference in source.references)
    return LabelledSource(examples, layout, False, names, source.total, source.passed_over)


def _of_folder(reference: Reference, root: str | None, zips: Collection[str]) -> Example:
    folder = os.path.dirname(str(reference.image))
    if folder in zips:
        name = ""
    elif root is None:
        name = os.path.basename(folder)
    else:
        name = os.path.relpath(folder, root).split(os.sep)[0]
    if name in ("", os.curdir):
        return _unlabelled(reference, RowError("it lies in no class folder"))
    return Example(reference, (alike(clean(name)),))


def _unlabelled(reference: Reference, error: RowError) -> Example:
    return Example(replace(reference, location=Failure.of(error)), ())


def _counted(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
    return f"{counted(len(names), 'class', 'classes')} ({shown})"


# --- by column ------------------------------------------------------------------------------------------------------


def labels_table(spec: str) -> str | None:
    """The path of the labels.csv that `spec` is, or that is in it."""
    path = os.path.join(spec, LABELS_FILE) if parse_input_name(spec).kind is InputKind.FOLDER else spec
    return (
        path if os.path.basename(path) == LABELS_FILE and (object_store.exists(path) or os.path.isfile(path)) else None
    )


def _has_label_metadata(spec: str, named: str | None) -> bool:
    metadata = find_metadata(spec)
    if metadata is None:
        return False
    return named in metadata.columns if named else not {*map(str.lower, metadata.columns)}.isdisjoint(LABEL_COLUMNS)


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
            f"no column is called {named!r}"
            if named
            else "no column looks like the label; name it with --label-column (if each class has a column of 0 and 1, "
            "write the names of an image's classes as a list into one)"
        )
        raise UsageError(f"{problem}. {columns_seen(columns)}")
    return chosen


Form: TypeAlias = str | tuple[str, ...] | RowError
"""A row's labels: one, several, or why they can't be read."""


def _by_column(spec: str, source: Source, *, separated: bool, again: bool) -> LabelledSource:
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
    examples: Iterator[Example] = (_example(reference, form, several) for reference, form in chain(start, rows))
    if not (several or names or again):
        examples = _saying_what_looks_like_several(examples, column, spec)
    return LabelledSource(examples, layout, several, names, source.total, source.passed_over)


def _saying_what_looks_like_several(examples: Iterator[Example], column: str, spec: str) -> Iterator[Example]:
    """At the end, of text that was taken for one label: where the others show that it may be several."""
    names: set[str] = set()
    for example in examples:
        if len(names) < _NAMES_REMEMBERED:
            names.update(example.labels)
        yield example
    several = 'several labels of an image are a list, as ["a", "b"], in one column'
    if names == {"0", "1"} and column.lower() not in LABEL_COLUMNS:
        logger.warning(
            "column %r of %s holds 0 and 1 alone, which are taken for two classes: if it says whether an image shows "
            "one, %s",
            *(column, spec, several),
        )
    if joined := joined_labels(names, plural=column.lower() in PLURALS):
        shown = ", ".join(map(repr, joined[:_SHOWN])) + (", …" if len(joined) > _SHOWN else "")
        logger.warning(
            "column %r of %s is taken for one label an image: %s, of which %s like several in one text (%s); %s",
            *(column, spec, counted(len(names), "class", "classes")),
            *(counted(len(joined), "looks", "look"), shown, several),
        )


PLURALS = ("labels", "classes", "tags")
"""Names of a column that say that it may hold several labels."""
_SEPARATORS = ("|", ";", ",", " ")
_NAMES_REMEMBERED = 10_000


def joined_labels(names: Collection[str], *, plural: bool) -> list[str]:
    """Of the labels of a data set, those that look like several others in one text: each part stands alone, too, or
    (of parts between spaces only if the column's name is a `plural`) is part of another label. Between spaces, a few
    are chance: of ImageNet's names "ski mask" is such a one."""
    for separator in _SEPARATORS:
        parts = {name: [part.strip() for part in name.split(separator)] for name in names}
        uses = Counter(part for of in parts.values() for part in {*of})
        within = plural or separator != " "
        joined = [
            name
            for name, of in parts.items()
            if len(of) > 1 and all(part in parts or (part and within and uses[part] > 1) for part in of)
        ]
        if len(joined) > (len(names) / 10 if separator == " " else 0):
            return sorted(joined)
    return []


def _form(reference: Reference, class_names: Mapping[str, Sequence[str]], separated: bool) -> Form:
    if not reference.keep:
        return RowError("no label")  # the row is malformed, as its location says
    ((column, value),) = reference.keep.items()
    try:
        if separated and column.lower() == "labels" and isinstance(value, str) and not _looks_like_list(value):
            value = value.split()
        return parse_labels(value, class_names.get(column, ()))
    except RowError as error:
        return error


def _example(reference: Reference, form: Form, several: bool) -> Example:
    bare = replace(reference, keep={})
    if isinstance(reference.location, Failure) and isinstance(form, RowError):
        return Example(bare, ())
    if isinstance(form, RowError):
        return _unlabelled(bare, form)
    if isinstance(form, str):
        return Example(bare, (form,))
    if not several and len(form) != 1:
        return _unlabelled(
            bare, RowError(f"{counted(len(form), 'label')}, where the first row has text for one: {form!r:.60}")
        )
    return Example(bare, form)


def parse_labels(value: object, class_names: Sequence[str] = ()) -> str | tuple[str, ...]:
    """The label that a field holds (text, a truth value, or the number of a class), or the labels (a list of those,
    also as text, without doubles). A number is looked up in `class_names` where there are any, and is its own name
    elsewhere. Raises RowError if it is missing or something else."""
    if isinstance(value, str) and _looks_like_list(value):
        value = _read_list(value)
    if not isinstance(value, list | tuple):
        return _label(value, class_names)
    if not class_names and _is_indicator_vector(value):
        raise RowError(f"the label is a vector of zeros and ones, {value!r:.60}; give the names of the classes")
    return tuple(dict.fromkeys(_label(item, class_names) for item in value))


LIST_OPENINGS = ("[", "('", '("', "{'", '{"')
"""How a list begins as text, or a tuple or set; a class may well be called "(none)"."""
LONGEST_LIST = 100_000  # characters


def _looks_like_list(text: str) -> bool:
    return text.lstrip().startswith(LIST_OPENINGS)


def _read_list(text: str) -> list[object]:
    """Of the text of a list: JSON, or what Python writes of a list or tuple (as pandas does into a CSV). Raises
    RowError for any other, as numpy's `['a' 'b']`, which Python would read as the one text "ab"."""
    if len(text) <= LONGEST_LIST:
        with suppress(ValueError, RecursionError):
            value = json.loads(text)
            if isinstance(value, list):
                return value
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what Python finds odd in it
            value = ast.literal_eval(text.strip())
            if isinstance(value, list | tuple) and _without_spaces(str(value)) == _without_spaces(text):
                return list(value)
    raise RowError(f"the label is no list that can be read: {text!r:.60}; write it as JSON")


def _without_spaces(text: str) -> str:
    return "".join(text.split())


def _is_indicator_vector(items: Sequence[object]) -> bool:
    """Whether they say of each class in turn if the image shows it, and are no numbers of classes, which would stand
    in order and once each. Of two classes, [0, 1] can't be told from the numbers of both."""
    flags = [str(item).removesuffix(".0").casefold() for item in items]
    return len(items) > 1 and {*flags} <= {"0", "1", "false", "true"} and flags != ["0", "1"]


def _label(value: object, class_names: Sequence[str]) -> str:
    if isinstance(value, bool):
        return str(value)  # as pandas writes it into a CSV
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # as a table writes whole numbers if some are missing
    if isinstance(value, int):
        if not class_names:
            return str(value)
        if 0 <= value < len(class_names):
            return alike(class_names[value])
        raise RowError(f"the label is {value}, but the classes are 0 to {len(class_names) - 1}")
    if isinstance(value, str) and value.strip():
        name = alike(clean(value.strip()))
        if name in MISSING and name not in class_names:
            raise RowError(f"the label is {name!r}, which stands for a missing one; a class needs another spelling")
        return name
    raise RowError("the label is empty" if value is None or isinstance(value, str) else f"the label is {value!r:.60}")
