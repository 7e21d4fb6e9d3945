"""What --engine ray costs, and how it grows: scaling.py [--quick]. 1 and 2 actors pinned to one core each, beside the
local engine on the same cores.

Each node of the cluster is a process of this machine with one core; the head, which does no work, and the driver share
those cores, as everything of the local engine does. Writes scaling.md beside itself. Three minutes on 2 cores that have
nothing else to do; --quick is one turn.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import material
import ray
from bench import COMMAND
from ray.cluster_utils import Cluster
from report import describe_machine, versions

HERE = Path(__file__).resolve().parent
TURNS = 1 if "--quick" in sys.argv else 3
IMAGES, PART = 320, 16
MOST_LOAD = 0.5
CORES = sorted(os.sched_getaffinity(0))[:2]
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # Ray's own is 15: beside anything else on the machine it would measure that
}
Speeds = dict[str, list[float]]


@contextmanager
def cluster_on(cores: list[int]) -> Iterator[str]:
    """The address of a cluster with a node for each of the cores, pinned to it: what a process starts inherits where it
    may run."""
    os.sched_setaffinity(0, cores)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for core in cores:
        os.sched_setaffinity(0, [core])
        cluster.add_node(num_cpus=1, object_store_memory=200 * 2**20)
    os.sched_setaffinity(0, cores)
    yield cluster.address
    cluster.shutdown()
    ray.shutdown()


def timed(words: list[str], folder: Path) -> tuple[float, float]:
    """Images/s from the first records to the last that were seen to come, and the seconds to the first."""
    start = time.time()
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    seen: list[tuple[float, int]] = []
    while process.poll() is None:
        count = records(folder)
        if count and (not seen or count > seen[-1][1]):
            seen.append((time.time(), count))
        time.sleep(0.1)
    if process.returncode:
        sys.exit(f"{' '.join(words)}: exit status {process.returncode}")
    (first, some), (last, many) = seen[0], seen[-1]
    return (many - some) / (last - first), first - start


def records(folder: Path) -> int:
    """In the files that grow: the parts, or the one of the local engine."""
    growing = [*folder.glob("*.partial/part-*.jsonl"), *folder.glob("*.jsonl.partial")]
    return sum(path.read_bytes().count(b"\n") for path in growing)


def measure(checkpoint: Path, table: Path) -> Speeds:
    found: Speeds = defaultdict(list)
    for turn in range(TURNS):
        for count in range(1, len(CORES) + 1):
            with cluster_on(CORES[:count]) as address, tempfile.TemporaryDirectory() as name:
                common = [COMMAND, "score", "--input", str(table), "--model", str(checkpoint), "--quiet", "--out"]
                on_ray = ["--engine", "ray", "--ray-address", address, "--part-size", str(PART)]
                commands = {
                    "local": [*common, f"{name}/local.jsonl", "--batch-size", str(PART)],
                    "ray": [*common, f"{name}/parts", *on_ray],
                }
                for engine, words in commands.items():
                    speed, first = timed(words, Path(name))
                    found[f"{engine} {count}"].append(speed)
                    found[f"{engine} {count}: first"].append(first)
                    print(f"turn {turn}, {count} cores, {engine}: {speed:.1f} images/s, {first:.1f} s", flush=True)
    return found


def shown(values: list[float]) -> str:
    return f"{median(values):.3g} ({min(values):.3g}–{max(values):.3g})"


def ratio(found: Speeds, one: str, other: str) -> str:
    return shown([a / b for a, b in zip(found[one], found[other], strict=True)])


def page(found: Speeds, load: float) -> str:
    """`load`: of the machine before the first turn."""
    rows = [
        ("Ray over local, 1 core", "ray 1", "local 1"),
        ("Ray over local, 2 cores", "ray 2", "local 2"),
        ("Ray, 2 actors over 1", "ray 2", "ray 1"),
        ("local, 2 cores over 1", "local 2", "local 1"),
    ]
    ratios = "\n".join(f"| {what} | {ratio(found, one, other)} |" for what, one, other in rows)
    names = [f"{engine} {count}" for count in (1, 2) for engine in ("local", "ray")]
    figures = "\n".join(f"| {name} | {shown(found[name])} | {shown(found[f'{name}: first'])} |" for name in names)
    libraries = ", ".join(f"{name} {number}" for name, number in versions().items())
    beside = "Nothing else ran on the machine."
    if load > MOST_LOAD:
        beside = f"The machine had other work (its load was {load:.1f} before): measure again, when it has none."
    return PAGE.format(
        machine=describe_machine(), libraries=libraries, ray=ray.__version__, images=IMAGES, part=PART, turns=TURNS,
        ratios=ratios, figures=figures, beside=beside,
    )  # fmt: skip


def main() -> None:
    if len(CORES) < 2:
        sys.exit("scaling: this needs two cores")
    os.environ.update(ENVIRONMENT)
    with tempfile.TemporaryDirectory() as name:
        checkpoint = material.checkpoint(Path(name) / "ti", material.PLAIN, **material.TINY)
        table = Path(name) / "t.txt"
        table.write_text("\n".join(material.jpegs(Path(name) / "images", IMAGES, material.SMALL)))
        load = os.getloadavg()[0]
        found = measure(checkpoint, table)
    text = page(found, load)
    (HERE / "scaling.md").write_text(text, encoding="utf-8")
    print(text)


PAGE = """# On a cluster

Written by `benchmarks/scaling.py`, on {machine}, with
{libraries}, ray {ray}. {beside}

DeiT-Ti, float32, {images} pictures of 500×375 pixels in parts of {part}. Turns: {turns}; the median, with the least and
the greatest. Each actor is on a node of its own, pinned to one core, on which its node's decoding and all of Ray's own
processes run, too; the local engine has the same cores. Only ratios travel.

| speed once it runs | ratio |
| --- | ---: |
{ratios}

| engine, cores | images/s | seconds to the first part |
| --- | ---: | ---: |
{figures}
"""

if __name__ == "__main__":
    main()
