"""The cluster: connecting to it, how its cores and GPUs are shared out, and what it says when something went wrong."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import ray
from ray._private import worker as _worker

from deit_batch.errors import DeitBatchError, UsageError

MOST_CORES = 8
"""Of one actor, unless it is told: its passes run in threads of one process (classifier.MOST_PASSES)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """The cluster and how to use it; the command line's options of the same names."""

    ray_address: str | None = None
    actors: int | None = None
    actor_cores: int | None = None
    actors_per_gpu: int | None = None


@dataclass(frozen=True, slots=True)
class Share:
    """What an actor has of a machine, on which others may have as much."""

    node: str
    machine: str
    cores: int
    gpus: float


@contextmanager
def connected(address: str | None, *, verbose: bool) -> Iterator[None]:
    """To the cluster at `address`; without one, to that of RAY_ADDRESS, to one that was started on this machine, or to
    one that is started here and ends with the run. A program that has connected before stays so."""
    if ray.is_initialized():
        yield
        return
    if address and address.startswith("ray://"):
        raise UsageError(
            f"--ray-address {address}: the run must be started on a machine of the cluster; give its HOST:PORT, or "
            "'auto', there"
        )
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # if one is started: nothing is sent to anybody
    if not verbose:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        with _signals_kept(), nullcontext() if verbose else _quiet():
            ray.init(address=address, log_to_driver=verbose, logging_level=logging.INFO if verbose else logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = f"--ray-address {address}" if address else "Ray"
        reason = str(error).strip().partition("\n")[0]
        raise DeitBatchError(f"{where}: there is no cluster to be reached: {reason}") from error
    if not verbose:
        _worker._worker_logs_enabled = False  # or it would tell stdout of each process that died
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself, and would end the program at once."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Ray's library says on descriptor 2 how loud it will be."""
    sys.stderr.flush()
    before = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


def machines() -> list[Mapping[str, Any]]:
    """Those of the cluster that are alive."""
    return [node for node in ray.nodes() if node["Alive"]]


def scores_on_gpus(device: str, where: Where) -> bool:
    """Whether each actor has a GPU, or a share of one. Raises UsageError for what the cluster does not have."""
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device {device}: with --engine ray give auto, cpu or cuda; Ray gives each actor its GPU")
    has_gpus = any(node["Resources"].get("GPU", 0) >= 1 for node in machines())
    on_gpus = device != "cpu" and has_gpus
    if device == "cuda" and not has_gpus:
        raise UsageError("--device cuda: no machine of the cluster has a GPU")
    if on_gpus and where.actor_cores is not None:
        raise UsageError("--actor-cores is for scoring on CPUs; here each actor has a GPU (--device cpu: none)")
    if not on_gpus and where.actors_per_gpu is not None:
        raise UsageError("--actors-per-gpu is for scoring on GPUs; here the actors have none")
    if not any(share_out(node, where, on_gpus=on_gpus) for node in machines()):
        raise UsageError(f"no machine of the cluster has {where.actor_cores or 1} cores for an actor")
    return on_gpus


def share_out(node: Mapping[str, Any], where: Where, *, on_gpus: bool) -> list[Share]:
    """All of a machine: its GPUs, each to so many actors, and its cores among those; or else its cores, so many to each
    actor, or as few actors as may be."""
    cores, gpus = int(node["Resources"].get("CPU", 0)), int(node["Resources"].get("GPU", 0))
    if on_gpus:
        each = where.actors_per_gpu or 1
        count = gpus * each
        shares = [(cores // count, 1 / each) for _ in range(count)]
    elif where.actor_cores:
        shares = [(where.actor_cores, 0.0)] * (cores // where.actor_cores)
    else:
        count = -(-cores // MOST_CORES)
        shares = [(cores // count + (place < cores % count), 0.0) for place in range(count)]
    return [Share(node["NodeID"], node["NodeManagerHostname"], *share) for share in shares]


@contextmanager
def plainly() -> Iterator[None]:
    """What went wrong on another machine comes as a tree of Ray's exceptions around it, with their tracebacks in the
    message. Raises the DeitBatchError in it, or makes one."""
    try:
        yield
    except ray.exceptions.RayError as error:
        raise as_ours(error) from error


def as_ours(error: BaseException) -> DeitBatchError:
    """The DeitBatchError in it, or one that says what it is."""
    inner: Any = error
    while inner is not None:
        if isinstance(inner, DeitBatchError) and not isinstance(inner, ray.exceptions.RayError):
            return inner
        inner = getattr(inner, "cause", None) or inner.__cause__
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return DeitBatchError(
        f"the cluster gave up: {first}; run the same command again to continue, with --verbose to see more"
    )
