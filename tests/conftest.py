"""Small real things that the tests share: checkpoints, pictures of every kind, a web server, the installed command."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import hypothesis
import jsonschema
import numpy as np
import pytest
import release
import torch
import transformers
from faulty_store import SECRET, Bucket, misbehaving, serve_s3
from misbehaving import Server, serve
from PIL import Image

from deit_batch import runner
from deit_batch.limits import Limits
from deit_batch.plan import Options

# A slow machine is no fault of the code.
hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("untimed")

EXAMPLES = Path(__file__).parent.parent / "examples"
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


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> MakeCheckpoint:
    """A small checkpoint with random weights, of one of the three classes, whose scores differ clearly."""

    def make(architecture: str = "ViTForImageClassification", **settings: Any) -> Path:
        torch.manual_seed(0)
        config_class = getattr(transformers, architecture).config_class
        geometry = {
            "image_size": 32,
            "patch_size": 8,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "initializer_range": 0.5,
            "id2label": dict(enumerate(LABELS)),
            "label2id": {label: number for number, label in enumerate(LABELS)},
        }
        model = getattr(transformers, architecture)(config_class(**{**geometry, **settings}))
        folder = tmp_path_factory.mktemp("checkpoint")
        model.save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSORS[architecture]))
        return folder

    return make


@pytest.fixture(scope="session", params=list(PROCESSORS))
def checkpoint(request: pytest.FixtureRequest, make_checkpoint: MakeCheckpoint) -> Path:
    """Each of the three checkpoint classes in turn."""
    return make_checkpoint(request.param)


@pytest.fixture(scope="session")
def vit(make_checkpoint: MakeCheckpoint) -> Path:
    return make_checkpoint("ViTForImageClassification")


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
    return sorted(folder.iterdir())


@pytest.fixture(scope="session")
def all_kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("all-kinds")
    write_all_kinds(folder)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of 40 different JPEGs."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number:02}.jpg").write_bytes(jpeg(number))
    return folder


@pytest.fixture
def web(photos: Path) -> Iterator[Server]:
    """A web server on loopback that serves the photos, and misbehaves on request."""
    with serve(photos) as server:
        yield server


@pytest.fixture
def server(web: Server) -> str:
    """Its address."""
    return web.address


@pytest.fixture(scope="session")
def s3_server() -> Iterator[int]:
    """The port of a real S3 server on loopback."""
    with serve_s3() as port:
        yield port


@pytest.fixture
def bucket(s3_server: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """A bucket on it, behind a proxy that misbehaves on request, where the environment says that S3 is."""
    settings = {
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    import fsspec

    fsspec.get_filesystem_class("s3").clear_instance_cache()  # the environment has changed under it
    with misbehaving(s3_server) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
        yield Bucket(proxy, f"bucket-{uuid.uuid4().hex}")  # a port may come again


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Sdist and wheel of the working copy."""
    if not (EXAMPLES.parent / ".git").exists():
        pytest.skip("this is no checkout of the repository")
    return release.build(tmp_path_factory.mktemp("built"))


COMMAND = str(Path(sys.executable).parent / "deit-batch")


def deit_batch(*args: str | Path, cwd: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs the installed command as a user would."""
    return subprocess.run(
        [COMMAND, *map(str, args)], cwd=cwd, text=True, capture_output=True, timeout=120, check=False, **options
    )


@pytest.fixture
def messages() -> Iterator[list[str]]:
    """What is logged, as it comes."""
    logged: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("deit_batch")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield logged
    logger.setLevel(level)
    logger.removeHandler(handler)


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


LOOPBACK = Limits(allow_private_hosts=True)


def scored(photos: Path, vit: Path, tmp_path: Path, out: str = "p.jsonl", **options: Any) -> Path:
    """Runs in this process, in small batches, and returns the output's path."""
    run_options = {key: options.pop(key) for key in ("format", "mode", "incremental", "stdin") if key in options}
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
        original = runner.score_batch

        def counted(*args: Any) -> Any:
            self._batches -= 1
            if self._batches == 0:
                os.kill(os.getpid(), 15)
            return original(*args)

        self._monkeypatch.setattr(runner, "score_batch", counted)

    def __exit__(self, *args: object) -> None:
        self._monkeypatch.undo()
