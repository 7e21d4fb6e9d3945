"""What the tests share: pictures of every kind, runs in this process, the installed command, files read back."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import coverage
import jsonschema
import numpy as np
import pi_heif
import pytest
from PIL import Image
from warm import Warm

from deit_batch import predictions, runner, scorer
from deit_batch.limits import Limits
from deit_batch.options import Options

EXAMPLES = Path(__file__).parent.parent / "examples"

HEIC = sorted((Path(__file__).parent / "heic").glob("*.h*"))


LABELS = ["can", "carton", "milk bottle", "water bottle", "jar"]


# Small cousins of the three published recipes.
PROCESSORS: dict[str, dict[str, Any]] = {
    # facebook/deit-base-patch16-224: no type, a bare number for the size
    "ViTForImageClassification": {
        "do_normalize": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 2,
        "size": 32,
    },
    # facebook/deit-base-distilled-patch16-224
    "DeiTForImageClassificationWithTeacher": {
        "crop_size": 32,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "DeiTFeatureExtractor",
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "resample": 3,
        "size": 37,
    },
    # timm's evaluation recipe, as transformers 5 would save it
    "DeiTForImageClassification": {
        "image_processor_type": "DeiTImageProcessor",
        "crop_size": {"height": 32, "width": 32},
        "size": {"shortest_edge": 36},
        "resample": 3,
    },
}


MakeCheckpoint = Callable[..., Path]


def photo(width: int = 61, height: int = 47, seed: int = 0) -> Image.Image:
    """A picture with both smooth parts and detail."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    smooth = np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], -1)
    return Image.fromarray(np.clip(smooth + random.integers(-60, 60, smooth.shape), 0, 255).astype(np.uint8))


def jpeg(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    photo(seed=seed).save(buffer, "JPEG")
    return buffer.getvalue()


def _orientation(number: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = number
    return exif.tobytes()


def write_all_kinds(folder: Path) -> list[Path]:
    """A picture of every mode and format that people have, each under a telling name."""
    rgb = photo()
    grey16 = Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 200)
    alpha = rgb.convert("RGBA")
    alpha.putalpha(rgb.convert("L"))
    frames = [photo(seed=seed) for seed in range(3)]
    rgb.save(folder / "rgb.jpg")
    rgb.save(folder / "progressive.jpg", progressive=True)
    rgb.save(folder / "rgb.png")
    rgb.save(folder / "rgb.bmp")
    rgb.save(folder / "rgb.tiff")
    rgb.save(folder / "lossy.webp")
    rgb.save(folder / "rgb.avif")
    rgb.convert("L").save(folder / "grey.jpg")
    rgb.convert("L").save(folder / "grey.png")
    rgb.convert("1").save(folder / "bilevel.png")
    rgb.convert("P").save(folder / "palette.png")
    rgb.convert("P").save(folder / "palette-transparent.png", transparency=3)
    rgb.convert("P").save(folder / "palette.gif")
    alpha.save(folder / "alpha.png")
    alpha.save(folder / "alpha.webp")
    alpha.convert("LA").save(folder / "grey-alpha.png")
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    rgb.convert("CMYK").save(folder / "cmyk.tiff")
    rgb.convert("LAB").save(folder / "lab.tiff")
    rgb.convert("YCbCr").save(folder / "ycbcr.tiff")
    grey16.save(folder / "grey16.png")
    grey16.save(folder / "grey16.tiff")
    rgb.convert("I").save(folder / "integers.tiff")
    rgb.convert("F").save(folder / "floats.tiff")
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
    frames[0].save(folder / "animated.png", save_all=True, append_images=frames[1:])
    frames[0].save(folder / "pages.tiff", save_all=True, append_images=frames[1:])
    frames[0].save(folder / "many.jpg", "MPO", save_all=True, append_images=frames[1:])
    photo(1, 1).save(folder / "1x1.png")
    photo(3000, 2).save(folder / "3000x2.png")
    photo(20, 10).save(folder / "small.png")
    for number in range(1, 9):
        rgb.save(folder / f"orientation{number}.jpg", exif=_orientation(number))
    rgb.save(folder / "orientation.png", exif=_orientation(6))
    pi_heif.register_heif_opener()  # for Pillow, and so for the pipeline that ours is compared with
    for path in HEIC:
        shutil.copy(path, folder)
    return sorted(folder.iterdir())


COMMAND = str(Path(sys.executable).parent / "deit-batch")


ENVIRONMENT = dict(os.environ)
"""Before any test changes it; conftest.py adds what the imports of all tests set."""


def coverage_settings() -> str:
    """The file with which coverage.py counts what is run in this process; empty if it does not."""
    running = coverage.Coverage.current()
    return str(running.config.config_file) if running else ""


def counted() -> dict[str, str]:
    """Variables by which a process that is started anew is counted, too, with its imports: for what runs nowhere
    else."""
    settings = coverage_settings()
    return {"COVERAGE_PROCESS_START": settings} if settings else {}


@cache
def warm() -> Warm:
    """The command without the wait for its imports, for the tests of this process; `conftest.py` ends it."""
    return Warm(Path(tempfile.mkdtemp()), COMMAND, ENVIRONMENT, coverage_settings())


def deit_batch(*args: str | Path, cwd: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs the installed command as a user would."""
    return subprocess.run(
        [warm().path, *map(str, args)], cwd=cwd, text=True, capture_output=True, timeout=300, check=False, **options
    )


@cache
def schema(name: str) -> jsonschema.Draft202012Validator:
    """The validator of a published schema."""
    text = (resources.files("deit_batch") / "schemas" / f"{name}.schema.json").read_bytes()
    return jsonschema.Draft202012Validator(json.loads(text))


def valid(value: Any, name: str) -> Any:
    """The value, which must be as the published schema says."""
    problem = jsonschema.exceptions.best_match(schema(name).iter_errors(value))
    assert problem is None, f"{name}, {problem.json_path}: {problem.message}"
    return value


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The records of a result, or what stands beside an array of features; each as its schema says."""
    name = "features-row" if path.name.endswith(".rows.jsonl") else "record"
    return [valid(json.loads(line), name) for line in path.read_bytes().splitlines()]


def read_json(path: Path) -> dict[str, Any]:
    """A run's report, the manifest of its parts, or an evaluation; as its schema says."""
    (name,) = (name for end, name in DOCUMENTS.items() if path.name.endswith(end))
    found: dict[str, Any] = valid(json.loads(path.read_bytes()), name)
    return found


DOCUMENTS = {"run.json": "run-report", "manifest.json": "manifest", "metrics.json": "metrics"}


NOT_ASKED = [
    ('"top_k": 3', 'unknown field: "top_k"; there are input_data, params'),
    ('"params": {"topk": 3}', 'unknown parameter: "topk"; there are top_k, threshold'),
    ('"params": {"top_k": 0}', "parameter top_k is 0"),
    ('"params": {"top_k": true}', "parameter top_k is True"),
    ('"params": {"threshold": 2}', "parameter threshold is 2"),
    ('"params": [3]', '"params" is a JSON list where an object should be'),
]
"""What a request may not hold beside its images, and what is said of it: in a file, by the server, in a deployment."""


def by_label(predictions: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    return {prediction["label"]: prediction["score"] for prediction in predictions}


def by_the_pipeline(folder: Path, images: Path) -> list[dict[str, float]]:
    """The scores of all labels, by the pipeline of transformers, of the images in a folder in the order of their
    names."""
    import torch
    from transformers import AutoImageProcessor, pipeline

    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    classify = pipeline("image-classification", model=str(folder), image_processor=processor, dtype=torch.float32)
    return [by_label(classify(str(image), top_k=len(LABELS))) for image in sorted(images.iterdir())]


def agree(ours: Sequence[dict[str, float]], theirs: Sequence[dict[str, float]]) -> bool:
    """Whether they are the same scores, image by image, to 1e-5."""
    return len(ours) == len(theirs) and all(
        one == pytest.approx(other, abs=1e-5) for one, other in zip(ours, theirs, strict=True)
    )


LOOPBACK = Limits(allow_private_hosts=True)


def scored(photos: Path, vit: Path, tmp_path: Path, out: str = "p.jsonl", **options: Any) -> Path:
    """Runs in this process, in small batches, and returns the output's path."""
    run_options = {
        key: options.pop(key) for key in ("format", "mode", "incremental", "stdin", "time_limit") if key in options
    }
    chosen = Options(
        **{"input": str(photos), "model": str(vit), "workers": 0, "batch_size": 4, "limits": LOOPBACK, **options}
    )
    runner.run(chosen, out=str(tmp_path / out), **run_options)
    read_json(tmp_path / f"{out}.run.json")
    return tmp_path / out


class interrupted_after:  # noqa: N801 - reads as a sentence
    """Sends this process a real SIGTERM after some batches."""

    def __init__(self, batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self._batches = batches
        self._monkeypatch = monkeypatch

    def __enter__(self) -> None:
        original = predictions.score_batch

        def counted(*args: Any) -> Any:
            self._batches -= 1
            if self._batches == 0:
                os.kill(os.getpid(), 15)
            return original(*args)

        self._monkeypatch.setattr(scorer, "score_batch", counted)

    def __exit__(self, *args: object) -> None:
        self._monkeypatch.undo()


def wait_for(path: Path) -> None:
    for _ in range(600):
        if path.exists():
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} did not appear")


def wait_for_growth(path: Path) -> None:
    wait_for(path)
    for _ in range(600):
        if path.stat().st_size:
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} stays empty")
