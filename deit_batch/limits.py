"""What one image may cost, and where it may come from: the defaults are for input that nobody has looked at."""

from __future__ import annotations

import faulthandler
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from deit_batch.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Sizes are of the encoded image in bytes and of the decoded one in pixels; times in seconds. `fetch_seconds` is
    for one try of a URL with all its redirects, `retries` are further tries after a passing fault, `connections` those
    open at a time to one host, in each worker. `root` is the folder that local files must be in, links resolved."""

    image_bytes: int = 100 * 2**20
    image_pixels: int = 178_956_970  # where Pillow calls an image a decompression bomb
    fetch_seconds: float = 30.0
    decode_seconds: float = 60.0
    redirects: int = 5
    retries: int = 2
    connections: int = 8
    allow_private_hosts: bool = False
    allow_truncated: bool = False
    root: str | None = None

    def __post_init__(self) -> None:
        """Raises UsageError for what the command line would refuse."""
        for name in ("allow_private_hosts", "allow_truncated"):
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"{name} is {getattr(self, name)!r}; it must be True or False")
        root: object = self.root
        if root is not None and not (isinstance(root, str) and root):
            raise UsageError(f"root is {root!r}; it must be the name of a folder, or an address on a store")
        for name in ("image_bytes", "image_pixels", "connections"):
            require_whole_number(name, getattr(self, name), 1)
        for name in ("redirects", "retries"):
            require_whole_number(name, getattr(self, name), 0)
        for name in ("fetch_seconds", "decode_seconds"):
            require_number(name, getattr(self, name), 0, LONGEST_SECONDS)
            if getattr(self, name) == 0:
                raise UsageError(f"{name} is 0; no image could be had in no time")


LONGEST_SECONDS = 86_400.0
MOST = 2**63 - 1
"""What counts and sizes are kept in holds no more."""


def require_whole_number(name: str, value: object, least: int, otherwise: str = "") -> None:
    """Raises UsageError, by the option's name, unless it is one from `least` up. `otherwise`: what else it may be."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= MOST:
        raise UsageError(f"{name} is {value!r:.60}; it must be a whole number from {least} up{otherwise}")


def require_number(name: str, value: object, least: float, most: float) -> None:
    """Raises UsageError, by the option's name, unless it is one in this range; NaN is in none."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
        raise UsageError(f"{name} is {value!r:.60}; it must be a number in {least:g}..{most:g}")


DEFAULT_LIMITS = Limits()


OUT_OF_TIME = 1
"""The exit code of a process that `end_process_after` has ended."""


@contextmanager
def end_process_after(seconds: float) -> Iterator[None]:
    """What is done in here must be done in time, or this process ends: there is no other way out of a decoder that
    hangs. For a worker, whose descriptor 2 leads nowhere: a traceback goes there."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
