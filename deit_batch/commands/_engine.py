"""Where a run takes place: the options that say so, and what they open."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import click

from deit_batch.commands._command import option
from deit_batch.commands._exit import is_verbose
from deit_batch.commands._types import AT_LEAST_ONE
from deit_batch.errors import UsageError
from deit_batch.output.formats import format_by_suffix
from deit_batch.output.part import PART_SIZE

if TYPE_CHECKING:
    from deit_batch.block_runner import Engine
    from deit_batch.options import Options

CLUSTER = (
    option(
        "--engine",
        default="local",
        show_default=True,
        type=click.Choice(["local", "ray"]),
        help="Where the run takes place: on this machine, or on a Ray cluster. With ray, --out is a folder of several "
        "files; needs the extra ray.",
    ),
    option(
        "--ray-address",
        metavar="HOST:PORT|auto|local",
        help="Address of the Ray cluster. [default: that of the variable RAY_ADDRESS, or a cluster on this machine, "
        "which is started if there is none]",
    ),
    option(
        "--actors",
        type=AT_LEAST_ONE,
        metavar="N",
        help="Most Ray actors that score images at a time. [default: as many as the Ray cluster has room for]",
    ),
    option(
        "--actor-cores",
        type=AT_LEAST_ONE,
        metavar="N",
        help="CPU cores of each Ray actor, if the model runs on CPUs. [default: all of each machine, in actors of at "
        "most 8]",
    ),
    option(
        "--actors-per-gpu",
        type=AT_LEAST_ONE,
        metavar="N",
        help="Ray actors that share each GPU. [default: 1]",
    ),
)


PART = option(
    "--part-size",
    type=AT_LEAST_ONE,
    metavar="N",
    help="Write a folder of several files, each of the records of N images. A run that was stopped goes on with the "
    f"files that are missing. [default: {PART_SIZE}, with --out DIR/]",
)


def cluster_from(chosen: dict[str, Any]) -> dict[str, Any]:
    """Takes the values of CLUSTER, but --engine, out of a command's."""
    return {name: chosen.pop(name) for name in ("ray_address", "actors", "actor_cores", "actors_per_gpu")}


def is_in_parts(out: str | None, part_size: int | None, engine: str) -> bool:
    """Whether the result is a folder of parts."""
    return engine == "ray" or part_size is not None or (out is not None and out.endswith(("/", os.sep)))


def require_folder(out: str, of: Literal["predictions", "features"]) -> None:
    """Raises UsageError if no folder of parts can be made of that name."""
    if out == "-" or (not out.endswith(("/", os.sep)) and format_by_suffix(out, of)):
        raise UsageError(f"--out {out}: a result in parts is a folder of several files; give --out DIR/")


def require_here(where: dict[str, Any]) -> None:
    """Raises UsageError if options of another engine were given: `where` are their values."""
    for name, value in where.items():
        if value is not None:
            raise UsageError(f"--{name.replace('_', '-')} is for --engine ray")


def choose_engine(engine: str, where: dict[str, Any]) -> Callable[[Options, int], Engine]:
    """What opens the engine for a run in parts. `where`: the values of CLUSTER, but the engine's."""
    if engine == "ray":
        from deit_batch.distributed.cluster import Where
        from deit_batch.distributed.engine import RayEngine

        return partial(RayEngine, where=Where(**where), verbose=is_verbose())
    require_here(where)
    from deit_batch.block_runner import LocalEngine

    return LocalEngine
