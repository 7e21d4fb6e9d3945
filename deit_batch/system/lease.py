"""One run at a time on a result on a store. A store has no locks: each run leaves a sign of life beside the result, and
renews it as long as it lives.

    DIR.lock/<a name of its own>     says who it is, in words, and in a second line as process.identify_process; a third
                                     says of one that it still waits

Whoever leaves one looks for others after that. A listing shows what was put before it began, so of two runs at least
the later one sees the other, and never do both go on. Of those that wait for each other the first by name stays, so
that one does. Another is dead if it was a process of this machine that has ended, and otherwise if it has missed
several renewals. All times that are compared are those at which the store took the signs: what the clocks of the
machines say does not matter.

Who is taken for dead though it lives finds that out at its next renewal, at the latest when it asks before it
publishes: it ends, and has changed nothing that counts.
"""

from __future__ import annotations

import logging
import os
import random
import re
import sys
import threading
import time
import uuid
from contextlib import suppress

from deit_batch.errors import OutputError, UsageError
from deit_batch.io import StoredFile
from deit_batch.system.lock import held_by
from deit_batch.system.logs import warn_even_if_quiet
from deit_batch.system.object_store import NoSuchObjectError, Store, StoreError
from deit_batch.system.process import describe_this_process, has_ended, identify_process

logger = logging.getLogger("deit_batch")

RENEWED = 5.0
"""Seconds from one sign of life to the next."""
DEAD = 20.0
"""Seconds without one after which a run on another machine is taken for dead: three renewals that did not come, and a
fourth that is due. A renewal is tried again for longer than that where the store is busy, but seldom needs it."""
_WAITS = "waits"
_SIGN = re.compile("[0-9a-f]{32}")


class Lease:
    """Held by this process until it is released, or has given no sign of life for so long that another may have taken
    over. `require` and `ask` find that out."""

    def __init__(self, store: Store, folder: str, what: str) -> None:
        """Waits until it is known whether another run lives. Raises OutputError, saying who it is, if one does,
        StoreError if nothing can be written there. `folder`: the path of that of the signs, with a slash at its end."""
        self._store, self._folder, self._what = store, folder, what
        self._mine = f"{folder}{uuid.uuid4().hex}"
        self._over = threading.Event()
        self._is_lost = self._is_held = False
        self._renewed = self._put()
        try:
            self._wait_for_others()
        except BaseException:
            with suppress(StoreError):  # then it is taken for dead before long
                self._store.remove(self._mine)
            raise
        self._is_held = True
        self._keeper = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._keeper.start()

    # --- taking it --------------------------------------------------------------------------------------------------

    def _wait_for_others(self) -> None:
        seen: dict[str, int] = {}
        told: set[str] = set()
        while others := self._others():
            for path, (taken, age) in others.items():
                sign = self._read(path)
                if sign is None:  # it was removed meanwhile: the next listing tells who is left
                    continue
                who, process, waits = sign
                if has_ended(process):
                    logger.warning("%s: going on for %s, which has ended without a word", self._what, who)
                    self._store.remove(path)
                elif age > DEAD:
                    logger.warning("%s: going on for %s, which gives no sign of life", self._what, who)
                    self._store.remove(path)
                elif path not in seen:
                    seen[path] = taken
                    logger.info("%s: waiting to see whether %s still lives", self._what, who)
                elif seen[path] != taken and (path < self._mine or not waits):
                    raise held_by(who, self._what)
                elif path not in told:
                    told.add(path)
                    words = "%s: still waiting for a sign of life of %s; without one, this run goes on after %.0f s"
                    warn_even_if_quiet(words, self._what, who, DEAD)
            if self._others():
                # By chance, or two that have begun together would see each other's signs for ever.
                self._over.wait(RENEWED * random.uniform(0.5, 1.0))  # noqa: S311
                self._renewed = self._put()

    def _others(self) -> dict[str, tuple[int, float]]:
        """By path, when the store took the sign of another run (ns), and its age (s) at the time of ours."""
        found = self._store.list(self._folder, recursive=False)
        times = {each.address: each.modified_ns or 0 for each in found if isinstance(each, StoredFile)}
        for address in times:
            if not _SIGN.fullmatch(address.rpartition("/")[2]):
                raise UsageError(f"{address} is there and is no lock of a run; give another --out")
        mine = times.pop(self._store.address(self._mine), None)
        if mine is None:
            raise StoreError(f"{self._mine} is not listed, though it was put there")
        return {address.partition("://")[2]: (taken, (mine - taken) / 1e9) for address, taken in times.items()}

    def _read(self, path: str) -> tuple[str, str, bool] | None:
        """Whose sign it is, in words and as an identity, and whether it waits, too. None if it is gone."""
        try:
            who, *more = self._store.read_whole(path).decode(errors="replace").split("\n")
        except NoSuchObjectError:
            return None
        return who, more[0] if more else "", _WAITS in more

    # --- keeping it -------------------------------------------------------------------------------------------------

    def _put(self) -> float:
        begun = _seconds()
        sign = f"{describe_this_process()}\n{identify_process(os.getpid())}\n{'' if self._is_held else _WAITS}"
        self._store.write(self._mine, sign.encode())
        return begun

    def _keep(self) -> None:
        while not self._over.wait(RENEWED):
            with suppress(StoreError):  # tried again in a moment; `require` knows how long it has been
                self._renew()

    def _renew(self) -> None:
        if self._store.version(self._mine) is None:
            self._is_lost = True
        if self._is_lost:
            return
        before, begun = self._renewed, self._put()
        if _seconds() - before > DEAD and self._others():
            # Between the two requests this process slept, or the store was slow, and the sign, which another run may
            # have removed meanwhile, is there again.
            self._is_lost = True
            self._store.remove(self._mine)
        else:
            self._renewed = begun

    def require(self) -> None:
        """Raises OutputError if another run has taken over, as far as is known; asks the store if nothing has been
        known for long."""
        if self._is_lost or _seconds() - self._renewed > DEAD:
            self.ask()

    def ask(self) -> None:
        """Raises OutputError if another run has taken over, StoreError if the store does not say."""
        if not self._is_lost:
            self._renew()
        if self._is_lost:
            raise OutputError(
                f"{self._what} is another run's: it has gone on with this, as this run gave no sign of life for "
                f"{DEAD:.0f} s"
            )

    def release(self) -> None:
        """A sign that can't be removed is said: the next run waits for a while."""
        self._over.set()
        self._keeper.join()
        if self._is_lost:
            return
        try:
            self._store.remove(self._mine)
        except StoreError as error:
            logger.warning("%s can't be removed (%s): the next run waits for %.0f s", self._mine, error, DEAD)


def _seconds() -> float:
    """Of a clock that goes on while the machine sleeps, where the system has one."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if sys.platform == "linux" else time.monotonic()
