"""`scripts/bench --gpu` runs where there is a card, which is seldom: its trial shows that it would."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"
ROWS = (
    "smoke", "DeiT-B", "profile", "photographs", "pipeline", "scores", "full memory", "loader",
    "embed", "finetune LoRA", "memory, few images",
)  # fmt: skip


def test_the_trial_prints_and_writes_the_figures_of_each_row_and_makes_the_page(tmp_path: Path) -> None:
    command = [sys.executable, BENCHMARKS / "gpu.py", "--device", "cpu", "--out", tmp_path, "--rows", *ROWS]
    printed = subprocess.run([*map(str, command)], check=True, capture_output=True, text=True).stdout
    lines = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_bytes().splitlines()]
    page = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert list(dict.fromkeys(line["row"] for line in lines)) == ["material", *ROWS]
    assert not [line for line in lines if line["figure"] in ("failed", "stopped", "skipped")]
    for line in lines:
        assert f"{line['row']}: {line['figure']}: " in printed
        assert f"| {line['figure']} | " in page
    assert "| DeiT-B, 500×375, end to end, over the model alone | ≥ 0.9× |" in page


def test_a_row_that_fails_or_hangs_costs_no_other_and_what_is_beyond_the_budget_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu
    from gpu_page import Figure
    from gpu_rows import TRIAL, Setup

    def good(setup: Setup) -> Iterator[Figure]:
        yield Figure("speed", 1.5, "images/s")

    def bad(setup: Setup) -> Iterator[Figure]:
        yield from good(setup)
        raise MemoryError("no room")

    def killed(setup: Setup) -> Iterator[Figure]:
        yield from good(setup)
        os.kill(os.getpid(), signal.SIGKILL)

    def hanging(setup: Setup) -> Iterator[Figure]:
        yield from good(setup)
        time.sleep(600)

    rows = [gpu.Row("bad", bad), gpu.Row("killed", killed), gpu.Row("hanging", hanging, most=4), gpu.Row("good", good)]
    notes = gpu.Notes(tmp_path)
    gpu.measure(rows, Setup(tmp_path, "cpu", TRIAL), notes, budget=60)
    gpu.measure(rows[3:], Setup(tmp_path, "cpu", TRIAL), notes, budget=0)
    lines = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_bytes().splitlines()]
    assert [(line["row"], line["figure"], line["value"]) for line in lines] == [
        ("bad", "speed", 1.5),
        ("bad", "failed", "MemoryError: no room"),
        ("killed", "speed", 1.5),
        ("killed", "failed", "its process ended with -9"),
        ("hanging", "speed", 1.5),
        ("hanging", "stopped", "after 4 s"),
        ("good", "speed", 1.5),
        ("good", "skipped", "the 0 s are over"),
    ]
    assert "| speed | 1.5 images/s |" in (tmp_path / "gpu.md").read_text(encoding="utf-8")
