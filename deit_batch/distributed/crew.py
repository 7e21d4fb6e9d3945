"""The actors of a run: one for each share of each machine of the cluster, also of machines that join later. Work is
handed out to whoever has the least, no more at a time than an actor can use, and what a dead one had is handed out
again; where it died without its machine, another takes its place."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayError

from deit_batch.distributed.actor import Started
from deit_batch.distributed.cluster import Share, as_ours, machines, plainly
from deit_batch.distributed.work import Work
from deit_batch.errors import DeitBatchError, UsageError
from deit_batch.io import counted

logger = logging.getLogger("deit_batch")

TICK = 0.5
"""Seconds between two looks at the cluster."""
PATIENCE = 300.0
"""Seconds without any actor, after which it is given up."""
SECONDS_BETWEEN_LINES = 30.0
MOST_DEATHS = 10
"""Of actors in a row, with nothing done between them."""


@dataclass(slots=True, eq=False)
class Member:
    """An actor, and what it has to do. `is_late`: whether its machine has joined the cluster since the run began."""

    share: Share
    actor: Any
    starting: Any
    is_late: bool
    started: Started | None = None
    works: dict[Any, Work] = field(default_factory=dict)

    @property
    def awaited(self) -> list[Any]:
        """Ray's references."""
        return list(self.works) if self.started else [self.starting]

    def has_room_for(self, work: Work) -> bool:
        if self.started is None or any(other.alone for other in self.works.values()):
            return False
        return not self.works if work.alone else len(self.works) < self.started.ahead


class Crew:
    def __init__(
        self, shares: Callable[[], Sequence[Share]], enlist: Callable[[Share, Started | None], Any], most: int | None
    ) -> None:
        """`shares()`: all that there are now; `enlist(share, first)`: makes an actor, like the first one that started,
        if there is one; `most`: actors at a time."""
        self._shares, self._enlist, self._most = shares, enlist, most
        self._members: list[Member] = []
        self._again: deque[Work] = deque()
        self._refused: set[str] = set()
        self._at_first: set[str] | None = None
        self._deaths = 0
        self._looked = 0.0
        self._last_alive = self._last_line = time.monotonic()
        self.first: Started | None = None
        self.lost = 0
        self.largest: list[Share] = []
        self.machines: set[str] = set()

    @property
    def alive(self) -> int:
        return sum(1 for member in self._members if member.started)

    def start(self) -> Started:
        """Returns when the first actor has started."""
        with plainly():
            while self.first is None:
                for _ in self._step():
                    pass
        return self.first

    def results(self, works: Iterator[Work]) -> Iterator[Any]:
        """What comes of each work, in any order; None now and then, while there is nothing."""
        upcoming: Work | None = None
        with plainly():
            while True:
                upcoming = self._hand_out(upcoming, works)
                if upcoming is None and not self._again and not any(member.works for member in self._members):
                    return
                yield from self._step()
                yield None

    def close(self) -> None:
        for member in self._members:
            _end(member)
        self._members.clear()

    # --- handing out ------------------------------------------------------------------------------------------------

    def _hand_out(self, upcoming: Work | None, works: Iterator[Work]) -> Work | None:
        """Returns the work that there is no room for yet; it is the only one that was taken and not handed out."""
        for _ in range(len(self._again)):
            work = self._again.popleft()
            if not self._hand(work):
                self._again.append(work)
        while not self._again or all(work.alone for work in self._again):
            upcoming = upcoming or next(works, None)
            if upcoming is None or not self._hand(upcoming):
                break
            upcoming = None
        return upcoming

    def _hand(self, work: Work) -> bool:
        free = [member for member in self._members if member.has_room_for(work)]
        if not free:
            return False
        member = min(free, key=lambda each: len(each.works))
        member.works[work.begin(member.actor)] = work
        return True

    # --- what comes back --------------------------------------------------------------------------------------------

    def _step(self) -> Iterator[Any]:
        """Looks after the cluster, and waits for a result for some time."""
        if time.monotonic() - self._looked >= TICK:
            self._look_around()
        references = [reference for member in self._members for reference in member.awaited]
        if not references:
            time.sleep(TICK)
            return
        ready, _ = ray.wait(references, num_returns=len(references), timeout=0)
        if not ready:
            ready, _ = ray.wait(references, timeout=TICK)
        for reference in ready:
            member = next((one for one in self._members if reference in one.awaited), None)
            if member is None:  # it has died meanwhile
                continue
            try:
                result = ray.get(reference)
            except RayActorError as error:
                self._lose(member, error)
            except RayError as error:
                if reference in member.works or not member.is_late:
                    raise
                self._refuse(member, str(as_ours(error)))
            else:
                yield from self._take(member, reference, result)

    def _take(self, member: Member, reference: Any, result: Any) -> Iterator[Any]:
        if reference not in member.works:
            self._welcome(member, result)
            return
        self._deaths = 0
        after = member.works.pop(reference).ended(result)
        if after:
            self._again.appendleft(after)
        else:
            yield result

    def _welcome(self, member: Member, started: Started) -> None:
        """Raises UsageError if results would not be those of the other actors."""
        first = self.first = self.first or started
        mine, theirs = started.plan.settings, first.plan.settings
        differing = [name for name in theirs if mine[name] != theirs[name]]
        if differing:
            message = (
                f"{member.share.machine} is not like the other machines: {', '.join(differing)} differ. They need the "
                "same checkpoint and versions, and cards of one kind"
            )
            if not member.is_late:
                raise UsageError(message)
            self._refuse(member, message)
            return
        member.started = started
        self.machines.add(started.machine)
        now = [each.share for each in self._members if each.started]
        self.largest = max(self.largest, now, key=len)
        for warning in started.warnings if first is started else ():
            logger.warning("%s", warning)

    def _refuse(self, member: Member, why: str) -> None:
        """One that has come late ends no run."""
        logger.warning("%s is left out: %s", member.share.machine, why)
        self._refused.add(member.share.node)
        self._members.remove(member)
        _end(member)

    def _lose(self, member: Member, error: RayActorError) -> None:
        self._members.remove(member)
        _end(member)
        went_with_its_machine = member.share.node not in {node["NodeID"] for node in machines()}
        self.lost += 1
        self._deaths += not went_with_its_machine
        why = "its machine is gone" if went_with_its_machine else _reason(error)
        logger.warning(
            "an actor on %s was lost (%s); %s handed out again",
            member.share.machine,
            why,
            counted(len(member.works), "block is", "blocks are"),
        )
        if self._deaths > MOST_DEATHS:
            raise DeitBatchError(
                f"actors died {self._deaths} times in a row, the last one on {member.share.machine} ({why}); run the "
                "same command again to continue, with --verbose to see more"
            )
        self._again.extend(work if went_with_its_machine else work.died() for work in member.works.values())

    # --- who is there -----------------------------------------------------------------------------------------------

    def _look_around(self) -> None:
        """An actor for each share of a machine that has none, within the number that there may be."""
        now = self._looked = time.monotonic()
        shares = self._shares()
        if self._at_first is None:
            self._at_first = {share.node for share in shares}
        free = list(shares)
        for member in self._members:
            with suppress(ValueError):  # its machine is gone
                free.remove(member.share)
        for share in free:
            if share.node not in self._refused and (self._most is None or len(self._members) < self._most):
                actor = self._enlist(share, self.first)
                self._members.append(Member(share, actor, actor.start.remote(), share.node not in self._at_first))
        if self.alive:
            self._last_alive = now
        elif now - self._last_alive > PATIENCE:
            raise DeitBatchError(
                f"the cluster gave up: for {PATIENCE:.0f} s no machine has had room for an actor; run the same command "
                "again to continue"
            )
        elif now - max(self._last_alive, self._last_line) > SECONDS_BETWEEN_LINES:
            self._last_line = now
            logger.warning("no actor is running: waiting for a machine of the cluster that has room for one")


def _end(member: Member) -> None:
    with suppress(Exception):  # it may be dead
        ray.kill(member.actor)


def _reason(error: RayActorError) -> str:
    """Ray tells it at length."""
    text = str(error)
    if "unexpectedly exits" in text:
        return "it crashed or was killed, which the system does where memory is short"
    if isinstance(error, ActorUnavailableError):
        return "it can't be reached"
    return text.strip().splitlines()[0]
