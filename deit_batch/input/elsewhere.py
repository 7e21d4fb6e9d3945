"""Where images are that another machine or service named: --map PREFIX=PLACE."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import TypeAlias

from deit_batch.errors import UsageError

Map: TypeAlias = Sequence[tuple[str, str]]
"""Prefixes of names, each with the folder or address that stands for it here."""

# learn.microsoft.com/azure/machine-learning/how-to-access-data-interactive: a datastore's long and short form.
_LONG_FORM = re.compile(r"azureml://(?:[A-Za-z]+/[^/]+/)*?(datastores/)", re.IGNORECASE)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def parse_map(text: str) -> tuple[str, str]:
    """Of what --map gives, PREFIX=PLACE. Raises UsageError if it is none."""
    prefix, equals, place = text.partition("=")
    if not (prefix.strip() and equals and place.strip()):
        raise UsageError(f"--map {text:.80}: it must be PREFIX=FOLDER or PREFIX=ADDRESS")
    return prefix.strip(), place.strip()


def find_here(name: str, known: Map) -> str:
    """Where that is: the place of the longest prefix that the name has, and the rest of the name; the name itself if it
    has none. Behind a prefix of Windows, the rest has its backslashes turned. A datastore of Azure ML is known by its
    short form (azureml://datastores/…), too."""
    if not known:
        return name
    text = name.strip()
    found = [(prefix, place, form) for prefix, place in known for form in _forms(text) if form.startswith(prefix)]
    if not found:
        return name
    prefix, place, form = max(found, key=lambda one: len(one[0]))
    if not _SCHEME.match(place):
        place = os.path.abspath(place) + ("/" if place.endswith("/") else "")
    rest = form[len(prefix) :]
    if "\\" in prefix:  # as Windows writes names
        rest = rest.replace("\\", "/")
    slash = "/" if prefix.endswith(("/", "\\")) and not place.endswith("/") else ""
    return place + slash + rest


def _forms(text: str) -> list[str]:
    short = _LONG_FORM.sub(r"azureml://\1", text, count=1) if text[:10].lower() == "azureml://" else text
    return list(dict.fromkeys([text, short]))
