"""Everything that can go wrong, as one tree.

DeitBatchError            a run that can't go on; each class knows its exit status
├── UsageError            2: the command line, a config file or the shape of the input is wrong
├── CheckpointError       2: no such model, or one that must not be scored with
│   └── CheckpointAccessError  1: one that can't be reached or read now
├── InputError            1: the input can't be read to its end
│   └── DamagedInputError  2: and never will be
├── OutputError           1: the results can't be written; 2 if the system will go on refusing
└── TooManyFailures       1: more inputs failed than --error-threshold allows

Interrupted               129, 130 or 143: stopped by a signal, resumable
└── TimeIsUp              143: stopped by --time-limit

ImageError                one image that can't be scored; becomes a failed record, never ends a run
├── RowError              the row of the table is malformed
├── FetchError            the bytes can't be had
├── DecodeError           the bytes are no image that we accept
└── ScoreError            the model gave no finite score
"""

from __future__ import annotations

import errno
import gzip
import json
import signal
import zlib
from collections.abc import Iterable

from deit_batch.redaction import redact_message


class _WithoutSecrets(Exception):  # noqa: N818 - what all of these have in common
    """Whatever a message quotes (a cell, a URL, another library's words), it shows nothing that gives access."""

    def __str__(self) -> str:
        return redact_message(super().__str__())


class DeitBatchError(_WithoutSecrets):
    """A run that can't go on. The message is one line: what failed, on what, what to do next. The exit status is 1 if
    the same command may succeed later, and 2 if it can't."""

    @property
    def exit_status(self) -> int:
        return 1


class UsageError(DeitBatchError):
    exit_status = 2


class CheckpointError(DeitBatchError):
    exit_status = 2


class CheckpointAccessError(CheckpointError):
    exit_status = 1


class InputError(DeitBatchError):
    pass


class DamagedInputError(InputError):
    exit_status = 2


class OutputError(DeitBatchError):
    @property
    def exit_status(self) -> int:
        """By what the system said, where this was raised from it."""
        return 2 if isinstance(self.__cause__, OSError) and self.__cause__.errno in _STAYS_REFUSED else 1


_STAYS_REFUSED = frozenset(
    (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)
)
"""What the system says again tomorrow, if nobody does anything about it. A folder that is not there may be on a mount
that comes back."""


def cut_off(message: str, error: Exception) -> InputError:
    """The error of an input that can't be read to its end. Another try may mend what the medium was the reason of, and
    an end that came too early, as in a file that is still being copied; it does not mend damage."""
    # gzip and Arrow say of damaged content that it is an OSError, but of no number that the system has for it.
    of_content = isinstance(error, gzip.BadGzipFile) or (type(error) is OSError and error.errno is None)
    passes = isinstance(error, OSError | EOFError) and not of_content
    return InputError(message) if passes else DamagedInputError(message)


class TooManyFailures(DeitBatchError):  # noqa: N818 - says it all
    pass


MALFORMED = (
    *(ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError),
    NotImplementedError,  # of pyarrow, beside ValueError: a type that it does not know
)
"""What comes of reading a document, JSON or else, that is not of the form that its reader expects."""


def in_words(error: Exception) -> str:
    """What went wrong in a file that a user gave, where Python's own words say it to programmers alone."""
    match error:
        case KeyError():
            return f"there is no {error.args[0]!r} in it"
        case UnicodeDecodeError():
            return f"not UTF-8 (byte {error.start:,})"
        case json.JSONDecodeError():
            return f"not JSON: {_what_is_no_json(error)}"
        case gzip.BadGzipFile() | zlib.error():
            return "no gzip data, or damaged ones"
        case EOFError():
            return "it ends early"
        case ValueError() if "set_int_max_str_digits" in str(error):
            return "a number of thousands of digits"
        case RecursionError():
            return "nested too deeply"
        case OSError():
            return error.strerror or str(error)
        case TypeError() | AttributeError() | IndexError() | OverflowError():
            return "something in it is not of the kind that it should be"
        case _:
            return str(error)


_JSON_IN_WORDS = {
    "Expecting value": "a value is missing",
    "Expecting ','": "a comma is missing",
    "Expecting ':'": "a colon is missing",
    "Expecting property name": "a name in double quotes is missing",
    "Illegal trailing comma": "a comma too many",
    "Extra data": "something follows on its end",
    "Unterminated string": "a quote is not closed",
    "Invalid control character": "a line break or other control character in a text",
    "Invalid \\": "a backslash that no escape follows",
    "Unexpected UTF-8 BOM": "a byte order mark",
}
"""What the parser says (json.decoder), by its beginnings."""


def _what_is_no_json(error: json.JSONDecodeError) -> str:
    if not error.doc.strip():
        return "it is empty"
    said = next((words for start, words in _JSON_IN_WORDS.items() if error.msg.startswith(start)), error.msg)
    line = f"line {error.lineno:,}, " if "\n" in error.doc.strip() else ""
    return f"{said} ({line}character {error.colno:,})"


class Interrupted(BaseException):
    """Stopped by a signal; what was scored is kept and the same command continues. Like KeyboardInterrupt no Exception,
    so that code which takes any exception for a fault of its input lets it pass."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}; run the same command again to continue")
        self.exit_status = 128 + signum


class TimeIsUp(Interrupted):
    """Stopped by --time-limit, as SIGTERM would have stopped it."""

    def __init__(self) -> None:
        BaseException.__init__(self, "stopped by --time-limit; run the same command again to continue")
        self.exit_status = 128 + signal.SIGTERM


class ImageError(_WithoutSecrets):
    """One image that can't be scored. The name of the class is the `type` in the failed record."""


class RowError(ImageError):
    pass


class FetchError(ImageError):
    pass


class DecodeError(ImageError):
    pass


class ScoreError(ImageError):
    pass


def nothing_left(message: str, failures: Iterable[str]) -> DeitBatchError:
    """The error of a run in which every image failed, by the types of the `failures`: an InputError if one could not be
    fetched, which another try may mend, or else a UsageError."""
    return InputError(message) if FetchError.__name__ in failures else UsageError(message)
