"""A server process: its socket, its log, and its end."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from deit_batch.errors import DeitBatchError, UsageError
from deit_batch.io import counted
from deit_batch.options import Options
from deit_batch.plan import Plan
from deit_batch.serving.application import application
from deit_batch.serving.connection import HEAD_SECONDS, Connection
from deit_batch.serving.endpoint import Service
from deit_batch.serving.metrics import ServerMetrics, Watched
from deit_batch.system.signals import stopping_signals

logger = logging.getLogger("deit_batch")

WAITING = 2048
"""Connections that the kernel keeps for us to take."""
TAKEN = 32
"""Of them at a time."""
SMALLEST_QUEUE = 64
BATCHES_QUEUED = 4


def queue_size(plan: Plan) -> int:
    """Where none is given: on a GPU several batches, or it would wait for images."""
    return max(SMALLEST_QUEUE, BATCHES_QUEUED * plan.batch_size)


def serve(
    options: Options,
    *,
    host: str,
    port: int,
    key_file: Path | None,
    queue: int | None,
    body_bytes: int,
    window: float,
    drain_seconds: int,
) -> None:
    """Serves until SIGINT, SIGTERM or SIGHUP; then answers the requests that are in, within `drain_seconds`.

    Raises UsageError for options that can't be had, CheckpointError if the model can't be loaded, DeitBatchError if
    some requests were not answered in the end."""
    keys = read_keys(key_file) if key_file else ()
    with listening(host, port) as listener:
        plan = Plan.of(options)
        metrics = ServerMetrics()
        service = Service(keys=keys, queue=queue or queue_size(plan), body_bytes=body_bytes, window=window)
        problems: list[BaseException] = []

        def failed(problem: BaseException) -> None:
            problems.append(problem)
            server.should_exit = True

        app = Watched(application(plan, options, service, metrics, failed), metrics, counted="/score")
        server = Server(_config(app, drain_seconds))
        _hear_uvicorn()
        _announce(listener, plan, service)
        with _signals_to(server):
            server.run(sockets=[listener])
    if problems:
        raise problems[0]
    _require_all_answered(server, app, drain_seconds)
    logger.info("every request was answered")


def _config(app: Watched, drain_seconds: int) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=Connection,
        backlog=TAKEN,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=HEAD_SECONDS,
        timeout_graceful_shutdown=drain_seconds,
    )


def _require_all_answered(server: uvicorn.Server, app: Watched, drain_seconds: int) -> None:
    if not server.started:
        raise DeitBatchError("the server could not start; what kept it from that stands above")
    unread = sum(connection.transport.get_write_buffer_size() > 0 for connection in server.server_state.connections)
    if app.unanswered or unread:
        raise DeitBatchError(
            f"not answered, or the answer not read, within --drain-seconds {drain_seconds}: "
            f"{counted(app.unanswered + unread, 'request')}"
        )


class Server(uvicorn.Server):
    """uvicorn's, which takes as many connections at a time as may wait to be taken: then those of a flood would all be
    open before the first of them is looked at."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(_tell)
        await super().startup(sockets)
        for listener in sockets or []:
            listener.listen(WAITING)


def _tell(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What nobody has caught, in a line."""
    error = context.get("exception")
    trace = error if logger.isEnabledFor(logging.DEBUG) else None
    logger.error("%s (--verbose shows where): %s", context["message"], error, exc_info=trace)


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """Raises UsageError where that is not possible."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address[:2], family=family, backlog=WAITING)
    except OSError as error:
        reason = str(error.strerror or error).partition(" (while")[0]  # where, as Python adds it, is said already
        raise UsageError(f"--host {host} --port {port} can't be listened at: {reason}") from error
    with listener:
        yield listener


def read_keys(path: Path) -> tuple[bytes, ...]:
    """The keys of a file, one a line. Raises UsageError if it can't be read, or holds none."""
    try:
        keys = tuple(line.strip() for line in path.read_bytes().splitlines() if line.strip())
    except OSError as error:
        raise UsageError(f"--api-key-file {path}: {error.strerror}") from error
    if not keys:
        raise UsageError(f"--api-key-file {path} holds no key; write one a line")
    return keys


def _announce(listener: socket.socket, plan: Plan, service: Service) -> None:
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    logger.info("%s on http://%s:%s, docs at /docs; loading", plan.checkpoint.name, shown, port)
    if not service.keys and not ipaddress.ip_address(host).is_loopback:
        logger.warning("whoever reaches %s port %s may score images: there is no --api-key-file", host, port)


def _hear_uvicorn() -> None:
    """Its warnings and errors are ours; what it says of its start and end we say ourselves."""
    for name in ("uvicorn.error", "asyncio"):
        other = logging.getLogger(name)
        other.handlers, other.propagate = logger.handlers, False
        other.setLevel(logging.WARNING)


@contextmanager
def _signals_to(server: uvicorn.Server) -> Iterator[None]:
    """uvicorn ends with the signal that it was stopped by, sent to itself anew; here it finds nobody, for to be stopped
    is a server's usual end. Of SIGHUP it knows nothing."""

    def end(*_: Any) -> None:
        server.should_exit = True

    before = {signum: signal.signal(signum, end) for signum in stopping_signals()}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
