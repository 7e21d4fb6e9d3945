"""What a deployment scores with: the model that the service has mounted, and options from variables."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path

from click.core import ParameterSource

from deit_batch.commands._options import limits_from
from deit_batch.commands.score import score
from deit_batch.errors import CheckpointError, UsageError
from deit_batch.plan import Options

MODEL_DIR = "AZUREML_MODEL_DIR"
NOT_HERE = frozenset(("input", "limit", "recursive", "shard"))
CONFIG, RECIPE = "config.json", "preprocessor_config.json"


def deployed_options() -> Options:
    """The options of `deit-batch score`, under its variables (DEIT_BATCH_SCORE_TOP_K=3), with the mounted model.

    Raises CheckpointError if there is none, click.UsageError for a value that the command would refuse, UsageError for
    an option that a deployment can't heed, for the service itself deals out the input and writes the output."""
    context = score.make_context("score", ["--input", "-"], auto_envvar_prefix="DEIT_BATCH_SCORE")
    chosen = dict(context.params)
    chosen["limits"] = limits_from(chosen)
    known = {field.name for field in fields(Options)} - NOT_HERE
    for name in sorted(chosen.keys() - known - {"config"}):
        if context.get_parameter_source(name) == ParameterSource.ENVIRONMENT:
            raise UsageError(f"DEIT_BATCH_SCORE_{name.upper()}: a deployment can't heed this option; take it away")
    options = {name: value for name, value in chosen.items() if name in known} | {"input": "-"}
    if mounted := os.environ.get(MODEL_DIR):
        folder = _checkpoint_folder(Path(mounted))
        options["model"] = str(folder)
        options["image_processor"] = options["image_processor"] or _image_processor(folder)
    return Options(**options)


def _checkpoint_folder(mounted: Path) -> Path:
    """The folder itself, or the one in it: a model is registered with or without the folder's name, or as MLflow's."""
    found = sorted({path.parent for path in mounted.rglob(CONFIG)}, key=lambda folder: len(folder.parts))
    if not found:
        raise CheckpointError(f"{mounted} ({MODEL_DIR}) holds no checkpoint: there is no {CONFIG} in it")
    if len(found) > 1 and len(found[0].parts) == len(found[1].parts):
        raise CheckpointError(
            f"{mounted} ({MODEL_DIR}) holds several checkpoints, {found[0]} and {found[1]} among them"
        )
    return found[0]


def _image_processor(checkpoint: Path) -> str | None:
    """An MLflow model has it in a folder of its own."""
    beside = checkpoint.parent / "components" / "image_processor" / RECIPE
    return str(beside) if not (checkpoint / RECIPE).exists() and beside.exists() else None
