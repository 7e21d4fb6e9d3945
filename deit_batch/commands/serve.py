"""deit-batch serve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from deit_batch.commands._options import (
    CONFIG,
    IMAGE_LIMITS,
    LOG_FORMAT,
    MODEL,
    PREDICTIONS,
    QUIET,
    SPEED,
    VERBOSE,
    ExampleCommand,
    limits_from,
    option,
    section,
)
from deit_batch.commands._types import AT_LEAST_ONE, Number
from deit_batch.errors import UsageError
from deit_batch.limits import Limits
from deit_batch.plan import Options
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
    option("--host", default="127.0.0.1", show_default=True, metavar="NAME", help="The address to listen at."),
    option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0: any that is free."),
    option(
        "--api-key-file",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="Ask for one of the keys in this file, one a line, as Authorization: Bearer KEY.",
    ),
    option(
        "--queue",
        type=AT_LEAST_ONE,
        metavar="N",
        help="Images that may be in the server; more are answered with 429. [default: 64, or four batches]",
    ),
    option("--body-bytes", default=16 * 2**20, show_default=True, type=AT_LEAST_ONE, help="Of a request."),
    option(
        "--batch-window",
        default=5.0,
        show_default=True,
        type=Number(min=0),
        metavar="MS",
        help="Milliseconds that an image waits for others, to be scored with them.",
    ),
    option(
        "--drain-seconds",
        default=30,
        show_default=True,
        type=click.IntRange(min=0),
        help="After SIGTERM, for the requests that are in to be answered.",
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
    """Answer requests over HTTP: POST /score takes {"input_data": ["<base64 or URL>", …]} and answers, for each image,
    a list of {"label", "score"}, best first. Needs the extra serve.

    Also /health, /ready, /metrics and /docs. Ends with 0 when it is stopped by Ctrl-C or SIGTERM and has answered what
    was in, 1 if it could not, 2 for wrong usage.
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
