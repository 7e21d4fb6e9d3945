"""The command with traps in its decoders: the bytes "crash" end the process that decodes them, "hang" never end. As a
file, for the processes that a server spawns run what stands outside of the last lines, too."""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Any

from deit_batch import images
from deit_batch.serving import decoders

CRASH, HANG = b"crash", b"hang"


def decode(data: bytes, *more: Any) -> Any:
    if data == CRASH:
        os.kill(os.getpid(), signal.SIGSEGV)
    if data == HANG:
        ctypes.PyDLL(None).sleep(600)  # with the interpreter locked
    return images.decode(data, *more)


decoders.decode = decode  # type: ignore[assignment, attr-defined]

if __name__ == "__main__":
    from deit_batch.cli import main

    main()
