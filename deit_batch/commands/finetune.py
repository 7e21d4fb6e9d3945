"""deit-batch finetune."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from deit_batch.commands._command import ExampleCommand, option, section
from deit_batch.commands._config import read_recipe
from deit_batch.commands._exit import DONE, SOME_FAILED, finish
from deit_batch.commands._options import (
    ALLOW_PICKLE,
    CONFIG,
    ID2LABEL,
    IMAGE_PROCESSOR,
    LABEL_COLUMN,
    LABEL_MAP,
    LIMITS,
    LOG_FORMAT,
    MODEL_NAME,
    ONE_INPUT,
    QUIET,
    REVISION,
    TABLE_INPUT,
    VERBOSE,
    WORKERS,
    limits_from,
)
from deit_batch.commands._types import AT_LEAST_ONE, PLACE, SHARE, Number, WholeNumber
from deit_batch.evaluation.names import CARD_NAMES
from deit_batch.finetune.inputs import check_inputs
from deit_batch.finetune.settings import METRICS, REPORTERS, Settings
from deit_batch.input.elsewhere import find_here
from deit_batch.io import counted
from deit_batch.limits import Limits
from deit_batch.system.extras import needing

_CARD_NAMES = sorted(name for name, ours in CARD_NAMES.items() if ours in METRICS)


class BestMetric(click.Choice[str]):
    """Also by the names that the model card's evaluation has for metrics."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        name = str(super().convert(value, param, ctx))
        return CARD_NAMES.get(name, name)


POSITIVE = Number(min=0, min_open=True)
NOT_NEGATIVE = Number(min=0)
SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup", "polynomial")


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
    LABEL_MAP,
    option(
        "--validation",
        type=PLACE,
        metavar="WHAT",
        help="Labelled images to validate with after each epoch. [default: a share of the input]",
    ),
    option(
        "--validation-share",
        type=Number(0, 1, min_open=True, max_open=True),
        metavar="X",
        help="Share of the images of each class that is used for validation, if --validation is not given.",
    ),
)
@section(
    "Model",
    MODEL_NAME,
    REVISION,
    IMAGE_PROCESSOR,
    ALLOW_PICKLE,
    ID2LABEL,
    option(
        "--device",
        metavar="auto|cpu|cuda|cuda:N|mps",
        help="Device that the model is trained on. With auto, a GPU is used if there is one.",
    ),
    option(
        "--image-size",
        type=AT_LEAST_ONE,
        metavar="N",
        help="Width and height of the model's input, in pixels. [default: that of the checkpoint]",
    ),
    option("--freeze-backbone", is_flag=True, help="Train only the classification head (a linear probe)."),
    option(
        "--lora-rank",
        type=AT_LEAST_ONE,
        metavar="N",
        help="Train LoRA adapters of this rank and the classification head, and no other weights.",
    ),
    option(
        "--from-scratch",
        is_flag=True,
        help="Start from random weights: of the checkpoint, only the shape and the image processor are used. The "
        "default recipe is for fine-tuning: for a short training from scratch, give --crop 1; for a long one, --recipe "
        "deit.",
    ),
)
@section(
    "Distillation",
    option(
        "--teacher",
        type=PLACE,
        metavar="CLASSIFIER",
        help="Train a distillation token on the predictions of this classifier: a folder or a name on the Hub, of any "
        "image classifier that transformers can load.",
    ),
    option(
        "--distillation-type",
        type=click.Choice(("hard", "soft")),
        help="Learn the teacher's label (hard), or its probabilities of all classes (soft).",
    ),
    option(
        "--distillation-alpha",
        type=SHARE,
        metavar="X",
        help="Share of the teacher in the loss. [default: 0.5 for hard distillation, 0.1 for soft]",
    ),
    option(
        "--distillation-tau",
        type=POSITIVE,
        metavar="X",
        help="Temperature of soft distillation.",
    ),
)
@section(
    "Output",
    option(
        "--out",
        required=True,
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Folder for the new checkpoint. It appears when the training is complete.",
    ),
    option(
        "--mlflow",
        is_flag=True,
        help="Also write the checkpoint as an MLflow model, to DIR/mlflow. Needs the extra mlflow.",
    ),
    option(
        "--report-to",
        multiple=True,
        type=click.Choice(REPORTERS),
        help="Also send losses and metrics to this experiment tracker while the training runs. Its library must be "
        "installed, and finds its server as it always does (for mlflow, MLFLOW_TRACKING_URI). Repeatable.",
    ),
    option("--fresh", is_flag=True, help="Start over, and replace the existing DIR when the training is complete."),
)
@section(
    "Training",
    option(
        "--recipe",
        is_eager=True,
        callback=read_recipe,
        metavar="NAME",
        help="Values for the options of training and augmentation: finetune, what suits a few hundred images; deit, "
        "table 9 of DeiT's paper, for training from scratch; or a TOML file. Each option that is given takes "
        "precedence over it.",
    ),
    option(
        "--num-train-epochs",
        type=POSITIVE,
        metavar="X",
        help="Number of training epochs. [default: enough for 2,000 steps, but at least 3]",
    ),
    option(
        "--max-steps",
        type=AT_LEAST_ONE,
        metavar="N",
        help="Stop after this number of training steps, whatever the number of epochs.",
    ),
    option(
        "--per-device-train-batch-size",
        type=AT_LEAST_ONE,
        metavar="N",
        help="Images in a training batch. [default: 32, fewer if there are few images]",
    ),
    option(
        "--train-batch-size",
        type=AT_LEAST_ONE,
        metavar="N",
        help="Images in a training step, of all processes and accumulated batches together; "
        "--per-device-train-batch-size takes precedence over it.",
    ),
    option("--auto-find-batch-size", is_flag=True, help="Reduce the batch size until a batch fits into memory."),
    option(
        "--learning-rate",
        type=POSITIVE,
        metavar="X",
        help="Peak learning rate. [default: 5e-5; 5e-4 for LoRA; 1e-3 for the head alone]",
    ),
    option(
        "--scale-learning-rate/--no-scale-learning-rate",
        help="The learning rate is meant for 512 images a step, and is scaled in proportion to how many there are.",
    ),
    option(
        "--min-learning-rate",
        type=NOT_NEGATIVE,
        metavar="X",
        help="Learning rate at the end of a cosine schedule.",
    ),
    option(
        "--lr-scheduler-type",
        type=click.Choice(SCHEDULES),
        help="Learning-rate schedule after warm-up.",
    ),
    option(
        "--warmup-steps",
        type=NOT_NEGATIVE,
        metavar="X",
        help="Steps in which the learning rate rises to its peak; a value below 1 is a share of all steps.",
    ),
    option(
        "--weight-decay",
        type=NOT_NEGATIVE,
        metavar="X",
        help="Weight decay of the AdamW optimizer.",
    ),
    option(
        "--label-smoothing-factor",
        type=SHARE,
        metavar="X",
        help="Label smoothing. It has no effect if images can have several labels.",
    ),
    option(
        "--dropout",
        type=SHARE,
        metavar="X",
        help="Dropout, of the attention's weights, too. [default: as the checkpoint's config has it]",
    ),
    option(
        "--drop-path",
        type=Number(0, 1, max_open=True),
        metavar="X",
        help="Stochastic depth: share of the images for which a branch of the last layer is left out. It grows "
        "linearly from 0 at the first layer.",
    ),
    option(
        "--ema-decay",
        type=Number(0, 1, min_open=True, max_open=True),
        metavar="X",
        help="Validate and keep an exponential moving average of the weights, of which this share stays at every step. "
        "[default: no average]",
    ),
    option(
        "--gradient-accumulation-steps",
        type=AT_LEAST_ONE,
        metavar="N",
        help="Batches whose gradients are added up for one training step.",
    ),
    option(
        "--max-grad-norm",
        type=NOT_NEGATIVE,
        metavar="X",
        help="Clip gradients to this norm. With 0, gradients are not clipped.",
    ),
    option("--fp16", is_flag=True, help="Train in mixed precision with float16, on a GPU."),
    option(
        "--bf16/--no-bf16",
        default=None,
        help="Train in mixed precision with bfloat16. [default: on a GPU that supports it]",
    ),
    option(
        "--early-stopping-patience",
        type=AT_LEAST_ONE,
        metavar="N",
        help="Stop after this number of epochs without a better validation result.",
    ),
    option(
        "--metric-for-best-model",
        type=BestMetric([*METRICS, *_CARD_NAMES]),
        help="Validation metric by which the best epoch is chosen and kept. [default: accuracy; "
        "average_precision_macro if images can have several labels]",
    ),
    option(
        "--seed",
        type=WholeNumber(min=0),
        metavar="N",
        help="Seed of all random numbers.",
    ),
    option(
        "--pixel-cache",
        type=click.Choice(("off", "memory", "disk")),
        help="Where the images are kept between epochs: as pixels, or, if --crop cuts parts out of the originals, as "
        "the bytes of their files. With off, they are read again in every epoch. [default: disk, if there is room]",
    ),
    WORKERS,
)
@section(
    "Augmentation",
    option(
        "--crop",
        type=SHARE,
        metavar="X",
        help="Smallest share of the original image's area that a random crop keeps. With 1, images are cropped as for "
        "scoring.",
    ),
    option("--flip/--no-flip", help="Mirror a random half of the images, left to right."),
    option(
        "--repeated-augmentation",
        type=AT_LEAST_ONE,
        metavar="N",
        help="Show an image this many times in a row, each time augmented anew, and as many fewer images in an epoch.",
    ),
    option(
        "--randaugment",
        type=Number(0, 10),
        metavar="X",
        help="Magnitude of RandAugment, from 0 (off) to 10, on timm's scale: the larger, the stronger.",
    ),
    option(
        "--color-jitter",
        type=SHARE,
        metavar="X",
        help="Change brightness, contrast and colour, each by a random factor of up to 1 ± this.",
    ),
    option(
        "--random-erasing",
        type=SHARE,
        metavar="X",
        help="Share of the images in which a random rectangle, of up to a third of the area, is filled with noise.",
    ),
    option(
        "--mixup",
        type=NOT_NEGATIVE,
        metavar="X",
        help="Mixup: blend each image with another one, in shares from the beta distribution with this parameter. 0 "
        "turns it off.",
    ),
    option(
        "--cutmix",
        type=NOT_NEGATIVE,
        metavar="X",
        help="CutMix: replace a rectangle of each image by that of another one, whose area comes from the beta "
        "distribution with this parameter. 0 turns it off.",
    ),
    option(
        "--mixup-switch-prob",
        type=SHARE,
        metavar="X",
        help="Share of the batches that get CutMix, if both it and Mixup are on.",
    ),
)
@section("Limits of one image", *LIMITS)
@section("Run", CONFIG, QUIET, VERBOSE, LOG_FORMAT)
def finetune(*, out: Path, fresh: bool, **chosen: Any) -> None:
    """Train a checkpoint on labelled images of new classes.

    The images are in class folders, in a folder with labels.csv, or in a table with a label column. The new checkpoint
    is a folder that score, evaluate and serve take as --model, and that transformers can load. Needs the extra train.

    Run the same command again to continue a run that was stopped. The exit statuses are those of score: 3 if some
    images could not be read.
    """
    chosen["limits"] = limits_from(chosen)
    for name in ("input", "validation"):
        chosen[name] = chosen[name] and find_here(chosen[name], chosen["map"])
    settings = Settings(**chosen)
    check_inputs(settings)
    with needing("train"):
        from deit_batch.finetune.run import finetune as run

        outcome = run(settings, out, fresh=fresh)
        if not outcome.is_first:
            sys.exit(SOME_FAILED if outcome.skipped else DONE)
        metrics = ", ".join(f"{name} {value:.4f}" for name, value in sorted(outcome.metrics.items()))
        skipped = f", {counted(outcome.skipped, 'image')} skipped" if outcome.skipped else ""
        kept = f" of {outcome.kept}" if outcome.kept else ""
        finish(
            f"validation{kept}: {metrics}{skipped}: {out}",
            some_failed=outcome.skipped > 0,
            too_many_failed=outcome.skipped > 0,
        )
