"""What is installed only on demand: whether it is, and which extra brings what an import does not find."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec

from deit_batch.errors import UsageError


@cache
def is_installed(module: str) -> bool:
    return find_spec(module) is not None


def how_to_install(extra: str, *, upgrade: bool = False) -> str:
    """The command, as it works where the package is on no index."""
    return f"pip install {'--upgrade ' if upgrade else ''}'.[{extra}]' in a clone of deit-batch"


@contextmanager
def needing(extra: str) -> Iterator[None]:
    """Raises UsageError for an import that fails in it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UsageError(f"this needs {error.name}: {how_to_install(extra)}") from error
    except ImportError as error:
        raise UsageError(f"too old for this: {error}; {how_to_install(extra, upgrade=True)}") from error
