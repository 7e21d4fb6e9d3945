"""What makes two references the same.

A run that is continued, a later run, the shards of one, two results that are compared, labels that are joined: all of
them ask `identity_of`, and nothing else. Secrets are hidden in what is shown, never in what is compared: otherwise two
images that differ in a hidden part would be taken for one.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from deit_batch.errors import RowError
from deit_batch.io import NAME_FIELDS
from deit_batch.names import alike
from deit_batch.redaction import redact, user_info_length

_AZURE = frozenset("st se sp si sip spr sdd ses skoid sktid skt ske sks skv saoid suoid scid".split())
_SIGNATURES: tuple[tuple[frozenset[str], frozenset[str]], ...] = (
    # learn.microsoft.com/rest/api/storageservices/create-service-sas, create-user-delegation-sas, create-account-sas
    (frozenset("sv sr se sig".split()), _AZURE),
    (frozenset("sv sr si sig".split()), _AZURE),
    (frozenset("sv ss srt sp se sig".split()), _AZURE),
    # docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html
    (
        frozenset(f"X-Amz-{name}" for name in "Algorithm Credential Date Expires SignedHeaders Signature".split()),
        frozenset(("X-Amz-Security-Token",)),
    ),
    # cloud.google.com/storage/docs/authentication/signatures
    (
        frozenset(f"X-Goog-{name}" for name in "Algorithm Credential Date Expires SignedHeaders Signature".split()),
        frozenset(),
    ),
    # docs.aws.amazon.com/AmazonCloudFront/latest/DeveloperGuide/private-content-signed-urls.html
    (frozenset(("Expires", "Signature", "Key-Pair-Id")), frozenset(("Hash-Algorithm",))),
    (frozenset(("Policy", "Signature", "Key-Pair-Id")), frozenset(("Hash-Algorithm",))),
)
"""The parameters by which the known kinds of signed links can be told, and those that may come with them."""


_encode = json.JSONEncoder().encode


def identity_of(record: Mapping[str, Any]) -> str | None:
    """SHA-256, in hexadecimal, of what names the input of a record, or of the `NAME_FIELDS` of a reference; None if
    nothing does, as in a malformed row. Two are of the same input if this is the same. Names that look alike are."""
    if given := record.get("image_id"):
        return str(given)
    image, exact, sha256 = map(record.get, NAME_FIELDS[:3])
    return _digest_of_names(image and alike(image), exact, sha256) if image or sha256 else None


def image_id_if_hidden(name: str, sha256: str | None) -> str | None:
    """The identity of a reference whose name is not shown as it is; None if it is, and so tells by itself. `sha256`: of
    inline data."""
    return None if redact(name) == name else _digest_of_names(alike(comparable(name)), None, sha256)


def given_identity(value: object) -> str:
    """The identity that a row's own field says, as --id asks for it: a text, without white space around it, or a
    number, which is the same as its text. Raises RowError for anything else."""
    text = text_of(value)
    text = alike(text) if isinstance(text, str) else ""
    if not text:
        shown = "empty" if value is None or isinstance(value, str) else json.dumps(value, default=str)
        raise RowError(f"the id is {shown:.60}")
    return _digest(json.dumps({"id": text}))


def text_of(value: object) -> object:
    """A number as text, a whole one without the point that a table writes if some are missing; whatever else it is, or
    a NaN, as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        return value
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def comparable(name: str) -> str:
    """An http(s) URL without user info, and without the values of a complete signature of a known kind, which may be
    others each night. Any other name, and all else of a URL, as it is."""
    if not name.lstrip()[:8].lower().startswith(("http://", "https://")):
        return name
    start = name.index("://") + 3
    rest, hash, fragment = name[start + user_info_length(name[start:]) :].partition("#")
    path, mark, query = rest.partition("?")
    parameters = query.split("&")
    signature = _signature([parameter.partition("=")[0] for parameter in parameters])
    kept = [_without_value(parameter, signature) for parameter in parameters]
    return f"{name[:start]}{path}{mark}{'&'.join(kept)}{hash}{fragment}"


def _signature(names: list[str]) -> set[str]:
    """The parameters that are a complete signature, each there once; none if there is no such signature."""
    once = {name for name, count in Counter(names).items() if count == 1}
    found = (once & (needed | others) for needed, others in _SIGNATURES if needed <= once)
    return next(found, set())


def _without_value(parameter: str, signature: set[str]) -> str:
    name, _, _ = parameter.partition("=")
    return f"{name}=" if name in signature else parameter


def _digest_of_names(*names: str | None) -> str:
    """Of their list as `json.dumps` writes it, which is much quicker with one string at a time."""
    return _digest(f"[{', '.join(['null' if name is None else _encode(name) for name in names])}]")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
