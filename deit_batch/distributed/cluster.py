"""The cluster: connecting to it, how its cores and GPUs are shared out, and what it says when something went wrong."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
import ray.data

from deit_batch import errors
from deit_batch.errors import DeitBatchError, UsageError

MOST_CORES = 8
"""Of one actor, unless it is told: its passes run in threads of one process (classifier.MOST_PASSES)."""
DECODING_SHARE = 0.25
"""Of each core, where the model runs on cores, too: decoding is the lesser part of the work (plan.default_workers)."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How many actors score, each with so many cores, or with a GPU of its own and no core."""

    actors: int
    cores: int

    @property
    def on_gpus(self) -> bool:
        return self.cores == 0

    @property
    def of_an_actor(self) -> dict[str, float]:
        """What Ray sets aside for one. On cores it leaves a share to decoding."""
        if self.on_gpus:
            return {"num_cpus": 0, "num_gpus": 1}
        return {"num_cpus": self.cores * (1 - DECODING_SHARE), "num_gpus": 0}

    @property
    def of_a_decoder(self) -> dict[str, float]:
        return {"num_cpus": 1 if self.on_gpus else DECODING_SHARE}


@contextmanager
def connected(address: str | None, *, verbose: bool) -> Iterator[None]:
    """To the cluster at `address`; without one, to that of RAY_ADDRESS, to one that was started on this machine, or to
    one that is started here and ends with the run. A program that has connected before stays so."""
    level = logging.INFO if verbose else logging.ERROR
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(level)
    if ray.is_initialized():
        yield
        return
    if address and address.startswith("ray://"):
        raise UsageError(
            f"--ray-address {address}: the run must be started on a machine of the cluster; give its HOST:PORT, or "
            "'auto', there"
        )
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # if one is started: nothing is sent to anybody
    if not verbose:  # stderr is for our own messages
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        ray.init(address=address, log_to_driver=verbose, logging_level=level)
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = f"--ray-address {address}" if address else "Ray"
        reason = str(error).strip().partition("\n")[0]
        raise DeitBatchError(f"{where}: there is no cluster to be reached: {reason}") from error
    try:
        yield
    finally:
        ray.shutdown()


def lay_out(device: str, *, actors: int | None, cores: int | None) -> Layout:
    """One actor for each GPU, or for each so many `cores` of each machine; fewer or more if `actors` says so. Raises
    UsageError for what the cluster does not have."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = int(sum(resources.get("GPU", 0) for resources in machines))
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device {device}: with --engine ray give auto, cpu or cuda; Ray gives each actor its GPU")
    if device == "cuda" or (device == "auto" and gpus):
        if not gpus:
            raise UsageError("--device cuda: no machine of the cluster has a GPU")
        if cores is not None:
            raise UsageError("--actor-cores is for scoring on CPUs; here each actor has a GPU (--device cpu: none)")
        return Layout(actors or gpus, 0)
    granted = [int(resources.get("CPU", 0)) for resources in machines if resources.get("CPU", 0) >= 1]
    if not granted or max(granted) < (cores or 1):
        raise UsageError(f"no machine of the cluster has {cores or 1} cores for an actor")
    cores = cores or min(MOST_CORES, *granted)
    return Layout(actors or sum(here // cores for here in granted), cores)


def task(function: Callable[..., object], resources: Mapping[str, float]) -> Any:
    """Ray's form of a function: its `remote(...)` runs it on a machine that has these to spare."""
    return ray.remote(function).options(**resources)


@contextmanager
def plainly() -> Iterator[None]:
    """What went wrong on another machine comes as a tree of Ray's exceptions around it, with their tracebacks in the
    message. Raises the DeitBatchError in it, or makes one."""
    try:
        yield
    except ray.exceptions.RayError as error:
        raise _ours(error) from error


def _ours(error: BaseException) -> DeitBatchError:
    inner: Any = error
    while inner is not None:
        if isinstance(inner, DeitBatchError) and not isinstance(inner, ray.exceptions.RayError):
            return inner
        inner = getattr(inner, "cause", None) or inner.__cause__
    lines = str(error).strip().splitlines() or [type(error).__name__]
    of_ours = [line for line in lines if line.startswith("deit_batch.errors.")]  # of an actor that did not start
    if of_ours:
        name, _, message = of_ours[-1].removeprefix("deit_batch.errors.").partition(": ")
        kind: type[DeitBatchError] = getattr(errors, name, DeitBatchError)
        return kind(message)
    return DeitBatchError(
        f"the cluster gave up: {lines[0]}; run the same command again to continue, with --verbose to see more"
    )
