"""What is installed only on demand: an import that fails says which extra brings it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from deit_batch.errors import UsageError


@contextmanager
def needing(extra: str) -> Iterator[None]:
    """Raises UsageError for an import that fails in it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UsageError(f"this needs {error.name}: pip install 'deit-batch[{extra}]'") from error
    except ImportError as error:
        raise UsageError(f"too old for this: {error}; pip install --upgrade 'deit-batch[{extra}]'") from error
