"""`deit_batch.load`: a model and its workers, kept between the calls of a Python program."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deit_batch import Model, embed, load, score
from deit_batch.errors import CheckpointError, UsageError

NOTEBOOK = """
import asyncio, multiprocessing
multiprocessing.set_start_method({start!r})
from deit_batch import load

model = load({model!r}, workers={workers})

async def cell():
    for _ in range(2):
        print([record.predictions[0]["score"] for record in model.score({photos!r}, limit=20)])

asyncio.run(cell())
"""
"""As a kernel runs it: from no file, in an event loop, and never closed."""


@pytest.fixture(params=[0, 2])
def model(vit: Path, request: pytest.FixtureRequest) -> Iterator[Model]:
    with load(vit, workers=request.param) as made:
        yield made


def test_each_call_gives_what_a_call_by_itself_does(photos: Path, vit: Path, model: Model) -> None:
    for options in ({"top_k": 1}, {"limit": 3, "threshold": 0.1}, {"shard": (1, 2)}):
        chosen: dict[str, Any] = options
        assert list(model.score(photos, **chosen)) == list(score(photos, model=vit, **chosen))
    pairs = zip(model.embed(photos), embed(photos, model=vit), strict=True)
    assert all(np.array_equal(a.features["cls"], b.features["cls"]) for a, b in pairs if a.features and b.features)
    assert list(model.score(photos)) == list(score(photos, model=vit))


def test_calls_of_two_threads_and_one_within_another(photos: Path, vit: Path, model: Model) -> None:
    expected = list(score(photos, model=vit))
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: list(model.score(photos)), range(2), timeout=60)
    assert first == second == expected
    outer = []
    for record in model.score(photos):
        outer.append(record)
        if record.index in (0, 39):
            assert list(model.score(photos, limit=5)) == expected[:5]
    assert outer == expected


def test_a_call_that_is_left_early_is_no_trouble(photos: Path, vit: Path, model: Model) -> None:
    (photos / "07.jpg").write_bytes(b"broken")
    expected = list(score(photos, model=vit))
    for _ in range(3):
        list(itertools.islice(model.score(photos), 3))
    assert list(model.score(photos)) == expected


@pytest.mark.parametrize(("start", "workers"), [("fork", 2), ("spawn", 1)])
def test_a_notebook(photos: Path, vit: Path, start: str, workers: int) -> None:
    program = NOTEBOOK.format(start=start, workers=workers, model=str(vit), photos=str(photos))
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    expected = [record.predictions[0]["score"] for record in score(photos, model=vit, limit=20)]
    assert ended.stdout.splitlines() == [str(expected)] * 2


def test_what_a_call_can_not_have_is_refused_when_it_is_called(photos: Path, vit: Path) -> None:
    more: dict[str, Any]
    with load(vit, workers=0) as model:
        for more, message in (
            ({"device": "cpu"}, r"score\(\) has no option device; there are column, id, keep, limit"),
            ({"top_k": 0}, "top_k is 0"),
            ({"topk": 3}, "do you mean top_k"),
        ):
            with pytest.raises(UsageError, match=message):
                model.score(photos, **more)
        with pytest.raises(UsageError, match="has only cls and mean"):
            model.embed(photos, features=["distillation"])
        with pytest.raises(UsageError, match="no such file or folder"):
            model.score(photos / "none")
    with pytest.raises(UsageError, match="the model is closed: load it again"):
        list(model.score(photos))
    more = {"top_k": 3}
    with pytest.raises(UsageError, match=r"load\(\) has no option top_k; "):
        load(vit, **more)


def test_weights_that_do_not_fit_are_found_out_at_once(photos: Path) -> None:
    with pytest.raises(CheckpointError):
        load(photos)
