"""Does to deit-batch what a bad night does, and counts what is lost: faults.py [--quick]. A quarter of an hour on 2
cores.

Each fault is done to the installed command on real files, many times over, at moments that dice choose; one that came
too late, when the run had ended, is not counted. "Lost" are inputs without a record; "wrong" are records that differ
from those of an undisturbed run, and an exit status that is not the promised one. Writes docs/faults.md.
"""

from __future__ import annotations

import io
import json
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "tests"))

import corpus  # noqa: E402
import pyarrow  # noqa: E402
import pyarrow.parquet  # noqa: E402
import tables_of_bad_rows  # noqa: E402
from misbehaving import FAULTS as MISBEHAVIOURS  # noqa: E402
from misbehaving import serve  # noqa: E402

from deit_batch.system import machine  # noqa: E402

DEMO_FOLDER = REPOSITORY / "deit_batch" / "demo"
COMMAND = str(Path(sys.executable).parent / "deit-batch")
INPUTS = 800
SEED = 0
HANGS_AFTER = 600  # seconds: nothing here may take as long

Record = dict[str, Any]


@dataclass
class Row:
    fault: str
    tried: int = 0
    lost: int = 0
    wrong: int = 0
    slowest: float = 0.0
    """Seconds from the fault to the end of the process, where it was the fault that ended it; else of the whole run."""
    peak: float = 0.0
    """MB of memory that the largest process took."""


class Night:
    """One folder with a table of inputs, an undisturbed run's result, and the dice."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.dice = random.Random(SEED)
        self.pictures = sorted((REPOSITORY / "examples").glob("*/*.png"))
        (folder / "broken.jpg").write_bytes(b"broken")
        names = [str(self.pictures[n % len(self.pictures)]) if n % 97 else "broken.jpg" for n in range(INPUTS)]
        (folder / "t.txt").write_text("\n".join(names))
        row = Row("none")
        start = time.monotonic()
        self.end(self.run("whole.jsonl"), row)
        self.seconds = time.monotonic() - start
        self.peak = row.peak
        self.whole = self.lines("whole.jsonl")

    def run(
        self, out: str, *options: str, input: str = "t.txt", program: str = "", model: str = "demo", **more: Any
    ) -> subprocess.Popen[bytes]:
        """Starts the command; or `program`, which does some harm to itself and then is the command."""
        return self.start("score", "--input", input, "--model", model, "--out", out, *options, program=program, **more)

    def start(self, *arguments: str, program: str = "", **more: Any) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", program] if program else [COMMAND]
        more = {"stderr": subprocess.DEVNULL, **more}
        return subprocess.Popen([*command, *arguments], cwd=self.folder, start_new_session=True, **more)

    def end(self, process: subprocess.Popen[bytes], row: Row, since: float | None = None) -> int:
        """Waits for the end, and returns the exit status."""
        if process.returncode is not None:  # it has ended, and somebody has asked
            return process.returncode
        deadline = time.monotonic() + HANGS_AFTER
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > deadline:
                sys.exit(f"{row.fault}: the run hangs")
            time.sleep(0.01)
        process.returncode = os.waitstatus_to_exitcode(status)
        row.peak = max(row.peak, usage.ru_maxrss / 1000)
        if since is not None:
            row.slowest = max(row.slowest, time.monotonic() - since)
        return process.returncode

    def lines(self, out: str) -> list[bytes]:
        return (self.folder / out).read_bytes().splitlines() if (self.folder / out).exists() else []

    def records(self, out: str) -> list[Record]:
        return [json.loads(line) for line in self.lines(out)]

    def clear(self, out: str) -> None:
        for path in self.folder.glob(f"{out}*"):
            path.unlink()

    def goes_on(self, row: Row, out: str = "p.jsonl") -> None:
        """The same command again must give what an undisturbed run gives, byte for byte."""
        row.tried += 1
        row.wrong += self.end(self.run(out), row) != 3
        compare(row, self.lines(out), self.whole)
        self.clear(out)

    def is_as(self, row: Row, out: str, failed: set[int], closely: float = 0.0) -> None:
        """The records must be those of an undisturbed run, but that `failed` ones have an error instead."""
        expected = [json.loads(line) for line in self.whole]
        ours = self.records(out)
        row.lost += max(0, len(expected) - len(ours))
        for record, other in zip(ours, expected, strict=False):
            predictions = [] if record["index"] in failed else other["predictions"]
            row.wrong += record["image"] != other["image"] or not alike(record["predictions"], predictions, closely)
            row.wrong += bool(record["predictions"]) == ("error" in record)
        self.clear(out)


def compare(row: Row, ours: Sequence[object], expected: Sequence[object]) -> None:
    row.lost += max(0, len(expected) - len(ours))
    row.wrong += sum(one != other for one, other in zip(ours, expected, strict=False))


def alike(ours: list[Record], expected: list[Record], closely: float) -> bool:
    return [one["label"] for one in ours] == [one["label"] for one in expected] and all(
        abs(one["score"] - other["score"]) <= closely for one, other in zip(ours, expected, strict=True)
    )


# --- ended from outside ----------------------------------------------------------------------------------------------


def killed(night: Night, row: Row) -> None:
    """The process group, as the kernel or an operator does it, once or several times over."""
    hits = 0
    for _ in range(night.dice.choice([1, 1, 3])):
        process = night.run("p.jsonl")
        time.sleep(night.dice.uniform(0, night.seconds))
        os.killpg(process.pid, signal.SIGKILL)
        hits += night.end(process, row) == -signal.SIGKILL
    if hits:
        night.goes_on(row)
    night.clear("p.jsonl")


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
    if night.end(night.run("p.jsonl", program=program), row) == -signal.SIGKILL:
        night.goes_on(row)
    night.clear("p.jsonl")


def killed_when_incremental(night: Night, row: Row) -> None:
    """Night after night over a folder that changes, killed in some: what comes out is what scoring all anew gives."""
    folder = night.folder / "growing"
    if not folder.exists():
        folder.mkdir()
        for number in range(300):
            change(night, folder, number)
    for _ in range(20):
        change(night, folder, night.dice.randrange(330))
    process = night.run("i.jsonl", "--incremental", input="growing")
    time.sleep(night.dice.uniform(night.seconds / 4, night.seconds / 2))
    os.killpg(process.pid, signal.SIGKILL)
    row.tried += night.end(process, row) == -signal.SIGKILL
    night.end(night.run("i.jsonl", "--incremental", input="growing"), row)
    night.end(night.run("anew.jsonl", "--incremental", "--fresh", input="growing"), row)
    compare(row, night.lines("i.jsonl"), night.lines("anew.jsonl"))
    row.wrong += len(night.lines("i.jsonl")) != len(list(folder.iterdir()))
    night.clear("anew.jsonl")


def change(night: Night, folder: Path, number: int) -> None:
    path = folder / f"{number:03}.png"
    if path.exists() and night.dice.random() < 0.3:
        path.unlink()
    else:
        shutil.copy(night.dice.choice(night.pictures), path)


def stopped(signum: signal.Signals) -> Callable[[Night, Row], None]:
    def fault(night: Night, row: Row) -> None:
        process = night.run("p.jsonl")
        time.sleep(night.dice.uniform(night.seconds / 4, night.seconds * 0.9))
        os.killpg(process.pid, signum)
        status = night.end(process, row, since=time.monotonic())
        if status != 3:  # it had not ended already
            row.wrong += status not in (128 + signum, -signum)  # the latter before Python has read our code
            night.goes_on(row)
        night.clear("p.jsonl")

    return fault


def two_at_once(night: Night, row: Row) -> None:
    """The first run is held while the second comes, or it might end sooner."""
    first = night.run("p.jsonl")
    while not (night.folder / "p.jsonl.partial").exists():  # which is made under the lock
        time.sleep(0.01)
    os.killpg(first.pid, signal.SIGSTOP)
    row.wrong += night.end(night.run("p.jsonl"), row, since=time.monotonic()) != 1
    os.killpg(first.pid, signal.SIGCONT)
    row.wrong += night.end(first, row) != 3
    night.goes_on(row)


def two_reports_at_once(night: Night, row: Row) -> None:
    """Of one result, to one name; one of them is killed at times. What is there is a whole report, always."""
    report = ("report", "whole.jsonl", "--out", "r.html")
    night.end(night.start(*report, stdout=subprocess.DEVNULL), row)
    expected = night.lines("r.html")
    for _ in range(2):
        first, second = (night.start(*report, stdout=subprocess.DEVNULL) for _ in range(2))
        time.sleep(night.dice.uniform(0.5, 2))
        os.killpg(first.pid, signal.SIGKILL)
        compare(row, night.lines("r.html"), expected)
        night.end(first, row)
        row.wrong += night.end(second, row) != 0
        compare(row, night.lines("r.html"), expected)
        row.tried += 1
    night.clear("r.html")


# --- decoders and the model ------------------------------------------------------------------------------------------


def worker_killed(night: Night, row: Row) -> None:
    process = night.run("p.jsonl", "--workers", "2")
    time.sleep(night.dice.uniform(night.seconds / 2, night.seconds * 0.9))
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False)
    if children.stdout and killed_child(int(night.dice.choice(children.stdout.split()))):
        row.wrong += night.end(process, row, since=time.monotonic()) != 3
        night.goes_on(row)
    else:
        night.end(process, row)
        night.clear("p.jsonl")


def killed_child(pid: int) -> bool:
    """Whether it was still there to be killed."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        return True
    return False


DECODER = """
import os, signal, time
from deit_batch.loading import decode as module
original = module.decode

def decode(data, *args, **more):
    if data == b"broken":
        {harm}
    return original(data, *args, **more)

module.decode = decode  # before anything has imported it
from deit_batch.cli import main
main()
"""


def decoder(harm: str) -> Callable[[Night, Row], None]:
    """Nine of the images do it, which are no images anyway: so their records must say that the decoder ended."""

    def fault(night: Night, row: Row) -> None:
        process = night.run("d.jsonl", "--decode-seconds", "2", program=DECODER.format(harm=harm))
        row.wrong += night.end(process, row, since=time.monotonic()) != 3
        errors = [record["error"]["message"] for record in night.records("d.jsonl") if "error" in record]
        row.wrong += sum("its decoder " not in error and "workers died" not in error for error in errors)
        row.tried += len(errors)
        night.is_as(row, "d.jsonl", set(range(0, INPUTS, 97)))

    return fault


OUT_OF_MEMORY = """
import torch
from deit_batch.model import engines
original = engines._filled

def filled(pixels, count):
    if count > {images}:
        raise torch.OutOfMemoryError("CUDA out of memory")
    return original(pixels, count)

engines._filled = filled
from deit_batch.cli import main
main()
"""


def out_of_memory(night: Night, row: Row) -> None:
    """Other batches, so the scores agree to 1e-6 and not to the last bit."""
    program = OUT_OF_MEMORY.format(images=night.dice.choice([1, 3, 5]))
    process = night.run("m.jsonl", program=program, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read().count(b"do not fit")
    row.wrong += night.end(process, row) != 3 or said != 1
    row.tried += 1
    night.is_as(row, "m.jsonl", set(range(0, INPUTS, 97)), closely=1e-6)


NOT_FINITE = """
from deit_batch import scorer
original = scorer.score_batch

def score_batch(references, decoded, scores, *args):
    scores[0, 3] = float("nan")
    return original(references, decoded, scores, *args)

scorer.score_batch = score_batch
from deit_batch.cli import main
main()
"""


def not_finite(night: Night, row: Row) -> None:
    """The first image of every batch of 4, which is small enough for all to be of that size."""
    row.wrong += night.end(night.run("n.jsonl", "--batch-size", "4", program=NOT_FINITE), row) != 3
    broken = set(range(0, INPUTS, 97))
    firsts = {min(set(range(start, start + 4)) - broken) for start in range(0, INPUTS, 4)}
    row.tried += len(firsts)
    night.is_as(row, "n.jsonl", broken | firsts)


def edited(name: str, **changes: Any) -> Callable[[Path], None]:
    """Sets values in a checkpoint's file of settings."""

    def edit(folder: Path) -> None:
        settings = json.loads((folder / name).read_text()) | changes
        (folder / name).write_text(json.dumps(settings))

    return edit


def written(name: str, data: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return write


def piped(name: str) -> Callable[[Path], None]:
    def replace(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return replace


HUGE_SIZE = {"size": {"height": 20_000, "width": 20_000}, "do_center_crop": True, "crop_size": 224}
CHECKPOINTS = [
    *(edited("config.json", num_hidden_layers=layers) for layers in (10**6, 0, float("inf"), "x", None)),
    *(edited("config.json", hidden_size=size) for size in (10**12, 0, float("nan"))),
    *(edited("config.json", image_size=size) for size in (10**6, -32, [224, 224, 224])),
    edited("preprocessor_config.json", **HUGE_SIZE),
    edited("preprocessor_config.json", image_std=[0, 0, 0]),
    edited("preprocessor_config.json", image_mean=[float("inf")] * 3),
    *(written(name, b"[" * 200_000) for name in ("config.json", "preprocessor_config.json")),
    written("model.safetensors", struct.pack("<Q", 2**63) + bytes(100)),
    written("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n"),
    *(piped(name) for name in ("config.json", "preprocessor_config.json", "model.safetensors")),
]


def hostile_checkpoint(night: Night, row: Row) -> None:
    """Each is refused in one line, as wrong usage."""
    for edit in CHECKPOINTS:
        folder = shutil.copytree(DEMO_FOLDER, night.folder / "checkpoint")
        edit(folder)
        with open(night.folder / "stderr", "wb") as stderr:
            process = night.run("k.jsonl", model="checkpoint", stderr=stderr)
            row.wrong += night.end(process, row, since=time.monotonic()) != 2
        row.wrong += len(night.lines("stderr")) != 1 or (night.folder / "k.jsonl").exists()
        row.tried += 1
        night.clear("k.jsonl")
        shutil.rmtree(folder)


def diverging_training(night: Night, row: Row) -> None:
    """It publishes nothing."""
    options = ("--input", str(REPOSITORY / "examples"), "--model", "demo", "--out", "trained", "--workers", "0")
    process = night.start("finetune", *options, "--learning-rate", "1e30", "--num-train-epochs", "1")
    row.wrong += night.end(process, row, since=time.monotonic()) != 2 or (night.folder / "trained").exists()
    row.tried += 1


# --- disks -----------------------------------------------------------------------------------------------------------


def no_room(night: Night, row: Row) -> None:
    """A file may grow to a few kilobytes only, as under a quota."""
    limit = night.dice.randrange(1000, len(b"".join(night.whole)))

    def small() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    row.wrong += night.end(night.run("p.jsonl", preexec_fn=small), row) != 1 or (night.folder / "p.jsonl").exists()
    night.goes_on(row)


def output_folder_gone(night: Night, row: Row) -> None:
    (night.folder / "out").mkdir(exist_ok=True)
    process = night.run("out/p.jsonl")
    while not list(night.folder.glob("out/p.jsonl.part*")):
        time.sleep(0.05)
    (night.folder / "out").rename(night.folder / "away")
    row.wrong += night.end(process, row, since=time.monotonic()) != 1
    (night.folder / "away").rename(night.folder / "out")
    night.goes_on(row, "out/p.jsonl")


def input_changes(night: Night, row: Row) -> None:
    """Of 800 copies, every tenth is deleted, cut or replaced under the run: each must have its record, and its own."""
    folder = night.folder / "copies"
    folder.mkdir()
    names = (night.folder / "t.txt").read_text().splitlines()
    for number, name in enumerate(names):
        shutil.copy(night.folder / name, folder / f"{number:03}.png")
    process = night.run("c.jsonl", input="copies")
    time.sleep(night.dice.uniform(night.seconds / 2, night.seconds))
    changed = set(night.dice.sample(range(INPUTS), INPUTS // 10))
    for number in changed:
        harm(night, folder / f"{number:03}.png")
    if process.poll() is None:
        row.tried += len(changed)
        night.end(process, row)
        expected = [json.loads(line)["predictions"] for line in night.whole]
        ours = night.records("c.jsonl")
        row.lost += INPUTS - len(ours)
        row.wrong += sum(record["image"] != f"copies/{place:03}.png" for place, record in enumerate(ours))
        row.wrong += sum(
            record["predictions"] != expected[place] for place, record in enumerate(ours) if place not in changed
        )
    night.clear("c.jsonl")
    shutil.rmtree(folder)


def harm(night: Night, path: Path) -> None:
    match night.dice.randrange(3):
        case 0:
            path.unlink()
        case 1:
            os.truncate(path, 100)
        case _:
            os.replace(shutil.copy(night.dice.choice(night.pictures), night.folder / "other.png"), path)


def dead_mount(night: Night, row: Row) -> None:
    """Given up by --error-threshold; when the mount is back, the same command gives what it would have given."""
    (night.folder / "mounted").symlink_to(night.folder)
    (night.folder / "m.txt").write_text("\n".join(f"mounted/{n}.png" for n in range(INPUTS)))
    for number in range(INPUTS):
        shutil.copy(night.pictures[number % len(night.pictures)], night.folder / f"{number}.png")
    options = ("--error-threshold", "40")
    night.end(night.run("well.jsonl", *options, input="m.txt"), row)
    (night.folder / "mounted").unlink()
    process = night.run("p.jsonl", *options, input="m.txt")
    row.wrong += night.end(process, row, since=time.monotonic()) != 1 or (night.folder / "p.jsonl").exists()
    (night.folder / "mounted").symlink_to(night.folder)
    row.wrong += night.end(night.run("p.jsonl", *options, input="m.txt"), row) != 0
    row.tried += 1
    compare(row, night.lines("p.jsonl"), night.lines("well.jsonl"))
    for pattern in ("mounted", "p.jsonl*", "well.jsonl*", "[0-9]*.png"):
        for path in night.folder.glob(pattern):
            path.unlink()


def replaced_and_killed(night: Night, row: Row) -> None:
    """A file is another one after its record was written; what comes out in the end is what scoring all anew gives."""
    folder = night.folder / "copies"
    folder.mkdir()
    for number, name in enumerate((night.folder / "t.txt").read_text().splitlines()):
        shutil.copy(night.folder / name, folder / f"{number:03}.png")
    process = night.run("c.jsonl", input="copies")
    while process.poll() is None and len(night.lines("c.jsonl.partial")) < 20:
        time.sleep(0.01)
    os.replace(shutil.copy(night.pictures[-1], night.folder / "other.png"), folder / "001.png")
    time.sleep(night.dice.uniform(0, night.seconds / 4))
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    if night.end(process, row) == -signal.SIGKILL:
        row.tried += 1
        row.wrong += night.end(night.run("c.jsonl", input="copies"), row) != 3
        night.end(night.run("anew.jsonl", input="copies"), row)
        compare(row, night.lines("c.jsonl"), night.lines("anew.jsonl"))
    for out in ("c.jsonl", "anew.jsonl"):
        night.clear(out)
    shutil.rmtree(folder)


def stderr_closed(night: Night, row: Row) -> None:
    row.wrong += night.end(night.run("p.jsonl", stderr=None, preexec_fn=lambda: os.close(2)), row) != 3
    row.tried += 1
    compare(row, night.lines("p.jsonl"), night.whole)
    night.clear("p.jsonl")


LOCK_STAYS = """
import os
original = os.unlink

def unlink(path, *args, **more):
    if os.fspath(path).endswith(".lock"):
        raise PermissionError(13, "Permission denied", path)
    original(path, *args, **more)

os.unlink = os.remove = unlink
from deit_batch.cli import main
main()
"""


def lock_stays(night: Night, row: Row) -> None:
    """The lock can't be removed: the result is whole, and the next run is not kept out."""
    row.wrong += night.end(night.run("p.jsonl", program=LOCK_STAYS), row) != 3
    compare(row, night.lines("p.jsonl"), night.whole)
    night.goes_on(row)


# --- input -----------------------------------------------------------------------------------------------------------


def hostile_files(night: Night, row: Row) -> None:
    """Every file of the corpus; judged by count and order, for there is no undisturbed run of it."""
    folder = night.folder / "corpus"
    make = [sys.executable, str(REPOSITORY / "scripts" / "corpus.py"), str(folder)]
    subprocess.run(make, check=True, capture_output=True)  # not here: the memory it takes would be counted as the run's
    start = time.monotonic()
    with open(night.folder / "stderr", "wb") as stderr:
        row.wrong += night.end(night.run("c.jsonl", input="corpus", stderr=stderr), row, since=start) != 3
    expected = sum(name.endswith(corpus.SUFFIXES) for _, _, names in os.walk(folder) for name in names)
    row.tried += expected
    account(row, night.records("c.jsonl"), expected)
    # No spam of a library.
    row.wrong += sum(
        not line.startswith(b"deit-batch: ") for line in (night.folder / "stderr").read_bytes().splitlines()
    )


def misbehaving_server(night: Night, row: Row) -> None:
    """Between all the bad ones, good ones."""
    folder = night.folder / "served"
    folder.mkdir()
    corpus.photo().save(folder / "00.jpg")
    with serve(folder) as server:
        urls = [server.address + path for fault in MISBEHAVIOURS for path in (fault, "/00.jpg")]
        (night.folder / "urls.txt").write_text("\n".join(urls))
        options = ("--allow-private-hosts", "--fetch-seconds", "3", "--retries", "1")
        process = night.run("u.jsonl", *options, input="urls.txt")
        row.wrong += night.end(process, row, since=time.monotonic()) != 3
    records = night.records("u.jsonl")
    account(row, records, len(urls))
    row.wrong += sum(bool(record["predictions"]) != (place % 2 == 1) for place, record in enumerate(records))
    row.tried += len(MISBEHAVIOURS)


def bad_tables(night: Night, row: Row) -> None:
    picture = str(night.pictures[0])
    for name, data, good in tables_of_bad_rows.make(picture):
        (night.folder / name).write_bytes(data)
        night.end(night.run("b.jsonl", "--column", "image", input=name), row)
        records = night.records("b.jsonl")
        account(row, records, len(good))
        wrong = sum(bool(record["predictions"]) != well for record, well in zip(records, good, strict=False))
        if wrong:
            print(f"  {name}: {wrong} wrong")
        row.wrong += wrong
        row.tried += good.count(False)
        night.clear("b.jsonl")


def gigabyte(night: Night, row: Row) -> None:
    """Between two good rows, one of 1 GB."""
    picture = json.dumps({"image": str(night.pictures[0])}).encode()
    for name, good, start, end in (
        ("1.jsonl", picture, b'{"image": "', b'"}'),
        ("1.csv", str(night.pictures[0]).encode(), b"", b""),
        ("2.csv", str(night.pictures[0]).encode(), b'"', b'"'),
    ):
        with open(night.folder / name, "wb") as file:
            file.write((b"image\n" if name.endswith("csv") else b"") + good + b"\n" + start)
            for _ in range(1000):
                file.write(b"A" * 1_000_000)
            file.write(end + b"\n" + good + b"\n")
        row.wrong += night.end(night.run("g.jsonl", input=name), row, since=time.monotonic()) != 3
        records = night.records("g.jsonl")
        account(row, records, 3)
        row.wrong += [bool(record["predictions"]) for record in records] != [True, False, True]
        row.tried += 1
        night.clear("g.jsonl")
        (night.folder / name).unlink()


def urls_of_one_look(night: Night, row: Row) -> None:
    """URLs that differ in a hidden parameter alone change places after a kill: no record is another picture's."""
    with serve(REPOSITORY / "examples") as server:
        addresses = [f"{server.address}/get?key={path.parent.name}/{path.name}" for path in night.pictures] * 10
        (night.folder / "urls.txt").write_text("\n".join(addresses))
        process = night.run("u.jsonl", "--allow-private-hosts", input="urls.txt")
        while process.poll() is None and len(night.lines("u.jsonl.partial")) < 20:
            time.sleep(0.01)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        if night.end(process, row) == -signal.SIGKILL:
            row.tried += 1
            (night.folder / "urls.txt").write_text("\n".join(reversed(addresses)))
            continued = night.end(night.run("u.jsonl", "--allow-private-hosts", input="urls.txt"), row)
            night.end(night.run("anew.jsonl", "--allow-private-hosts", input="urls.txt"), row)
            row.wrong += continued not in (0, 2)  # scored anew, or refused
            if continued == 0:
                compare(row, night.lines("u.jsonl"), night.lines("anew.jsonl"))
    for out in ("u.jsonl", "anew.jsonl"):
        night.clear(out)


def odd_tar(night: Night, row: Row) -> None:
    """Images under names with dots, links to them, and links that lead out; then the same tar, cut."""
    picture = night.pictures[0].read_bytes()
    members = [(f"CAM1_2024.05.{day:02}_12.30.png", tarfile.REGTYPE, "") for day in range(1, 29)]
    members += [(f"hard.{day:02}.png", tarfile.LNKTYPE, members[day][0]) for day in range(10)]
    members += [(f"soft.{day:02}.png", tarfile.SYMTYPE, members[day][0]) for day in range(10)]
    out = [(f"out.{number}.png", tarfile.SYMTYPE, to) for number, to in enumerate(("/etc/passwd", "../a", "nowhere"))]
    with tarfile.open(night.folder / "a.tar", "w") as tar:
        for name, type, target in members + out:
            header = tarfile.TarInfo(name)
            header.type, header.linkname = type, target
            header.size = 0 if target else len(picture)
            tar.addfile(header, None if target else io.BytesIO(picture))
        size = tar.offset  # what comes after are zeros: without some of them it is whole
    row.wrong += night.end(night.run("w.jsonl", input="a.tar"), row) != 3
    records = night.records("w.jsonl")
    account(row, records, len(members + out))
    scored = {Path(record["image"]).name for record in records if record["predictions"]}
    row.wrong += len(scored ^ {name for name, _, _ in members})
    row.tried += len(members + out)
    night.clear("w.jsonl")
    for _ in range(5):
        os.truncate(night.folder / "a.tar", size := night.dice.randrange(size // 2, size))
        row.wrong += night.end(night.run("w.jsonl", input="a.tar"), row) != 1 or (night.folder / "w.jsonl").exists()
        row.tried += 1
        night.clear("w.jsonl")


def odd_parquet(night: Night, row: Row) -> None:
    """Dates that no calendar has and text that is not UTF-8: their rows fail, or the value stays text."""
    good = str(night.pictures[0])
    for type, odd in (
        (pyarrow.timestamp("us"), 2**60),
        (pyarrow.date32(), 2**31 - 1),
        (pyarrow.date64(), 2**60),
        (pyarrow.duration("s"), 2**60),
    ):
        integers = pyarrow.int32() if type == pyarrow.date32() else pyarrow.int64()
        values = pyarrow.array([0, odd, 0], integers).view(type)
        pyarrow.parquet.write_table(pyarrow.table({"image": [good] * 3, "t": values}), night.folder / "o.parquet")
        check_odd_row(night, row, "--keep", "t")
    names = [good.encode(), b"\xff\xfe.png", good.encode()]
    offsets = struct.pack("<4i", 0, *(len(b"".join(names[: n + 1])) for n in range(3)))
    image = pyarrow.StringArray.from_buffers(3, pyarrow.py_buffer(offsets), pyarrow.py_buffer(b"".join(names)))
    pyarrow.parquet.write_table(pyarrow.table({"image": image}), night.folder / "o.parquet")
    check_odd_row(night, row)


def check_odd_row(night: Night, row: Row, *options: str) -> None:
    """The second of three rows is odd; the others have the same predictions."""
    row.wrong += night.end(night.run("o.jsonl", *options, input="o.parquet"), row) not in (0, 3)
    records = night.records("o.jsonl")
    account(row, records, 3)
    row.wrong += [bool(record["predictions"]) for record in records][::2] != [True, True]
    row.tried += 1
    night.clear("o.jsonl")


def small_files_of_much(night: Night, row: Row) -> None:
    """Their rows fail, or the run is refused; never a traceback, nor its memory. One of them has 600,000 rows, of which
    a few will do."""
    folder = night.folder / "bombs"
    folder.mkdir()
    subprocess.run([sys.executable, str(REPOSITORY / "tests" / "bombs.py"), str(folder)], check=True)  # not here, too
    for path in sorted(folder.iterdir()):
        with open(night.folder / "stderr", "wb") as stderr:
            process = night.run("z.jsonl", "--limit", "9", input=str(path), stderr=stderr)
            row.wrong += night.end(process, row, since=time.monotonic()) not in (1, 2, 3)
        row.wrong += any(not line.startswith(b"deit-batch: ") for line in night.lines("stderr"))
        row.tried += 1
        night.clear("z.jsonl")


def account(row: Row, records: list[Record], expected: int) -> None:
    """Each input has its record, in its place: predictions or an error."""
    row.lost += max(0, expected - len(records))
    row.wrong += max(0, len(records) - expected)
    row.wrong += sum(record["index"] != place for place, record in enumerate(records))
    row.wrong += sum(bool(record["predictions"]) == ("error" in record) for record in records)


FAULTS: list[tuple[str, Callable[[Night, Row], None], int]] = [
    ("SIGKILL of all its processes at a random moment, once or three times", killed, 16),
    ("SIGKILL just before or after a rename, sync or removal of a file", killed_in_a_state_change, 16),
    ("SIGKILL of an `--incremental` run over a folder that changes", killed_when_incremental, 10),
    ("SIGINT at a random moment", stopped(signal.SIGINT), 6),
    ("SIGTERM at a random moment", stopped(signal.SIGTERM), 6),
    ("a second run on the same output", two_at_once, 3),
    ("two reports to one name at once, one of them SIGKILLed", two_reports_at_once, 3),
    ("SIGKILL of a decode worker", worker_killed, 8),
    ("an image that crashes its decoder", decoder("os.kill(os.getpid(), signal.SIGSEGV)"), 2),
    ("an image that hangs its decoder (limit: 2 s)", decoder("time.sleep(1e6)"), 1),
    ("out of memory in the forward pass (simulated)", out_of_memory, 3),
    ("scores that are not finite (simulated)", not_finite, 1),
    ("a hostile checkpoint", hostile_checkpoint, 1),
    ("a training that diverges", diverging_training, 1),
    ("no room for the output", no_room, 6),
    ("output folder moved away in the middle", output_folder_gone, 3),
    ("a file deleted, cut or replaced under the run", input_changes, 4),
    ("a file replaced after its record was written, then SIGKILL", replaced_and_killed, 3),
    ("stderr closed", stderr_closed, 1),
    ("a lock that can't be removed (simulated)", lock_stays, 1),
    ("a dead mount, with `--error-threshold 40`", dead_mount, 2),
    ("hostile files", hostile_files, 1),
    ("a URL whose server misbehaves (limit: 3 s, one retry)", misbehaving_server, 1),
    ("SIGKILL, then URLs that differ in a hidden parameter alone change places", urls_of_one_look, 2),
    ("a tar of dotted names and links, then cut", odd_tar, 1),
    ("malformed rows of tables", bad_tables, 1),
    ("odd dates and text in Parquet", odd_parquet, 1),
    ("a small table or tar that unpacks to much", small_files_of_much, 1),
    ("a row of 1 GB", gigabyte, 1),
]


def measured(night: Night, quick: bool) -> Iterator[Row]:
    for fault, do, times in FAULTS:
        row = Row(fault)
        start = time.monotonic()
        for _ in range(min(times, 2) if quick else times):
            do(night, row)
        seconds = time.monotonic() - start
        print(f"{fault}: {row.tried:,} times, {row.lost} lost, {row.wrong} wrong ({seconds:.0f} s)", flush=True)
        yield row


def write_page(night: Night, rows: list[Row]) -> None:
    """After every row, so that a run that was ended early has a page, too, which says what it did not come to."""
    table = [
        "| fault | times tried | lines lost | lines wrong | time to give up, s | peak memory, MB |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        slowest = f"{row.slowest:.1f}" if row.slowest else ""
        table.append(f"| {row.fault} | {row.tried:,} | {row.lost} | {row.wrong} | {slowest} | {row.peak:.0f} |")
    table += [f"| {fault} | not run |  |  |  |  |" for fault, _, _ in FAULTS[len(rows) :]]
    figures = {"peak": night.peak, "seconds": night.seconds, "machine": machine.describe()}
    text = PAGE.format(inputs=INPUTS, table="\n".join(table), **figures)
    (REPOSITORY / "docs" / "faults.md").write_text(text, encoding="utf-8")


def main() -> None:
    quick = "--quick" in sys.argv
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        night = Night(Path(name))
        for row in measured(night, quick):
            rows.append(row)
            if not quick:
                write_page(night, rows)
    sys.exit(any(row.lost or row.wrong for row in rows))


PAGE = """# Faults

What `scripts/faults` did to the installed command, over and over, and what came of it. A fault that came when the run
had ended already is not counted.

- **Lost** are inputs without a record. A row says "not run" if the program was ended before it.
- **Wrong** are records that differ from those of an undisturbed run over the same {inputs:,} inputs, and runs that
  ended with another status than the [documented one](usage.md). After a kill, a signal or a full disk the same command
  is run again, and the bytes are compared; elsewhere the labels and scores of every image that the fault was not done
  to. Out of memory changes the batches, so there the scores may differ by 1e-6. The hostile files (of
  `scripts/corpus.py`), URLs and rows must each have a record in its place, and stderr may carry no line but our own.
  Hostile checkpoints must be refused in one line, and a training that diverges must leave nothing under its name.
- **Time to give up** is the longest time from the fault (where there is no one moment: from the start) to the end of
  the run. An undisturbed run took {seconds:.1f} s.
- **Peak memory** is that of the largest process, shared libraries included; {peak:.0f} MB where nothing happens.

Taken on {machine}; the table is written by the program.

{table}
"""

if __name__ == "__main__":
    main()
