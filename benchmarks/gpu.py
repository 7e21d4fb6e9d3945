"""What a GPU makes of it: gpu.py [--device cpu] [--budget SECONDS] [--out FOLDER] [--rows NAME …].

The most important rows come first, each in a process of its own: one that fails, hangs or runs out of memory costs no
other. A figure is printed and written to gpu.jsonl as it comes, and gpu.md is written anew after every row, so a run
that is cut off has what it has measured. `--device cpu` goes the same way in little, to try the code where there is no
card. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import gpu_rows as rows
from gpu_page import Figure, page
from gpu_rows import CARD, TRIAL, Setup, Sizes

HERE = Path(__file__).resolve().parent
BUDGET = 360.0
LEAST = 6.0
"""Seconds that must be left for a row to be begun."""


@dataclass(frozen=True)
class Row:
    """`most`: seconds that it may take."""

    name: str
    figures: Callable[[Setup], Iterator[Figure]]
    most: float = 45


ROWS = (
    Row("material", rows.material, 60),
    Row("smoke", rows.smoke),
    Row("DeiT-B", partial(rows.end_to_end, model="base")),
    Row("profile", rows.profile),
    Row("photographs", rows.photographs, 60),
    Row("pipeline", rows.pipeline),
    Row("DeiT-Ti", partial(rows.end_to_end, model="tiny")),
    Row("fast", rows.fast),
    Row("compiled", rows.compiled, 60),
    Row("scores", rows.scores),
    Row("full memory", rows.full_memory),
    Row("loader", rows.loader),
    Row("serve", rows.serve),
    Row("embed", rows.embed),
    *(Row(f"finetune {way}", partial(rows.finetune, way=way)) for way in rows.WAYS),
    Row("memory, few images", partial(rows.memory, many=False)),
    Row("memory, many images", partial(rows.memory, many=True)),
    Row("compiled again", rows.compiled_again),
)


class Notes:
    """Every figure as a line of JSON, as soon as it is there, and the page made of all."""

    def __init__(self, folder: Path) -> None:
        self._lines, self._page = folder / "gpu.jsonl", folder / "gpu.md"
        self._lines.write_bytes(b"")
        self._start = time.monotonic()

    def add(self, row: str, figure: Figure) -> None:
        seconds = round(time.monotonic() - self._start, 1)
        line = {"row": row, "figure": figure.name, "value": figure.value, "unit": figure.unit, "at": seconds}
        with open(self._lines, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        print(f"{seconds:5.0f} s  {row}: {figure.name}: {figure}", flush=True)

    def write_page(self) -> str:
        text = page([json.loads(line) for line in self._lines.read_bytes().splitlines()])
        self._page.write_text(text, encoding="utf-8")
        return text


def run(row: Row, setup: Setup, seconds: float) -> Iterator[Figure]:
    """The figures of a row as they come; at its end its process is gone, and all that it has started."""
    context = multiprocessing.get_context(setup.sizes.start)
    receiving, sending = context.Pipe(duplex=False)
    process: BaseProcess = context.Process(target=_measure, args=(row.figures, setup, sending))  # type: ignore[attr-defined]
    process.start()
    sending.close()
    end = time.monotonic() + seconds
    try:
        while True:
            if receiving.poll(0.1):
                figure = receiving.recv()
                if figure is None:
                    return
                yield figure
            elif not process.is_alive() and not receiving.poll():
                yield Figure("failed", f"its process ended with {process.exitcode}")
                return
            elif time.monotonic() > end:
                yield Figure("stopped", f"after {seconds:.0f} s")
                return
    except EOFError:
        process.join(3)
        yield Figure("failed", f"its process ended with {process.exitcode}")
    finally:
        _end(process)


def _measure(figures: Callable[[Setup], Iterator[Figure]], setup: Setup, sending: Connection) -> None:
    os.setsid()  # so that whatever it starts can be ended with it
    multiprocessing.set_start_method("fork", force=True)  # as in the command: one that was spawned would spawn
    try:
        for figure in figures(setup):
            sending.send(figure)
    except BaseException as error:  # also what calls sys.exit
        traceback.print_exc()
        sending.send(Figure("failed", f"{type(error).__name__}: {' '.join(str(error).split()):.300}"))
    sending.send(None)


def _end(process: BaseProcess) -> None:
    process.join(3)
    with suppress(ProcessLookupError, TypeError):
        os.killpg(process.pid, signal.SIGKILL)  # type: ignore[arg-type]
    process.join()


def measure(chosen: list[Row], setup: Setup, notes: Notes, budget: float) -> None:
    deadline = time.monotonic() + budget
    for row in chosen:
        left = deadline - time.monotonic()
        if left < LEAST:
            notes.add(row.name, Figure("skipped", f"the {budget:.0f} s are over"))
            continue
        for figure in run(row, setup, min(row.most, left)):
            notes.add(row.name, figure)
        notes.write_page()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--budget", type=float, default=BUDGET, metavar="SECONDS")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="for gpu.jsonl and gpu.md [default: beside this file]"
    )
    parser.add_argument("--rows", nargs="+", choices=[row.name for row in ROWS], metavar="NAME")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the row that runs is ended, too
    sizes: Sizes = CARD if given.device == "cuda" else TRIAL
    if sizes is CARD and not rows.has_card():
        sys.exit("gpu: there is no GPU here that torch can use; --device cpu tries the code in little")
    if sizes.start == "fork":
        rows.import_what_rows_need()
    chosen = [row for row in ROWS if not given.rows or row.name in (*given.rows, "material")]
    with tempfile.TemporaryDirectory() as name:
        out = given.out or (HERE if sizes is CARD else Path(name))
        out.mkdir(parents=True, exist_ok=True)
        notes = Notes(out)
        measure(chosen, Setup(Path(name), given.device, sizes), notes, given.budget)
        print(notes.write_page())


if __name__ == "__main__":
    main()
