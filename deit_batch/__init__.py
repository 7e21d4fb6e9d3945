"""Batch image classification with DeiT.

from deit_batch import score

for record in score("imgs/", model="demo"):
    print(record.image, record.predictions[:1])
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deit_batch.errors import DeitBatchError
from deit_batch.io import Prediction, Record
from deit_batch.limits import Limits

__version__ = "0.1.0"
__all__ = [
    "DeitBatchError",
    "Limits",
    "Model",
    "Prediction",
    "Record",
    "Records",
    "__version__",
    "embed",
    "load",
    "score",
]

if TYPE_CHECKING:
    from deit_batch.api import Model, Records, embed, load, score


def __getattr__(name: str) -> object:
    # Imported when first used: `deit-batch --help` must not wait for it.
    if name in ("Model", "Records", "embed", "load", "score"):
        from deit_batch import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
