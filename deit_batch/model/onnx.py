"""Checkpoints exported to ONNX: made from a checkpoint's weights, and run by ONNX Runtime. CPU only.

A folder as `export` makes it holds model.onnx (`pixel_values`, float32 [n, 3, height, width], to `logits`, float32
[n, classes]) beside the checkpoint's own config and image processor.
"""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from deit_batch.errors import CheckpointError, OutputError, UsageError
from deit_batch.model.checkpoint import Checkpoint, find_checkpoint
from deit_batch.model.labels import placeholders
from deit_batch.model.place import kept_folder
from deit_batch.model.save import write_config, write_recipe
from deit_batch.model.transformer import load_weights
from deit_batch.system.extras import needing
from deit_batch.system.new_folder import new_folder

logger = logging.getLogger("deit_batch")

MOST_DIFFERENCE = 1e-3
"""Of a float32 export's logits, relative to the largest: what other kernels and another order of summing may do."""


class Session:
    """The model of an exported checkpoint: pixel values to logits. May be called from several threads at once.

    An int8 one is to be given images one by one: dynamic quantisation fits one scale to all activations of a matrix
    product, so in a batch an image's scores would depend on its neighbours, and be less exact."""

    def __init__(self, checkpoint: Checkpoint, threads: int) -> None:
        """Raises CheckpointError if it can't be loaded or has other classes than its config names."""
        runtime = _library("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        (path,) = checkpoint.files
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            (takes,), (gives,) = self._session.get_inputs(), self._session.get_outputs()
        except Exception as error:  # the library's own exceptions have no common name
            raise CheckpointError(f"{path} can't be loaded: {' '.join(str(error).split())}") from error
        if takes.name != "pixel_values" or gives.shape[-1] != len(checkpoint.labels):
            raise CheckpointError(
                f"{path} takes {takes.name} and gives {gives.shape[-1]} classes; pixel_values and "
                f"{len(checkpoint.labels)} were expected"
            )
        if takes.shape[1:] != [3, *checkpoint.geometry.image_size]:
            raise CheckpointError(f"{path} takes images of the shape {takes.shape[1:]}, where its config says another")

    def __call__(self, pixel_values: Tensor) -> Tensor:
        (logits,) = self._session.run(["logits"], {"pixel_values": pixel_values.contiguous().numpy()})
        return torch.from_numpy(logits)


def export(checkpoint: Checkpoint, out: Path, dtype: str, *, wait: bool = False) -> None:
    """Writes the checkpoint as ONNX into the folder `out`, which appears when it is whole. `dtype`: "float32", or
    "int8" for dynamically quantised matrix products (weights int8 by channel, activations uint8 by tensor). `wait`: for
    another process that is making the same folder.

    Raises UsageError if `out` is there, CheckpointError if the export does not compute what the checkpoint does."""
    if checkpoint.weights == "onnx":
        raise UsageError(f"{checkpoint.name} is exported already")
    size = checkpoint.geometry.image_size
    runtime, quantization = _library("onnxruntime"), _library("onnxruntime.quantization")
    _library("onnxscript")  # torch's exporter is written in it
    try:
        with new_folder(out, wait=wait) as folder, _quietly():
            write_config(checkpoint, folder, dtype=dtype)
            write_recipe(checkpoint, folder)
            path = folder / "model.onnx"
            _trace(checkpoint, path, runtime, size)
            if dtype == "int8":
                path.rename(folder / "float32.onnx")
                quantization.quantize_dynamic(
                    folder / "float32.onnx",
                    path,
                    op_types_to_quantize=["MatMul", "Gemm"],
                    per_channel=True,
                    weight_type=quantization.QuantType.QInt8,
                )
                (folder / "float32.onnx").unlink()
    except OSError as error:
        raise OutputError(f"{out} can't be written: {error.strerror or error}") from error


def exported(checkpoint: Checkpoint, dtype: str) -> Checkpoint:
    """The same checkpoint as ONNX, from the user's cache: exported when it is first asked for."""
    folder = kept_folder(f"{checkpoint.digest[:20]}-{dtype}")
    if not folder.exists():
        logger.info("exporting %s to %s, once: it is kept in %s", checkpoint.name, dtype, folder)
        try:
            # Without names, for the next run may give others.
            export(replace(checkpoint, labels=placeholders(len(checkpoint.labels))), folder, dtype)
        except OutputError:
            if not folder.exists():  # made by another run meanwhile
                raise
    return replace(
        find_checkpoint(str(folder)), name=checkpoint.name, commit=checkpoint.commit, labels=checkpoint.labels
    )


def _library(name: str) -> ModuleType:
    with needing("onnx"):
        return importlib.import_module(name)


@contextmanager
def _quietly() -> Iterator[None]:
    """torch and onnxruntime log to the root, and at length."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _trace(checkpoint: Checkpoint, path: Path, runtime: ModuleType, size: tuple[int, int]) -> None:
    module = load_weights(checkpoint, device=torch.device("cpu"), dtype=torch.float32)
    sample = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(0))
    program = torch.onnx.export(
        module,
        (sample[:2],),  # and compared in another number, so that none is fixed in it
        dynamo=True,
        verbose=False,
        input_names=["pixel_values"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    program.save(path, external_data=False)  # type: ignore[union-attr]  # None only where given a file
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    ours = torch.from_numpy(session.run(None, {"pixel_values": sample.numpy()})[0])
    with torch.inference_mode():
        expected = module(sample)
    difference = float((ours - expected).abs().max() / expected.abs().max())
    if not difference <= MOST_DIFFERENCE:
        raise CheckpointError(f"the export of {checkpoint.name} gives other logits than itself, by {difference:.1g}")
