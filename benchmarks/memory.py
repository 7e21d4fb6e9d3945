"""What a process has taken."""

from __future__ import annotations

from pathlib import Path


def peak_memory(pid: int) -> float:
    """MB of the largest of a process and its children so far. Linux alone says."""
    peaks = [0.0]
    for one in (str(pid), *Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
        lines = Path(f"/proc/{one}/status").read_text().splitlines()
        peaks += [int(line.split()[1]) / 1000 for line in lines if line.startswith("VmHWM:")]
    return max(peaks)
