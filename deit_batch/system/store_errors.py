"""What the stores' libraries raise, each in its own way, as one kind of error in one line."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

_NO_ANSWER = frozenset(
    "HTTPClientError IncompleteReadError ResponseParserError "  # botocore
    "ClientConnectionError ClientPayloadError "  # aiohttp
    "TransportError ServiceRequestError ServiceResponseError "  # Google's and Azure's
    "RequestException ChecksumError".split()  # gcsfs: a 502; a body that was cut
)
"""The names of exceptions (the libraries may be missing): the connection broke, or the answer was cut short."""

_NO_CREDENTIALS = frozenset(
    "NoCredentialsError PartialCredentialsError CredentialRetrievalError "  # botocore
    "GoogleAuthError ClientAuthenticationError".split()
)
"""The names of exceptions: nothing in the environment gives access, or what does is incomplete."""

_FOR_SUPPORT = re.compile(r"\n(?=RequestId:|ErrorCode:|Attempted credentials:)")

_RATE_LIMIT = re.compile(r"rate.?limit", re.IGNORECASE)


class StoreError(OSError):
    """What went wrong with an object, in one line. `passing`: it may be gone in a moment. `throttled`: the store is
    asked too often; that passes, too. `number`: what the system would say of a file that is refused like this."""

    def __init__(
        self, message: str, *, passing: bool = False, throttled: bool = False, number: int | None = None
    ) -> None:
        super().__init__(message)
        self.errno = number
        self.passing = passing or throttled
        self.throttled = throttled


class NoSuchObjectError(StoreError):
    """Nothing is there."""


@contextmanager
def bucket_is_there(bucket: str) -> Iterator[None]:
    """For what writes an object. That there is no such thing, the store can only mean of the bucket."""
    try:
        yield
    except NoSuchObjectError as error:
        raise StoreError(f"there is no bucket {bucket}", number=errno.ENOTDIR) from error


@contextmanager
def translated() -> Iterator[None]:
    """Stores raise whatever their libraries do: here that becomes a StoreError."""
    try:
        yield
    except StoreError:
        raise
    except FileNotFoundError as error:
        raise NoSuchObjectError("no such object") from error
    except TimeoutError as error:
        raise StoreError("not complete in time", passing=True) from error
    except Exception as error:
        if _status(error) == 404:
            raise NoSuchObjectError("no such object") from error
        raise StoreError(
            _describe(error),
            passing=_is_passing(error),
            throttled=_is_throttled(error),
            number=errno.EACCES if _is_refused(error) else None,
        ) from error


def _describe(error: Exception) -> str:
    """In one line. Azure's errors have more of them, for its support; the code says what it is."""
    text = getattr(error, "strerror", None) or str(error)
    text = " ".join(_FOR_SUPPORT.split(text)[0].split()) or type(error).__name__
    if code := getattr(error, "error_code", None):
        text = f"{text} ({getattr(code, 'value', code)})"
    names = {base.__name__ for base in type(error).__mro__}
    return f"not permitted: {text}" if _is_refused(error) or names & _NO_CREDENTIALS else text


def _is_refused(error: Exception) -> bool:
    """Whether the store has answered that this may not be done."""
    if _is_throttled(error):
        return False
    is_forbidden = isinstance(error, PermissionError) or str(error).startswith("Forbidden")
    return is_forbidden or _status(error) in (401, 403)


def _is_passing(error: Exception) -> bool:
    """No answer at all, or a fault of the server: an answer that says no stays no."""
    names = {base.__name__ for base in type(error).__mro__}
    if isinstance(error, ConnectionError) or names & _NO_ANSWER:
        return True
    status = _status(error)
    return status is not None and (status in (408, 425) or status >= 500)


def _is_throttled(error: Exception) -> bool:
    """503 is S3's SlowDown and Azure's ServerBusy; Google answers 429, or 403 with a reason, of which gcsfs leaves no
    more than the text (cloud.google.com/storage/docs/json_api/v1/status-codes: rateLimitExceeded)."""
    forbidden, _, reason = str(error).partition("\n")
    if forbidden.startswith("Forbidden") and _RATE_LIMIT.search(reason):
        return True
    return _status(error) in (429, 503)


def _status(error: BaseException | None) -> int | None:
    """The status of the HTTP answer that an error of any of the libraries tells of, or the one that it comes from."""
    while error is not None:
        answer = getattr(error, "response", None)
        if isinstance(answer, dict):  # botocore's
            found = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:
            by_name = (
                getattr(place, name, None) for place in (error, answer) for name in ("status_code", "code", "status")
            )
            found = next((value for value in by_name if isinstance(value, int)), None)
        if isinstance(found, int):
            return found
        error = error.__cause__
    return None
