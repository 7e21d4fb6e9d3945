"""What is there on one system is not on another: modules, calls, names. What Linux can play of Windows is tried."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath

import like_windows
import portable
import pytest

from deit_batch.evaluation.judged import file_name
from deit_batch.input.locate import locate
from deit_batch.io import LocalFile
from deit_batch.loading.worker import how_it_ended
from deit_batch.output.file_names import ENDINGS
from deit_batch.output.manifest import MANIFEST
from deit_batch.report.folder_names import folder_name
from deit_batch.report.sorting import STATE

TESTS = Path(portable.__file__).parent

STOPPED = """
import like_windows
like_windows.become_windows()
import signal, threading, time
from deit_batch.errors import Interrupted
from deit_batch.system.atomic import write_atomically
from deit_batch.system.signals import stop_on_signals

try:
    with stop_on_signals(0.2) as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.asked
        for _ in range(1000):  # the batch in hand, which takes too long
            time.sleep(0.01)
except Interrupted as error:
    print(error.exit_status)
with stop_on_signals(60) as stop:
    signal.raise_signal(signal.SIGTERM)
for thread in {*threading.enumerate()} - {threading.main_thread()}:
    thread.join(10)
    assert not thread.is_alive()
"""


def as_on_windows(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": path}
    return subprocess.run(command, cwd=cwd, env=environment, text=True, capture_output=True, check=False, timeout=300)


def test_the_commands_do_without_what_windows_does_not_have(tmp_path: Path) -> None:
    done = as_on_windows(TESTS / "like_windows.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    expected = [(status, line) for line, status in portable.COMMANDS] + [(2, "sort p.jsonl --out links")]
    ended = [line for line in done.stdout.splitlines() if line[1:3] == ": "]
    assert ended == [f"{status}: {line}" for status, line in expected], done.stderr
    assert "no links can be made there (Windows allows them in its Developer Mode)" in done.stderr
    assert "unexpected" not in done.stderr
    assert "Traceback" not in done.stderr
    assert "does not confirm" not in done.stderr


GUARDED = {
    "loading/loader.py": {"SIGCHLD"},
    "loading/worker.py": {"SIG_BLOCK", "pthread_sigmask", "sigtimedwait"},
    "system/machine.py": {"resource", "sched_getaffinity"},
    "system/signals.py": {"ITIMER_REAL", "SIGALRM", "SIGHUP", "setitimer"},
}
"""What the package uses that Windows does not have, where it has another way."""


def used_in(path: Path) -> set[str]:
    """The modules, and the names of os and signal, that a module uses and Windows has not."""
    nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
    modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    modules |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    names = {
        (node.value.id, node.attr)
        for node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    missing = {(module, name) for module, calls in like_windows.NO_CALLS.items() for name in calls.split()}
    return (modules & like_windows.NO_MODULES) | {name for _, name in names & missing}


def test_nothing_is_used_that_windows_does_not_have_but_where_there_is_another_way() -> None:
    package = TESTS.parent / "deit_batch"
    found = {path.relative_to(package).as_posix(): used_in(path) for path in package.rglob("*.py")}
    assert {path: names for path, names in found.items() if names} == GUARDED


def test_a_run_that_is_asked_to_stop_does_so_in_time_without_an_alarm(tmp_path: Path) -> None:
    done = as_on_windows("-c", STOPPED, cwd=tmp_path)
    assert (done.returncode, done.stdout.split()) == (0, ["143"]), done.stderr


def test_what_a_dead_writer_has_left_is_swept_where_nothing_that_is_open_can_be_locked(tmp_path: Path) -> None:
    old, new = (tmp_path / f".r.html.{letter * 32}.tmp" for letter in "ab")
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 90_000,) * 2)
    program = "import like_windows; like_windows.become_windows(); from pathlib import Path\n"
    program += "from deit_batch.system.atomic import write_atomically; write_atomically(Path('r.html'), b'whole')"
    done = as_on_windows("-c", program, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {*os.listdir(tmp_path)} == {"r.html", new.name}


RESERVED = {"CON", "PRN", "AUX", "NUL", *(f"{port}{digit}" for port in ("COM", "LPT") for digit in "123456789¹²³")}
LABELS = [
    "tabby, tabby cat",
    "a/b",
    "a\\b",
    "C:",
    "con",
    "NUL.txt",
    "com1",
    "lpt¹",
    "why?",
    "a.",
    " a",
    "",
    ".",
    "x" * 400,
]


def is_legal_everywhere(name: str) -> bool:
    """As the name of one file or folder
    (https://learn.microsoft.com/en-us/windows/win32/fileio/naming-a-file#naming-conventions)."""
    is_one = all(kind(name).parts == (name,) for kind in (PurePosixPath, PureWindowsPath))
    plain = not set(name) & set('<>:"/\\|?*') and name == name.rstrip(" .") and len(name.encode()) <= 255
    return is_one and plain and name.partition(".")[0].rstrip().upper() not in RESERVED


@pytest.mark.parametrize("label", LABELS)
def test_a_folder_of_a_label_can_be_one_on_every_system(label: str) -> None:
    assert is_legal_everywhere(folder_name(label))


@pytest.mark.parametrize("name", [*(f"p.jsonl{ending}" for ending in ENDINGS), STATE, MANIFEST])
def test_what_is_made_has_a_name_that_is_legal_everywhere(name: str) -> None:
    assert is_legal_everywhere(name)


@pytest.mark.parametrize(
    "path", [PureWindowsPath("C:/imgs/é a.jpg"), PureWindowsPath("imgs/é a.jpg"), PurePosixPath("/x/é a.jpg")]
)
def test_names_of_either_system_have_the_same_last_part(path: PurePath) -> None:
    """By which images of another machine are joined to their labels."""
    assert file_name({"image": str(path)}) == "é a.jpg"


def test_a_file_url_of_windows_is_a_path_there_and_one_of_here_here(monkeypatch: pytest.MonkeyPatch) -> None:
    path = PureWindowsPath("C:/imgs/é a.jpg")
    assert locate(path.as_uri()) == LocalFile("/C:/imgs/é a.jpg")
    with monkeypatch.context() as windows:
        windows.setattr(os, "name", "nt")
        there = locate(path.as_uri())
    assert there == LocalFile(path.as_posix())


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (1, "did not end in time"),
        (-11, "crashed (SIGSEGV)"),
        (-40, "crashed (signal 40)"),
        (0xC0000005, "crashed (code 0xc0000005)"),
    ],
)
def test_how_a_decoder_ended_is_told_by_signals_and_by_codes(code: int, words: str) -> None:
    assert how_it_ended(code) == words
