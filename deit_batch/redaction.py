"""What is shown of URLs: nothing that gives access."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote_plus

HIDDEN = "***"

_SECRET_PARAMETERS = frozenset(
    "auth authentication authkey authorization bearer googleaccessid hdnea hdntl hdnts hmac jwt key keypairid otp pass "
    "passcode pat policy pw pwd sas sig".split()
)
"""Whole names, in lower case and without - and _."""

_SECRET_ENDINGS = tuple(
    "accesskey accesskeyid apikey credential credentials functionskey passphrase passwd password privatekey secret "
    "secretkey sessionid signature subscriptionkey token".split()
)
"""Of a name that is written so."""

_MOST_ENCODED = 3

_URL_STARTS = re.compile(r"""((?:(?<=http)|(?<=https)):[/\\]*|:/{1,2}|(?<![^"'(\[<{=,])//)""", re.IGNORECASE)
"""Also where a slash is missing, as a path loses it, or turned around: what follows is a host, whoever wrote it; or the
scheme, as pages write their links."""

_NAME_PUNCTUATION = str.maketrans("", "", "-_")


def redact(name: str) -> str:
    """A URL without what gives access: user info, and the values of parameters that are called like secrets. Other
    names as they are."""
    if ":" not in name and not name.startswith("//"):
        return name
    scheme, *rest = _URL_STARTS.split(name)
    if not rest:
        return name
    starts, places = rest[::2], rest[1::2]
    shown = map(_without_user_info, [scheme, *places], places)
    return _without_secrets(scheme + "".join(f"{start}{place}" for start, place in zip(starts, shown, strict=True)))


def redact_all(value: Any) -> Any:
    """The same of every text in what JSON can hold."""
    match value:
        case str():
            return redact(value)
        case Mapping():
            return {name: redact_all(each) for name, each in value.items()}
        case list() | tuple():
            return [redact_all(each) for each in value]
        case _:
            return value


def redact_message(text: str) -> str:
    """A message without what gives access, where it quotes a URL: from there on, word by word."""
    words = re.split(r"(\s+)", text)
    first = next((place for place, word in enumerate(words) if _URL_STARTS.search(word)), len(words))
    return "".join([*words[:first], *map(_redact_word, words[first:])])


def _redact_word(word: str) -> str:
    """The punctuation that a sentence puts behind it is none of it."""
    name = word.rstrip("\"'),.:;]}>")
    return (redact(name) if _URL_STARTS.search(name) else _without_secrets(name)) + word[len(name) :]


def _without_secrets(text: str) -> str:
    return "".join(map(_without_secret, re.split("([&#])", text)))


def _without_secret(text: str) -> str:
    """Text between two & or #: from the first secret parameter on, nothing is shown. `;` and a second `?` may stand
    between two parameters, or be part of a value; so may a whole URL, encoded."""
    start = 0
    for part in re.split("([?;])", text):
        name, equals, value = part.partition("=")
        if equals and value and (_is_secret(name) or _holds_secret(value)):
            return f"{text[:start]}{name}={HIDDEN}"
        start += len(part)
    return text


def _is_secret(name: str) -> bool:
    plain = unquote_plus(name[-200:]).translate(_NAME_PUNCTUATION).lower()
    return plain in _SECRET_PARAMETERS or plain.endswith(_SECRET_ENDINGS)


def _holds_secret(value: str) -> bool:
    """Whether it is a URL with a secret, or parameters with one, encoded up to _MOST_ENCODED times."""
    for _ in range(_MOST_ENCODED):
        if "%" not in value:
            return False
        value = unquote_plus(value)
        places = _URL_STARTS.split(value)[2::2]
        pairs = (part.partition("=") for part in re.split("[&#?;]", value))
        if any(map(user_info_length, places)) or any(value and _is_secret(name) for name, _, value in pairs):
            return True
    return False


def _without_user_info(before: str, place: str) -> str:
    """`place` is what follows a start. In a store's address a container may stand where a user does, and without http
    it may be a path, in which an @ is a letter like others: there only a password is hidden."""
    length = user_info_length(place)
    user_info, rest = place[:length], place[length:]
    if not user_info or before.lower().endswith(("http", "https")):
        return (f"{HIDDEN}@" if user_info else "") + rest
    user, colon, _ = user_info.partition(":")
    return (f"{user}:{HIDDEN}@" if colon else user_info) + rest


def user_info_length(place: str) -> int:
    """How long the user info is, with its @, at the start of what follows `://`. A password may hold a `/`, `?` or
    `#`, which end the host for every parser: then what stands there for the port is no number."""
    before_query = re.split(r"[?#]", place, maxsplit=1)[0]
    authority = before_query.partition("/")[0]
    if "@" in authority:
        return authority.rindex("@") + 1
    _, colon, port = authority.rpartition(":")
    malformed = colon and port and not port.isdecimal() and not port.endswith("]")
    return place.rfind("@") + 1 if malformed else 0
