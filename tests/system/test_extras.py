"""What is installed only on demand."""

from __future__ import annotations

import pytest

from deit_batch.errors import UsageError
from deit_batch.system.extras import needing


def test_an_extra_that_is_not_there_is_named() -> None:
    told = r"^this needs no_such_module: pip install 'deit-batch\[train\]'$"
    with pytest.raises(UsageError, match=told), needing("train"):
        import no_such_module  # type: ignore[import-not-found]  # noqa: F401


def test_an_extra_that_is_too_old_is_to_be_upgraded() -> None:
    with pytest.raises(UsageError, match=r"^too old for this: .*; pip install --upgrade 'deit"), needing("train"):
        raise ImportError("the Trainer requires it>=1.1")
