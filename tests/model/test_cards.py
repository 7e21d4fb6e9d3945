"""Several cards in one run, tried with several engines on the CPU: one slow, one that dies."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import read_json, scored
from torch import Tensor

from deit_batch.errors import DeitBatchError, UsageError
from deit_batch.model import cards
from deit_batch.model.cards import Cards, choose_devices, device_names
from deit_batch.model.classifier import Classifier
from deit_batch.model.engines import Engine, Result, Threads
from deit_batch.options import Options
from deit_batch.plan import Plan

CPU = torch.device("cpu")
FAULT = "CUDA error: unspecified launch failure\nCUDA kernel errors might be asynchronously reported"


OnTwo = Callable[[Callable[[], None]], None]


class Changed:
    """An engine with something done before each result."""

    def __init__(self, engine: Engine, before: Callable[[], None]) -> None:
        self._engine, self._before = engine, before
        self.empty_cache, self.close = engine.empty_cache, engine.close

    def start(self, pixels: Tensor, pass_size: int) -> Result:
        result = self._engine.start(pixels, pass_size)

        def changed() -> Tensor:
            self._before()
            return result()

        return changed


@pytest.fixture
def on_two(monkeypatch: pytest.MonkeyPatch) -> OnTwo:
    """Two devices, the second of which does something first."""

    def change(before: Callable[[], None]) -> None:
        load = Plan.load

        def loaded(plan: Plan, most_cores: int | None = None) -> Cards:
            found = load(plan, most_cores)
            second = found._classifiers[1]
            second._engine = Changed(second._engine, before)
            return found

        monkeypatch.setattr(cards, "choose_devices", lambda name: (CPU, CPU))
        monkeypatch.setattr(Plan, "load", loaded)

    return change


def test_two_engines_of_which_one_is_slow_give_what_one_gives(
    photos: Path, vit: Path, tmp_path: Path, on_two: OnTwo
) -> None:
    (photos / "07.jpg").write_bytes(b"broken")
    one = scored(photos, vit, tmp_path, "one.jsonl", batch_size=3)
    used: list[None] = []

    def wait() -> None:
        used.append(None)
        time.sleep(0.02)

    on_two(wait)
    two = scored(photos, vit, tmp_path, "two.jsonl", batch_size=3)
    assert two.read_bytes() == one.read_bytes()
    assert 5 <= len(used) <= 10 * 2  # of 14 batches, in passes of two images, half
    assert read_json(tmp_path / "one.jsonl.run.json")["devices"] == ["cpu"]
    assert read_json(tmp_path / "two.jsonl.run.json")["devices"] == ["cpu", "cpu"]


def test_an_engine_that_dies_ends_the_run_which_can_be_continued(
    photos: Path, vit: Path, tmp_path: Path, on_two: OnTwo
) -> None:
    whole = scored(photos, vit, tmp_path, "whole.jsonl", batch_size=3).read_bytes()
    passes = [6]

    def die() -> None:
        if passes:
            passes[0] -= 1
            if not passes[0]:
                raise RuntimeError(FAULT)

    on_two(die)
    with pytest.raises(DeitBatchError, match="cpu failed: CUDA error: unspecified launch failure; the same command"):
        scored(photos, vit, tmp_path, batch_size=3)
    there = (tmp_path / "p.jsonl.partial").read_bytes()
    assert 0 < len(there) < len(whole)
    assert whole.startswith(there)
    passes.clear()
    assert scored(photos, vit, tmp_path, batch_size=3).read_bytes() == whole


def test_a_fault_of_our_own_is_not_taken_for_the_cards() -> None:
    def broken(pixels: Tensor) -> Tensor:
        raise RuntimeError("a bug")

    one = Classifier(Threads(broken, CPU, passes=1, threads=1), 2)
    with closing(Cards([CPU], [one])) as found, pytest.raises(RuntimeError, match="a bug"):
        found(torch.zeros(2, 4, 4, 3, dtype=torch.uint8))


def test_each_engine_scores_again_what_float16_can_not_hold(messages: list[str]) -> None:
    """Its share; the sum is said."""

    def scores(pixels: Tensor) -> Tensor:
        values = pixels.flatten(1)[:, :2].float()
        return torch.where(values > 9, torch.nan, values)

    def exact(pixels: Tensor) -> Tensor:
        return pixels.flatten(1)[:, :2].float()

    def engine(of: Callable[[Tensor], Tensor]) -> Engine:
        return Threads(of, CPU, passes=1, threads=1)

    two = [Classifier(engine(scores), 2, lambda: Classifier(engine(exact), 2)) for _ in range(2)]
    with closing(Cards([CPU, CPU], two)) as found:
        for value in range(20):
            pixels = torch.full((2, 4, 4, 3), value, dtype=torch.uint8)
            assert torch.equal(found(pixels), exact(pixels))
    assert [classifier.repeated for classifier in two] == [10, 10]
    assert [message for message in messages if "not finite: 20 images" in message]


def test_auto_and_cuda_are_all_cards() -> None:
    assert device_names("auto", 3) == device_names("cuda", 3) == ["cuda:0", "cuda:1", "cuda:2"]
    assert device_names("auto", 0) == ["cpu"]
    assert device_names("cuda", 0) == ["cuda"]
    assert device_names("cuda:1", 3) == ["cuda:1"]
    assert device_names("cuda:0,2", 3) == ["cuda:0", "cuda:2"]
    assert device_names("cpu", 3) == ["cpu"]


@pytest.mark.parametrize("name", ["cuda:0,7", "cuda:0,", "cuda:0,0", "cpu,cpu", "cuda:0,x", ","])
def test_cards_that_are_not_there_are_wrong_usage(name: str) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UsageError, match="--device"):
        choose_devices(name)


def test_a_plan_for_several_cards_is_continued_with_one(photos: Path, vit: Path) -> None:
    options = Options(input=str(photos), model=str(vit))
    plan = Plan.of(options)
    assert replace(plan, devices=(CPU, CPU)).settings(options) == plan.settings(options)
