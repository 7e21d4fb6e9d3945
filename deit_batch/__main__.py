"""The command deit-batch: the script of that name, and `python -m deit_batch`."""

from __future__ import annotations

import signal
import sys
from types import FrameType

from deit_batch.errors import Interrupted


def main() -> None:
    """Ctrl-C is told in a line from here on, also while the program is still being imported; and later, too, where
    nothing is to be finished first. It is no KeyboardInterrupt, of which Click would make a status of 1."""
    try:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where whoever started it has it ignored
            signal.signal(signal.SIGINT, _stop)
        from deit_batch.cli import main as program

        program(prog_name="deit-batch")
    except (KeyboardInterrupt, Interrupted):
        stopped = Interrupted(signal.SIGINT)
        sys.stderr.write(f"deit-batch: {stopped}\n")
        sys.exit(stopped.exit_status)


def _stop(signum: int, frame: FrameType | None) -> None:
    raise Interrupted(signum)


if __name__ == "__main__":
    main()
