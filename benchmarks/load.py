"""How many requests a second `deit-batch serve` answers, beside a server that takes one at a time; and whether it loses
or crosses any of 20,000 with faults mixed in: load.py [--quick]. On loopback. Writes load.md beside itself.
`load.py --floods` writes floods.md alone: how soon /health answers while others flood the server.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median, quantiles

import floods
import material
from clients import latencies, request, running
from crossed import Night, spend
from report import versions

from deit_batch.system import machine

HERE = Path(__file__).resolve().parent
COMMAND = str(Path(sys.executable).parent / "deit-batch")
CLIENTS, ROUNDS, SECONDS = 32, 5, 6.0
TARGET = 1.3
REQUESTS = 20_000
QUIET = 0.5
"""The most that the machine's load may be for the figures to be trusted."""

SERVERS: dict[str, list[object]] = {
    "one request at a time, all cores": [sys.executable, HERE / "one_at_a_time.py"],
    "`deit-batch serve --batch-size 1 --batch-window 0`": [COMMAND, "serve", "--batch-size", 1, "--batch-window", 0],
    "`deit-batch serve`": [COMMAND, "serve"],
}
BASELINE, UNBATCHED, OURS = SERVERS


def measured(folder: Path, rounds: int) -> dict[str, tuple[list[float], list[float]]]:
    """Of each server its requests/s, one a round, and the latencies of all rounds. They take turns."""
    checkpoint = material.checkpoint(folder / "ti", material.PLAIN, **material.TINY)
    bodies = [request(Path(path).read_bytes()) for path in material.jpegs(folder / "small", 64, material.SMALL)]
    results: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in SERVERS}
    with ExitStack() as stack:
        ports = {}
        for number, (name, command) in enumerate(SERVERS.items()):
            options: list[object] = [checkpoint] if name == BASELINE else ["--model", checkpoint, "--port", 0]
            log = folder / f"{number}.log"
            _, ports[name] = stack.enter_context(running([*command, *options], log))
            latencies(ports[name], bodies, clients=CLIENTS, seconds=1)
        for _ in range(rounds):
            for name, port in ports.items():
                found, seconds = latencies(port, bodies, clients=CLIENTS, seconds=SECONDS)
                results[name][0].append(len(found) / seconds)
                results[name][1].extend(found)
                print(f"{name}: {len(found) / seconds:.1f} requests/s", flush=True)
    return results


def speed_table(results: dict[str, tuple[list[float], list[float]]]) -> Iterator[str]:
    yield "| server | requests/s | over one at a time | p50, ms | p95, ms | p99, ms |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: |"
    for name, (speeds, seconds) in results.items():
        ratios = [one / other for one, other in zip(speeds, results[BASELINE][0], strict=True)]
        cuts = quantiles(seconds, n=100)
        latency = " | ".join(f"{1000 * cuts[percent - 1]:.0f}" for percent in (50, 95, 99))
        yield f"| {name} | {spread(speeds, 1)} | {spread(ratios, 2)}× | {latency} |"


def spread(values: list[float], digits: int) -> str:
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def verdict(*, reached: bool, disturbed: bool) -> str:
    if disturbed:
        return "can't be judged by this run"
    return "holds" if reached else "**is missed**"


def write_floods() -> None:
    others = os.getloadavg()[1]
    with tempfile.TemporaryDirectory() as name:
        results = floods.measured(Path(name))
    slowest = max(max(found) for found in results.values())
    text = FLOODS_PAGE.format(
        machine=machine.describe(),
        seconds=floods.SECONDS,
        table="\n".join(floods.as_markdown(results)),
        most=floods.MOST_SECONDS,
        verdict=verdict(reached=slowest < floods.MOST_SECONDS, disturbed=others > QUIET),
        disturbed=FLOODS_DISTURBED.format(others=others) if others > QUIET else "",
    )
    print(text)
    (HERE / "floods.md").write_text(text, encoding="utf-8")
    sys.exit(slowest >= floods.MOST_SECONDS and others <= QUIET)


def main() -> None:
    if "--floods" in sys.argv:
        write_floods()
    quick = "--quick" in sys.argv
    others = os.getloadavg()[1]
    with tempfile.TemporaryDirectory() as name:
        results = measured(Path(name), 1 if quick else ROUNDS)
    night = Night()
    with tempfile.TemporaryDirectory() as name:
        spend(night, Path(name), 1000 if quick else REQUESTS)
    gains = [one / other for one, other in zip(results[OURS][0], results[BASELINE][0], strict=True)]
    text = PAGE.format(
        machine=machine.describe(),
        versions=", ".join(f"{library} {version}" for library, version in versions().items()),
        clients=CLIENTS,
        rounds=len(gains),
        seconds=SECONDS,
        speed="\n".join(speed_table(results)),
        target=TARGET,
        reached=median(gains),
        verdict=verdict(reached=median(gains) >= TARGET, disturbed=others > QUIET),
        disturbed=DISTURBED.format(others=others) if others > QUIET else "",
        faults=night.as_markdown(),
    )
    print(text)
    if not quick:
        (HERE / "load.md").write_text(text, encoding="utf-8")
    sys.exit(bool(night.problems))


PAGE = """# The server under load

Written by `scripts/load`, on {machine}; {versions}. Server and clients share the machine, on loopback.

## Speed

{clients} clients, each sending its next request, one 500×375 JPEG in base64, as soon as it has its answer. DeiT-Ti's
geometry with random weights. The servers take turns of {seconds:g} seconds, {rounds} times: the median, with the
least and the greatest; a ratio is taken within each turn. The first server (`benchmarks/one_at_a_time.py`) decodes and
scores with the same functions, behind the same HTTP; the second is ours without its batches. Only ratios travel.

{speed}

Micro-batching is to be {target:g} times as fast as one request at a time. It is {reached:.2f} times: the target
{verdict}.{disturbed}

## Nothing lost, nothing crossed

{faults}
"""

FLOODS_PAGE = """# The server under floods

Written by `scripts/load --floods`, on {machine}. Server and clients share the machine, on loopback; the server may have
1,024 files open. For {seconds:g} seconds each, clients of one kind flood `deit-batch serve`, and come again when they
are cut off; `/health` is asked meanwhile, by a connection of its own each time. How long it takes depends on the
machine: what can be seen is that none of these stops the others.

{table}

`/health` is to answer in less than {most:g} s whatever others send: the target {verdict}.{disturbed}
"""

FLOODS_DISTURBED = """

**Other programs ran on the machine** (a load of {others:.1f} before the start), so that the server had a part of it
only. The figures must be taken again on a quiet machine."""

DISTURBED = """

**Other programs ran on the machine** (a load of {others:.1f} before the start): all servers had a part of it only, and
one that needs all cores at once for each pass suffers most. The figures must be taken again on a quiet machine."""

if __name__ == "__main__":
    main()
