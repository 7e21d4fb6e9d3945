"""Does to deit-batch what a bad night does, and counts what is lost: faults.py [--quick]. Ten minutes on 2 cores.

Each fault is done to the installed command on real files, many times over, at moments that dice choose. "Lost" are
inputs without a record; "wrong" are records that differ from those of an undisturbed run. Writes docs/faults.md.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import corpus

REPOSITORY = Path(__file__).resolve().parent.parent
COMMAND = str(Path(sys.executable).parent / "deit-batch")
INPUTS = 800
SEED = 0


@dataclass
class Row:
    fault: str
    tried: int = 0
    lost: int = 0
    wrong: int = 0
    slowest: float = 0.0


class Night:
    """One folder with a table of inputs, an undisturbed run's result, and the dice."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.dice = random.Random(SEED)
        pictures = sorted((REPOSITORY / "examples").glob("*/*.png"))
        (folder / "broken.jpg").write_bytes(b"broken")
        names = [str(pictures[n % len(pictures)]) if n % 97 else "broken.jpg" for n in range(INPUTS)]
        (folder / "t.txt").write_text("\n".join(names))
        self.run("whole.jsonl").wait()
        self.whole = (folder / "whole.jsonl").read_bytes().splitlines()
        report = json.loads((folder / "whole.jsonl.run.json").read_bytes())
        self.seconds = report["seconds"]["total"] + 2  # of a whole run, imports included

    def command(self, out: str) -> list[str]:
        return [COMMAND, "score", "--input", "t.txt", "--model", "demo", "--out", out, "--quiet"]

    def run(self, out: str, *options: str, **more: object) -> subprocess.Popen[bytes]:
        command = [*self.command(out), *options]
        return subprocess.Popen(command, cwd=self.folder, stderr=subprocess.DEVNULL, start_new_session=True, **more)  # type: ignore[call-overload,no-any-return]

    def judge(self, row: Row, out: str) -> None:
        """Runs to the end, compares the result with the undisturbed one, and clears away."""
        for _ in range(3):
            self.run(out).wait(120)
            if (self.folder / out).exists():
                break
        lines = (self.folder / out).read_bytes().splitlines() if (self.folder / out).exists() else []
        row.tried += 1
        row.lost += max(0, len(self.whole) - len(lines))
        row.wrong += sum(ours != theirs for ours, theirs in zip(lines, self.whole, strict=False))
        for path in self.folder.glob(f"{out}*"):
            path.unlink()


def killed(night: Night, row: Row) -> None:
    """The process group, as the kernel or an operator does it, once or several times over."""
    for _ in range(night.dice.choice([1, 1, 3])):
        process = night.run("p.jsonl")
        time.sleep(night.dice.uniform(0, night.seconds))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    night.judge(row, "p.jsonl")


DEADLY = """
import os, signal
left = {count}
original = os.{call}

def deadly(*args, **more):
    global left
    left -= 1
    if left == 0 and {before}:
        os.kill(os.getpid(), signal.SIGKILL)
    result = original(*args, **more)
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return result

os.{call} = deadly
from deit_batch.cli import main
main()
"""


def killed_in_a_state_change(night: Night, row: Row) -> None:
    """Just before or just after one of the calls that sync, rename or remove a file."""
    choose = night.dice.choice
    program = DEADLY.format(call=choose(["replace", "fsync", "unlink"]), count=choose([1, 2, 3]), before=choose([0, 1]))
    command = [sys.executable, "-c", program, *night.command("p.jsonl")[1:]]
    subprocess.run(command, cwd=night.folder, check=False, capture_output=True)
    night.judge(row, "p.jsonl")


def stopped(signum: signal.Signals) -> Callable[[Night, Row], None]:
    def fault(night: Night, row: Row) -> None:
        process = night.run("p.jsonl")
        time.sleep(night.dice.uniform(0.5, night.seconds))
        start = time.monotonic()
        os.killpg(process.pid, signum)
        process.wait(30)
        row.slowest = max(row.slowest, time.monotonic() - start)
        night.judge(row, "p.jsonl")

    return fault


def worker_killed(night: Night, row: Row) -> None:
    process = night.run("p.jsonl", "--workers", "2")
    time.sleep(night.dice.uniform(2, night.seconds))
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False)
    if children.stdout:
        os.kill(int(night.dice.choice(children.stdout.split())), signal.SIGKILL)
    start = time.monotonic()
    process.wait(120)
    row.slowest = max(row.slowest, time.monotonic() - start)
    night.judge(row, "p.jsonl")


def disk_full(night: Night, row: Row) -> None:
    """A file may grow to a few kilobytes only, as under a quota."""
    limit = night.dice.randrange(1000, len(b"".join(night.whole)))

    def small() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    process = night.run("p.jsonl", preexec_fn=small)
    status = process.wait(120)
    row.wrong += status not in (0, 1, 3) or ((night.folder / "p.jsonl").exists() and status == 1)
    night.judge(row, "p.jsonl")


def hostile(night: Night, row: Row) -> None:
    """Every file of the corpus; judged by count and order, for there is no undisturbed run of it."""
    folder = night.folder / "corpus"
    if not folder.exists():
        corpus.make(folder)
    start = time.monotonic()
    command = [COMMAND, "score", "--input", "corpus", "--model", "demo", "--out", "c.jsonl", "--fresh"]
    done = subprocess.run(command, cwd=night.folder, capture_output=True, text=True, timeout=600, check=False)
    row.slowest = max(row.slowest, time.monotonic() - start)
    expected = sum(name.endswith(tuple(SUFFIXES)) for _, _, names in os.walk(folder) for name in names)
    records = [json.loads(line) for line in (night.folder / "c.jsonl").read_bytes().splitlines()]
    row.tried += expected
    row.lost += expected - len(records)
    row.wrong += sum(record["index"] != place for place, record in enumerate(records))
    row.wrong += sum(bool(record["predictions"]) == ("error" in record) for record in records)
    row.wrong += done.returncode != 3
    row.wrong += sum("deit-batch: " not in line for line in done.stderr.splitlines())  # spam of a library


SUFFIXES = (".jpg", ".png", ".webp", ".gif", ".tiff", ".bmp", ".avif")

FAULTS: list[tuple[str, Callable[[Night, Row], None], int]] = [
    ("SIGKILL of all its processes at a random moment, once or three times", killed, 12),
    ("SIGKILL just before or after a rename, sync or removal of a file", killed_in_a_state_change, 12),
    ("SIGINT at a random moment", stopped(signal.SIGINT), 5),
    ("SIGTERM at a random moment", stopped(signal.SIGTERM), 5),
    ("SIGKILL of a decode worker", worker_killed, 5),
    ("no room for the output", disk_full, 6),
    ("hostile files (each is one try)", hostile, 1),
]


def main() -> None:
    quick = "--quick" in sys.argv
    with tempfile.TemporaryDirectory() as name:
        night = Night(Path(name))
        rows = []
        for fault, do, times in FAULTS:
            row = Row(fault)
            for _ in range(min(times, 2) if quick else times):
                do(night, row)
            rows.append(row)
            print(f"{row.fault}: {row.tried:,} times, {row.lost} lost, {row.wrong} wrong", flush=True)
    table = [
        "| fault | times tried | lines lost | lines wrong | slowest to end, s |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        slowest = f"{row.slowest:.1f}" if row.slowest else ""
        table.append(f"| {row.fault} | {row.tried:,} | {row.lost} | {row.wrong} | {slowest} |")
    if not quick:
        page = REPOSITORY / "docs" / "faults.md"
        page.write_text(PAGE.format(inputs=INPUTS, table="\n".join(table)), encoding="utf-8")
    sys.exit(any(row.lost or row.wrong for row in rows))


PAGE = """# Faults

What `scripts/faults` did to the installed command, over and over, and what came of it: after each fault the same
command was run again, and its output compared byte for byte with that of an undisturbed run over {inputs:,} inputs.
The hostile files are those of `scripts/corpus.py`: there every input must have its record, in its place, and stderr
must carry no line but our own. Taken on 2 cores of an Intel Xeon; the table is written by the program.

{table}
"""

if __name__ == "__main__":
    main()
