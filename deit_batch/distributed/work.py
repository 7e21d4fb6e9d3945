"""What is handed out to actors, and what becomes of it when one has died of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

from deit_batch.distributed.actor import Scored
from deit_batch.errors import DeitBatchError
from deit_batch.output.formats import Columns
from deit_batch.output.part import Block, Part, part_name
from deit_batch.output.place import Place

MOST_DEATHS = 2
"""Of a block, or of an image that was alone: actors also die for reasons of their own."""


class Work(Protocol):
    @property
    def alone(self) -> bool:
        """Whether an actor may have nothing else at the same time."""

    def begin(self, actor: Any) -> Any:
        """Ray's reference to what comes of it."""

    def ended(self, result: Any) -> Work | None:
        """What is to be done next, if this was not all."""

    def died(self) -> Work:
        """What is to be done, the actor having died. Raises DeitBatchError if it is not to be done any more."""


@dataclass(frozen=True, slots=True)
class ScoreBlock:
    """`deadly`: places of images that are not looked at. `deaths`: of actors that had this block; `is_tried`: whether
    its images have been tried one by one since then."""

    block: Block
    partial: Place
    deadly: frozenset[int] = frozenset()
    deaths: int = 0
    is_tried: bool = False
    alone: bool = False

    def begin(self, actor: Any) -> Any:
        return actor.score.remote(self.block, self.deadly, self.partial)

    def ended(self, result: Scored) -> None:
        return None

    def died(self) -> Work:
        deaths = self.deaths + 1
        if deaths < MOST_DEATHS:
            return replace(self, deaths=deaths)
        if self.is_tried:
            raise DeitBatchError(
                f"{MOST_DEATHS} actors died of {part_name(self.block.number)}, but not of one of its images; if their "
                "machines are short of memory, run the same command again with fewer actors on each"
            )
        return TryImages(self)


@dataclass(frozen=True, slots=True)
class TryImages:
    """The images of a block, one after another: which one do actors die of? `place`: of the one that is tried."""

    work: ScoreBlock
    place: int = 0
    deaths: int = 0
    deadly: frozenset[int] = frozenset()
    alone: bool = True

    def begin(self, actor: Any) -> Any:
        return actor.try_image.remote(self.work.block.references[self.place])

    def ended(self, result: None) -> Work:
        place = self.place + 1
        if place == len(self.work.block.references):
            return replace(self.work, deadly=self.deadly, deaths=0, is_tried=True)
        return replace(self, place=place, deaths=0)

    def died(self) -> Work:
        deaths = self.deaths + 1
        if deaths < MOST_DEATHS:
            return replace(self, deaths=deaths)
        return replace(self, deadly=self.deadly | {self.place}).ended(None)


@dataclass(frozen=True, slots=True)
class ConvertPart:
    part: Part
    partial: Place
    format: str
    columns: Columns
    alone: bool = False

    def begin(self, actor: Any) -> Any:
        return actor.convert.remote(self.partial, self.part, self.format, self.columns)

    def ended(self, result: Part) -> None:
        return None

    def died(self) -> Work:
        return self
