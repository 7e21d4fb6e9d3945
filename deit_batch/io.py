"""What goes in and what comes out: references, records, and their form as JSON.

Every input kind becomes `Reference`s (input/open.py makes them), and every run gives `Record`s (output/file.py writes
them as JSONL, which output/formats.py converts at the end)."""

from __future__ import annotations

import base64
import html
import json
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict

from deit_batch.errors import ImageError
from deit_batch.escaping import escape_controls
from deit_batch.names import path_on_disk

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

NAME_FIELDS = ("image", "image_bytes", "image_sha256", "image_id")
"""The fields of a record that say which input it is of, beside its index (input/identity.py)."""

RECORD_FIELDS = ("index", *NAME_FIELDS, "predictions", "error")

MOST_LABELS_SHOWN = 5
"""Of a record, to people."""

LONGEST_MESSAGE = 1000
"""Characters of why an image can't be scored."""

_SURROGATES = re.compile("[\ud800-\udfff]")
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


@dataclass(frozen=True, slots=True)
class LocalFile:
    """`folder`: where a relative name was taken from, at the start of `path`; empty for any other."""

    path: str
    folder: str = field(default="", compare=False)

    def seen_from(self, working_folder: str) -> LocalFile:
        """The same file for a process that has another working folder."""
        start = os.path.join(working_folder, self.folder) if self.folder else ""
        return LocalFile(os.path.join(working_folder, self.path), start)


@dataclass(frozen=True, slots=True)
class Url:
    url: str


@dataclass(frozen=True, slots=True)
class StoredFile:
    """An object on a store, `s3://bucket/key`; its size in bytes and time of change (ns) where a listing has told."""

    address: str
    size: int | None = None
    modified_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Base64:
    """Base64 text, standard or URL-safe, with or without padding and line breaks."""

    text: str


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there is no prediction: the `error` of a failed record."""

    type: str
    message: str

    @classmethod
    def of(cls, error: ImageError) -> Failure:
        """Its message is cut where it is too long to be read: it may quote the 100 kB of a server's header."""
        message = str(error)
        if len(message) > LONGEST_MESSAGE:
            message = message[:LONGEST_MESSAGE] + "…"
        return cls(type(error).__name__, message)


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """An image that a Python program holds; and then what the model is to see of it, as loading.decode gives it."""

    pixels: Image.Image | NDArray[Any]


Location: TypeAlias = LocalFile | Url | StoredFile | Base64 | bytes | Picture | Failure
"""Where an image's bytes are; the bytes themselves; its pixels; or why that can't be told."""


class Prediction(TypedDict):
    label: str
    score: float


FeatureName: TypeAlias = Literal["cls", "distillation", "mean"]
"""What an encoder can say of an image: its [CLS] token, its distillation token, or the mean of its patches."""

Features: TypeAlias = "Mapping[FeatureName, NDArray[np.float32]]"
"""Each [width]."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request asks of its own predictions; None leaves it to the options of the run or server."""

    top_k: int | None = None
    threshold: float | None = None


@dataclass(frozen=True, slots=True)
class EarlierResult:
    """What an earlier run found in an image. `sha256`: of the bytes that it read; they stand if the bytes are still the
    same. None: they are known to be. `stamp`: of the file then (input/stamps.py)."""

    predictions: list[Prediction]
    sha256: str | None = None
    stamp: bytes | None = None


@dataclass(frozen=True, slots=True)
class Reference:
    """One input. `index` counts from 0; `image` is as the user gave it, but without secrets, None for inline data;
    `sha256` is the digest of inline data as given, None for others; `id` says which input it is where the two do not
    (input/identity.py); `wanted`: of its predictions, if its request asks for that."""

    index: int
    image: str | None
    location: Location
    keep: Mapping[str, object] = field(default_factory=dict)
    sha256: str | None = None
    id: str | None = None
    earlier: EarlierResult | None = None
    wanted: Wanted | None = None

    @property
    def kept(self) -> Mapping[str, object]:
        """What its record carries along: the columns that are kept, and what its request asks for."""
        if self.wanted is None:
            return self.keep
        given = {name: value for name, value in asdict(self.wanted).items() if value is not None}
        return {"params": given, **self.keep}

    @property
    def is_settled(self) -> bool:
        """Whether its predictions are known without a look at the image."""
        return self.earlier is not None and self.earlier.sha256 is None


Takes: TypeAlias = frozenset[str]
COLUMNS: Takes = frozenset(("--column", "--keep", "--id"))
"""Of rows whose fields have names."""
NAMES: Takes = frozenset(("--base", "--suffix"))
"""Of rows that name their images."""
DELIMITED: Takes = frozenset(("--delimiter",))


@dataclass(frozen=True, slots=True)
class Source:
    """An opened input. `total(n)` says how many references there are, n having been read: exactly, by a guess that
    gets better, or None. `passed_over` counts what was found and is no input, by the ending of its name or another
    reason (input/passed_over.py); it grows as references are taken. `class_names`: as in input.tables.Table.
    `whole()`: of a shard that has been read to its end, the digest of the whole input. `takes`: which of the options
    about tables mean anything for it; `is_open_file`: whether a file stays open until all is read."""

    references: Iterator[Reference]
    total: Callable[[int], int | None] = lambda read: None
    passed_over: Counter[str] = field(default_factory=Counter)
    class_names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    whole: Callable[[], str | None] = lambda: None
    takes: Takes = frozenset()
    is_open_file: bool = False


@dataclass(slots=True)
class Tally:
    """What has come out so far, of a run and of those that it continues. `failures` counts by error type."""

    scored: int = 0
    failures: Counter[str] = field(default_factory=Counter)

    @property
    def failed(self) -> int:
        return self.failures.total()

    @property
    def inputs(self) -> int:
        return self.scored + self.failed

    def count(self, record: Mapping[str, Any]) -> None:
        """One more record, as it is written."""
        self.count_error(record["error"]["type"] if "error" in record else None)

    def count_error(self, type: str | None) -> None:
        """One more record, with an error of this type or without one."""
        if type is None:
            self.scored += 1
        else:
            self.failures[type] += 1


def counted(number: int, one: str, many: str | None = None) -> str:
    """As in "1 image", "2,000 images", "0 images"; `many` where that is not `one` with an s."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def counts(counter: Mapping[str, int], *, most: int | None = None) -> str:
    """As in "3 FetchError, 1 DecodeError"; of more than `most` kinds, the most frequent, and "12 of other kinds"."""
    ranked = Counter(counter).most_common()
    shown, others = ranked[:most], sum(number for _, number in ranked[len(ranked[:most]) :])
    return ", ".join(
        [*(f"{number:,} {name}" for name, number in shown), *([f"{others:,} of other kinds"] if others else [])]
    )


@dataclass(frozen=True, slots=True)
class Record:
    """One result. Exactly one of `predictions` (best first) and `error` says something; where features were asked for,
    `features` stand for the predictions. They are None where they were not, and empty where it failed. `stamp` says
    what the file was when it was read (input/stamps.py); it is not written."""

    index: int
    image: str | None
    predictions: list[Prediction]
    error: Failure | None = None
    keep: Mapping[str, object] = field(default_factory=dict)
    sha256: str | None = None
    id: str | None = None
    features: Features | None = None
    stamp: bytes | None = None

    @classmethod
    def of(
        cls,
        reference: Reference,
        result: list[Prediction] | Features | Failure,
        *,
        embedded: bool = False,
        stamp: bytes | None = None,
    ) -> Record:
        error = result if isinstance(result, Failure) else None
        predictions = result if isinstance(result, list) else []
        features = (result if isinstance(result, Mapping) else {}) if embedded else None
        return cls(
            index=reference.index,
            image=reference.image,
            predictions=predictions,
            error=error,
            keep=reference.kept,
            sha256=reference.sha256,
            id=reference.id,
            features=features,
            stamp=stamp,
        )

    def __repr__(self) -> str:
        """One line for people, with the best labels alone."""
        image = "" if self.image is None else f" {self.image!r}"
        keep = f", keep={dict(self.keep)!r:.200}" if self.keep else ""
        return f"<Record {self.index}{image}: {escape_controls(self._in_short())}{keep}>"

    def _in_short(self) -> str:
        if self.error:
            return f"{self.error.type}: {self.error.message}"
        if self.features is not None:
            return ", ".join(f"{name} [{len(vector)}]" for name, vector in self.features.items())
        best = [f"{each['label']} {each['score']:.3f}" for each in self.predictions[:MOST_LABELS_SHOWN]]
        more = len(self.predictions) - len(best)
        return ", ".join([*best, *([f"{more:,} more"] if more else [])]) or "no label"

    def _repr_html_(self) -> str:
        """For a notebook."""
        name = f"{self.index} {self.image or ''}".strip()
        if self.error or self.features is not None or not self.predictions:
            rows = [[self._in_short()]]
        else:
            rows = [[each["label"], f"{each['score']:.3f}"] for each in self.predictions[:MOST_LABELS_SHOWN]]
        cells = ("".join(f"<td>{_html(cell)}</td>" for cell in row) for row in rows)
        return f"<table><caption>{_html(name)}</caption>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"

    def as_dict(self) -> dict[str, object]:
        """The record as it is written: JSON values only, every string valid Unicode."""
        values = name_fields(self)
        if self.features is None:
            values["predictions"] = [{"label": clean(p["label"]), "score": p["score"]} for p in self.predictions]
        else:
            values["features"] = {name: pack(vector) for name, vector in self.features.items()}
        if self.error:
            values["error"] = {"type": self.error.type, "message": clean(self.error.message)}
        values.update({clean(name): json_value(value) for name, value in self.keep.items()})
        return values

    def line(self) -> bytes:
        """`json_line(self.as_dict())`. Most records are strings and numbers alone, in an order that is known; and the
        JSON of a label is kept."""
        if self.keep or self.error or self.features is not None:
            return json_line(self.as_dict())
        pairs = [f'{{"label": {_label_json(p["label"])}, "score": {p["score"]!r}}}' for p in self.predictions]
        return f'{line_start(self)}, "predictions": [{", ".join(pairs)}]}}\n'.encode()


def _html(text: str) -> str:
    return html.escape(escape_controls(text))


@lru_cache(maxsize=2**16)
def _label_json(label: str) -> str:
    return _encode(clean(label))


def name_fields(item: Reference | Record) -> dict[str, object]:
    """The part of a record that says which input it is of: its index, and what `identity_of` needs.

    A file name need not be valid UTF-8, but JSON must be: such a name is written with replacement characters, and
    its exact bytes beside it in base64 as `image_bytes`. Inline data have no name; their digest stands for one.
    """
    values: dict[str, object] = {"index": item.index, "image": item.image and clean(item.image)}
    if item.image is not None and values["image"] != item.image:
        # Half a surrogate pair, out of a JSON escape, is no file name at all.
        with suppress(UnicodeEncodeError):
            values["image_bytes"] = base64.b64encode(os.fsencode(item.image)).decode()
    if item.sha256:
        values["image_sha256"] = item.sha256
    if item.id:
        values["image_id"] = item.id
    return values


def line_start(item: Reference | Record) -> str:
    """How the line of a record begins that is of this input: `name_fields`, without the brace behind them."""
    _, *names = name_fields(item).items()
    texts = [f', "{name}": {"null" if value is None else _encode(value)}' for name, value in names]
    return f'{{"index": {item.index}{"".join(texts)}'


def stamp(location: Location) -> tuple[int, int, int, int] | None:
    """Size, time of change, time of the name's change (ns) and number of a file: as long as they stay, so does what is
    in it. (The number tells apart files that were written within a tick of the clock.) None for what is no regular
    file, or can't be looked at."""
    if isinstance(location, StoredFile) and location.size is not None and location.modified_ns is not None:
        return location.size, location.modified_ns, location.modified_ns, 0
    if not isinstance(location, LocalFile):
        return None
    try:
        status = _status(location.path)
    except (OSError, ValueError):
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _status(path: str) -> os.stat_result:
    """Looks for names that look the same only where this one is not there: for most files that is one system call."""
    try:
        return os.stat(path)
    except FileNotFoundError:
        return os.stat(path_on_disk(path))


def clean(text: str) -> str:
    """The text with what can't be written as UTF-8 replaced by U+FFFD."""
    return text if text.isascii() else _SURROGATES.sub("\ufffd", text)


def unique_fields(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """For `object_pairs_hook` of what a user wrote. Raises ValueError where a name is there twice: Python would take
    the last one, and drop the other without a word."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        name = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"{json.dumps(name, ensure_ascii=False)} is there twice in one object")
    return fields


def json_value(value: object) -> object:
    """A kept value in JSON's types: null for NaN, infinity and what pandas has for nothing, lists for arrays and
    Series, bytes in base64, dates and the like as strings."""
    try:
        text = json.dumps(value, default=_plain, ensure_ascii=False)
        return json.loads(clean(text), parse_constant=lambda _: None)
    except RecursionError:
        return "(nested too deeply)"
    except TypeError:  # a key that JSON has none of
        return clean(str(value))


def _plain(value: object) -> object:
    """Of what `json` does not know. Duck-typed: a kept value may be of any library."""
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode()
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    if getattr(getattr(value, "dtype", None), "kind", "") in ("M", "m"):  # NumPy's dates: lists of them are numbers
        value = value.astype(str)  # type: ignore[attr-defined]
    as_list = getattr(value, "tolist", None) or getattr(value, "to_list", None)  # NumPy, pandas, PyTorch; polars
    listed = as_list() if as_list and not isinstance(value, type) else value
    return str(value) if type(listed) is type(value) else listed


def pack(vector: NDArray[np.float32]) -> str:
    """Base64 of its little-endian float32: exact, and half as long as the numbers in text."""
    return base64.b64encode(vector.astype("<f4", copy=False).tobytes()).decode()


def unpack(text: str) -> bytes:
    """The little-endian float32 that were packed."""
    return base64.b64decode(text)


def json_line(value: object) -> bytes:
    """One line of JSON that any reader takes: UTF-8, no NaN."""
    return _encode(value).encode() + b"\n"


def pretty(value: object) -> bytes:
    """A JSON document for people, too."""
    return json.dumps(value, indent=2).encode() + b"\n"
