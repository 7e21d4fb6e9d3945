"""One contender in a process of its own: contenders.py WHAT CHECKPOINT LIST. For each line on stdin it runs over the
images once more and answers with a line of JSON. It is loaded and warm before its first run."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

Run = Callable[[], dict[str, float]]


def steady(results: Iterable[object], batch: int) -> dict[str, float]:
    """Images a second between the end of the first batch and the end."""
    count, first = 0, 0.0
    for _ in results:
        count += 1
        if count == batch:
            first = time.monotonic()
    return {"images_per_second": (count - batch) / (time.monotonic() - first)}


def pipeline(checkpoint: str, paths: list[str], *, batch: int, workers: int, **where: Any) -> Run:
    """`where`: the pipeline's device and dtype, if they are not its own choice."""
    import torch
    import transformers

    class Paths(torch.utils.data.Dataset[str]):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, index: int) -> str:
            return paths[index]

    transformers.logging.set_verbosity_error()
    classify: Any = transformers.pipeline("image-classification", model=checkpoint, **where)
    list(classify(paths[:batch], batch_size=batch))

    def run() -> dict[str, float]:
        return steady(classify(Paths(), batch_size=batch, num_workers=workers), batch)

    return run


def runtime(load: Callable[[], Callable[[Any], object]], checkpoint: str, paths: list[str], batch: int) -> Run:
    """Another runtime over our own decode loop."""
    from deit_batch.io import LocalFile, Reference
    from deit_batch.limits import Limits
    from deit_batch.loading.loader import Loader, batched
    from deit_batch.model.checkpoint import find_checkpoint, find_recipe

    recipe = find_recipe(find_checkpoint(checkpoint), None)
    forward = load()

    def results() -> Iterator[object]:
        references = (Reference(index, path, LocalFile(path)) for index, path in enumerate(paths))
        loader = Loader(recipe, Limits(), workers=1, pin_memory=False)
        for chunk, decoded in loader.stream(batched(references, batch)):
            values = decoded.pixels.permute(0, 3, 1, 2).float().div_(255).sub_(0.5).div_(0.5)
            forward(values.contiguous().numpy())
            yield from chunk
        loader.close()

    return lambda: steady(results(), batch)


def onnxruntime(model: str) -> Callable[[Any], object]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda values: session.run(None, {"pixel_values": values})


def openvino(model: str) -> Callable[[Any], object]:
    import openvino as ov

    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}  # else it computes in bfloat16
    compiled: Callable[[Any], object] = ov.Core().compile_model(model, "CPU", settings)
    return compiled


def bare_forward(checkpoint: str) -> Run:
    """The model of `transformers` alone, on values that are there already, in its best batch size."""
    import torch
    import transformers

    module = transformers.AutoModelForImageClassification.from_pretrained(checkpoint).eval()
    batches = [torch.randn(size, 3, 224, 224) for size in (2, 8, 16)]

    @torch.inference_mode()
    def run() -> dict[str, float]:
        best = 0.0
        for values in batches:
            module(pixel_values=values)
            start, count = time.monotonic(), 0
            while time.monotonic() - start < 2:
                module(pixel_values=values)
                count += len(values)
            best = max(best, count / (time.monotonic() - start))
        return {"images_per_second": best}

    return run


def bare_decoder(paths: list[str]) -> Run:
    """Milliseconds an image, by Pillow alone."""
    import io

    import numpy as np
    from PIL import Image

    files = [Path(path).read_bytes() for path in paths[:64]]

    def run() -> dict[str, float]:
        start = time.perf_counter()
        for data in files:
            np.asarray(Image.open(io.BytesIO(data)).convert("RGB").resize((224, 224), Image.Resampling.BILINEAR))
        return {"milliseconds": 1000 * (time.perf_counter() - start) / len(files)}

    return run


def contender(what: str, checkpoint: str, paths: list[str]) -> Run:
    name, _, setting = what.partition(":")
    match name:
        case "pipeline":
            batch, _, workers = setting.partition(",")
            return pipeline(checkpoint, paths, batch=int(batch), workers=int(workers))
        case "onnxruntime" | "openvino":
            model, _, batch = setting.rpartition(",")
            load = onnxruntime if name == "onnxruntime" else openvino
            return runtime(lambda: load(model), checkpoint, paths, int(batch))
        case "forward":
            return bare_forward(checkpoint)
        case "decode":
            return bare_decoder(paths)
        case _:
            sys.exit(f"no contender {what}")


if __name__ == "__main__":
    what, checkpoint, table = sys.argv[1:]
    run = contender(what, checkpoint, Path(table).read_text().splitlines())
    for _ in sys.stdin:
        print(json.dumps(run()), flush=True)
