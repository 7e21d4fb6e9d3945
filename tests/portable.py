"""What is tried on every system: commands, each with the exit status that it must have; and a run that is killed, and
goes on. A program of its own, for CI's machines that have no tools for the whole suite."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
CLASSES = ("bag", "coat")
IMAGES = 8

SCORE = "score --model demo --input imgs/*/*.png"
COMMANDS = [
    (f"{SCORE} --workers 1 --out p.jsonl", 0),
    (f"{SCORE} --workers 0 --out p.jsonl", 0),  # which is finished already
    (f"{SCORE} --workers 0 --out p.jsonl --fresh", 0),
    (f"{SCORE} --workers 0 --out new/p.csv --incremental", 0),
    (f"{SCORE} --workers 0 --out new/p.csv --incremental", 0),
    ("embed --model demo --input imgs --workers 0 --out f.npy", 0),
    ("convert p.jsonl --out table.csv --layout wide --excel", 0),
    ("report p.jsonl --out page.html", 0),
    ("sort p.jsonl --out sorted --by copy", 0),
    ("pull demo --out demo", 0),
    ("score --model demo --input none.jpg --out none.jsonl", 2),
]


def require(condition: object, what: str) -> None:
    if not condition:
        sys.exit(f"portable: {what}")


def copy_images() -> None:
    for name in CLASSES:
        shutil.copytree(EXAMPLES / name, Path("imgs") / name)


def require_results() -> None:
    """Of the commands, in this folder."""
    require(len(Path("p.jsonl").read_bytes().splitlines()) == IMAGES, "p.jsonl has no record for each image")
    require(len(list(Path("sorted").glob("*/*.png"))) == IMAGES, "not every image is sorted")
    require(Path("page.html").read_text(encoding="utf-8").rstrip().endswith("</html>"), "page.html is not whole")
    left = [path.name for path in Path().rglob("*") if path.name.endswith((".tmp", ".partial", ".old"))]
    require(not left, f"left behind: {left}")


def run(line: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deit_batch", *line.split()]
    return subprocess.run(command, text=True, stderr=subprocess.PIPE, timeout=600, check=False)


HOLDER = """
import sys
from pathlib import Path
from deit_batch.system.lock import Lock

held = Lock(Path("held.jsonl.lock"), "it")
print(flush=True)
sys.stdin.read()
"""


def require_one_run_at_a_time() -> None:
    """Whoever comes second is told who is there; and the lock goes with its process, however that ends."""
    line = "score --model demo --input imgs --workers 0 --out held.jsonl"
    with subprocess.Popen([sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        require(holder.stdout and holder.stdout.readline(), "no lock can be had")
        second = run(line)
        holder.kill()
    require(f"is being written by process {holder.pid} on " in second.stderr, f"two runs at a time: {second.stderr}")
    third = run(line)
    require(third.returncode == 0, f"the lock of a process that is dead holds up others: {third.stderr}")


def require_that_a_killed_run_goes_on() -> None:
    Path("many.txt").write_text("imgs/bag/00018.png\n" * 4_000, encoding="utf-8")
    line = "score --model demo --input many.txt --workers 1 --out many.jsonl"
    growing = Path("many.jsonl.partial")
    with subprocess.Popen([sys.executable, "-m", "deit_batch", *line.split()]) as first:
        end = time.monotonic() + 300
        while time.monotonic() < end and not (growing.exists() and growing.stat().st_size):
            time.sleep(0.01)
        first.kill()
    again = run(line)
    require(again.returncode == 0 and "going on after" in again.stderr, f"it does not go on: {again.stderr}")


def main() -> None:
    os.chdir(tempfile.mkdtemp())
    copy_images()
    for line, status in COMMANDS:
        done = run(line)
        require(done.returncode == status, f"{line}: status {done.returncode}: {done.stderr}")
    require_results()
    require_one_run_at_a_time()
    require_that_a_killed_run_goes_on()
    print(f"portable: {len(COMMANDS)} commands, and a run that was killed: as they should be, on {sys.platform}")


if __name__ == "__main__":
    main()
