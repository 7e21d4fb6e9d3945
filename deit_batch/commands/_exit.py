"""How a command ends: what went wrong as one line on stderr, and an exit status that a script can test."""

from __future__ import annotations

import logging
import os
import signal
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, NoReturn

import click

from deit_batch.commands._config import log_format_of
from deit_batch.errors import DeitBatchError, Interrupted
from deit_batch.escaping import escape_controls
from deit_batch.output.failures import describe_failures
from deit_batch.redaction import redact_message

if TYPE_CHECKING:
    from deit_batch.output.threshold import ErrorThreshold
    from deit_batch.runner import RunResult

logger = logging.getLogger("deit_batch")

DONE, FAILED, SOME_FAILED, BELOW = 0, 1, 3, 4
"""Beside those that the errors know (errors.py): 2 for wrong usage, 129, 130 and 143 for a signal."""

_LONGEST = 400
"""Characters of wrong usage that Click finds: a shell may have made thousands of names of one glob."""


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Turns an error into its line and its status; with --verbose, shows the traceback, too."""
    try:
        yield
    except (DeitBatchError, Interrupted) as error:
        _fail(error, error.exit_status)
    except KeyboardInterrupt:  # where nothing was to be finished first
        stopped = Interrupted(signal.SIGINT)
        _fail(stopped, stopped.exit_status)
    except (BrokenPipeError, click.exceptions.Exit, click.ClickException):
        raise  # Click knows what to do
    except Exception as error:  # a fault of ours: still one line, and a status that a script can test
        logger.error("unexpected %s; --verbose shows where: please report it", type(error).__name__)
        _fail(error, FAILED)


def finish(message: str, *, some_failed: bool, too_many_failed: bool) -> NoReturn:
    """The end of a run that came to its end. A status other than 0 has its reason on stderr, with --quiet, too."""
    logger.log(level_of(some_failed=some_failed, too_many_failed=too_many_failed), "%s", message)
    sys.exit(SOME_FAILED if too_many_failed else DONE)


def level_of(*, some_failed: bool, too_many_failed: bool) -> int:
    """Of the message with which a run ends: failures that are allowed are a warning."""
    return logging.ERROR if too_many_failed else logging.WARNING if some_failed else logging.INFO


def finish_scoring(outcome: RunResult, done: str, out: str, threshold: ErrorThreshold | None) -> NoReturn:
    """`finish` of a run whose records are in `out`; `done`: as in RunResult.summary."""
    where_to = "" if out == "-" else f": {out}"
    too_many = outcome.has_failures_beyond(threshold)
    what_to_do = "; --error-threshold allows what will never be readable" if too_many else ""
    failures = describe_failures(out) if outcome.tally.failed else ""
    finish(
        f"{outcome.summary(done)}{where_to}{what_to_do}{failures}",
        some_failed=outcome.tally.failed > 0,
        too_many_failed=too_many,
    )


def is_quiet() -> bool:
    """Whether --quiet was given."""
    return not logger.isEnabledFor(logging.INFO)


def is_verbose() -> bool:
    """Whether --verbose was given."""
    return logger.isEnabledFor(logging.DEBUG)


def _fail(error: BaseException, status: int) -> NoReturn:
    logger.error("%s", " ".join(str(error).split()), exc_info=error if is_verbose() else None)
    sys.exit(status)


@contextmanager
def show_wrong_usage(arguments: Sequence[str]) -> Iterator[None]:
    """Wrong usage that Click finds, it finds before the command has its options, and says in its own way. Where these
    `arguments`, the command's variables or its file of options ask for other messages than text, or the journal wants
    their priority, this is one, too."""
    try:
        yield
    except click.ClickException as error:
        error.message = redact_message(error.message)  # type: ignore[misc]
        if len(error.message) > _LONGEST:
            error.message = textwrap.shorten(error.message, _LONGEST)  # type: ignore[misc]
        log_format = _log_format(arguments, getattr(error, "ctx", None))
        from deit_batch.system.logs import goes_to_journal, set_up_logging

        if log_format not in ("json", "github") and not goes_to_journal():
            # Click lists choices in lines of their own.
            error.message = escape_controls(error.message, but="\n\t")  # type: ignore[misc]
            raise
        set_up_logging(quiet=False, verbose=False, log_format=str(log_format))
        logger.error("%s", " ".join(error.format_message().split()))
        raise click.exceptions.Exit(error.exit_code) from error


def _log_format(arguments: Sequence[str], context: click.Context | None) -> object:
    """The value of --log-format that was given anywhere, valid or not; None if there is none."""
    words = [word for argument in arguments for word in argument.split("=", 1)]
    given = {name: value for name, value in pairwise(words) if name in ("--log-format", "--config")}
    if "--log-format" in given or context is None:
        return given.get("--log-format")
    if variable := os.environ.get(f"{context.auto_envvar_prefix}_LOG_FORMAT"):
        return variable
    # Wrong usage may have been found before the file of options was read, or in it.
    file = given.get("--config") or os.environ.get(f"{context.auto_envvar_prefix}_CONFIG")
    return log_format_of(file, str(context.command.name)) if file else None
