"""A folder that is published, and a process that is killed meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deit_batch.system.atomic import publish_folder

KILLED_AT_A_STEP = """
import os, signal, sys
from pathlib import Path
from deit_batch.system.atomic import publish_folder

step, replace = int(sys.argv[1]), sys.argv[2] == "replace"
steps = iter(range(1, sys.maxsize))

def die(event, arguments):
    if event in ("open", "os.rename", "os.remove", "os.rmdir") and next(steps) == step:
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(die)
publish_folder(Path("new"), Path("out"), replace=replace)
"""
"""Audit events come before the call that they are of: at step 1 nothing is done."""


def make(folder: Path, text: str) -> None:
    (folder / "sub").mkdir(parents=True)
    for name in ("a.txt", "sub/b.txt"):
        (folder / name).write_text(text)


def read(folder: Path) -> str:
    """What is in a folder that is whole."""
    if not folder.exists():
        return "nothing"
    texts = {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*.txt")}
    assert sorted(texts) == ["a.txt", "sub/b.txt"]
    (text,) = set(texts.values())
    return text


def publish_and_die(tmp_path: Path, step: int, *, replace: bool) -> bool:
    """Whether it died: false if it was done before it came to that step."""
    how = "replace" if replace else "keep"
    done = subprocess.run([sys.executable, "-c", KILLED_AT_A_STEP, str(step), how], cwd=tmp_path, check=False)
    assert done.returncode in (0, -signal.SIGKILL)
    return done.returncode != 0


def states_after_dying(tmp_path: Path, *, replaces: bool) -> list[str]:
    """What is where after dying at the first step, at the second and so on, each state once. Of `out.old` only where
    there is no `out`: otherwise it may be half removed."""
    states: list[str] = []
    for step in range(1, 100):
        folder = tmp_path / str(step)
        make(folder / "new", "new")
        if replaces:
            make(folder / "out", "old")
        died = publish_and_die(folder, step, replace=replaces)
        state = f"out: {read(folder / 'out')}, new: {read(folder / 'new')}"
        if not (folder / "out").exists():
            state += f", out.old: {read(folder / 'out.old')}"
        if state not in states[-1:]:
            states.append(state)
        if not died:
            assert os.listdir(folder) == ["out"]
            return states
    raise AssertionError("it has no end")


def test_whenever_it_is_killed_the_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    assert states_after_dying(tmp_path, replaces=False) == [
        "out: nothing, new: new, out.old: nothing",
        "out: new, new: nothing",
    ]


def test_whenever_it_is_killed_the_old_folder_or_the_new_one_is_whole(tmp_path: Path) -> None:
    """There is one moment at which neither is at its name, but both are whole."""
    assert states_after_dying(tmp_path, replaces=True) == [
        "out: old, new: new",
        "out: nothing, new: new, out.old: old",
        "out: new, new: nothing",
    ]


def test_the_next_call_mends_what_a_killed_one_has_left(tmp_path: Path) -> None:
    make(tmp_path / "new", "new")
    make(tmp_path / "out.old", "old")
    publish_folder(tmp_path / "new", tmp_path / "out", replace=True)
    assert (read(tmp_path / "out"), read(tmp_path / "out.old")) == ("new", "old")
    make(tmp_path / "newer", "newer")
    publish_folder(tmp_path / "newer", tmp_path / "out", replace=True)
    assert read(tmp_path / "out") == "newer"
    assert os.listdir(tmp_path) == ["out"]


def test_what_is_not_to_be_replaced_stays(tmp_path: Path) -> None:
    make(tmp_path / "new", "new")
    make(tmp_path / "out", "old")
    make(tmp_path / "out.old", "of somebody")
    with pytest.raises(OSError, match="not empty"):
        publish_folder(tmp_path / "new", tmp_path / "out", replace=False)
    names = ("new", "out", "out.old")
    assert [read(tmp_path / name) for name in names] == ["new", "old", "of somebody"]


def test_all_is_synced_before_the_name_appears_and_the_name_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "new", "new")
    inside = {path.stat().st_ino for path in (tmp_path / "new", *(tmp_path / "new").rglob("*"))}
    synced: dict[bool, set[int]] = {False: set(), True: set()}
    sync = os.fsync

    def noted(descriptor: int) -> None:
        synced[(tmp_path / "out").exists()].add(os.fstat(descriptor).st_ino)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    publish_folder(tmp_path / "new", tmp_path / "out", replace=True)
    assert synced == {False: inside, True: {tmp_path.stat().st_ino}}
