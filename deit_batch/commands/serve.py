"""deit-batch serve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from deit_batch.commands._command import ExampleCommand, option, section
from deit_batch.commands._options import (
    CONFIG,
    IMAGE_LIMITS,
    LOG_FORMAT,
    MODEL,
    PREDICTIONS,
    QUIET,
    SPEED,
    VERBOSE,
    limits_from,
)
from deit_batch.commands._types import AT_LEAST_ONE, Number, WholeNumber
from deit_batch.errors import UsageError
from deit_batch.limits import Limits
from deit_batch.options import Options
from deit_batch.serving import BATCH_WINDOW
from deit_batch.system.extras import needing


@click.command(
    cls=ExampleCommand,
    example="deit-batch serve --model demo --port 8000\n"
    "curl -H 'Content-Type: application/json' -d '{\"input_data\": [\"https://example.org/a.jpg\"]}' "
    "localhost:8000/score",
    defaults=(Options, Limits),
)
@section(
    "Server",
    option("--host", default="127.0.0.1", show_default=True, metavar="NAME", help="Address or host name to listen on."),
    option(
        "--port",
        default=8000,
        show_default=True,
        type=WholeNumber(0, 65535),
        metavar="N",
        help="Port to listen on. With 0, any free port is used.",
    ),
    option(
        "--api-key-file",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="File of API keys, one per line. Requests to /score and /metrics must then have one of them in the header "
        "Authorization: Bearer KEY.",
    ),
    option(
        "--queue",
        type=AT_LEAST_ONE,
        metavar="N",
        help="Images that the server holds at a time. Requests beyond that are answered with status 429. [default: 64, "
        "or four batches if these are more]",
    ),
    option(
        "--body-bytes",
        default=16 * 2**20,
        show_default=True,
        type=AT_LEAST_ONE,
        metavar="N",
        help="Largest body of a request, in bytes.",
    ),
    option(
        "--batch-window",
        default=BATCH_WINDOW * 1000,
        show_default=True,
        type=Number(min=0),
        metavar="MS",
        help="Longest time that an image waits for others to be scored in the same batch, in milliseconds.",
    ),
    option(
        "--drain-seconds",
        default=30,
        show_default=True,
        type=WholeNumber(min=0),
        metavar="N",
        help="Longest time to finish open requests after SIGTERM or Ctrl-C, in seconds.",
    ),
)
@section("Model", *MODEL)
@section("Predictions", *PREDICTIONS)
@section("Speed", *SPEED)
@section("Limits of one image", *IMAGE_LIMITS)
@section("Run", CONFIG, QUIET, VERBOSE, LOG_FORMAT)
def serve(
    *,
    host: str,
    port: int,
    api_key_file: Path | None,
    queue: int | None,
    body_bytes: int,
    batch_window: float,
    drain_seconds: int,
    **chosen: Any,
) -> None:
    """Serve predictions over HTTP.

    POST /score takes {"input_data": ["<base64 or URL>", …]}, and answers with a list of {"label", "score"} for each
    image, best first. There are also /health, /ready, /metrics and /docs. Needs the extra serve.

    Exit status: 0 if the server was stopped by Ctrl-C or SIGTERM and has answered all open requests, 1 if it could not,
    2 for wrong usage.
    """
    chosen["limits"] = limits_from(chosen)
    if chosen["workers"] == 0:
        raise UsageError("--workers 0: a server decodes in processes of its own, or a bad image could end it")

    with needing("serve"):
        from deit_batch.serving.server import serve as run
    run(
        Options(input="", **chosen),
        host=host,
        port=port,
        key_file=api_key_file,
        queue=queue,
        body_bytes=body_bytes,
        window=batch_window / 1000,
        drain_seconds=drain_seconds,
    )
