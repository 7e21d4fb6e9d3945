"""Messages that name options, from the command line's words to Python's: `--allow-pickle` is `allow_pickle=True`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from deit_batch.errors import DeitBatchError
from deit_batch.limits import Limits
from deit_batch.options import Options

_OPTION = re.compile(r"--([a-z][a-z0-9-]*)( (?!(?:is|are|can|has|and|or|permits)\b)(?=[\w./~]))?")
"""With the white space before its value, if one follows."""


@contextmanager
def in_python_words() -> Iterator[None]:
    """What is raised within speaks of Python's arguments. It decorates functions, too."""
    try:
        yield
    except DeitBatchError as error:
        error.args = (as_python(str(error)), *error.args[1:])
        raise


def as_python(message: str) -> str:
    """An option that Python has not, as --fresh, stays as it is."""
    return _OPTION.sub(_as_argument, message)


def _as_argument(match: re.Match[str]) -> str:
    name, space = match[1].replace("-", "_"), match[2] or ""
    if name in _OPTIONS:
        return f"{name}=True{space}" if isinstance(_OPTIONS[name], bool) else f"{name}="
    if name in _LIMITS:
        return f"Limits({name}={_LIMITS[name] is False or '…'}){space}"
    return match[0]


def _defaults_of(kind: Any) -> dict[str, object]:
    return {field.name: field.default for field in fields(kind)}


_OPTIONS, _LIMITS = _defaults_of(Options), _defaults_of(Limits)
