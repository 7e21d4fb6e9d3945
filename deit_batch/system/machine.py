"""What this process may use of the machine it runs on."""

from __future__ import annotations

import math
import os
import platform
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def cores() -> int:
    """How many cores are granted: those of the affinity mask, or fewer where a container has a quota of CPU time."""
    granted = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(granted, cpu_quota(CGROUPS))))


def describe() -> str:
    """For a report: the processor's name, and the cores that are granted."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):  # not Linux, or not x86
        name = platform.processor() or platform.machine()
    return f"{name}, {cores()} cores"


def free_memory() -> int | None:
    """Bytes that can be had without swapping; None where that is not told."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        (kilobytes,) = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError):  # not Linux
        return None
    return int(kilobytes) * 1024


def most_open_files() -> int | None:
    """That this process may have open at a time; None where that is not limited, or not by a number that is told, as on
    Windows."""
    try:
        import resource
    except ModuleNotFoundError:
        return None
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if files == resource.RLIM_INFINITY else files


def cpu_quota(cgroups: Path) -> float:
    """CPU seconds that may be used in a second, as Docker's --cpus and Kubernetes' limits set it; infinite without.
    https://docs.kernel.org/admin-guide/cgroup-v2.html (cpu.max), .../scheduler/sched-bwc.html for version 1."""
    try:
        quota, period = (cgroups / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota, period = ((cgroups / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        except OSError:
            return math.inf
    try:
        return float(quota) / float(period) if float(quota) > 0 else math.inf
    except (ValueError, ZeroDivisionError):  # "max", for one
        return math.inf
