"""A folder that is published, and a process that is killed meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deit_batch.errors import UsageError
from deit_batch.system.atomic import mend_folder, publish_folder, require_not_read

KILLED_AT_A_STEP = """
import os, signal, sys
from pathlib import Path
from deit_batch.system import atomic
from deit_batch.system.atomic import publish_folder

step, replace = int(sys.argv[1]), sys.argv[2] == "replace"
if sys.argv[3] == "plain":  # as on a file system that exchanges nothing
    atomic._exchange = lambda one, other: False
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


def states_after_dying(tmp_path: Path, *, how: str, exchange: str = "exchange") -> list[str]:
    """What is where after dying at the first step, at the second and so on, each state once; and that the next holder
    of the lock finds one of the two, whole, and takes the litter away."""
    states: list[str] = []
    for step in range(1, 100):
        folder = tmp_path / str(step)
        make(folder / "new", "new")
        make(folder / "out.old", "of somebody")
        if how == "replace":
            make(folder / "out", "old")
        arguments = [sys.executable, "-c", KILLED_AT_A_STEP, str(step), how, exchange]
        done = subprocess.run(arguments, cwd=folder, check=False)
        assert done.returncode in (0, -signal.SIGKILL)
        state = f"out: {read(folder / 'out')}"
        if state not in states[-1:]:
            states.append(state)
        mend_folder(folder / "out", folder / "new")
        out, new = read(folder / "out"), read(folder / "new")
        assert (out, new) in ([("old", "new"), ("new", "nothing")] if how == "replace" else [(out, new)])
        assert "new" in (out, new)
        assert read(folder / "out.old") == "of somebody"
        names = {name for name, there in (("out", out), ("new", new)) if there != "nothing"}
        assert {*os.listdir(folder)} == {*names, "out.old"}
        if done.returncode == 0:
            return states
    raise AssertionError("it has no end")


def test_whenever_it_is_killed_the_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    assert states_after_dying(tmp_path, how="keep") == ["out: nothing", "out: new"]


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="no call that exchanges two names")
def test_whenever_it_is_killed_the_old_folder_or_the_new_one_is_there(tmp_path: Path) -> None:
    assert states_after_dying(tmp_path, how="replace") == ["out: old", "out: new"]


def test_where_nothing_can_be_exchanged_the_old_folder_is_put_back(tmp_path: Path) -> None:
    """There is one moment at which neither is at its name, but both are whole."""
    states = ["out: old", "out: nothing", "out: new"]
    assert states_after_dying(tmp_path, how="replace", exchange="plain") == states


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


def test_a_folder_that_was_not_replaced_after_all_keeps_no_mark_of_it(tmp_path: Path) -> None:
    """As it is after a kill just before the exchange."""
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / ".replaced").touch()
    mend_folder(tmp_path / "m", tmp_path / "m.partial" / "result")
    assert list((tmp_path / "m").iterdir()) == []


@pytest.mark.parametrize(
    ("pattern", "written", "refused"),
    [
        ("out/*.png", "out", True),
        ("*/sub/*.png", "out", True),
        ("link/**/*.png", "out", True),
        ("out/sub/*.png", "out/sub/a.png", True),
        ("other/*.png", "out", False),
        ("o*.png", "out", False),
        ("out/*.png", "none", False),
    ],
)
def test_a_pattern_stands_for_the_files_that_it_matches(
    pattern: str, written: str, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("out/sub", "other"):
        Path(name).mkdir(parents=True)
        (Path(name) / "a.png").touch()
    Path("out/b.png").touch()
    Path("link").symlink_to("out")
    if refused:
        with pytest.raises(UsageError, match=r"--out o would take the place of the input .*\.png"):
            require_not_read("--out", "o", [written], [pattern])
    else:
        require_not_read("--out", "o", [written], [pattern])
