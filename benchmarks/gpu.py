"""How near a GPU comes to its limits: gpu.py [--device cpu]. Writes gpu.md beside itself; a few minutes.

Three limits, measured in the same run: the card's matrix product, the model alone on pixels that are on the card
already, and the workers' decoding with no model behind it. `--device cpu` goes the same way in little, to try the code
where there is no card, and writes nothing.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import material
import torch
from bench import ours
from report import versions

from deit_batch.io import LocalFile, Reference
from deit_batch.limits import Limits
from deit_batch.loading.loader import Loader, batched
from deit_batch.model.checkpoint import Checkpoint, find_checkpoint, find_recipe
from deit_batch.model.classifier import DTYPES, compiled, make_score_function
from deit_batch.model.transformer import load_weights
from deit_batch.plan import Options, Plan

HERE = Path(__file__).resolve().parent
MODELS = {"DeiT-Ti": material.TINY, "DeiT-B": material.BASE}
GMACS = {"DeiT-Ti": 1.26, "DeiT-B": 17.58}
"""An image, at 224 pixels: timm, results/benchmark-infer-amp-nhwc-pt*.csv."""
PUBLISHED = {
    "4090": {"DeiT-B": 3366, "DeiT-Ti": 23489},
    "5090": {"DeiT-B": 4396},
    "RTX PRO 6000": {"DeiT-B": 5070},
}
"""timm's own tables: images/s of the model alone, amp, compiled, batches of 256 or more."""


@dataclass(frozen=True)
class Sizes:
    device: torch.device
    dtype: str
    batches: tuple[int, ...]
    matrix: int
    pictures: int
    seconds: float
    turns: int

    @property
    def options(self) -> tuple[str, ...]:
        return ("--device", self.device.type, "--dtype", self.dtype)


CARD = Sizes(torch.device("cuda"), "float16", (64, 128, 256, 512), 8192, 8192, 2.0, 3)
TRIAL = Sizes(torch.device("cpu"), "float32", (2,), 512, 16, 0.2, 1)


def per_second(step: Callable[[], object], count: float, sizes: Sizes) -> float:
    """How many of what a step does `count` of; the median of the turns."""
    speeds = []
    for _ in range(sizes.turns):
        step()
        _wait(sizes.device)
        start, steps = time.monotonic(), 0
        while time.monotonic() - start < sizes.seconds:
            step()
            steps += 1
            if steps % 8 == 0:
                _wait(sizes.device)  # or the queue would grow for ever
        _wait(sizes.device)
        speeds.append(count * steps / (time.monotonic() - start))
    return median(speeds)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_peak(sizes: Sizes) -> float:
    """Floating-point operations a second of one large matrix product."""
    values = torch.randn(sizes.matrix, sizes.matrix, device=sizes.device, dtype=DTYPES[sizes.dtype])
    return per_second(lambda: values @ values, 2 * sizes.matrix**3, sizes)


def model_alone(checkpoint: Checkpoint, sizes: Sizes, *, batch: int, compile: bool) -> float:
    """Images/s, from pixels to scores, both on the device."""
    dtype = DTYPES[sizes.dtype]
    recipe = find_recipe(checkpoint, None)
    forward = load_weights(checkpoint, device=sizes.device, dtype=dtype)
    scores = make_score_function(forward, recipe, device=sizes.device, dtype=dtype, multi_label=False)
    pixels = torch.randint(0, 256, (batch, *recipe.size, 3), dtype=torch.uint8, device=sizes.device)
    if compile:
        scores = compiled(scores, pixels)
    with torch.inference_mode():
        return per_second(lambda: scores(pixels), batch, sizes)


def decoding_alone(checkpoint: Path, paths: list[str], decode: str, sizes: Sizes) -> float:
    """Images/s through the workers, from the first batch on, nothing done with them."""
    plan = Plan.of(Options(input="", model=str(checkpoint), decode="fast" if decode == "fast" else "exact"))
    references = (Reference(index, path, LocalFile(path)) for index, path in enumerate(paths))
    batch = max(1, min(plan.batch_size, len(paths) // 4))
    loader = Loader(
        batched(references, batch),
        plan.recipe,
        Limits(),
        workers=plan.workers,
        pin_memory=sizes.device.type == "cuda",
    )
    times = [time.monotonic() for _ in loader]
    loader.close()
    return (len(paths) - batch) / (times[-1] - times[0])


def model_rows(checkpoints: dict[str, Path], sizes: Sizes, peak: float) -> Iterator[tuple[str, str, float]]:
    """Markdown, and for each model its best speed."""
    for model, folder in checkpoints.items():
        for batch in sizes.batches:
            for compile in (False, True):
                speed = model_alone(find_checkpoint(str(folder)), sizes, batch=batch, compile=compile)
                share = speed * 2e9 * GMACS[model] / peak
                how = "compiled" if compile else "eager"
                yield model, f"| {model} | {batch} | {how} | {speed:.4g} | {share:.0%} |", speed


def whole_rows(checkpoints: dict[str, Path], best: dict[str, float], folder: Path, sizes: Sizes) -> Iterator[str]:
    for size in (material.SMALL, material.LARGE):
        pictures = sizes.pictures if size == material.SMALL else sizes.pictures // 16
        paths = material.jpegs(folder / f"{size[0]}", max(4, min(pictures, 256)), size)
        paths *= max(1, pictures // len(paths))
        table = folder / f"{size[0]}.txt"
        table.write_text("\n".join(paths))
        for decode in ("exact", "fast"):
            for model, checkpoint in checkpoints.items():
                limit = decoding_alone(checkpoint, paths, decode, sizes)
                arguments = ("--input", table, "--model", checkpoint, "--decode", decode, *sizes.options)
                speed = median(ours(*arguments).images_per_second for _ in range(sizes.turns))
                share = speed / min(limit, best[model])
                yield (
                    f"| {model} | {size[0]}×{size[1]} | {decode} | {speed:.4g} | {limit:.4g} | {best[model]:.4g} | "
                    f"{share:.0%} |"
                )


def published(card: str) -> str:
    for name, speeds in PUBLISHED.items():
        if name in card.upper():
            return "; ".join(f"{model}: {speed:,} images/s" for model, speed in speeds.items())
    return "none for this card"


def main() -> None:
    sizes = TRIAL if "--device" in sys.argv else CARD
    if sizes is CARD and not torch.cuda.is_available():
        sys.exit("gpu: there is no GPU here that torch can use; --device cpu tries the code in little")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoints = {
            model: material.checkpoint(folder / model, material.PLAIN, **geometry) for model, geometry in MODELS.items()
        }
        peak = matrix_peak(sizes)
        lines, best = [], dict.fromkeys(MODELS, 0.0)
        for model, line, speed in model_rows(checkpoints, sizes, peak):
            print(line, flush=True)
            lines.append(line)
            best[model] = max(best[model], speed)
        whole = list(whole_rows(checkpoints, best, folder, sizes))
    card = torch.cuda.get_device_name() if sizes is CARD else "no card: a trial on the CPU"
    text = PAGE.format(
        card=card,
        versions=", ".join(f"{library} {number}" for library, number in versions().items()),
        dtype=sizes.dtype,
        peak=peak / 1e12,
        model="\n".join(lines),
        whole="\n".join(whole),
        published=published(card),
    )
    print(text)
    if sizes is CARD:
        (HERE / "gpu.md").write_text(text, encoding="utf-8")


PAGE = """# On a GPU

Written by `scripts/bench --gpu`, on {card}, with
{versions}; {dtype}. The card's matrix product reached {peak:.4g} TFLOP/s.

| model alone | batch | how | images/s | of the matrix product |
| --- | ---: | --- | ---: | ---: |
{model}

In timm's published tables, {published}.

| end to end | pictures | decode | images/s | decoding alone | model alone | of the lesser |
| --- | --- | --- | ---: | ---: | ---: | ---: |
{whole}
"""

if __name__ == "__main__":
    main()
