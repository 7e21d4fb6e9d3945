"""How a command ends: what went wrong as one line on stderr, and an exit status that a script can test."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import click

from deit_batch.errors import DeitBatchError, Interrupted

logger = logging.getLogger("deit_batch")

DONE, FAILED, SOME_FAILED, BELOW = 0, 1, 3, 4
"""Beside those that the errors know (errors.py): 2 for wrong usage, 130 and 143 for a signal."""


@contextmanager
def told(verbose: bool) -> Iterator[None]:
    """Turns an error into its line and its status; with `verbose`, shows the traceback, too."""
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
