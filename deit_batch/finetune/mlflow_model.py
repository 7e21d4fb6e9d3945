"""A checkpoint as an MLflow model, of the transformers flavour: for MLflow's registry and `mlflow models serve`."""

from __future__ import annotations

import logging
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import transformers

from deit_batch.system.extras import needing

NAME = "(deit-batch finetune)"
"""Of the model in its file: no path of this machine, and no name for which MLflow would ask the Hub for a card."""


def load_flavour() -> Any:
    """mlflow.transformers. Raises UsageError if it is not installed."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read as it is imported
    with needing("mlflow"):
        import mlflow.transformers
    logging.getLogger("mlflow").setLevel(logging.ERROR)  # it warns that there is no card on the Hub
    return mlflow.transformers


def save(flavour: Any, checkpoint: Path, folder: Path) -> None:
    """Writes `folder`, from the finished `checkpoint`. It takes paths, URLs and base64, as MLflow's own do."""
    pipeline = transformers.pipeline("image-classification", model=str(checkpoint), device=-1)
    pipeline.model.name_or_path = NAME
    needed = [f"{name}=={_version(name)}" for name in ("transformers", "torch", "pillow")]
    flavour.save_model(pipeline, path=str(folder), task="image-classification", pip_requirements=needed)


def _version(name: str) -> str:
    return version(name).partition("+")[0]  # "+cpu" is known to no package index
