"""What a deployment scores with: the model that the service has mounted, and options from variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from click.core import ParameterSource

from deit_batch.commands._options import limits_from
from deit_batch.commands.score import score
from deit_batch.errors import UsageError
from deit_batch.options import Options

MODEL_DIR = "AZUREML_MODEL_DIR"
NOT_HERE = frozenset(("input", "limit", "recursive", "shard"))
BATCH_FORMATS = ("jsonl", "csv")

_KNOWN = {field.name for field in fields(Options)} - NOT_HERE


def deployed_options() -> Options:
    """The options of `deit-batch score`, under its variables (DEIT_BATCH_SCORE_TOP_K=3), with the mounted model.

    Raises click.UsageError for a value that the command would refuse, UsageError for
    an option that a deployment can't heed, for the service itself deals out the input and writes the output."""
    return _options(_chosen(frozenset()))


def batch_options() -> tuple[Options, str]:
    """The same of a batch deployment, and the format of its lines: one of BATCH_FORMATS, the first by default. Raises
    as `deployed_options`."""
    chosen = _chosen(frozenset(("format",)))
    format = chosen["format"] or BATCH_FORMATS[0]
    if format not in BATCH_FORMATS:
        raise UsageError(
            f"DEIT_BATCH_SCORE_FORMAT: a batch deployment gives {' or '.join(BATCH_FORMATS)}, not {format}"
        )
    return _options(chosen), format


def _chosen(heeded: frozenset[str]) -> dict[str, Any]:
    context = score.make_context("score", ["--input", "-"], auto_envvar_prefix="DEIT_BATCH_SCORE")
    chosen = dict(context.params)
    chosen["limits"] = limits_from(chosen)
    for name in sorted(chosen.keys() - _KNOWN - heeded - {"config"}):
        if context.get_parameter_source(name) == ParameterSource.ENVIRONMENT:
            raise UsageError(f"DEIT_BATCH_SCORE_{name.upper()}: a deployment can't heed this option; take it away")
    return chosen


def _options(chosen: Mapping[str, Any]) -> Options:
    options = {name: value for name, value in chosen.items() if name in _KNOWN} | {"input": "-"}
    if mounted := os.environ.get(MODEL_DIR):
        options["model"] = mounted
    return Options(**options)
