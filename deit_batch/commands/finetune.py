"""deit-batch finetune."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from deit_batch.commands._exit import finish, is_quiet
from deit_batch.commands._options import (
    ALLOW_PICKLE,
    CONFIG,
    DEVICE,
    IMAGE_PROCESSOR,
    LABEL_COLUMN,
    LIMITS,
    LOG_FORMAT,
    MODEL_NAME,
    ONE_INPUT,
    QUIET,
    REVISION,
    TABLE_INPUT,
    VERBOSE,
    WORKERS,
    ExampleCommand,
    limits_from,
    option,
    section,
)
from deit_batch.commands._types import AT_LEAST_ONE, PLACE, SHARE, Number
from deit_batch.finetune.settings import Settings
from deit_batch.limits import Limits
from deit_batch.system.extras import needing

POSITIVE = Number(min=0, min_open=True)
NOT_NEGATIVE = Number(min=0)
SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup", "polynomial")
METRICS = ("accuracy", "balanced_accuracy", "f1_macro", "average_precision", "loss")


@click.command(
    cls=ExampleCommand,
    example="deit-batch finetune --input fridge/ --out fridge-deit\n"
    "deit-batch score --model fridge-deit --input imgs/ --out preds.jsonl",
    defaults=(Settings, Limits),
)
@section(
    "Input",
    ONE_INPUT,
    *TABLE_INPUT,
    LABEL_COLUMN,
    option(
        "--validation",
        type=PLACE,
        metavar="WHAT",
        help="Labelled images to validate with. [default: a share of the input]",
    ),
    option(
        "--validation-share",
        type=Number(0, 1, min_open=True, max_open=True),
        help="Taken of every class, if --validation is not given.",
    ),
)
@section(
    "Model",
    MODEL_NAME,
    REVISION,
    IMAGE_PROCESSOR,
    ALLOW_PICKLE,
    DEVICE,
    option("--image-size", type=AT_LEAST_ONE, metavar="N", help="Pixels of a side. [default: the checkpoint's own]"),
    option("--freeze-backbone", is_flag=True, help="Train the head alone (a linear probe)."),
    option("--lora-rank", type=AT_LEAST_ONE, metavar="N", help="Train by LoRA, of this rank, and the head."),
    option(
        "--teacher",
        type=PLACE,
        metavar="CLASSIFIER",
        help="Train a distillation token by this classifier's labels: any of transformers', a folder or a Hub name.",
    ),
)
@section(
    "Output",
    option("--out", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Appears when it is whole."),
    option("--mlflow", is_flag=True, help="Add DIR/mlflow, the same as an MLflow model. Needs the extra mlflow."),
    option("--fresh", is_flag=True, help="Start over, and replace what is at DIR when done."),
)
@section(
    "Training",
    option("--num-train-epochs", type=POSITIVE, metavar="X", help="[default: enough for 2,000 steps, but 3 to 50]"),
    option("--max-steps", type=AT_LEAST_ONE, metavar="N", help="Stop after so many, whatever the epochs."),
    option("--per-device-train-batch-size", type=AT_LEAST_ONE, metavar="N", help="[default: 32, fewer for few images]"),
    option("--auto-find-batch-size", is_flag=True, help="Halve the batch until it fits the memory."),
    option(
        "--learning-rate",
        type=POSITIVE,
        metavar="X",
        help="At its peak. [default: 5e-5; 5e-4 with LoRA, 1e-3 for the head alone]",
    ),
    option("--lr-scheduler-type", type=click.Choice(SCHEDULES), help="After it."),
    option("--warmup-steps", type=NOT_NEGATIVE, help="Before it; a share below 1."),
    option("--weight-decay", type=NOT_NEGATIVE, help="AdamW's."),
    option("--label-smoothing-factor", type=SHARE, help="For one label an image."),
    option("--gradient-accumulation-steps", type=AT_LEAST_ONE, help="Batches a step."),
    option("--max-grad-norm", type=NOT_NEGATIVE, help="Gradients are clipped there."),
    option("--fp16", is_flag=True, help="Mixed precision, float16: for GPUs."),
    option("--bf16", is_flag=True, help="Mixed precision, bfloat16."),
    option(
        "--early-stopping-patience", type=AT_LEAST_ONE, metavar="N", help="Stop after so many epochs without progress."
    ),
    option(
        "--metric-for-best-model",
        type=click.Choice(METRICS),
        help="Which epoch is kept. [default: accuracy; average_precision with several labels an image]",
    ),
    option("--seed", type=click.IntRange(min=0), help="Of everything that is drawn."),
    WORKERS,
)
@section(
    "Augmentation",
    option("--crop", type=SHARE, help="Least share of the area kept; 1: whole."),
    option("--flip/--no-flip", help="Mirror half of the images."),
    option(
        "--randaugment",
        type=click.IntRange(0, 29),
        help="Magnitude of kornia's RandAugment, which is no strength: it changes brightness, contrast, colour and "
        "sharpness not at all at 15, and most at 1 and 29. 0: none.",
    ),
    option("--random-erasing", type=SHARE, help="Share of images with a part erased."),
    option("--mixup", type=SHARE, help="Lay others over images, by up to this share."),
    option("--cutmix", type=NOT_NEGATIVE, help="Put parts of others in; its beta."),
)
@section("Limits of one image", *LIMITS)
@section("Run", CONFIG, QUIET, VERBOSE, LOG_FORMAT)
def finetune(*, out: Path, fresh: bool, **chosen: Any) -> None:
    """Teach a checkpoint new classes, from labelled images: class folders, labels.csv, or a table with a label column.

    The new checkpoint is a folder for score, evaluate and serve --model, and for transformers. Run the same command
    again to continue a run that died. Exit status as of score: 3 if some images could not be read. Needs the extra
    train.
    """
    chosen["limits"] = limits_from(chosen)
    with needing("train"):
        from deit_batch.finetune.run import finetune as run

        outcome = run(Settings(**chosen), out, fresh=fresh, quiet=is_quiet())
        metrics = ", ".join(f"{name} {value:.4f}" for name, value in sorted(outcome.metrics.items()))
        skipped = f", {outcome.skipped:,} images skipped" if outcome.skipped else ""
        finish(f"validation: {metrics}{skipped}: {out}", too_many_failed=outcome.skipped > 0)
