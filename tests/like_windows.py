"""The command as Windows would have it, as far as Linux can play that: the package finds no modules and calls that are
not there, files that are open can be neither renamed nor removed, folders and what was opened for reading can't be
synced, links can't be made, and workers are spawned. As a file, for they run what stands outside of the last lines,
too."""

from __future__ import annotations

import builtins
import errno
import multiprocessing
import os
import pathlib
import signal
import stat
import sys
from collections.abc import Collection
from pathlib import Path
from types import ModuleType
from typing import Any

import click.core

NO_MODULES = frozenset("fcntl grp pty pwd resource syslog termios tty".split())
NO_CALLS = {
    "os": "chown fchmod fchown fork forkpty geteuid getpgid getuid killpg lockf mkfifo posix_fadvise posix_fallocate "
    "pread pwrite register_at_fork sched_getaffinity sendfile setsid statvfs sync uname wait "
    "O_CLOEXEC O_DIRECTORY O_DIRECT O_NOFOLLOW O_NONBLOCK O_SYNC",
    "signal": "alarm getitimer pause pthread_kill pthread_sigmask setitimer sigpending sigtimedwait sigwait "
    "sigwaitinfo ITIMER_REAL SIGALRM SIGCHLD SIGCONT SIGHUP SIGKILL SIGPIPE SIGQUIT SIGUSR1 SIGUSR2 SIG_BLOCK",
}


def without(module: ModuleType, missing: Collection[str], **others: Any) -> ModuleType:
    """A module like it that lacks some names, and has `others`."""
    found = ModuleType(module.__name__)
    found.__dict__.update({name: value for name, value in vars(module).items() if name not in missing}, **others)
    return found


def refuse_if_open(*paths: str | Path) -> None:
    """As Windows does what is done to a file, or to a folder with one, that somebody has opened."""
    opened = []
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            opened.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        except OSError:  # that of the listing itself
            continue
    for path in map(os.path.realpath, paths):
        if any(f"{one}/".startswith(f"{path}/") for one in opened):
            raise PermissionError(errno.EACCES, "The process cannot access the file because it is used", path)


def rename(source: Any, target: Any, **how: Any) -> None:
    refuse_if_open(source, target)
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, "Cannot create a file when that file already exists", target)
    os.rename(source, target, **how)


def replace(source: Any, target: Any, **how: Any) -> None:
    refuse_if_open(source, target)
    if os.path.isdir(target):
        raise PermissionError(errno.EACCES, "Access is denied", target)
    os.replace(source, target, **how)


def unlink(path: Any, **how: Any) -> None:
    refuse_if_open(path)
    os.unlink(path, **how)


def open_file(path: Any, flags: int, *more: Any, **how: Any) -> int:
    if os.path.isdir(path):
        raise PermissionError(errno.EACCES, "Permission denied", path)
    return os.open(path, flags, *more, **how)


def fsync(descriptor: int) -> None:
    flags = int(Path(f"/proc/self/fdinfo/{descriptor}").read_text().split("flags:")[1].split()[0], 8)
    if flags & (os.O_WRONLY | os.O_RDWR) == 0 or stat.S_ISDIR(os.fstat(descriptor).st_mode):
        raise OSError(errno.EBADF, "Bad file descriptor")
    os.fsync(descriptor)


def symlink(source: Any, target: Any, **how: Any) -> None:
    raise OSError(errno.EINVAL, "A required privilege is not held by the client")


CALLS = {"rename": rename, "replace": replace, "unlink": unlink, "remove": unlink, "symlink": symlink}
SEEN = {
    "os": without(os, NO_CALLS["os"].split(), name="nt", open=open_file, fsync=fsync, **CALLS),
    "signal": without(signal, NO_CALLS["signal"].split()),
}
_import = builtins.__import__


def import_as_on_windows(name: str, globals: Any = None, *more: Any, **named: Any) -> Any:
    if str((globals or {}).get("__name__")).partition(".")[0] == "deit_batch":
        top = name.partition(".")[0]
        if top in NO_MODULES:
            raise ModuleNotFoundError(f"No module named {top!r}", name=top)
        if top in SEEN:
            return SEEN[top]
    return _import(name, globals, *more, **named)


def become_windows() -> None:
    """Before anything of the package is imported."""
    builtins.__import__ = import_as_on_windows
    pathlib.os = without(os, (), **CALLS)  # type: ignore[attr-defined]
    click.core.os = SEEN["os"]  # type: ignore[attr-defined]


if __name__ in ("__main__", "__mp_main__"):
    become_windows()

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    import portable

    from deit_batch.__main__ import main

    portable.copy_images()
    for line in [*(line for line, _ in portable.COMMANDS), "sort p.jsonl --out links"]:
        sys.argv[1:] = line.split()
        try:
            main()
        except SystemExit as end:
            print(f"{end.code}: {line}", flush=True)
    portable.require_results()
