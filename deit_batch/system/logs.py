"""What is said on stderr: for people, for jq, for systemd's journal, for GitHub; around the bar, if there is one."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import time
from typing import TYPE_CHECKING, ClassVar

from tqdm import tqdm

from deit_batch.escaping import escape_controls
from deit_batch.redaction import redact_message

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

logger = logging.getLogger("deit_batch")


class _Handler(logging.Handler):
    """Shows nothing that gives access, whatever a message or a traceback quotes. `quiet`: errors, and the warnings that
    `warn_even_if_quiet` gives."""

    def __init__(self, *, quiet: bool) -> None:
        super().__init__()
        self._quiet = quiet

    def filter(self, record: logging.LogRecord) -> bool:
        if self._quiet and record.levelno < logging.ERROR and not hasattr(record, "even_if_quiet"):
            return False
        record.msg, record.args = redact_message(record.getMessage()), ()
        if record.exc_info:
            record.exc_text = redact_message(logging.Formatter().formatException(record.exc_info))
        return True

    def emit(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode(file=sys.stderr):
            print(self.format(record), file=sys.stderr, flush=True)


class _Json(logging.Formatter):
    """`fields` of a record (`extra={"fields": …}`) stand beside its message."""

    def format(self, record: logging.LogRecord) -> str:
        values = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_text:
            values["traceback"] = record.exc_text
        return json.dumps(values)


class _Text(logging.Formatter):
    """A message is one line, and shows what would end it or drive a terminal; a traceback has its own lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        record.message = escape_controls(record.message)
        return super().formatMessage(record)

    def format(self, record: logging.LogRecord) -> str:
        if record.exc_text:
            record.exc_text = _escape_traceback(record.exc_text, record.exc_info[1] if record.exc_info else None)
        return super().format(record)


def _escape_traceback(text: str, error: BaseException | None) -> str:
    """With its own lines, but not those of the messages in it."""
    while error is not None:
        if message := redact_message(str(error)):
            text = text.replace(message, escape_controls(message))
        error = error.__cause__ or error.__context__
    return escape_controls(text, but="\n")


class _GitHub(_Text):
    """Warnings and errors as annotations, which GitHub shows beside a run. Its workflow commands:
    https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-commands"""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.levelno < logging.WARNING:
            return f"deit-batch: {text}"
        escaped = text.replace("%", "%25").replace("\n", "%0A")
        return f"::{record.levelname.lower()} title=deit-batch::{escaped}"


class _Journal(_Text):
    """Each line behind its priority, by which journalctl -p chooses; systemd takes it off again: sd-daemon(3)."""

    _PRIORITIES: ClassVar = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}

    def format(self, record: logging.LogRecord) -> str:
        priority = self._PRIORITIES.get(record.levelname, 6)
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).split("\n"))


def open_closed_streams() -> None:
    """Gives a closed stdin, stdout or stderr (2>&-) a descriptor, before the first file takes it: nothing is read from
    it, writing to stdout fails, and what is said on stderr is lost."""
    ways = ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY))
    for number, way in ways:
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, way)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - for as long as the program runs
    if os.name == "nt" and isinstance(sys.stdout, io.TextIOWrapper) and not sys.stdout.isatty():
        sys.stdout.reconfigure(encoding="utf-8")  # as on other systems: an old code page has not every name


class _LossyFile(io.FileIO):
    def write(self, data: ReadableBuffer, /) -> int:
        try:
            written = super().write(data)
        except OSError:
            written = None
        return memoryview(data).nbytes if written is None else written


def lose_what_stderr_cannot_take() -> None:
    """From here on, what can't be written there, to a full disk or a terminal that has gone, is lost, and ends nothing:
    no run whose bar or message it is, and not the program in Python's own last step."""
    if sys.stderr not in (None, sys.__stderr__):
        return  # somebody else's
    if os.name == "nt" and sys.stderr and sys.stderr.isatty():
        return  # a console, which is written to by characters, not by bytes
    encoding = sys.stderr.encoding if sys.stderr else "utf-8"
    buffer = io.BufferedWriter(_LossyFile(2, "w", closefd=False))
    sys.stderr = io.TextIOWrapper(buffer, encoding, "backslashreplace", line_buffering=True)


def goes_to_journal() -> bool:
    """Whether stderr is what systemd has connected to the journal: systemd.exec(5), $JOURNAL_STREAM."""
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):  # no file at all
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def set_up_logging(*, quiet: bool, verbose: bool, log_format: str = "text") -> None:
    """`log_format`: text, json or github."""
    handler = _Handler(quiet=quiet)
    handler.setFormatter(_formatter(log_format))
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO)


def warn_even_if_quiet(message: str, *values: object) -> None:
    """For what makes a result something else than its user believes: once a run, with the count and the remedy."""
    logger.warning(message, *values, extra={"even_if_quiet": True})


def _formatter(log_format: str) -> logging.Formatter:
    match log_format:
        case "json":
            return _Json()
        case "github":
            return _GitHub()
        case _:
            text = _Journal if goes_to_journal() else _Text
            return text("deit-batch: %(message)s")
