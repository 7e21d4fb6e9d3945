"""What a run leaves beside its result: how it went, as schemas/run-report.schema.json describes it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deit_batch.io import Tally


def read_report(path: Path) -> dict[str, Any]:
    """{} if there is none, or it is no JSON object."""
    try:
        return parse_report(path.read_bytes())
    except OSError:
        return {}


def parse_report(data: bytes) -> dict[str, Any]:
    """{} if it is no JSON object."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def run_report(
    tally: Tally,
    passed_over: Mapping[str, int],
    about: Mapping[str, object],
    *,
    kept: int | None = None,
    vanished: int = 0,
    deep_gray: int = 0,
) -> dict[str, object]:
    """The counts first, then `about`: whatever else this kind of run has to say. Of an incremental run, `kept`: how
    many images needed no scoring, and `vanished`: how many of earlier runs are not there any more; `deep_gray`: how
    many were grey of more than 8 bits."""
    counts = {
        "inputs": tally.inputs,
        "scored": tally.scored,
        **({} if kept is None else {"kept": kept}),
        **({"vanished": vanished} if vanished else {}),
        "failed": tally.failed,
        "failures": dict(tally.failures),
        "passed_over": dict(passed_over),
        **({"deep_gray": deep_gray} if deep_gray else {}),
    }
    return {"counts": counts, **about, "ended_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
