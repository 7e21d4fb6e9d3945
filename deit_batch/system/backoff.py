"""How long to wait before another try."""

from __future__ import annotations

import random

LONGEST_WAIT = 30.0
"""Seconds, at most, whatever a server asks for."""


def wait_after(failures: int) -> float:
    """Seconds to wait after so many failures in a row. Full jitter: many that failed together must not come back
    together (aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter)."""
    return random.uniform(0, min(2.0 ** (failures - 1), LONGEST_WAIT))  # noqa: S311
