"""The command with traps in its decoders: the bytes "crash" end the process that decodes them, "hang" never end, and of
"half" the process dies in the middle of handing over the result. As a file, for the processes that a server spawns run
what stands outside of the last lines, too."""

from __future__ import annotations

import ctypes
import os
import signal
import struct
from multiprocessing.connection import Connection
from typing import Any

from deit_batch.loading import decode as decoding
from deit_batch.serving import decoders

CRASH, HANG, HALF = b"crash", b"hang", b"half"


def decode(data: bytes, *more: Any, **met: Any) -> Any:
    if data == CRASH:
        os.kill(os.getpid(), signal.SIGSEGV)
    if data == HANG:
        ctypes.PyDLL(None).sleep(600)  # with the interpreter locked
    if data == HALF:
        Connection._send_bytes = die_half_way  # type: ignore[attr-defined]
        return None
    return decoding.decode(data, *more, **met)


def die_half_way(connection: Any, result: memoryview) -> None:
    connection._send(struct.pack("!i", 150_000) + b"x" * 1000)  # as it begins: the length, and some of it
    os.kill(os.getpid(), signal.SIGKILL)


decoders.decode = decode  # type: ignore[attr-defined]

if __name__ == "__main__":
    from deit_batch.cli import main

    main()
