"""The command line: options, help and exit status. What a run does is in runner.py."""

from __future__ import annotations

import json
import logging
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from deit_batch import __version__
from deit_batch.checkpoints import DEFAULT_MODEL, find_checkpoint
from deit_batch.errors import DeitBatchError, Interrupted, UsageError
from deit_batch.limits import DEFAULT_LIMITS, Limits
from deit_batch.options import (
    ALLOW_PICKLE,
    AT_LEAST_ONE,
    REVISION,
    SECONDS,
    VERBOSE,
    ExampleCommand,
    Threshold,
    TopK,
    read_config,
)
from deit_batch.sinks import FORMATS, choose_format

if TYPE_CHECKING:
    from deit_batch.output import Mode

logger = logging.getLogger("deit_batch")

SCORED, FAILED, SOME_FAILED = 0, 1, 3
FIRST_SHOWN = 5

LIMITS = tuple(limit.name for limit in fields(Limits))
SECTIONS = {
    "Input": ("input", "column", "keep", "recursive", "limit"),
    "Model": ("model", "revision", "image_processor", "decode", "allow_pickle", "device", "dtype"),
    "Output": ("out", "format", "top_k", "threshold", "fresh", "incremental", "retry_failed", "error_threshold"),
    "Speed": ("batch_size", "workers"),
    "Limits of one image": LIMITS,
    "Run": ("dry_run", "config", "quiet", "verbose", "log_format", "help"),
}


@click.group(context_settings={"auto_envvar_prefix": "DEIT_BATCH", "help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="deit-batch")
def main() -> None:
    """Scores piles of images with DeiT classifiers.

    \b
    deit-batch score --input imgs/ --out preds.jsonl
    """


@main.command(cls=ExampleCommand, example="deit-batch score --input imgs/ --out preds.jsonl", sections=SECTIONS)
@click.option(
    "--input",
    required=True,
    metavar="WHAT",
    help="A folder, image, 'glob*', .txt, .csv, .tsv, .jsonl, .parquet (text also .gz), request .json, "
    "hf://DATASET?split=…, or - for stdin.",
)
@click.option(
    "--column",
    metavar="NAME",
    help="The column that holds the image (path, URL, data: URI or base64). [default: by its usual names: image, "
    "url, path, …]",
)
@click.option("--keep", multiple=True, metavar="NAME", help="Carry this column into the records. Repeatable.")
@click.option("--recursive/--no-recursive", default=True, show_default=True, help="Look into folders in the folder.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Take only the first N inputs.")
@click.option(
    "--model",
    default=DEFAULT_MODEL,
    show_default=True,
    metavar="CHECKPOINT",
    help="A DeiT checkpoint: a name on the Hub, a folder, or 'demo' (built in; knows ten kinds of clothing).",
)
@REVISION
@click.option(
    "--image-processor",
    metavar="WHICH",
    help="Preprocessing other than the checkpoint's own: a folder, Hub name, JSON file, or 'card' for the recipe in"
    " the model card's text.",
)
@click.option(
    "--decode",
    default="exact",
    show_default=True,
    type=click.Choice(["exact", "fast"]),
    help="fast: short cuts with large images; scores change a little.",
)
@ALLOW_PICKLE
@click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="auto|cpu|cuda|cuda:N|mps",
    help="Where the model runs; auto is the GPU if there is one.",
)
@click.option(
    "--dtype",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "float32", "float16", "bfloat16", "int8"]),
    help="auto: float16 on a GPU, float32 on a CPU. int8: on a CPU, faster and less exact; needs the extra onnx.",
)
@click.option(
    "--out",
    metavar="FILE",
    help="Where the predictions go: .jsonl, .json, .csv or .parquet; - streams JSONL to stdout. Appears when it is "
    "whole.",
)
@click.option(
    "--format",
    type=click.Choice(FORMATS),
    help="Instead of the format that FILE's ending says; 'sample': the model card's lists, one a line.",
)
@click.option("--top-k", default=5, show_default=True, type=TopK(), help="How many labels an image.")
@click.option(
    "--threshold",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Leave out labels with a lower score.",
)
@click.option("--fresh", is_flag=True, help="Start over, and replace what is at FILE when done.")
@click.option(
    "--incremental",
    is_flag=True,
    help="For runs over a growing input under one FILE: images that have not changed since they were last scored keep "
    "their predictions.",
)
@click.option("--retry-failed", is_flag=True, help="Of a finished FILE (.jsonl), score again only what failed.")
@click.option(
    "--error-threshold",
    type=Threshold(),
    help="Exit with 0 if no more inputs than this failed; give up, resumable, as soon as more have. "
    "[default: never give up; exit with 3 if any failed]",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    metavar="N",
    help="Images a forward pass. [default: 16 on a CPU, 64 on a GPU]",
)
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    metavar="N",
    help="Processes that fetch and decode; 0: none beside the main one. [default: from the cores]",
)
@click.option(
    "--image-bytes", default=DEFAULT_LIMITS.image_bytes, show_default=True, type=AT_LEAST_ONE, help="Encoded size."
)
@click.option(
    "--image-pixels",
    default=DEFAULT_LIMITS.image_pixels,
    show_default=True,
    type=AT_LEAST_ONE,
    help="Width times height; checked before decoding.",
)
@click.option(
    "--fetch-seconds",
    default=DEFAULT_LIMITS.fetch_seconds,
    show_default=True,
    type=SECONDS,
    help="For one try to fetch a URL.",
)
@click.option(
    "--decode-seconds",
    default=DEFAULT_LIMITS.decode_seconds,
    show_default=True,
    type=SECONDS,
    help="For decoding. Not with --workers 0.",
)
@click.option(
    "--redirects", default=DEFAULT_LIMITS.redirects, show_default=True, type=click.IntRange(min=0), help="Of one URL."
)
@click.option(
    "--retries",
    default=DEFAULT_LIMITS.retries,
    show_default=True,
    type=click.IntRange(min=0),
    help="Further tries of a URL after a passing fault.",
)
@click.option(
    "--connections",
    default=DEFAULT_LIMITS.connections,
    show_default=True,
    type=AT_LEAST_ONE,
    help="To one host, a worker.",
)
@click.option(
    "--allow-private-hosts", is_flag=True, help="Fetch from addresses that are not of the public internet, too."
)
@click.option("--allow-truncated", is_flag=True, help="Score files that end early; what is missing is grey.")
@click.option(
    "--root",
    type=click.Path(exists=True, file_okay=False),
    metavar="DIR",
    help="Local files must be in this folder, links resolved.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be scored, and stop.")
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    is_eager=True,
    expose_value=False,
    callback=read_config,
    metavar="TOML",
    help="A file of these options; DEIT_BATCH_SCORE_… variables and the command line outrank it.",
)
@click.option("--quiet", is_flag=True, help="No progress; only errors.")
@VERBOSE
@click.option(
    "--log-format",
    default="text",
    show_default=True,
    type=click.Choice(["text", "json"]),
    help="How messages on stderr are written.",
)
@click.help_option("-h", "--help")
def score(
    *,
    out: str | None,
    format: str | None,
    fresh: bool,
    incremental: bool,
    retry_failed: bool,
    error_threshold: str | None,
    dry_run: bool,
    quiet: bool,
    verbose: bool,
    log_format: str,
    **chosen: Any,
) -> None:
    """Score images and write one record of predictions for each, in input order.

    Run the same command again to continue a run that died. Exit status: 0 all scored, 1 the run failed, 2 wrong usage,
    3 finished but some inputs failed (their records say why), 130 interrupted. Every option can also be set by a
    variable: --batch-size by DEIT_BATCH_SCORE_BATCH_SIZE.
    """
    from deit_batch.progress import set_up_logging

    set_up_logging(quiet=quiet, verbose=verbose, as_json=log_format == "json")
    chosen["limits"] = Limits(**{name: chosen.pop(name) for name in LIMITS})
    with _told(verbose):
        if dry_run:
            sys.exit(_dry_run(chosen, out, format))
        mode = _mode(out, fresh=fresh, incremental=incremental, retry_failed=retry_failed)
        sys.exit(_score(chosen, out, format, mode, incremental, quiet, error_threshold))


@contextmanager
def _told(verbose: bool) -> Iterator[None]:
    """What goes wrong becomes one line and an exit status."""
    try:
        yield
    except (DeitBatchError, Interrupted) as error:
        _fail(error, error.exit_status, verbose)
    except (BrokenPipeError, click.exceptions.Exit):
        raise  # Click knows what to do
    except Exception as error:  # a fault of ours: still one line, and a status that a script can test
        logger.error("unexpected %s; --verbose shows where: please report it", type(error).__name__)
        _fail(error, FAILED, verbose)


def _fail(error: BaseException, status: int, verbose: bool) -> NoReturn:
    logger.error("%s", " ".join(str(error).split()), exc_info=error if verbose else None)
    sys.exit(status)


def _mode(out: str | None, *, fresh: bool, incremental: bool, retry_failed: bool) -> Mode:
    if retry_failed and (fresh or incremental):
        raise UsageError(
            "--retry-failed goes neither with --fresh nor with --incremental; both score what failed anyway"
        )
    if out == "-" and (incremental or retry_failed):
        raise UsageError("--out -: stdout keeps nothing that --incremental or --retry-failed could go on from")
    return "fresh" if fresh else "incremental" if incremental else "retry-failed" if retry_failed else "continue"


def _score(
    chosen: dict[str, Any],
    out: str | None,
    format: str | None,
    mode: Mode,
    incremental: bool,
    quiet: bool,
    error_threshold: str | None,
) -> int:
    if out is None:
        raise UsageError("Missing option '--out'. Use - for stdout.")
    from deit_batch.plan import Options
    from deit_batch.runner import ErrorThreshold, counts, run

    threshold = None
    if error_threshold is not None:
        threshold = ErrorThreshold(float(error_threshold.removesuffix("%")), percent=error_threshold.endswith("%"))
    outcome = run(
        Options(**chosen),
        out=out,
        format=format,
        mode=mode,
        incremental=incremental,
        error_threshold=threshold,
        quiet=quiet,
    )
    tally = outcome.tally
    speed = outcome.report.get("images_per_second")
    kept = outcome.kept
    passed_over = counts(outcome.passed_over)
    logger.info(
        "%s of %s images scored%s%s%s%s%s",
        f"{tally.scored:,}",
        f"{tally.inputs:,}",
        f" ({kept:,} of them before)" if kept else "",
        f", {tally.failed:,} failed ({counts(tally.failures)})" if tally.failed else "",
        f", {passed_over} passed over" if passed_over else "",
        f", {speed} images/s" if speed else "",
        "" if out == "-" else f": {out}",
    )
    return SOME_FAILED if tally.failed and not (threshold and threshold.allows(tally.failed, tally.inputs)) else SCORED


def _dry_run(chosen: dict[str, Any], out: str | None, format: str | None) -> int:
    from deit_batch.io import Failure
    from deit_batch.plan import Options
    from deit_batch.runner import counts

    options = Options(**chosen)
    if out is not None:
        choose_format(out, format, options.keep)
    source = options.open_source()
    kinds: Counter[str] = Counter()
    first: list[str] = []
    for reference in source.references:
        location = reference.location
        kind = f"{location.type}s" if isinstance(location, Failure) else _KINDS[type(location).__name__]
        kinds[kind] += 1
        if len(first) < FIRST_SHOWN:
            first.append(reference.image or f"({kind.removesuffix('s')})")
    click.echo(f"{kinds.total():,} inputs: {counts(kinds) or 'none'}")
    if source.passed_over:
        click.echo(f"passed over: {counts(source.passed_over)}")
    for image in first:
        click.echo(f"  {image}".encode("utf-8", "replace").decode())
    if kinds.total() > len(first):
        click.echo("  …")
    click.echo("options:")
    context = click.get_current_context()
    for name, value in sorted(context.params.items()):
        shown = "all" if name == "top_k" and value is None else value
        click.echo(f"  {name.replace('_', '-')} = {json.dumps(shown)}")
    return SCORED


_KINDS = {"LocalFile": "files", "Url": "URLs", "Base64": "base64 strings", "bytes": "images in the table"}


@main.command(
    cls=ExampleCommand,
    example="deit-batch export facebook/deit-base-patch16-224 --dtype int8 --out deit-int8\n"
    "deit-batch score --model deit-int8 --input imgs/ --out preds.jsonl",
)
@click.argument("model", metavar="CHECKPOINT")
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="DIR", help="A new folder.")
@click.option(
    "--dtype",
    default="float32",
    show_default=True,
    type=click.Choice(["float32", "int8"]),
    help="int8: several times faster, a little less exact.",
)
@REVISION
@ALLOW_PICKLE
@VERBOSE
def export(model: str, out: Path, dtype: str, revision: str | None, allow_pickle: bool, verbose: bool) -> None:
    """Write a checkpoint as ONNX, a folder for score --model: it starts sooner, and runs on a CPU only. Needs the extra
    onnx."""
    from deit_batch.progress import set_up_logging

    set_up_logging(quiet=False, verbose=verbose, as_json=False)
    with _told(verbose):
        checkpoint = find_checkpoint(model, revision=revision, allow_pickle=allow_pickle)
        from deit_batch.exported import export as write

        write(checkpoint, out, dtype)
        logger.info("%s, %s: %s", checkpoint.name, dtype, out)
