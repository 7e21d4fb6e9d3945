"""The installed command without the wait for its imports. `Warm.path` is a small program that stands for it: it has its
work done by a process that was forked from one which has imported torch and the like, and has run nothing of them.

That process has the arguments, folder, environment and streams of the small program, which passes signals on, and ends
as it ends. What differs from a process that was started anew: limits, umask, priority, process group and session are
those of whoever forks; the seeds of str's hashes and of NumPy's global generator are common to all; what a module reads
while it is imported was read earlier; at its end, the interpreter is not taken apart. So where a stream is closed,
SIGINT is ignored, or a variable differs that a module reads as it is imported, the command itself takes the small
program's place; and a test of such things, or that kills what it started, uses the command itself."""

from __future__ import annotations

import atexit
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

IMPORTED = [
    *("torch", "sklearn.metrics", "simplejpeg", "pi_heif", "deit_batch.runner", "deit_batch.cli"),
    *("deit_batch.loading.loader", "deit_batch.model.cards", "deit_batch.model.transformer"),
    *(
        "deit_batch.evaluation.evaluate",
        "deit_batch.evaluation.plots",
        "deit_batch.report.page",
        "deit_batch.report.plot",
    ),
    "deit_batch.finetune.run",
]
READ_BY_IMPORTS = (
    *("PYTHON", "LD_", "LC_", "LANG", "TZ", "COVERAGE", "OMP_", "MKL_", "OPENBLAS_", "KMP_", "TORCH", "CUDA", "HF_"),
    *("TRANSFORMERS_", "TQDM_", "RAY_", "MPL"),
)
"""How the names of variables begin that modules read as they are imported."""


class Warm:
    """Starts the process that forks, with an environment that those of later commands are compared with, and with the
    file of settings for coverage.py, where that counts what is run."""

    def __init__(self, folder: Path, command: str, environment: Mapping[str, str], coverage: str) -> None:
        self.path, address, tests = folder / "deit-batch", folder / "socket", str(Path(__file__).parent)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(address))
            listener.listen(64)
            fd = listener.fileno()
            arguments = [sys.executable, __file__, command, str(fd), coverage]
            self._process = subprocess.Popen(
                arguments, env=environment, cwd=tests, stdin=subprocess.PIPE, pass_fds=[fd]
            )
        program = f"import sys; sys.path.append({tests!r}); from warm import ask; ask({str(address)!r}, {command!r})"
        self.path.write_text(f"#!{sys.executable} -IS\n{program}\n")
        self.path.chmod(0o755)

    def end(self) -> None:
        self._process.communicate()
        shutil.rmtree(self.path.parent)


def ask(address: str, command: str) -> None:
    """The small program: has the command done, and ends as it does."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN or not all(map(is_open, range(3))):
        os.execv(command, [command, *sys.argv[1:]])
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(address)
        socket.send_fds(link, [b"."], range(3))
        link.sendall(json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode() + b"\n")
        answers = link.makefile()
        pid = int(answers.readline())
        if not pid:
            os.execv(command, [command, *sys.argv[1:]])

        def pass_on(signum: int, frame: FrameType | None) -> None:
            os.kill(pid, signum)

        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, pass_on)
        status = int(answers.readline())
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


Asked = tuple[list[str], str, dict[str, str]]
"""Arguments, folder, environment."""


def serve(listener: socket.socket, before: dict[str, str]) -> Asked | None:
    """Forks for each that asks; in the new process returns what was asked. None when stdin ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that attend
    while 0 not in select.select([0, listener.fileno()], [], [])[0]:
        link, _ = listener.accept()
        if not os.fork():
            listener.close()
            return attend(link, before)
        link.close()
    return None


def attend(link: socket.socket, before: dict[str, str]) -> Asked:
    """Forks once more, returns in the new process, and stays with it until it ends, or whoever asked does."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, streams, *_ = socket.recv_fds(link, 1, 3)
    arguments, folder, environment = json.loads(link.makefile().readline())
    known = before.items() | os.environ.items()  # some modules set variables as they are imported
    differing = {name for name, _ in environment.items() - known} | before.keys() - environment.keys()
    if any(name.startswith(READ_BY_IMPORTS) for name in differing):
        link.sendall(b"0\n")
        os._exit(0)
    pid = os.fork()
    if not pid:
        link.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        return arguments, folder, environment
    for stream in streams:
        os.close(stream)
    link.sendall(f"{pid}\n".encode())
    if link.fileno() in select.select([link.fileno(), os.pidfd_open(pid)], [], [])[0]:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    link.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def measure_coverage(settings: str) -> None:
    """From here on in this process. Its imports are done, for they would take half as long again."""
    import coverage

    os.environ["COVERAGE_PROCESS_START"] = settings
    coverage.process_startup()
    del os.environ["COVERAGE_PROCESS_START"]


def become(command: str, asked: Asked, coverage: str) -> None:
    """What the interpreter does for a process that was started anew, from its streams to its end."""
    import runpy

    arguments, folder, environment = asked
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    if coverage:
        measure_coverage(coverage)
    sys.argv[:], sys.path[0] = [command, *arguments], str(Path(command).parent)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    try:
        runpy.run_path(command, run_name="__main__")
    except SystemExit as end:
        if not isinstance(end.code, int):
            raise
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        os._exit(end.code)


def main(command: str, listener: int, coverage: str) -> None:
    import gc
    from importlib import import_module

    before = dict(os.environ)
    for name in [*IMPORTED, "coverage"] if coverage else IMPORTED:
        import_module(name)
    gc.freeze()
    asked = serve(socket.socket(fileno=listener), before)
    if asked:
        become(command, asked, coverage)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
