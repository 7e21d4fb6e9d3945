"""Which process has left a mark somewhere, and whether it has ended since."""

from __future__ import annotations

import os
import re
import socket
import time
from pathlib import Path

HOLDER = "process "
"""How the description of a process begins."""
_IDENTITY = re.compile(r"(\S+ pid:\[\d+\]) (\d{1,9}) (\d+)")
_START = 19
"""Of the fields of /proc/PID/stat behind the name, the one that says when the process started: proc_pid_stat(5)."""


def describe_this_process() -> str:
    """For whoever finds that it holds a result."""
    return f"{HOLDER}{os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}"


def identify_process(pid: int) -> str:
    """What no other process has, ever: the boot of this machine, the namespace of its processes (each container has its
    own), the number of this one in it, and when it started. Empty where the system does not say: Linux does."""
    where, fields = _here(), _fields_of(pid)
    return f"{where} {pid} {fields[_START]}" if where and fields else ""


def has_ended(identity: str) -> bool:
    """Whether a process was one of those that can be seen from here, and runs no more. False of those of other machines
    and containers, and of those from before this machine was started: of them, nothing can be said."""
    parsed = _IDENTITY.fullmatch(identity)
    if not parsed or parsed[1] != _here():
        return False
    pid, start = int(parsed[2]), parsed[3]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:  # it is another user's, which /proc may hide
        pass
    fields = _fields_of(pid)
    return bool(fields) and (fields[_START] != start or fields[0] in ("Z", "X"))


def _here() -> str:
    """Empty if the numbers of processes in /proc are not those that this one sees."""
    try:
        if os.readlink("/proc/self") != str(os.getpid()):
            return ""
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _fields_of(pid: int) -> list[str]:
    """Those of /proc/PID/stat behind the name, from the state on; none if they are not to be had."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []
