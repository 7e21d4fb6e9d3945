"""What a run is asked for: the options of the command line and of Python, by the same names, and what each may be."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, BinaryIO, Literal, TypeAlias, TypedDict, get_args

from deit_batch.errors import UsageError
from deit_batch.input.elsewhere import find_here
from deit_batch.input.open import OpenTable, Shard, open_source
from deit_batch.io import FeatureName, Source
from deit_batch.limits import DEFAULT_LIMITS, Limits, require_number, require_whole_number
from deit_batch.model.architecture import FEATURES
from deit_batch.model.checkpoint import DEFAULT_MODEL
from deit_batch.model.config import Runtime
from deit_batch.names import what_is_meant


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to score with what; the command line's options of the same names, and their defaults. With `features`, those
    are what comes out, and not predictions."""

    input: str | tuple[str, ...]
    column: str | None = None
    keep: tuple[str, ...] = ()
    id: str | None = None
    recursive: bool = True
    limit: int | None = None
    map: tuple[tuple[str, str], ...] = ()
    base: str | None = None
    suffix: str | None = None
    delimiter: str | None = None
    shard: Shard | None = None
    model: str = DEFAULT_MODEL
    revision: str | None = None
    image_processor: str | None = None
    decode: Literal["exact", "fast"] = "exact"
    deep_gray: Literal["clip", "scale"] = "clip"
    allow_pickle: bool = False
    id2label: str | None = None
    runtime: Literal["auto", "native", "transformers", "onnx"] = "auto"
    device: str = "auto"
    dtype: str = "auto"
    top_k: int | None = 5
    threshold: float = 0.0
    features: tuple[FeatureName, ...] | None = None
    compile: bool = False
    batch_size: int | None = None
    workers: int | None = None
    limits: Limits = DEFAULT_LIMITS

    def __post_init__(self) -> None:
        """Raises UsageError for what the command line would refuse."""
        if not self._given_inputs:
            raise UsageError("no input is given")
        for spec in self._given_inputs:
            _require_name(spec)
        for name in ("column", "id", "model", "revision", "image_processor", "id2label", "device", "dtype"):
            self._require(name, str)
        for name in ("base", "suffix", "delimiter"):
            self._require(name, str)
            if getattr(self, name) == "":
                raise UsageError(f"{name} is empty; leave it out")
        for name in ("recursive", "allow_pickle", "compile"):
            self._require(name, bool)
        self._require("limits", Limits)
        for name, least, otherwise in _NUMBERS:
            if getattr(self, name) is not None:
                require_whole_number(name, getattr(self, name), least, otherwise)
        require_number("threshold", self.threshold, 0, 1)
        self._require("keep", tuple)
        for pair in self.map:
            self._check_map(pair)
        if self.decode not in ("exact", "fast"):
            raise UsageError(f"decode is {self.decode!r}; it must be exact or fast")
        if self.deep_gray not in ("clip", "scale"):
            raise UsageError(f"deep_gray is {self.deep_gray!r}; it must be clip or scale")
        if self.runtime not in ("auto", *get_args(Runtime)):
            raise UsageError(f"runtime is {self.runtime!r}; it must be one of auto, {', '.join(get_args(Runtime))}")
        if self.shard is not None:
            self._check_shard(self.shard)
        if self.features is not None:
            self._check_features(self.features)

    def _require(self, name: str, kind: type) -> None:
        value = getattr(self, name)
        if not isinstance(value, kind) and not (value is None and _DEFAULTS[name] is None):
            what = "the name of a file with the names, or 'imagenet'" if name == "id2label" else _KINDS[kind]
            raise UsageError(f"{name} is {value!r:.80}; it must be {what}")

    def _check_map(self, pair: object) -> None:
        match pair:
            case (str(prefix), str(place)) if prefix and place:
                return
        raise UsageError(f"map has {pair!r:.80}; it must be pairs of a prefix and a folder or address")

    def _check_shard(self, shard: object) -> None:
        match shard:
            case (int(number), int(of)) if 0 <= number < of and not isinstance(number, bool):
                return
        raise UsageError(f"shard is {shard!r}; it must be (i, n), two whole numbers, i from 0 to n - 1")

    def _check_features(self, names: tuple[FeatureName, ...]) -> None:
        if not names or not all(name in FEATURES for name in names) or len(set(names)) < len(names):
            raise UsageError(f"features are {names!r}; give some of {', '.join(FEATURES)}, each once")
        clash = [name for name in self.keep if name in (*names, "features")]
        if clash:
            raise UsageError(f"--keep {clash[0]}: the features have a column of that name already")

    @property
    def inputs(self) -> tuple[str, ...]:
        """One or several, which are scored one after another: where they are here."""
        return tuple(find_here(spec, self.map) for spec in self._given_inputs)

    @property
    def _given_inputs(self) -> tuple[str, ...]:
        return (self.input,) if isinstance(self.input, str) else self.input

    def open_source(self, stdin: BinaryIO | None = None, given: OpenTable | None = None) -> Source:
        """`given`: what a Python program has given, which is no file."""
        return open_source(
            given or self.inputs,
            column=self.column,
            keep=self.keep,
            id=self.id,
            recursive=self.recursive,
            limit=self.limit,
            shard=self.shard,
            stdin=stdin,
            map=self.map,
            base=self.base,
            suffix=self.suffix,
            delimiter=self.delimiter,
        )


def _require_name(spec: object) -> None:
    try:
        if isinstance(spec, str) and b"\0" not in os.fsencode(spec):
            return
    except UnicodeEncodeError:
        pass
    raise UsageError(f"input is {spec!r:.80}; it must be a path, or a sequence of paths")


_KINDS: dict[type, str] = {str: "text", bool: "True or False", tuple: "a sequence of names", Limits: "a Limits"}
_NUMBERS = (
    ("limit", 1, ", or None for all"),
    ("top_k", 1, ", or None for all"),
    ("batch_size", 1, ", or None"),
    ("workers", 0, ", or None"),
)
"""Options, the least that each may be, and what else."""
_DEFAULTS = {field.name: field.default for field in fields(Options)}


_LIMITS = frozenset(field.name for field in fields(Limits))


class InputOptions(TypedDict, total=False):
    """The options from Python that say what is read. (These classes are the one second list of `Options`: a test holds
    their names and types to that.)"""

    column: str | None
    keep: Sequence[str]
    id: str | None
    recursive: bool
    limit: int | None
    map: Mapping[str, str] | Sequence[tuple[str, str]]
    base: str | os.PathLike[str] | None
    suffix: str | None
    delimiter: str | None
    shard: Shard | None


class ModelOptions(TypedDict, total=False):
    """Those that say what it is scored with, beside the model's name."""

    revision: str | None
    image_processor: str | os.PathLike[str] | None
    decode: Literal["exact", "fast"]
    deep_gray: Literal["clip", "scale"]
    allow_pickle: bool
    id2label: str | os.PathLike[str] | None
    runtime: Literal["auto", "native", "transformers", "onnx"]
    device: str
    dtype: str
    compile: bool
    batch_size: int | None
    workers: int | None
    limits: Limits


class PredictionOptions(InputOptions, total=False):
    """What is read, and what of its scores comes out."""

    top_k: int | None
    threshold: float


class EmbedOptions(InputOptions, ModelOptions, total=False):
    """Those that both `score` and `embed` take."""

    model: str | os.PathLike[str]


class ScoreOptions(EmbedOptions, PredictionOptions, total=False):
    """Those that `score` takes."""


Input: TypeAlias = str | os.PathLike[str]


def options_of(
    function: str, input: str | tuple[str, ...], given: Mapping[str, Any], known: Iterable[str], **more: Any
) -> Options:
    """From what Python's `function` was called with. `known`: the options that it has. Raises UsageError, by name, for
    one that there is not and for a value that the command line would refuse."""
    for name in given:
        if name not in known:
            if "limits" in known and name in _LIMITS:
                raise UsageError(f"{function}() has no option {name}; it is one of limits=Limits({name}=…)")
            hint = what_is_meant(name, known) or f"; there are {', '.join(sorted(known))}"
            raise UsageError(f"{function}() has no option {name}{hint}")
    names = input[0] if isinstance(input, tuple) and len(input) == 1 else input
    paths = {name: os.fspath(value) for name, value in given.items() if isinstance(value, os.PathLike)}
    keep = {"keep": tuple(given["keep"])} if isinstance(given.get("keep"), list) else {}
    places = given.get("map", ())
    pairs = {"map": tuple(places.items() if isinstance(places, Mapping) else places)}
    return Options(input=names, **{**given, **paths, **keep, **pairs, **more})
