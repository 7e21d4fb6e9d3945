"""The folders of a fine-tuning: OUT appears whole, when it is finished; OUT.partial grows beside it, and a dead run is
continued from there; OUT.lock is held meanwhile."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deit_batch.errors import UsageError
from deit_batch.io import json_line
from deit_batch.system.atomic import (
    as_output_error,
    make_missing_folder,
    mend_folder,
    publish_folder,
    remove_folder,
    standing,
    sweep_files,
    write_atomically,
)
from deit_batch.system.lock import Lock

logger = logging.getLogger("deit_batch")

REPORT = "training.json"


def beside(out: Path, ending: str) -> Path:
    return out.with_name(out.name + ending)


@contextmanager
def beginning(out: Path) -> Iterator[None]:
    """Raises OutputError for what the system says before the first step."""
    with as_output_error(out, "nothing has been trained by this run: mend that, or give another --out"):
        yield


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Raises OutputError for what the system says meanwhile."""
    with as_output_error(out, "make room or mend the folder, and run the same command again to continue"):
        yield


def lock(out: Path) -> Lock:
    """Raises OutputError if another process is at it."""
    make_missing_folder(out)
    return Lock(beside(out, ".lock"), str(out))


def finished_report(out: Path, facts: Mapping[str, Any], *, fresh: bool) -> dict[str, Any] | None:
    """Of a result that was made with the same settings, unless it is to be made `fresh`. Raises UsageError for anything
    else that is there: --fresh takes a folder away with all that is in it, and never one that no run has made."""
    mend_folder(out, beside(out, ".partial") / "result")
    if not out.exists():
        return None
    report = _read(out / REPORT)
    if report is None:
        raise UsageError(f"{out} exists and is no result of a fine-tuning; give another --out")
    if fresh:
        return None
    if report["settings"] != facts:
        raise UsageError(
            f"{out} was made with other settings ({_differences(report['settings'], facts)}); --fresh replaces it"
        )
    if (beside(out, ".partial") / "settings.json").exists():
        logger.info("%s, which a run with --fresh has left, is removed", beside(out, ".partial"))
        with standing(out):
            remove_partial(out)
    return report


def open_partial(out: Path, facts: Mapping[str, Any], *, fresh: bool) -> Path:
    """The folder to work in. Raises UsageError if a dead run with other settings has left it."""
    partial = beside(out, ".partial")
    sweep_files(partial / "settings.json")
    if partial.exists() and not (partial / "settings.json").exists() and any(partial.iterdir()):
        raise UsageError(f"{partial} is there and no settings.json in it says what it is; give another --out")
    if fresh and partial.exists():
        remove_partial(out)
    before = _read(partial / "settings.json")
    if before not in (None, facts):
        raise UsageError(
            f"{partial} was left by a run with other settings ({_differences(before or {}, facts)}); give those to go "
            "on with it, or --fresh to start over"
        )
    partial.mkdir(exist_ok=True)
    write_atomically(partial / "settings.json", json_line(facts))
    return partial


def publish(result: Path, out: Path) -> None:
    """Makes `result`, a folder in OUT.partial, appear as OUT, and takes the rest away."""
    for path in (path for path in result.rglob("*") if path.is_file()):
        path.chmod(0o644)  # safetensors makes its own private
    publish_folder(result, out, replace=True)  # what is there: with --fresh
    with standing(out):
        remove_partial(out)


def remove_partial(out: Path) -> None:
    """If this process is killed meanwhile, the next run removes the rest."""
    remove_folder(beside(out, ".partial"), out)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(path.read_bytes()))
    except (OSError, ValueError):
        return None


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    names = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    return ", ".join(name.replace("_", "-") for name in names)
