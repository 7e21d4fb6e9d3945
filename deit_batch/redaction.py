"""What is shown of URLs: nothing that gives access."""

from __future__ import annotations

import re
from urllib.parse import unquote_plus

HIDDEN = "***"

_SECRET_PARAMETERS = frozenset(
    "accesskey accesskeyid accesstoken apikey apitoken auth authentication authkey authorization authtoken "
    "awsaccesskeyid bearer bearertoken clientsecret credential credentials googleaccessid hmac idtoken jwt key "
    "keypairid ocpapimsubscriptionkey ossaccesskeyid pass passphrase passwd password policy privatekey pwd "
    "refreshtoken sas sastoken secret secretkey securitytoken sessiontoken sig signature subscriptionkey token "
    "xamzcredential xamzsecuritytoken xamzsignature xgoogcredential xgoogsignature xosscredential "
    "xosssecuritytoken xosssignature".split()
)
"""Whole names, in lower case and without - and _."""

_NAME_PUNCTUATION = str.maketrans("", "", "-_")


def redact(name: str) -> str:
    """A URL without what gives access: user info, and the values of parameters that are called like secrets. Other
    names as they are."""
    if "://" not in name:
        return name
    scheme, *rest = name.split("://")
    schemes = [scheme, *rest]
    places = [_without_user_info(before, place) for before, place in zip(schemes, rest, strict=False)]
    return _without_secrets("://".join([scheme, *places]))


def redact_message(text: str) -> str:
    """A message without what gives access, where it quotes a URL: from there on, word by word."""
    words = re.split(r"(\s+)", text)
    first = next((place for place, word in enumerate(words) if "://" in word), len(words))
    return "".join([*words[:first], *map(_redact_word, words[first:])])


def _redact_word(word: str) -> str:
    """The punctuation that a sentence puts behind it is none of it."""
    name = word.rstrip("\"'),.:;]}>")
    return (redact(name) if "://" in name else _without_secrets(name)) + word[len(name) :]


def _without_secrets(text: str) -> str:
    return "".join(map(_without_secret, re.split("([&#])", text)))


def _without_secret(text: str) -> str:
    """Text between two & or #: from the first secret parameter on, nothing is shown. `;` and a second `?` may stand
    between two parameters, or be part of a value."""
    start = 0
    for part in re.split("([?;])", text):
        name, equals, value = part.partition("=")
        if equals and value and _is_secret(name):
            return f"{text[:start]}{name}={HIDDEN}"
        start += len(part)
    return text


def _is_secret(name: str) -> bool:
    plain = unquote_plus(name[-200:]).translate(_NAME_PUNCTUATION).lower()
    return plain in _SECRET_PARAMETERS or plain.removeprefix("x") in _SECRET_PARAMETERS


def _without_user_info(before: str, place: str) -> str:
    """`place` is what follows `://`. In a store's address a container may stand where a user does: there only a
    password is hidden."""
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
