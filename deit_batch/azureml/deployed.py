"""What a deployment scores with: the model that the service has mounted, and options from variables."""

from __future__ import annotations

import os
from dataclasses import fields

from click.core import ParameterSource

from deit_batch.commands._options import limits_from
from deit_batch.commands.score import score
from deit_batch.errors import UsageError
from deit_batch.plan import Options

MODEL_DIR = "AZUREML_MODEL_DIR"
NOT_HERE = frozenset(("input", "limit", "recursive", "shard"))


def deployed_options() -> Options:
    """The options of `deit-batch score`, under its variables (DEIT_BATCH_SCORE_TOP_K=3), with the mounted model.

    Raises click.UsageError for a value that the command would refuse, UsageError for
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
        options["model"] = mounted
    return Options(**options)
