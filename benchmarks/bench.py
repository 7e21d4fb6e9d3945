"""How fast deit-batch is beside what else a user would pick, and how far from the limit: bench.py [--quick].

Contenders run over the same pictures in turn, several times; a figure is the median, and a ratio is taken within each
turn. Writes results.md and results.json beside itself. Nothing is downloaded. A quarter of an hour on 2 cores.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import garments
import host
import material
from memory import peak_memory
from report import Results, write_figures, write_pages

from deit_batch.system import machine

HERE = Path(__file__).resolve().parent
COMMAND = str(Path(sys.executable).parent / "deit-batch")
MODELS = {"DeiT-B": material.BASE, "DeiT-Ti": material.TINY}
IMAGES = {"DeiT-B": 24, "DeiT-Ti": 256}
PEERS = {"DeiT-B": ("onnxruntime", "openvino"), "DeiT-Ti": ("onnxruntime",)}
EXPORTS = {"DeiT-B": ("float32", "int8"), "DeiT-Ti": ("float32",)}


@dataclass
class Bench:
    folder: Path
    turns: int
    results: Results = field(default_factory=dict)

    def note(self, name: str, value: float) -> None:
        """One more value of a figure; the medians are taken at the end."""
        self.results.setdefault(name, []).append(value)

    def table(self, name: str, paths: list[str]) -> Path:
        path = self.folder / f"{name}.txt"
        path.write_text("\n".join(paths))
        return path


# --- ours ------------------------------------------------------------------------------------------------------------


@dataclass
class Timing:
    first: float
    """Seconds from the start of the process to its first record."""
    total: float
    images_per_second: float
    """Between the records of the first batch and the last."""
    peak: float
    """MB, of its largest process."""


def ours(*options: object) -> Timing:
    """The installed command, as a user runs it, its records read as they come."""
    return timed(command(*options))


def command(*options: object) -> list[str]:
    return [COMMAND, "score", "--out", "-", "--quiet", *map(str, options)]


def timed(command: list[str]) -> Timing:
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    times, peak = [], 0.0
    for count, _ in enumerate(process.stdout):
        times.append(time.monotonic())
        if count % 500 == 0:
            peak = max(peak, peak_memory(process.pid))
    if process.wait():
        sys.exit(f"{' '.join(command)}: exit status {process.returncode}")
    batch = sum(at < times[0] + 0.02 for at in times)
    speed = (len(times) - batch) / (times[-1] - times[0]) if len(times) > batch else 0.0
    return Timing(times[0] - start, time.monotonic() - start, speed, peak)


# --- the others ------------------------------------------------------------------------------------------------------


class Contender:
    """A process of contenders.py: loaded once, then run in turn with the others."""

    def __init__(self, what: str, checkpoint: Path, table: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, HERE / "contenders.py", what, checkpoint, table],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def run(self) -> dict[str, float]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"{self._process.args!r} has died")
        return dict(json.loads(line))

    def close(self) -> None:
        self._process.communicate()


def best_pipeline(checkpoint: Path, table: Path) -> str:
    """The batch size and the workers that the pipeline is fastest with."""
    speeds = {}
    for batch in (1, 8):
        for workers in (0, 1):
            contender = Contender(f"pipeline:{batch},{workers}", checkpoint, table)
            speeds[f"{batch},{workers}"] = contender.run()["images_per_second"]
            contender.close()
    return max(speeds, key=speeds.__getitem__)


def throughput(bench: Bench, model: str, checkpoint: Path, exports: dict[str, Path], paths: list[str]) -> str:
    """Returns the pipeline's best setting."""
    table = bench.table(model, paths[: IMAGES[model]])
    few = bench.table(f"{model}-few", paths[: IMAGES[model] // 2])
    best = best_pipeline(checkpoint, few)
    print(f"{model}: the pipeline is fastest with batch, workers = {best}", flush=True)
    bench.note(f"{model}: pipeline batch size", float(best.partition(",")[0]))
    with ExitStack() as stack:

        def join(what: str) -> Contender:
            contender = Contender(what, checkpoint, table)
            stack.callback(contender.close)
            return contender

        others = {"pipeline": join(f"pipeline:{best}"), "forward": join("forward")}
        for library in PEERS[model]:
            if find_spec(library):
                for dtype, folder in exports.items():
                    batch = 8 if dtype == "float32" else 1
                    others[f"{library} {dtype}"] = join(f"{library}:{folder / 'model.onnx'},{batch}")
        for _ in range(bench.turns):
            for name, contender in others.items():
                bench.note(f"{model}: {name}", contender.run()["images_per_second"])
            bench.note(f"{model}: ours", ours("--input", table, "--model", checkpoint).images_per_second)
            for dtype, folder in exports.items():
                speed = ours("--input", table, "--model", folder).images_per_second
                bench.note(f"{model}: ours, exported {dtype}", speed)
            if model == "DeiT-B":
                bfloat16 = ours("--input", table, "--model", checkpoint, "--dtype", "bfloat16")
                bench.note(f"{model}: ours, bfloat16", bfloat16.images_per_second)
    return best


def distilled(bench: Bench, pipeline: str, paths: list[str]) -> None:
    checkpoint = material.checkpoint(bench.folder / "distilled", material.DISTILLED, **material.TINY)
    table = bench.table("distilled", paths[: IMAGES["DeiT-Ti"]])
    contender = Contender(f"pipeline:{pipeline}", checkpoint, table)
    for _ in range(bench.turns):
        bench.note("DeiT-Ti distilled: pipeline", contender.run()["images_per_second"])
        bench.note("DeiT-Ti distilled: ours", ours("--input", table, "--model", checkpoint).images_per_second)
    contender.close()


# --- start, decoding, memory, URLs -----------------------------------------------------------------------------------

PIPELINE = """
import sys, transformers
transformers.logging.set_verbosity_error()
classify = transformers.pipeline("image-classification", model=sys.argv[1])
paths = open(sys.argv[2]).read().splitlines()
for result in classify((path for path in paths), batch_size=1):
    print(result[0]["label"], flush=True)
"""


def start_up(bench: Bench, model: str, checkpoint: Path, exports: dict[str, Path], paths: list[str]) -> None:
    table = bench.table("sixteen", paths[:16])
    commands = {
        "pipeline": [sys.executable, "-c", PIPELINE, str(checkpoint), str(table)],
        "ours": command("--input", table, "--model", checkpoint),
    }
    for dtype, folder in exports.items():
        commands[f"ours, exported {dtype}"] = command("--input", table, "--model", folder)
    for _ in range(bench.turns):
        for name, words in commands.items():
            timing = timed(words)
            bench.note(f"{model}: first record: {name}", timing.first)
            bench.note(f"{model}: 16 images: {name}", timing.total)


def decoding(bench: Bench, checkpoint: Path, paths: list[str]) -> None:
    """By Pillow, as one would write it: for the ceiling. (decoding.py compares ways to decode.)"""
    contender = Contender("decode", checkpoint, bench.table("decode", paths))
    for _ in range(bench.turns):
        bench.note("decode: small_bare", contender.run()["milliseconds"])
    contender.close()


def growth(bench: Bench, rows: int) -> None:
    """Memory and time an image at a thousand rows and at very many. A second of start-up is not an image's cost: the
    time is taken from the first record on."""
    tiny = material.tiny_pngs(bench.folder / "tiny", 1000)
    checkpoint = material.checkpoint(bench.folder / "one-layer", material.PLAIN, **material.ONE_LAYER)
    few, many = bench.table("few", tiny), bench.table("many", tiny * (rows // 1000))
    for _ in range(bench.turns):
        timing = ours("--input", few, "--model", checkpoint)
        bench.note("rows: peak at 1,000", timing.peak)
    some = bench.table("some", tiny * 20)  # a thousand rows take a moment only: their cost is lost in the noise
    for _ in range(bench.turns):
        bench.note("rows: ms an image at 20,000", 1000 / ours("--input", some, "--model", checkpoint).images_per_second)
    timing = ours("--input", many, "--model", checkpoint)
    bench.note("rows: how many", rows)
    bench.note("rows: peak at the many", timing.peak)
    bench.note("rows: ms an image of the many", 1000 / timing.images_per_second)


def with_many_workers(bench: Bench) -> None:
    """The largest process; each of them sees more images, the more there are."""
    checkpoint = bench.folder / "one-layer"
    few = (bench.folder / "few.txt").read_text().splitlines()
    for rows in (1_000, 100_000):
        table = bench.table(f"of-{rows}", few * (rows // len(few)))
        timing = ours("--input", table, "--model", checkpoint, "--workers", 15)
        bench.note(f"15 workers: peak at {rows:,}", timing.peak)


def photographs(bench: Bench) -> None:
    paths = material.jpegs(bench.folder / "large", 12, material.LARGE)
    table = bench.table("photographs", paths * 32)
    words = [sys.executable, HERE / "photographs.py", bench.folder / "one-layer", table, machine.cores(), bench.turns]
    done = subprocess.run([str(word) for word in words], check=True, capture_output=True, text=True)
    for line in done.stdout.splitlines():
        for name, value in json.loads(line).items():
            bench.note(f"photographs: {name}", value)


def main_process(bench: Bench) -> None:
    folder = bench.folder / "host"
    folder.mkdir()
    for name, rate in host.rates(folder, host.IMAGES):
        bench.note(f"host: {name}", rate / 1000)


SERVER = """
import http.server, sys, time

class Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        time.sleep(0.2)
        super().do_GET()
    def log_message(self, *args):
        pass

http.server.ThreadingHTTPServer.request_queue_size = 128
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""


@contextmanager
def slow_server(folder: Path) -> Iterator[str]:
    process = subprocess.Popen([sys.executable, "-c", SERVER], cwd=folder, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
    process.kill()
    process.communicate()


def urls(bench: Bench, checkpoint: Path, paths: list[str]) -> None:
    paths = paths[: IMAGES["DeiT-Ti"]]
    files = bench.table("files", paths)
    with slow_server(Path(paths[0]).parent) as address:
        table = bench.table("urls", [f"{address}/{Path(path).name}" for path in paths])
        for _ in range(bench.turns):
            bench.note("files", ours("--input", files, "--model", checkpoint).images_per_second)
            speed = ours("--input", table, "--model", checkpoint, "--allow-private-hosts").images_per_second
            bench.note("URLs", speed)


COPIED = """
import sys
from deit_batch import score
for record in score(sys.argv[1], model=sys.argv[2]):
    if record.index == int(sys.argv[3]):  # not at the end: then what the workers have read is counted, too
        print(dict(line.split(": ") for line in open("/proc/self/io").read().splitlines())["rchar"])
"""


def copied(bench: Bench, checkpoint: Path, paths: list[str]) -> None:
    """Bytes that the main process reads an image: what goes through pipes, and the image's line in the input."""
    read = []
    table = bench.table("copied", paths)
    for count in (32, 160):
        words = [sys.executable, "-c", COPIED, str(table), str(checkpoint), str(count)]
        read.append(int(subprocess.run(words, check=True, capture_output=True, text=True).stdout))
    bench.note("bytes through pipes an image", (read[1] - read[0]) / 128)


# --- int8 ------------------------------------------------------------------------------------------------------------


def agreement(bench: Bench, exported: Path) -> None:
    """The demo model on the test pictures of Fashion-MNIST, in float32 and in int8."""
    if not garments.SOURCE.exists():
        print("no Fashion-MNIST here (Debian's dataset-fashion-mnist): int8's agreement is not measured")
        return
    pictures = bench.folder / "fashion-mnist"
    garments.class_folders(pictures, garments.TEST)
    found = {}
    for name, model in (("float32", "demo"), ("int8", str(exported))):
        out = bench.folder / f"{name}.jsonl"
        subprocess.run([COMMAND, "score", "--input", pictures, "--model", model, "--out", out, "--quiet"], check=True)
        records = [json.loads(line) for line in out.read_bytes().splitlines()]
        found[name] = [record["predictions"][0]["label"] for record in records]
        truth = [Path(record["image"]).parent.name for record in records]
        right = sum(one == other for one, other in zip(found[name], truth, strict=True))
        bench.note(f"Fashion-MNIST: accuracy {name}, %", 100 * right / len(records))
    same = sum(one == other for one, other in zip(found["float32"], found["int8"], strict=True))
    bench.note("Fashion-MNIST: int8 agrees with float32, %", 100 * same / len(truth))


def export(folder: Path, checkpoint: object, dtype: str) -> Path:
    subprocess.run([COMMAND, "export", str(checkpoint), "--dtype", dtype, "--out", folder], check=True)
    return folder


def main() -> None:
    start = time.monotonic()
    quick = "--quick" in sys.argv
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name), turns=1 if quick else 3)
        try:
            measure(bench, rows=40_000 if quick else 200_000)
        finally:  # what is known by then
            bench.note("minutes", (time.monotonic() - start) / 60)
            record = write_figures(HERE, bench.results)
    write_pages(HERE, record)


def measure(bench: Bench, rows: int) -> None:
    paths = material.jpegs(bench.folder / "small", max(IMAGES.values()), material.SMALL)
    for model, geometry in MODELS.items():
        checkpoint = material.checkpoint(bench.folder / model, material.PLAIN, **geometry)
        exports = {d: export(bench.folder / f"{model}-{d}", checkpoint, d) for d in EXPORTS[model]}
        best = throughput(bench, model, checkpoint, exports, paths)
        if model == "DeiT-B":
            start_up(bench, model, checkpoint, exports, paths)
    distilled(bench, best, paths)
    decoding(bench, checkpoint, paths)
    urls(bench, checkpoint, paths)
    copied(bench, checkpoint, paths)
    agreement(bench, export(bench.folder / "demo-int8", "demo", "int8"))
    growth(bench, rows)
    with_many_workers(bench)
    photographs(bench)
    main_process(bench)


if __name__ == "__main__":
    main()
