"""An output whose place is on an object store: made in a folder of this machine, and sent when it is whole.

    ~/.cache/deit-batch/outputs/<digest of the address>/
        preds.jsonl, preds.jsonl.partial, …   what file.py leaves beside any output
        origin.json                           the address, and what stood there when the run began
    ~/.cache/deit-batch/outputs/<digest>.lock

A run begins with copies of what the store has, and so finds a finished result as it would beside any output. A folder
with work in it, records or a result that has not been sent, outranks the store: the same command goes on from it. The
result is sent, then its report, and the folder removed.

A store has no locks. The lock keeps a second run on this machine away; one on another is noticed at the end, if what
stands at the address is no longer what stood there at the start.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from deit_batch.errors import OutputError, UsageError
from deit_batch.io import json_line
from deit_batch.output.resume import version_of
from deit_batch.system import object_store
from deit_batch.system.atomic import beginning, publish_folder, standing, write_atomically
from deit_batch.system.lock import Lock
from deit_batch.system.object_store import StoreError
from deit_batch.system.signals import stop_on_signals

logger = logging.getLogger("deit_batch")

_CHUNK = 2**20


@contextmanager
def staged(out: str, *, fresh: bool, beside: Sequence[str] = ()) -> Iterator[str]:
    """Where to write `out`: that path itself; for an address on a store, one whose files are sent when the block ends
    without an exception. `beside`: the endings of the files that go with it, but for the report, which always does.

    Raises OutputError if it can't be written, or if what is there is no longer what the run found when it began, unless
    it is to be made `fresh`."""
    if not object_store.is_stored(out):
        yield out
        return
    staged_output = StagedOutput(out, beside)
    with staged_output.as_output_error("can't be written"):
        staged_output.lock.parent.mkdir(parents=True, exist_ok=True)
        lock = Lock(staged_output.lock, out)
    try:
        staged_output.fill(fresh=fresh)
        with staged_output.work_told_of():
            yield str(staged_output.path)
        staged_output.send()
    finally:
        staged_output.tidy()
        lock.release()


class StagedOutput:
    def __init__(self, address: str, beside: Sequence[str]) -> None:
        self._store, self._target = object_store.open_store(address)
        self._address = self._store.address(self._target)
        name = self._target.rpartition("/")[2]
        if not name:
            raise UsageError(f"--out {address}: that is a folder; name a file in it")
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "deit-batch" / "outputs"
        self._folder = cache / hashlib.sha256(self._address.encode()).hexdigest()[:20]
        self.path = self._folder / name
        self.lock = cache / f"{self._folder.name}.lock"
        self._endings = [*(f".{what}" for what in beside), "", ".run.json"]
        """In the order in which they are sent."""

    # --- before the run ---------------------------------------------------------------------------------------------

    def fill(self, *, fresh: bool) -> None:
        with self.as_output_error("can't be read"):
            if self._holds_work() and not fresh:
                self._require_unchanged()
                return
            shutil.rmtree(self._folder, ignore_errors=True)
            there = self._store.version(self._target)
            self._copy(there, [] if fresh or there is None else self._endings)
        with beginning(self._address):
            self._store.require_writable(self._target)

    def _copy(self, there: object_store.ObjectVersion | None, endings: Sequence[str]) -> None:
        """The folder appears whole: half a copy would look like work."""
        new = self._folder.with_suffix(".new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        for ending in endings:
            if self._store.version(self._target + ending):
                with (
                    self._store.open(self._target + ending) as source,
                    open(f"{new / self.path.name}{ending}", "wb") as to,
                ):
                    shutil.copyfileobj(source, to, _CHUNK)
        copy = new / self.path.name
        if there and copy.exists() and isinstance(there[1], int):
            os.utime(copy, ns=(there[1], there[1]))
        origin = {"address": self._address, "there": there, "copied": version_of(copy)}
        write_atomically(new / "origin.json", json_line(origin))
        publish_folder(new, self._folder, replace=True)

    def _holds_work(self) -> bool:
        """Records of an unfinished run, or a result that is no copy of what the store has."""
        partial = Path(f"{self.path}.partial")
        if partial.exists() and partial.stat().st_size:
            return True
        return self.path.exists() and version_of(self.path) != self._origin()["copied"]

    def _origin(self) -> dict[str, Any]:
        origin: dict[str, Any] = {"there": None, "copied": None}
        with suppress(FileNotFoundError, ValueError):
            origin |= json.loads((self._folder / "origin.json").read_bytes())
        return origin

    def _require_unchanged(self) -> None:
        if self._store.version(self._target) == self._origin()["there"] or self._is_sent():
            return
        raise UsageError(
            f"{self._address} has changed since this run began, and is left as it is; what the run has made is in "
            f"{self._folder}: give another --out, or start over with --fresh"
        )

    # --- after it ---------------------------------------------------------------------------------------------------

    def send(self) -> None:
        if not self._holds_work():
            return
        with self.as_output_error(
            f"can't be written, but the result is whole, in {self._folder}; the same command sends it"
        ):
            self._require_unchanged()
            logger.info("sending the result to %s", self._address)
            with stop_on_signals():
                for ending in self._endings:
                    file = Path(f"{self.path}{ending}")
                    if file.exists():
                        self._store.put(file, self._target + ending)
        with standing(self._address):
            shutil.rmtree(self._folder)

    def _is_sent(self) -> bool:
        """Whether the store has this result: an upload may have ended well though its answer was lost."""
        if not self.path.exists() or Path(f"{self.path}.partial").exists():
            return False
        try:
            with self._store.open(self._target) as theirs, open(self.path, "rb") as ours:
                while chunk := ours.read(_CHUNK):
                    if theirs.read(len(chunk)) != chunk:
                        return False
                return not theirs.read(1)
        except StoreError:
            return False

    def tidy(self) -> None:
        if not self._holds_work():
            shutil.rmtree(self._folder, ignore_errors=True)

    @contextmanager
    def work_told_of(self) -> Iterator[None]:
        """Says where it is, if the block ends with an exception: whoever replaces this machine would lose it."""
        try:
            yield
        except BaseException:
            if self._holds_work():
                logger.warning(
                    "%s: what is scored so far lies on this machine alone, in %s; the same command goes on here",
                    self._address,
                    self._folder,
                )
            raise

    @contextmanager
    def as_output_error(self, what: str) -> Iterator[None]:
        try:
            yield
        except StoreError as error:
            raise OutputError(f"{self._address}: {what}: {error}") from error
        except OSError as error:
            raise OutputError(f"{self._folder}: {error.strerror or error}; make room, or set XDG_CACHE_HOME") from error
