"""The engine of a Ray cluster, as block_runner.py wants one."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from deit_batch.block_runner import Done, Found
from deit_batch.distributed.actor import CALLS, BlockActor, Scored, Started
from deit_batch.distributed.cluster import Share, Where, connected, machines, scores_on_gpus, share_out
from deit_batch.distributed.crew import Crew
from deit_batch.distributed.work import ConvertPart, ScoreBlock
from deit_batch.io import LocalFile, Reference
from deit_batch.options import Options
from deit_batch.output.formats import Columns
from deit_batch.output.part import Block, Part
from deit_batch.output.place import Place

logger = logging.getLogger("deit_batch")


class RayEngine:
    def __init__(self, options: Options, part_size: int, *, where: Where, verbose: bool) -> None:
        """Returns when the first actor has started. Raises DeitBatchError if there is no cluster, or none that can do
        what is asked for."""
        with ExitStack() as stack:
            stack.enter_context(connected(where.ray_address, verbose=verbose))
            on_gpus = scores_on_gpus(options.device, where)
            options_there = _for_other_machines(options, device=options.device if on_gpus else "cpu")

            def shares() -> list[Share]:
                each = [share_out(node, where, on_gpus=on_gpus) for node in machines()]
                return [share for place in range(max(map(len, each), default=0)) for share in _nth(each, place)]

            def enlist(share: Share, first: Started | None) -> Any:
                options = replace(options_there, revision=first.plan.settings["commit"]) if first else options_there
                actor = ray.remote(BlockActor).options(
                    num_cpus=share.cores,
                    num_gpus=share.gpus,
                    max_concurrency=CALLS,
                    scheduling_strategy=NodeAffinitySchedulingStrategy(share.node, soft=False),
                )
                return actor.remote(options, part_size, share.cores)

            self._crew = stack.enter_context(closing(Crew(shares, enlist, where.actors)))
            started = self._crew.start()
            self._close = stack.pop_all().close
        if on_gpus and started.device == "cpu":
            logger.warning("the cluster has GPUs, but PyTorch finds none there: the model runs on cores")
        self.plan = started.plan._replace(settings={**started.plan.settings, "model": options.model})
        self._folder = os.getcwd()

    def parts(
        self, blocks: Iterator[Block], partial: Place, found: Found, require_held: Callable[[], None]
    ) -> Generator[Done | None, None, None]:
        works = (ScoreBlock(self._absolute(block), partial) for block in blocks)
        scored: Scored | None
        for scored in self._crew.results(works):
            for warning in scored.warnings if scored else ():
                logger.warning("%s", warning)
            yield scored and scored.done

    def convert(
        self, parts: Iterable[Part], partial: Place, format: str, columns: Columns
    ) -> Generator[Part | None, None, None]:
        yield from self._crew.results(ConvertPart(part, partial, format, columns) for part in parts)

    def about(self) -> dict[str, Any]:
        most = self._crew.largest
        return {
            "machine": sorted(self._crew.machines),
            "actors": {
                "actors": len(most),
                "cores": sum(share.cores for share in most),
                "gpus": round(sum(share.gpus for share in most), 3),
                "lost": self._crew.lost,
            },
        }

    def state(self) -> dict[str, int]:
        return {"actors": self._crew.alive, "lost": self._crew.lost}

    def close(self) -> None:
        self._close()

    def _absolute(self, block: Block) -> Block:
        return replace(block, references=[_absolute(reference, self._folder) for reference in block.references])


def _nth(each: Sequence[Sequence[Share]], place: int) -> Iterator[Share]:
    """That of each machine that has so many."""
    return (shares[place] for shares in each if place < len(shares))


def _for_other_machines(options: Options, *, device: str) -> Options:
    """With paths that don't depend on the working folder."""
    return replace(
        options,
        model=_absolute_path(options.model),
        image_processor=options.image_processor and _absolute_path(options.image_processor),
        id2label=options.id2label and _absolute_path(options.id2label),
        device=device,
        limits=replace(options.limits, root=options.limits.root and _absolute_path(options.limits.root)),
    )


def _absolute_path(path: str) -> str:
    """If it is a path: a model and a recipe may also be names."""
    return os.path.abspath(path) if os.path.exists(path) else path


def _absolute(reference: Reference, folder: str) -> Reference:
    """Other machines have other working folders."""
    location = reference.location
    return replace(reference, location=location.seen_from(folder)) if isinstance(location, LocalFile) else reference
