"""A command writes over none of its inputs; and where messages go, or how tidying ends, changes nothing of a result."""

from __future__ import annotations

import os
import pty
import shutil
import sqlite3
import subprocess
from pathlib import Path

import click
import pytest
from helpers import COMMAND, EXAMPLES, deit_batch, read_jsonl, scored

from deit_batch.cli import COMMANDS
from deit_batch.commands._command import OUTPUTS
from deit_batch.commands._types import Place
from deit_batch.system.lock import Lock

SCORE = f"{COMMAND} score --model demo --input '{EXAMPLES}' --workers 0 --out p.jsonl"


def test_every_option_that_names_what_is_written_is_known() -> None:
    """By the first words of their help."""
    for command in (command for commands in COMMANDS.values() for command in commands):
        for param in command.params:
            help_text = str(getattr(param, "help", ""))
            if isinstance(param.type, click.Path | Place) and "to write" in help_text:
                assert param.name in OUTPUTS, (command.name, param.name)


@pytest.mark.parametrize("alias", ["same", "link", "hard link"])
def test_no_command_writes_over_its_input(alias: str, tmp_path: Path) -> None:
    done = deit_batch("score", "--model", "demo", "--input", EXAMPLES, "--out", "p.jsonl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (tmp_path / "cat.png").write_bytes(next(EXAMPLES.rglob("*.png")).read_bytes())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    out = {"p.jsonl": "p.jsonl", "cat.png": "cat.png"}
    if alias != "same":
        for name in out:
            out[name] = f"other-{name}"
            if alias == "link":
                (tmp_path / out[name]).symlink_to(name)
            else:
                (tmp_path / out[name]).hardlink_to(tmp_path / name)
    for arguments in (
        ["report", "p.jsonl", "--out", out["p.jsonl"]],
        ["compare", "p.jsonl", "p.jsonl", "--junit", out["p.jsonl"]],
        ["convert", "p.jsonl", "--out", out["p.jsonl"]],
        ["plot", "cat.png", "--model", "demo", "--out", out["cat.png"]],
    ):
        done = deit_batch(*arguments, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert "would take the place of the input" in done.stderr
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_no_command_replaces_an_input_beside_or_in_its_output(tmp_path: Path) -> None:
    shutil.copytree(EXAMPLES, tmp_path / "m" / "data")
    (tmp_path / "m" / "training.json").write_text("{}")  # as of a training, which --fresh replaces
    (tmp_path / "f.npy.rows.jsonl").write_text('{"image": "m/data/bag/00018.png"}\n')
    evaluate = ["evaluate", "--input", "m/data", "--out", "ev"]
    demo = ["--model", "demo"]
    done = deit_batch(*evaluate, *demo, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for arguments, read in (
        (["embed", *demo, "--input", "f.npy.rows.jsonl", "--out", "f.npy"], "f.npy.rows.jsonl"),
        (["finetune", *demo, "--input", "m/data", "--out", "m", "--fresh"], "m/data"),
        ([*evaluate, "--predictions", "ev/predictions.jsonl", "--baseline", "ev/metrics.json"], "ev/metrics.json"),
        (["evaluate", *demo, "--input", "ev/predictions.jsonl", "--out", "ev", "--fresh"], "ev/predictions.jsonl"),
    ):
        done = deit_batch(*arguments, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert f"would take the place of the input {read}" in done.stderr
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    done = deit_batch(*evaluate, "--predictions", "ev/predictions.jsonl", cwd=tmp_path)  # is read, and not written
    assert done.returncode == 0, done.stderr


def test_two_results_do_not_write_over_each_other(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text("{}")
    done = deit_batch("compare", "p.jsonl", "p.jsonl", "--out", "c.json", "--junit", "./c.json", cwd=tmp_path)
    assert done.returncode == 2
    assert "is what --out writes, too" in done.stderr


@pytest.mark.parametrize("stderr", ["2>&-", "2>/dev/full", "0<&- 2>&-"])
def test_a_run_whose_messages_can_not_be_written_ends_well(stderr: str, tmp_path: Path) -> None:
    done = subprocess.run(f"{SCORE} {stderr}", shell=True, cwd=tmp_path, check=False)
    assert done.returncode == 0
    assert len(read_jsonl(tmp_path / "p.jsonl")) == 40


@pytest.mark.parametrize(
    ("command", "out", "before"),
    [
        ("score --batch-size 1", "p.jsonl", b"0%"),  # when its bar stands there
        ("finetune --num-train-epochs 1", "m", b"classes to learn"),
    ],
)
def test_a_run_whose_terminal_goes_away_ends_well(command: str, out: str, before: bytes, tmp_path: Path) -> None:
    """In a session of its own, without this terminal, it gets no SIGHUP."""
    arguments = [*command.split(), "--model", "demo", "--input", str(EXAMPLES), "--workers", "0", "--out", out]
    ours, theirs = pty.openpty()
    process = subprocess.Popen([COMMAND, *arguments], cwd=tmp_path, stderr=theirs, start_new_session=True)
    try:
        os.close(theirs)
        seen = b""
        while before not in seen:
            seen += os.read(ours, 1)
        os.close(ours)
        assert process.wait(timeout=120) == 0
    finally:
        process.kill()
    assert (tmp_path / out).exists()


def test_wrong_usage_is_wrong_usage_though_it_can_not_be_said(tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full:
        assert subprocess.run([COMMAND, "score", "--no-such-option"], stderr=full, check=False).returncode == 2


def test_a_closed_stdout_is_told(tmp_path: Path) -> None:
    command = SCORE.replace("p.jsonl", "- >&-")
    done = subprocess.run(command, shell=True, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert "stdout: can't be written: Bad file descriptor" in done.stderr


def test_a_lock_that_can_not_be_removed_is_said(tmp_path: Path, messages: list[str]) -> None:
    lock = Lock(tmp_path / "p.lock", "p")
    (tmp_path / "p.lock").unlink()
    (tmp_path / "p.lock").mkdir()
    lock.release()
    assert "it blocks nothing" in messages[-1]


def test_a_result_stands_though_the_memory_of_its_images_can_not_be_kept(
    photos: Path, vit: Path, tmp_path: Path, messages: list[str]
) -> None:
    scored(photos, vit, tmp_path, incremental=True)
    with sqlite3.connect(tmp_path / "p.jsonl.known") as database:
        database.execute("CREATE TRIGGER no BEFORE DELETE ON known BEGIN SELECT RAISE(FAIL, 'no room'); END")
    database.close()
    (photos / "00.jpg").unlink()  # which the next run forgets, at its very end
    assert len(read_jsonl(scored(photos, vit, tmp_path, incremental=True))) == 39
    assert any("p.jsonl is there and whole" in message and "no room" in message for message in messages)
