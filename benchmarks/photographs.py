"""Large photographs, whose decoding takes all the time: photographs.py CHECKPOINT LIST WORKERS TURNS.

The model should be one that costs next to nothing. Prints a line of JSON a turn: `first`, the seconds from a model that
is ready to the first record; `end to end` and `decoding alone` by as many processes, in images a second.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

from deit_batch import load
from deit_batch.limits import Limits
from deit_batch.loading.decode import decode
from deit_batch.model.checkpoint import find_checkpoint, find_recipe
from deit_batch.model.recipe import Recipe


def read_and_decode(path: str, recipe: Recipe) -> int:
    return len(decode(Path(path).read_bytes(), recipe, Limits()))


def seconds_of(work: Callable[[], object]) -> float:
    start = time.monotonic()
    work()
    return time.monotonic() - start


def main() -> None:
    checkpoint, table, workers, turns = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    paths = Path(table).read_text().splitlines()
    recipe = find_recipe(find_checkpoint(checkpoint), None)
    jobs = [(path, recipe) for path in paths]
    with get_context("fork").Pool(workers) as pool, load(checkpoint, workers=workers) as model:
        pool.starmap(read_and_decode, jobs[:workers], chunksize=1)  # their libraries are loaded
        for _ in range(turns):
            records = model.score(table)
            first = seconds_of(lambda records=records: next(records))  # type: ignore[misc]
            rest = seconds_of(lambda records=records: list(records))  # type: ignore[misc]
            alone = seconds_of(lambda: pool.starmap(read_and_decode, jobs, chunksize=1))
            figures = {"first": first, "end to end": len(paths) / (first + rest), "decoding alone": len(paths) / alone}
            print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
