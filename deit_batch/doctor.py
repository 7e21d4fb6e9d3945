"""What is here and whether it works: what somebody would ask first who wants to help."""

from __future__ import annotations

import base64
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from deit_batch.errors import DeitBatchError
from deit_batch.io import Prediction, Record
from deit_batch.loading import turbo
from deit_batch.model.checkpoint import DEFAULT_MODEL, find_checkpoint
from deit_batch.model.hub import why_not_the_hub
from deit_batch.system import machine

LIBRARIES = ("torch", "pillow", "numpy", "pyarrow", "huggingface_hub", "httpcore2", "datasets", "transformers")
EXTRAS = {
    "heic": ("pi-heif",),
    "turbo": ("simplejpeg",),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
    "serve": ("fastapi", "fastapi-offline", "prometheus_client", "uvicorn"),
    "s3": ("s3fs",),
    "gcs": ("gcsfs",),
    "azure": ("adlfs",),
    "eval": ("jinja2", "matplotlib", "scikit-learn", "scipy"),
    "report": ("jinja2", "matplotlib", "scipy"),
    "train": ("accelerate", "peft", "scikit-learn"),
    "mlflow": ("mlflow-skinny",),
    "azureml": ("azureml-inference-server-http",),
    "pandas": ("pandas",),
    "ray": ("ray",),
}
GIBIBYTE = 2**30

# A test picture of Fashion-MNIST (MIT licence), which the demo model takes for a trouser.
TROUSER = (
    "iVBORw0KGgoAAAANSUhEUgAAABwAAAAcCAAAAABXZoBIAAABTklEQVR42m3Su0oDQRiG4XdmdrOSLIrGY2GTIigIAUEQsbO1Ee/D"
    "K/B+rERstDSIaCGIopUHPCQqCiYkGnEzuzM2MQnOfuX/MDD/QdCJsCsb55O34bAurPE/kiNrbUPbll3t1ToxlGrXz9+VmxdmHITQ"
    "DPpa5RTTLk6gDQpjm+MuzqF9k0iholEXS+0fEeSxImi5uGCycXg55tls5a/kdXFWm/B10Urp1dyXQ7EJy6ASMi6OJ5YtopE2WRez"
    "xuOAk7biI2UI+HHEgxI0UtD6d1CVtn/e3cTBFezFMhWluIeLjE/KEKqBeYEYlYZvUhWhTZLWymkmKgEERC4eKj0PJArj4vFP/A58"
    "il6th49NL1cADSqllUAFBXhVNRcFOxmxDC1EPQV3vXgdPGvd30r269rAVSCmHEzgKV9cQg0Mdg9M9a3M1jfLfA2dbf8d0S/niHjH"
    "tzILoQAAAABJRU5ErkJggg=="
)


def examined() -> Iterator[tuple[str, str]]:
    """Names and values, as they are found out; all but the image takes no longer than the Hub is waited for. What can't
    be told on a broken installation says why."""
    yield "deit-batch", f"{version('deit-batch')}, Python {platform.python_version()}, {platform.platform()}"
    yield "libraries", ", ".join(f"{name} {_version(name)}" for name in LIBRARIES)
    for extra, names in EXTRAS.items():
        yield f"extra {extra}", ", ".join(f"{name} {_version(name)}" for name in names)
    for name, look in (
        ("machine", machine.describe),
        ("memory", _memory),
        ("JPEG", _jpeg),
        ("GPU", _gpu),
        ("Hub", _hub),
    ):
        yield name, _result_or_error(look)
    yield "cached models", _result_or_error(_cached)


def score_one() -> str:
    """How the demo model does on one image, which a worker decodes. Raises DeitBatchError if that goes wrong."""
    start = time.monotonic()
    best = _best_of_one("demo")
    if best["label"] != "trouser":
        raise DeitBatchError(f"the demo image is a trouser, but is taken for a {best['label']}: scores here are wrong")
    return _in_words(best, start)


def try_model(model: str, revision: str | None, allow_pickle: bool) -> Iterator[tuple[str, str]]:
    """Names and values: what the checkpoint is, then what it takes the demo image for. Raises CheckpointError if it
    can't be used, DeitBatchError if the image can't be scored with it."""
    checkpoint = find_checkpoint(model, revision=revision, allow_pickle=allow_pickle)
    yield "model", checkpoint.description
    start = time.monotonic()
    best = _best_of_one(model, revision, allow_pickle)
    yield "demo image by this model", _in_words(best, start)


def _best_of_one(model: str, revision: str | None = None, allow_pickle: bool = False) -> Prediction:
    try:
        record = _record(model, revision, allow_pickle)
    except (ImportError, OSError, RuntimeError) as error:
        raise DeitBatchError(f"the demo image can't be scored: {error}") from error
    if record.error:
        raise DeitBatchError(f"the demo image can't be scored: {record.error.message}")
    return record.predictions[0]


def _in_words(best: Prediction, start: float) -> str:
    return f"{best['label']} {best['score']:.4f}, after {time.monotonic() - start:.1f} s"


def _record(model: str, revision: str | None, allow_pickle: bool) -> Record:
    from deit_batch.api import score

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trouser.png"
        path.write_bytes(base64.b64decode(TROUSER))
        (record,) = score(path, model=model, revision=revision, allow_pickle=allow_pickle, workers=1)
    return record


def _result_or_error(look: Callable[[], str]) -> str:
    try:
        return look()
    except Exception as error:
        return f"can't be told: {type(error).__name__}: {error}"  # an issue report is read by programmers


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def _memory() -> str:
    pages = {name: os.sysconf(f"SC_{name}PHYS_PAGES") for name in ("", "AV")}
    total, free = (pages[name] * os.sysconf("SC_PAGE_SIZE") / GIBIBYTE for name in ("", "AV"))
    return f"{total:.1f} GiB, {free:.1f} free"


def _jpeg() -> str:
    why_not = turbo.why_not()
    return f"decoded by Pillow alone: {why_not}" if why_not else "decoded by simplejpeg, with Pillow's values"


def _gpu() -> str:
    import torch

    if torch.cuda.is_available():
        cards = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
        names = [f"{card.name} with {card.total_memory / GIBIBYTE:.0f} GiB" for card in cards]
        return f"{', '.join(names)}, CUDA {torch.version.cuda}"
    if torch.backends.mps.is_available():
        return "Apple's, by mps"
    return f"none that torch can use (built for CUDA {torch.version.cuda or 'not at all'})"


def _hub() -> str:
    try:
        problem = why_not_the_hub(DEFAULT_MODEL, None)
    except DeitBatchError as error:
        problem = str(error)
    return f"can't be reached: {problem}" if problem else "reached"


def _cached() -> str:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import CacheNotFound

    try:
        names = sorted(repo.repo_id for repo in scan_cache_dir().repos if repo.repo_type == "model")
    except CacheNotFound:
        names = []
    existing = next(path for path in (Path(HF_HUB_CACHE), *Path(HF_HUB_CACHE).parents) if path.exists())
    free = shutil.disk_usage(existing).free / GIBIBYTE
    return f"{', '.join(names) or 'none'}; {HF_HUB_CACHE}, {free:.0f} GiB of disk free"
