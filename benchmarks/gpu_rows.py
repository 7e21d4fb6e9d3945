"""The rows of gpu.py. Each is a function that yields its figures as it has them, in a process of its own."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import quantiles
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from gpu_page import Figure
from gpu_watch import Watched, heard, watched
from numpy.typing import NDArray
from report import versions

from deit_batch import embed as embedded
from deit_batch import score
from deit_batch.io import LocalFile, Record, Reference
from deit_batch.limits import Limits
from deit_batch.loading.decode import decode
from deit_batch.loading.loader import Loader
from deit_batch.model.checkpoint import find_checkpoint, find_recipe
from deit_batch.model.classifier import DTYPES, Classifier, make_score_function
from deit_batch.model.classifier import compiled as compile_scores
from deit_batch.model.transformer import load_weights
from deit_batch.options import Options
from deit_batch.plan import Plan
from deit_batch.system import machine

Model: TypeAlias = Literal["base", "tiny"]
Kind: TypeAlias = Literal["small", "large"]
AUTO = "auto batch size"
CLASSES = 3
"""Of the folder to train on."""
WAYS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"bf16": True},
    "LoRA": {"lora_rank": 8},
    "teacher": {"bf16": True, "teacher": "teacher"},
    AUTO: {"auto_find_batch_size": True, "per_device_train_batch_size": 256},
}
FEW, LEFT = 1024, 4 * 2**30
"""Images in a pass that does not fit where so many bytes of the card are left."""


@dataclass(frozen=True)
class Sizes:
    """How much of everything. `small` and `large`: how many different pictures there are, and how many a run scores;
    `start`: how processes are started. (CUDA must not be initialised before a fork; a fork saves the imports.)"""

    start: str
    dtype: str
    geometry: dict[Model, str]
    small_size: tuple[int, int]
    large_size: tuple[int, int]
    small: tuple[int, int]
    large: tuple[int, int]
    compared: int
    piped: int
    seconds: float
    clients: tuple[int, ...]
    labelled: int
    steps: int
    rows: tuple[int, int]


CARD = Sizes(
    start="spawn",
    dtype="float16",
    geometry={"base": "BASE", "tiny": "TINY"},
    small_size=(500, 375),
    large_size=(4000, 3000),
    small=(256, 24_576),
    large=(12, 384),
    compared=256,
    piped=1_536,
    seconds=2.0,
    clients=(1, 64),
    labelled=2_400,
    steps=60,
    rows=(1_000, 20_000),
)
TRIAL = Sizes(
    start="fork",
    dtype="float32",
    geometry={"base": "ONE_LAYER", "tiny": "ONE_LAYER"},
    small_size=(50, 37),
    large_size=(80, 60),
    small=(8, 48),
    large=(4, 8),
    compared=8,
    piped=16,
    seconds=0.05,
    clients=(1, 4),
    labelled=40,
    steps=2,
    rows=(16, 48),
)


@dataclass(frozen=True)
class Setup:
    """`folder`: for pictures, checkpoints and results."""

    folder: Path
    device: str
    sizes: Sizes

    @property
    def on_card(self) -> bool:
        return self.device == "cuda"

    def pictures(self, kind: Kind) -> list[str]:
        return sorted(map(str, (self.folder / kind).iterdir()))

    def table(self, kind: Kind, count: int) -> str:
        """A list of so many, the same again and again."""
        pictures = self.pictures(kind)
        path = self.folder / f"{kind}-{count}.txt"
        path.write_text("".join(f"{pictures[number % len(pictures)]}\n" for number in range(count)))
        return str(path)

    def options(self, table: str, model: Model = "base", **more: Any) -> Options:
        return Options(input=table, model=str(self.folder / model), device=self.device, **more)

    def run(
        self, table: str, model: Model = "base", *, places: bool = False, memory: bool = False, **more: Any
    ) -> Watched:
        out = self.folder / f"{os.getpid()}-{time.monotonic_ns()}.jsonl"
        return watched(self.options(table, model, **more), out, places=places, memory=memory)


def has_card() -> bool:
    return torch.cuda.is_available()


def import_what_rows_need() -> None:
    """So that processes that are forked find it there."""
    import contenders  # noqa: F401
    import material
    import transformers

    import deit_batch.finetune.run  # noqa: F401

    transformers.pipeline  # noqa: B018  # imported when it is asked for
    material.photographs()


# --- pictures and checkpoints ----------------------------------------------------------------------------------------


def material(setup: Setup) -> Iterator[Figure]:
    """Made by as many processes as there are cores."""
    start = time.monotonic()
    sizes = setup.sizes
    for kind in ("small", "large"):
        (setup.folder / kind).mkdir()
    with ProcessPoolExecutor(machine.cores(), get_context("fork")) as pool:
        made: list[Future[Any]] = [
            *_made_pictures(pool, setup.folder / "small", sizes.small[0], sizes.small_size),
            *_made_pictures(pool, setup.folder / "large", sizes.large[0], sizes.large_size),
            *(pool.submit(_make_checkpoint, setup.folder / name, what) for name, what in sizes.geometry.items()),
            pool.submit(_make_checkpoint, setup.folder / "teacher", sizes.geometry["tiny"], classes=CLASSES),
        ]
        for one in made:
            one.result()
    _make_labelled(setup)
    yield Figure("made in", time.monotonic() - start, "s")
    kinds: tuple[Kind, ...] = ("small", "large")
    for kind in kinds:
        bytes_each = [os.path.getsize(path) for path in setup.pictures(kind)]
        yield Figure(f"{kind} pictures", f"{len(bytes_each)} of {sum(bytes_each) / len(bytes_each) / 1000:,.0f} kB")


def _made_pictures(pool: ProcessPoolExecutor, folder: Path, count: int, size: tuple[int, int]) -> Iterator[Future[Any]]:
    import material

    each = max(1, count // machine.cores())
    for first in range(0, count, each):
        yield pool.submit(material.jpegs, folder, min(each, count - first), size, first=first)


def _make_checkpoint(folder: Path, geometry: str, **more: Any) -> None:
    import material

    torch.set_num_threads(1)
    material.checkpoint(folder, material.PLAIN, **{**getattr(material, geometry), **more})


def _make_labelled(setup: Setup) -> None:
    """Folders named as the teacher's classes, of hard links: what is learnt there does not matter."""
    pictures = setup.pictures("small")
    for number in range(setup.sizes.labelled):
        picture = number % len(pictures)  # always of one class, or it would be left out
        folder = setup.folder / "labelled" / f"class {picture % CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        os.link(pictures[picture], folder / f"{number:05}.jpg")


# --- right at all ----------------------------------------------------------------------------------------------------


def smoke(setup: Setup) -> Iterator[Figure]:
    """A few images in float32 on the card and on the CPU, and whether pixels are pinned where they are handed over."""
    card = torch.cuda.get_device_name() if setup.on_card else "no card: a trial on the CPU"
    yield Figure("card", card)
    yield Figure("machine", machine.describe())
    yield Figure("versions", ", ".join(f"{library} {number}" for library, number in versions().items()))
    with heard(logging.DEBUG) as said:
        pinned: list[bool] = []
        with _noted_pinning(pinned, asks=setup.on_card):
            there = _scored(setup, model="tiny", dtype="float32")
    here = _scored(setup, model="tiny", dtype="float32", device="cpu")
    yield from _compared(there, here)
    yield Figure("batches whose pixels were pinned", f"{sum(pinned)} of {len(pinned)}")
    yield Figure("said", "; ".join(dict.fromkeys(said)) or "nothing")


@contextmanager
def _noted_pinning(pinned: list[bool], *, asks: bool) -> Iterator[None]:
    """One value a batch; where nothing can be pinned, nobody is asked."""
    submit = Classifier.submit

    def looked_at(classifier: Classifier, pixels: torch.Tensor) -> Any:
        pinned.append(asks and pixels.is_pinned())
        return submit(classifier, pixels)

    setattr(Classifier, "submit", looked_at)  # noqa: B010
    try:
        yield
    finally:
        setattr(Classifier, "submit", submit)  # noqa: B010


def _scored(setup: Setup, *, model: Model, turned: bool = False, **options: Any) -> list[Record]:
    """All scores of each of the pictures to be compared."""
    pictures = setup.pictures("small")[: setup.sizes.compared]
    table = setup.folder / ("turned.txt" if turned else "compared.txt")
    table.write_text("\n".join(reversed(pictures) if turned else pictures))
    given = {"device": setup.device, **options}
    return list(score(table, model=setup.folder / model, top_k=None, **given))


def _table(records: Sequence[Record]) -> NDArray[np.float64]:
    """[images, classes]; not a number where there is none."""
    labels = sorted(each["label"] for each in records[0].predictions or [])
    rows = [{each["label"]: each["score"] for each in record.predictions or []} for record in records]
    return np.array([[row.get(label, np.nan) for label in labels] for row in rows])


def _compared(one: Sequence[Record], other: Sequence[Record]) -> Iterator[Figure]:
    scores, others = _table(one), _table(other)
    same = int((scores.argmax(1) == others.argmax(1)).sum())
    order = [record.image for record in one] == [record.image for record in other]
    yield Figure("largest difference of a score", float(np.abs(scores - others).max()))
    yield Figure("the best label is the same", f"{same} of {len(one)}")
    yield Figure("records are in the same order", str(order))


# --- speed -----------------------------------------------------------------------------------------------------------


def end_to_end(setup: Setup, model: Model) -> Iterator[Figure]:
    """Default options, beside what decoding alone and the model alone could do."""
    plan = Plan.of(setup.options("", model))
    yield Figure("workers", float(plan.workers))
    yield Figure("batch size", float(plan.batch_size))
    yield Figure("decoding alone", decoding_alone(setup, plan, "small"), "images/s")
    for turn in ("", ", again") if model == "base" else ("",):
        run = setup.run(setup.table("small", setup.sizes.small[1]), model)
        yield Figure(f"end to end{turn}", run.images_per_second, "images/s")
        yield Figure(f"first record{turn}", run.first_record, "s")
    yield Figure("model alone", model_alone(setup, model, plan.batch_size), "images/s")
    twice = 2 * plan.batch_size
    yield Figure(f"model alone, batches of {twice}", model_alone(setup, model, twice), "images/s")


def model_alone(setup: Setup, model: Model, batch: int, *, compile: bool = False) -> float:
    """Images/s from pixels to scores, both on the device."""
    checkpoint = find_checkpoint(str(setup.folder / model))
    device, dtype = torch.device(setup.device), DTYPES[setup.sizes.dtype]
    recipe = find_recipe(checkpoint, None)
    forward = load_weights(checkpoint, device=device, dtype=dtype)
    scores = make_score_function(forward, recipe, device=device, dtype=dtype, multi_label=False)
    pixels = torch.randint(0, 256, (batch, *recipe.size, 3), dtype=torch.uint8, device=device)
    if compile:
        scores = compile_scores(scores, pixels)
    with torch.inference_mode():
        for _ in range(3):
            scores(pixels)
        _wait(setup)
        start, passes = time.monotonic(), 0
        while time.monotonic() - start < setup.sizes.seconds:
            scores(pixels)
            passes += 1
            if passes % 8 == 0:
                _wait(setup)  # or the queue would grow for ever
        _wait(setup)
        return batch * passes / (time.monotonic() - start)


def _wait(setup: Setup) -> None:
    if setup.on_card:
        torch.cuda.synchronize()


def decoding_alone(setup: Setup, plan: Plan, kind: Kind) -> float:
    """Images/s of as many processes as a run has workers, which read and decode and do nothing else."""
    context = get_context("fork")
    begin, speeds = context.Barrier(plan.workers), context.Queue()
    arguments = (setup.pictures(kind), plan, setup.sizes.seconds, begin, speeds)
    processes = [context.Process(target=_decode_on, args=(*arguments, number)) for number in range(plan.workers)]
    for process in processes:
        process.start()
    found = sum(float(speeds.get()) for _ in processes)
    for process in processes:
        process.join()
    return found


def _decode_on(pictures: list[str], plan: Plan, seconds: float, begin: Any, speeds: Any, number: int) -> None:
    torch.set_num_threads(1)
    decode(Path(pictures[0]).read_bytes(), plan.recipe, Limits())
    begin.wait()
    start = end = time.monotonic()
    count = 0
    while end - start < seconds:
        decode(Path(pictures[(number + count) % len(pictures)]).read_bytes(), plan.recipe, Limits())
        count += 1
        end = time.monotonic()
    speeds.put(count / (end - start))


def loader(setup: Setup) -> Iterator[Figure]:
    """The workers with all that is between them and the model."""
    table = setup.table("small", setup.sizes.small[1])
    plan = Plan.of(setup.options(table))
    paths = Path(table).read_text().splitlines()
    references = (Reference(index, path, LocalFile(path)) for index, path in enumerate(paths))
    workers = Loader(plan.recipe, Limits(), workers=plan.workers, pin_memory=setup.on_card, batch_size=plan.batch_size)
    times = []
    for got, decoded in workers.stream(plan.batches(references)):
        workers.give_back(decoded)
        times.append((time.monotonic(), len(got)))
    workers.close()
    images = sum(count for _, count in times[1:])
    yield Figure("images handed over", images / max(times[-1][0] - times[0][0], 1e-9), "images/s")


def profile(setup: Setup) -> Iterator[Figure]:
    """Where the main process is while DeiT-B is scored with default options."""
    run = setup.run(setup.table("small", setup.sizes.small[1]), places=True)
    used = dict(run.result.report["versions"])  # type: ignore[call-overload]
    yield Figure("used, by the run's report", ", ".join(f"{what} {version}" for what, version in used.items()))
    seconds = dict(run.result.report["seconds"])  # type: ignore[call-overload]
    for stage, spent in seconds.items():
        yield Figure(f"main process: {stage}", spent, "s")
    yield Figure("main process: all else", 2 * seconds["total"] - sum(seconds.values()), "s")
    yield Figure("images/s", run.images_per_second, "images/s")
    yield Figure("images in each second", ", ".join(map(str, _each_second(run))))
    yield Figure("of all cores in use, each second", ", ".join(f"{share:.0%}" for share in run.watch.busy))
    looks = run.watch.places.total()
    for place, count in run.watch.places.most_common(16):
        yield Figure(f"found in {place}", 100 * count / looks, "%")


def _each_second(run: Watched) -> Iterator[int]:
    begin, before = run.start, 0
    for at, done in run.watch.done:
        if at - begin >= 1:
            yield done - before
            begin, before = at, done


def photographs(setup: Setup) -> Iterator[Figure]:
    """`end to end`: all of them, over the time from when the model was there; for the first batch is much of it."""
    plan = Plan.of(setup.options(""))
    yield Figure("decoding alone", decoding_alone(setup, plan, "large"), "images/s")
    run = setup.run(setup.table("large", setup.sizes.large[1]))
    if run.ready is not None and run.first_record_when_ready is not None:
        yield Figure("end to end", setup.sizes.large[1] / (run.watch.done[-1][0] - run.ready), "images/s")
        yield Figure("first record after the model is ready", run.first_record_when_ready, "s")
        yield Figure("the model was ready after", run.ready - run.start, "s")
    yield Figure("first record", run.first_record, "s")
    yield Figure("last record", run.watch.done[-1][0] - run.start, "s")
    yield Figure("after the first records", run.images_per_second, "images/s")


def pipeline(setup: Setup) -> Iterator[Figure]:
    """The pipeline of transformers, at the batch and workers that were its best on an H100."""
    from contenders import pipeline as theirs

    workers = max(1, machine.cores() - 1)
    batch = 128 if setup.on_card else 4
    paths = Path(setup.table("small", setup.sizes.piped)).read_text().splitlines()
    where = {"device": setup.device, "dtype": DTYPES[setup.sizes.dtype]}
    run = theirs(str(setup.folder / "base"), paths, batch=batch, workers=workers, **where)
    yield Figure("batch and workers", f"{batch}, {workers}")
    yield Figure("speed", run()["images_per_second"], "images/s")


def fast(setup: Setup) -> Iterator[Figure]:
    kinds: dict[Kind, str] = {"small": "500×375", "large": "12 megapixels"}
    plan = Plan.of(setup.options("", decode="fast"))
    for kind, name in kinds.items():
        yield Figure(f"{name}, decoding alone", decoding_alone(setup, plan, kind), "images/s")
    for kind, name in kinds.items():
        count = getattr(setup.sizes, kind)[1]
        run = setup.run(setup.table(kind, count), decode="fast")
        yield Figure(f"{name}, end to end", run.images_per_second, "images/s")


def compiled(setup: Setup) -> Iterator[Figure]:
    yield from compiled_again(setup)
    if setup.on_card:
        batch = Plan.of(setup.options("")).batch_size
        yield Figure("model alone", model_alone(setup, "base", batch, compile=True), "images/s")


def compiled_again(setup: Setup) -> Iterator[Figure]:
    """By another process before this one, torch keeps what it has compiled."""
    if not setup.on_card:
        yield Figure("not tried", "--compile is for NVIDIA GPUs")
        return
    run = setup.run(setup.table("small", setup.sizes.small[1]), compile=True)
    yield Figure("first record", run.first_record, "s")
    yield Figure("end to end", run.images_per_second, "images/s")


# --- what comes out, and what it takes -------------------------------------------------------------------------------


def scores(setup: Setup) -> Iterator[Figure]:
    """In float16, bfloat16 and compiled against float32, all on the card; and whether it matters what comes with it."""
    exact = _scored(setup, model="base", dtype="float32")
    turned = _scored(setup, model="base", dtype="float32", turned=True)
    yield Figure("in the opposite order: the same bits", str(bool((_table(turned)[::-1] == _table(exact)).all())))
    pictures = setup.pictures("small")[: setup.sizes.compared]
    for engine in dict.fromkeys((setup.device, "cpu")):
        images = [record.image for record in _scored(setup, model="tiny", device=engine)]
        yield Figure(f"engine for {engine}: records in the input's order", str(images == pictures))
    ways: dict[str, dict[str, Any]] = {"bfloat16": {"dtype": "bfloat16"}}
    if setup.on_card:
        ways |= {"float16": {"dtype": "float16"}, "compiled float16": {"dtype": "float16", "compile": True}}
    for way, options in ways.items():
        for figure in _compared(_scored(setup, model="base", **options), exact):
            yield figure._replace(name=f"{way}: {figure.name}")


def full_memory(setup: Setup) -> Iterator[Figure]:
    """A pass that does not fit, for most of the card is taken. In the trial it fits."""
    taken = _taken_card(setup)
    if setup.on_card:
        yield Figure("left", torch.cuda.mem_get_info()[0] / 2**30, "GiB")
    images = 4 * FEW if setup.on_card else 8
    with heard(logging.WARNING) as said:
        run = setup.run(setup.table("small", images), batch_size=FEW)
    yield Figure("scored", f"{run.result.tally.scored:,} of {images:,}")
    yield Figure("speed", run.images_per_second, "images/s")
    yield Figure("said", "; ".join(said) or "nothing")
    del taken


def _taken_card(setup: Setup) -> torch.Tensor | None:
    """All of the card's memory but a little, as long as this lives."""
    if not setup.on_card:
        return None
    torch.cuda.init()
    return torch.empty(torch.cuda.mem_get_info()[0] - LEFT, dtype=torch.uint8, device="cuda")


def serve(setup: Setup) -> Iterator[Figure]:
    from clients import request, running

    words: list[object] = [sys.executable, "-m", "deit_batch", "serve", "--port", 0, "--device", setup.device]
    bodies = [request(Path(path).read_bytes()) for path in setup.pictures("small")[:64]]
    start = time.monotonic()
    with running([*words, "--model", setup.folder / "base"], setup.folder / "serve.log") as (_, port):
        yield Figure("ready after", time.monotonic() - start, "s")
        for clients in setup.sizes.clients:
            _asked(port, bodies, clients, setup.sizes.seconds / 4)
            seconds, speed = _asked(port, bodies, clients, 2 * setup.sizes.seconds)
            cuts = quantiles(seconds, n=100)
            yield Figure(f"{clients} clients", speed, "requests/s")
            for percent in (50, 99):
                yield Figure(f"{clients} clients, p{percent}", 1000 * cuts[percent - 1], "ms")


def _asked(port: int, bodies: list[bytes], clients: int, seconds: float) -> tuple[list[float], float]:
    """By clients in several processes. The seconds that each answer took, and the answers a second of all."""
    from clients import latencies

    processes = min(clients, 8)
    with ProcessPoolExecutor(processes, get_context("fork")) as pool:
        asked = [
            pool.submit(latencies, port, bodies, clients=clients // processes, seconds=seconds)
            for _ in range(processes)
        ]
        answers = [one.result() for one in asked]
    return [one for found, _ in answers for one in found], sum(len(found) / took for found, took in answers)


def embed(setup: Setup) -> Iterator[Figure]:
    """Features on the card against those on the CPU in float32."""
    pictures = setup.pictures("small")[: setup.sizes.compared // 4]
    table = setup.folder / "embedded.txt"
    table.write_text("\n".join(pictures))

    def features(**options: Any) -> NDArray[np.float32]:
        records = embedded(table, model=setup.folder / "tiny", features=("cls", "mean"), **options)
        return np.array([np.concatenate(list((record.features or {}).values())) for record in records])

    exact = features(device="cpu", dtype="float32")
    yield Figure("standard deviation of the values", float(exact.std()))
    for dtype in dict.fromkeys(("float32", setup.sizes.dtype)):
        found = features(device=setup.device, dtype=dtype)
        yield Figure(f"{dtype}: largest difference", float(np.abs(found - exact).max()))


def finetune(setup: Setup, way: str) -> Iterator[Figure]:
    from deit_batch.finetune.run import finetune as train
    from deit_batch.finetune.settings import Settings

    model: Model = "tiny" if way == AUTO else "base"
    knobs = {"teacher": str(setup.folder / "teacher")} if way == "teacher" else {}
    taken = _taken_card(setup) if way == AUTO else None
    settings = Settings(
        input=str(setup.folder / "labelled"),
        model=str(setup.folder / model),
        device=setup.device,
        max_steps=setup.sizes.steps,
        **{**WAYS[way], **knobs},
    )
    start = time.monotonic()
    out = setup.folder / f"trained {way}"
    train(settings, out)
    report = json.loads((out / "training.json").read_bytes())
    summary = next(line for line in reversed(report["history"]) if "train_runtime" in line)
    yield Figure("steps", float(report["steps"]))
    seen = summary["epoch"] * report["data"]["images"]["training"]
    yield Figure("training, with validation and saving", seen / summary["train_runtime"], "images/s")
    yield Figure("all of it", time.monotonic() - start, "s")
    if setup.on_card:
        yield Figure("most memory of the card", torch.cuda.max_memory_allocated() / 2**30, "GiB")
    del taken


def memory(setup: Setup, *, many: bool) -> Iterator[Figure]:
    images = setup.sizes.rows[many]
    run = setup.run(setup.table("small", images), memory=True)
    yield Figure("images", float(images))
    yield Figure("peak", run.watch.peak, "MB")
