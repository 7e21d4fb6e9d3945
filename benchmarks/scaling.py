"""What --engine ray costs, and how it grows: scaling.py [--quick]. Actors of one core each, beside the local engine on
the same cores.

Each node of the cluster is a process of this machine with one core, to which it is pinned or not; the head, which does
no work, and the driver share those cores, as everything of the local engine does. The two engines take turns. Writes
scaling.md beside itself. Ten minutes on 2 cores that have nothing else to do; --quick is one turn.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import material
import ray
from bench import COMMAND
from ray.cluster_utils import Cluster
from report import describe_machine, versions

HERE = Path(__file__).resolve().parent
QUICK = "--quick" in sys.argv
TURNS = 1 if QUICK else 3
IMAGES, PART = 640, 16
MOST_LOAD = 0.5
CORES = sorted(os.sched_getaffinity(0))[:2]
MEMORY = 200 * 2**20
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # Ray's own is 15: beside anything else on the machine it would measure that
}


class Setting(NamedTuple):
    """A cluster with a node on each of the `cores`, each for so many actors of one core."""

    name: str
    cores: list[int]
    pinned: bool = True
    actors_a_node: int = 1


class Timed(NamedTuple):
    """Images/s from the first part that is there to the last, and the seconds from the command to the first."""

    speed: float
    first: float


SETTINGS = [
    Setting("1 core", CORES[:1]),
    Setting("2 cores", CORES),
    Setting("2 cores, not pinned", CORES, pinned=False),
    Setting("2 actors on 1 core", CORES[:1], actors_a_node=2),
]
Found = dict[str, list[Timed]]


@contextmanager
def cluster_on(setting: Setting) -> Iterator[str]:
    """Its address. What a process starts inherits where it may run."""
    os.sched_setaffinity(0, setting.cores)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for core in setting.cores:
        os.sched_setaffinity(0, [core] if setting.pinned else setting.cores)
        cluster.add_node(num_cpus=setting.actors_a_node, object_store_memory=MEMORY)
    os.sched_setaffinity(0, setting.cores)
    yield cluster.address
    cluster.shutdown()
    ray.shutdown()
    os.sched_setaffinity(0, CORES)


def timed(words: list[str], out: Path) -> Timed:
    earlier = {path.name for path in parts_in(out.with_name(f"{out.name}.partial"))}
    start = time.time()
    done = subprocess.run([*words, "--out", f"{out}/"], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(words)}: exit status {done.returncode}\n{done.stderr}")
    times = sorted(path.stat().st_mtime for path in parts_in(out) if path.name not in earlier)
    return Timed((len(times) - 1) * PART / (times[-1] - times[0]), times[0] - start)


def parts_in(folder: Path) -> list[Path]:
    return list(folder.glob("part-*.jsonl"))


def after_a_kill(words: list[str], out: Path) -> Timed:
    """Of the run that goes on where the driver of the last one was killed a moment ago."""
    process = subprocess.Popen([*words, "--out", f"{out}/"], stderr=subprocess.DEVNULL)
    while len(parts_in(out.with_name(f"{out.name}.partial"))) < 4:
        time.sleep(0.02)
        if process.poll() is not None:
            sys.exit("scaling: the run has ended before it could be killed")
    process.kill()
    process.wait()
    return timed(words, out)


def measure(checkpoint: Path, table: Path) -> Found:
    found: Found = defaultdict(list)
    for turn in range(TURNS):
        for setting in SETTINGS:
            with cluster_on(setting) as address, tempfile.TemporaryDirectory() as name:
                local = [COMMAND, "score", "--input", str(table), "--model", str(checkpoint), "--quiet"]
                local += ["--part-size", str(PART)]
                on_ray = [*local, "--engine", "ray", "--ray-address", address, "--actor-cores", "1"]
                ways: dict[str, Callable[[], Timed]] = {
                    "local": partial(timed, local, Path(name, "local")),
                    "ray": partial(timed, on_ray, Path(name, "ray")),
                }
                if setting.name == "2 cores":
                    ways["ray, after a killed driver"] = partial(after_a_kill, on_ray, Path(name, "killed"))
                for way in list(ways)[:: 1 if turn % 2 == 0 else -1]:
                    result = ways[way]()
                    found[f"{way}, {setting.name}"].append(result)
                    print(
                        f"turn {turn}: {way}, {setting.name}: {result.speed:.1f} images/s, {result.first:.1f} s",
                        flush=True,
                    )
    return found


def shown(values: list[float]) -> str:
    return f"{median(values):.3g} ({min(values):.3g}–{max(values):.3g})"


def ratio(found: Found, one: str, other: str) -> str:
    return shown([a.speed / b.speed for a, b in zip(found[one], found[other], strict=True)])


def page(found: Found, load: float) -> str:
    """`load`: of the machine before the first turn."""
    rows = [(f"Ray over local, {each.name}", f"ray, {each.name}", f"local, {each.name}") for each in SETTINGS]
    rows += [
        ("after a killed driver over before", "ray, after a killed driver, 2 cores", "ray, 2 cores"),
        ("Ray, 2 cores over 1", "ray, 2 cores", "ray, 1 core"),
        ("local, 2 cores over 1", "local, 2 cores", "local, 1 core"),
    ]
    ratios = "\n".join(f"| {what} | {ratio(found, one, other)} |" for what, one, other in rows)
    figures = "\n".join(
        f"| {name} | {shown([each.speed for each in values])} | {shown([each.first for each in values])} |"
        for name, values in found.items()
    )
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

DeiT-Ti, float32, {images} pictures of 500×375 pixels in parts of {part}. {turns} turns, the engines one after the
other; the median, with the least and the greatest. Each actor has one core. It is on a node of its own, pinned to that
core with all of Ray's own processes, unless said otherwise; the local engine has the same cores. Only ratios travel.

| speed once it runs | ratio |
| --- | ---: |
{ratios}

| engine | images/s | seconds from the command to the first part |
| --- | ---: | ---: |
{figures}
"""

if __name__ == "__main__":
    main()
