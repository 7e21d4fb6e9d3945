"""What runs on the machines of the cluster: the input is read in one task, its blocks are decoded in others, and actors
score them and write their parts.

Fetching, decoding and scoring are those of the local engine: a decoding task runs its loader, with a worker that may
crash, and an actor its classifier.

A row of Ray Data is one block, pickled: what there is of it at that stage, or the End of the input.
"""

from __future__ import annotations

import os
import pickle
import platform
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import chdir, closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from numpy.typing import NDArray
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from deit_batch.errors import DeitBatchError, UsageError
from deit_batch.io import LocalFile, Reference
from deit_batch.limits import Limits
from deit_batch.loading import turbo
from deit_batch.loading.loader import Decoded, Loader
from deit_batch.loading.worker import Settled
from deit_batch.model.recipe import Recipe
from deit_batch.output.parts import NOTHING_YET, Block, Part, split_into_blocks, write_part
from deit_batch.output.place import Place
from deit_batch.plan import Options, Plan
from deit_batch.predictions import score_batch
from deit_batch.system import machine
from deit_batch.system.progress import Stopwatch


class End(NamedTuple):
    """The last row: the digest of all references, as Block.after; what was found out about the input on the way; and
    why it could not be read further."""

    digest: str
    passed_over: Counter[str]
    error: DeitBatchError | None


class Pixels(NamedTuple):
    """A block and what loader.Decoded says of it."""

    block: Block
    pixels: NDArray[Any]
    settled: dict[int, Settled]
    stamps: Sequence[bytes]
    seconds: dict[str, float]
    deep_gray: int


class Done(NamedTuple):
    """A part that was written, on which machine, the seconds that each stage took, and how many of its images are of
    deep grey."""

    part: Part
    machine: str
    seconds: dict[str, float]
    deep_gray: int


def packed(row: object) -> pa.Table:
    return pa.table({"row": pa.array([pickle.dumps(row, protocol=5)], pa.large_binary())})


def unpacked(table: pa.Table) -> Iterator[Any]:
    for value in table["row"]:
        yield pickle.loads(value.as_buffer())  # noqa: S301 - our own, of a moment ago


# --- reading ---------------------------------------------------------------------------------------------------------


class Input(Datasource):
    """The input as one read task, run on the driver's machine and in its working folder, `folder`. `skip`: the numbers
    of the blocks whose parts are there."""

    supports_distributed_reads = False

    def __init__(self, options: Options, part_size: int, skip: frozenset[int], folder: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._read = partial(read, options, part_size, skip, folder)

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism: int, *args: object, **more: object) -> list[ReadTask]:
        nothing_known = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(self._read, nothing_known)]


def read(options: Options, part_size: int, skip: frozenset[int], folder: str) -> Iterator[pa.Table]:
    """Rows of Block, and an End. Should the process die, Ray runs it again from the start, for the same blocks.

    The last block before an error is not whole, and left to the run that comes after it."""
    with chdir(folder):
        source = options.open_source()
        error, digest = None, NOTHING_YET
        try:
            for block in split_into_blocks(source.references, part_size):
                digest = block.after
                if block.number not in skip:
                    yield packed(replace(block, references=[_absolute(each, folder) for each in block.references]))
        except DeitBatchError as caught:
            error = caught
        yield packed(End(digest, source.passed_over, error))


def _absolute(reference: Reference, folder: str) -> Reference:
    """Other machines have other working folders."""
    location = reference.location
    if not isinstance(location, LocalFile):
        return reference
    start = os.path.join(folder, location.folder) if location.folder else ""
    return replace(reference, location=LocalFile(os.path.join(folder, location.path), start))


# --- decoding --------------------------------------------------------------------------------------------------------


def decode(table: pa.Table, recipe: Recipe, limits: Limits) -> pa.Table:
    """Block to Pixels."""
    (row,) = unpacked(table)
    if isinstance(row, End):
        return table
    stopwatch = Stopwatch()
    with (
        stopwatch("decode"),
        closing(Loader(recipe, limits, workers=1, pin_memory=False)) as loader,
    ):
        ((_, decoded),) = loader.stream([row.references])
    return packed(
        Pixels(row, decoded.pixels.numpy(), decoded.settled, decoded.stamps, stopwatch.seconds, decoded.deep_gray)
    )


# --- scoring ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Planned:
    """What the driver knows of a plan, which is made where there is what an actor has."""

    settings: dict[str, Any]
    recipe: Recipe
    architecture: str
    versions: dict[str, str]
    jpeg_decoder: str


def planned(options: Options) -> Planned:
    plan = Plan.of(options)
    return Planned(
        settings=plan.settings(options),
        recipe=plan.recipe,
        architecture=plan.checkpoint.architecture,
        versions=plan.versions(),
        jpeg_decoder=turbo.decoder(),
    )


class Scorer:
    """An actor. Two blocks are in it at a time: while the model computes one, the records of the other are made and
    written."""

    def __init__(self, options: Options, settings: dict[str, Any], cores: int, partial: Place) -> None:
        """Raises UsageError if results would not be those of the other actors."""
        plan = Plan.of(options)
        mine = plan.settings(options)
        differing = [name for name in settings if mine[name] != settings[name]]
        if differing:
            raise UsageError(
                f"{platform.node()} is not like the other machines: {', '.join(differing)} differ. They need the same "
                "checkpoint and versions, and cards of one size, or --batch-size"
            )
        self._options, self._partial, self._labels = options, partial, plan.checkpoint.labels
        self._classifier = plan.load(cores or None)
        self._turn = threading.Lock()

    def __call__(self, table: pa.Table) -> pa.Table:
        """Pixels to Done."""
        (row,) = unpacked(table)
        if isinstance(row, End):
            return table
        stopwatch = Stopwatch(seconds=row.seconds)
        with stopwatch("score"):
            with self._turn:
                result = self._classifier.submit(torch.from_numpy(row.pixels))
            scores = result()
        with stopwatch("write"):
            decoded = Decoded(torch.empty(0), row.settled, {}, row.stamps)
            records = score_batch(row.block.references, decoded, scores, self._labels, self._options)
            part = write_part(self._partial, row.block, records)
        return packed(Done(part, f"{platform.node()}: {machine.describe()}", stopwatch.seconds, row.deep_gray))
