"""The kinds of values that options take, beside Click's own."""

from __future__ import annotations

import math
import os
import re
import shlex
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from deit_batch.errors import UsageError
from deit_batch.input.elsewhere import parse_map
from deit_batch.output.threshold import ErrorThreshold
from deit_batch.system import object_store


class Number(click.FloatRange):
    """A finite one. NaN would be in every range, for it is neither below nor above it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            float(value)
        except ValueError:
            self.fail(f"{str(value)!r} is not a number {_bounds(self)}", param, ctx)
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number


class WholeNumber(click.IntRange):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            int(value)
        except ValueError:
            self.fail(f"{str(value)!r} is not a whole number {_bounds(self)}", param, ctx)
        return int(super().convert(value, param, ctx))


def _bounds(range: click.FloatRange | click.IntRange) -> str:
    """As in "from 0 to 1", "from 1 up", "above 0", "above 0 and below 1"."""
    lower = f"{'above' if range.min_open else 'from'} {range.min:g}"
    if range.max is None:
        return lower if range.min_open else f"{lower} up"
    return f"{lower} {'and below' if range.max_open else 'up to' if range.min_open else 'to'} {range.max:g}"


AT_LEAST_ONE = WholeNumber(min=1)
SECONDS = Number(min=0, min_open=True, max=86_400)
SHARE = Number(0, 1)


class Duration(click.ParamType[float]):
    """In seconds."""

    name = "TIME"
    _UNITS = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", re.ASCII)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        match = self._UNITS.fullmatch(str(value))
        numbers = [min(float(number or 0), 1e6) for number in match.groups()] if match else []
        seconds = sum(number * unit for number, unit in zip(numbers, (86_400, 3_600, 60, 1), strict=False))
        return seconds or self.fail(f"{value!r} is no length of time such as 6h, 90m or 1h30m", param, ctx)


class TopK(click.ParamType[int | None]):
    name = "N|all"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        if value is None or value == "all":
            return None
        try:
            number = int(str(value))
        except ValueError:
            number = 0
        if number < 1:
            self.fail(f"{value!r} is neither a number from 1 up nor 'all'", param, ctx)
        return number


class ShardType(click.ParamType[tuple[int, int]]):
    name = "I/N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        number, slash, of = str(value).partition("/")
        if not (slash and number.isdecimal() and of.isdecimal() and int(number) < int(of)):
            self.fail(f"{value!r} is not I/N with I from 0 to N-1", param, ctx)
        return int(number), int(of)


class Place(click.ParamType[str]):
    """A path, or what is as good: a URL, a name on the Hub, a key of a store. Shells complete paths. A variable holds
    one, blanks and all."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return str(value)

    def split_envvar_value(self, rv: str) -> list[str]:
        return [rv]

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(incomplete, type="file")]


PLACE = Place()


class PredictionsFile(click.Path):
    def __init__(self) -> None:
        super().__init__(path_type=Path, exists=True, dir_okay=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if os.path.isfile(os.path.join(value, "manifest.json")):
            merge = f"deit-batch merge {shlex.quote(str(value))} --out FILE"
            self.fail(f"{value} is a result in parts; '{merge}' makes one file of it", param, ctx)
        return super().convert(value, param, ctx)


PREDICTIONS_FILE = PredictionsFile()


class PlaceOfPrefix(click.ParamType[tuple[str, str]]):
    """A variable holds one: a path may have blanks."""

    name = "PREFIX=PLACE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        try:
            return parse_map(str(value))
        except UsageError as error:
            return self.fail(str(error), param, ctx)

    def split_envvar_value(self, rv: str) -> list[str]:
        return [rv]


class Root(Place):
    name = "DIR"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if object_store.is_stored(str(value)):
            return str(value)
        return str(click.Path(exists=True, file_okay=False).convert(str(value), param, ctx))


class Threshold(click.ParamType[ErrorThreshold]):
    name = "N|N%"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> ErrorThreshold:
        if isinstance(value, ErrorThreshold):
            return value
        try:
            return ErrorThreshold.parse(str(value))
        except ValueError:
            return self.fail(f"{str(value)!r} is neither a number of images nor a percentage", param, ctx)
