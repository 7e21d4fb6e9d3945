"""The options that several commands take, each declared once."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import click

from deit_batch.commands._command import option
from deit_batch.commands._config import read_config
from deit_batch.commands._types import (
    AT_LEAST_ONE,
    PLACE,
    SECONDS,
    SHARE,
    Duration,
    PlaceOfPrefix,
    Root,
    Threshold,
    TopK,
    WholeNumber,
)
from deit_batch.limits import Limits
from deit_batch.output.form import Form
from deit_batch.output.layout import Layout

_KINDS_OF_INPUT = (
    "Images to read: a folder, an image, a quoted glob ('imgs/*.jpg'), a list (.txt), a table (.csv, .tsv, .jsonl, "
    ".parquet), an MLTable, a request document or a list of images (.json), a WebDataset (.tar), a .zip, a data set "
    "(hf://NAME?split=… or a folder of save_to_disk), or - for stdin. Paths may also be addresses on an object store "
    "(s3://…, gs://…, abfs://…). Lists, text tables and tars may be packed (.gz, .bz2, .xz, .zst)."
)
ONE_INPUT = option("--input", required=True, type=PLACE, metavar="WHAT", help=_KINDS_OF_INPUT)
SEVERAL_INPUTS = option(
    "--input",
    multiple=True,
    type=PLACE,
    metavar="WHAT",
    help=f"{_KINDS_OF_INPUT} Repeatable; inputs are read in the order given. Plain arguments are inputs, too.",
)
INPUTS = click.argument("inputs", nargs=-1, type=PLACE)


def input_from(chosen: dict[str, Any]) -> str | tuple[str, ...]:
    """Takes the values of SEVERAL_INPUTS and INPUTS out of a command's. Raises click.UsageError if there are none, or
    some of both: nothing would tell their order."""
    named, plain = chosen.pop("input"), chosen.pop("inputs")
    source = click.get_current_context().get_parameter_source("input")
    if named and plain and source is click.core.ParameterSource.COMMANDLINE:
        raise click.UsageError("Inputs are given by --input and as arguments; give all in one way, in their order.")
    found: tuple[str, ...] = plain or named  # arguments outrank a variable and the file of options
    if not found:
        raise click.UsageError("Missing option '--input'. Inputs may also be given as arguments.")
    return found[0] if len(found) == 1 else found


TABLE_INPUT = (
    option(
        "--column",
        metavar="NAME",
        help="Table column that holds the image: a path, URL, data: URI or base64. [default: the first usual name that "
        "is there: image, url, path, …]",
    ),
    option("--recursive/--no-recursive", help="Read the subfolders of a folder, too."),
    option("--limit", type=AT_LEAST_ONE, metavar="N", help="Read only the first N inputs."),
    option(
        "--map",
        multiple=True,
        type=PlaceOfPrefix(),
        help="Where images are whose names begin with PREFIX: PLACE, a folder or an address on an object store, takes "
        "its place. For azureml:// URLs, and paths of another machine. Repeatable; the longest PREFIX counts.",
    ),
    option(
        "--base",
        type=PLACE,
        metavar="PLACE",
        help="Folder, or address on an object store, that relative names in a table or list start from. [default: the "
        "folder of the table; for stdin, the working folder]",
    ),
    option(
        "--suffix",
        metavar="TEXT",
        help="Ending of the image files, such as .jpg, if the table or list has their names without it.",
    ),
    option(
        "--delimiter",
        metavar="CHARACTER",
        help="Character between the columns of a .csv, or 'tab'. [default: found from the first line]",
    ),
)
ID = option(
    "--id",
    metavar="NAME",
    help="Table column that identifies the image of each row. Its value is used to continue a run and to match images "
    "with earlier results and with labels. [default: the image's name or address]",
)
KEEP = option("--keep", multiple=True, metavar="NAME", help="Copy this table column into the records. Repeatable.")

LABEL_COLUMN = option(
    "--label-column",
    metavar="NAME",
    help="Table column that holds the label. [default: the first usual name that is there: label, …]",
)
LABEL_MAP = option(
    "--label-map",
    type=PLACE,
    metavar="FILE|imagenet",
    help="Translate the names of labels in the data set to those of the model: a .json file, a .csv file of two "
    "columns, or 'imagenet' for WordNet ids (n01440764, …) to DeiT's names.",
)
LABELS = option(
    "--labels",
    type=PLACE,
    metavar="WHAT",
    help="Labelled images, in any form that evaluate takes as --input. They are matched with the records by the "
    "images' names. [default: labels in the records, if there are any]",
)
MODEL_NAME = option(
    "--model",
    type=PLACE,
    metavar="CHECKPOINT",
    help="Checkpoint of a DeiT or another image classifier: a name on the Hub, a folder (of transformers, timm, MLflow "
    "or export), a .pth file, or 'demo' (a small built-in model of ten kinds of clothing).",
)
REVISION = option(
    "--revision", metavar="REV", help="Branch, tag or commit of the checkpoint on the Hub. [default: the main branch]"
)
ALLOW_PICKLE = option(
    "--allow-pickle",
    is_flag=True,
    help="Also load weights that are not safetensors. They can run code: use this only for weights that you trust.",
)
ID2LABEL = option(
    "--id2label",
    type=PLACE,
    metavar="FILE|imagenet",
    help="Names of the model's classes, instead of the checkpoint's own: a file of one name per line, a .json file (an "
    "id2label, or a list), or 'imagenet' for the 1,000 names of ImageNet-1k.",
)

IMAGE_PROCESSOR = option(
    "--image-processor",
    type=PLACE,
    metavar="WHICH",
    help="Image processor to use: a folder, a name on the Hub, a JSON file, 'card' for the preprocessing in the text "
    "of the model card, or 'paper' for that of the paper's evaluation. [default: the checkpoint's own]",
)
DEVICE = option(
    "--device",
    metavar="auto|cpu|cuda|cuda:N,…|mps",
    help="Device that the model runs on. With auto or cuda, all visible NVIDIA GPUs share the batches; cuda:0 and "
    "cuda:0,2 are fewer. Where there is none, auto is the CPU.",
)
MODEL = (
    MODEL_NAME,
    REVISION,
    IMAGE_PROCESSOR,
    option(
        "--decode",
        type=click.Choice(["exact", "fast"]),
        help="How images are decoded. With fast, large images are first reduced by a quicker method, which changes "
        "their scores a little.",
    ),
    option(
        "--deep-gray",
        type=click.Choice(["clip", "scale"]),
        help="What becomes of grey images of more than 8 bits. With clip, values above 255 are white, as in the "
        "transformers pipeline. With scale, 0 to 65535 become 0 to 255, and of floats and wider integers the image's "
        "own range does.",
    ),
    ALLOW_PICKLE,
    ID2LABEL,
    option(
        "--runtime",
        type=click.Choice(["auto", "native", "transformers", "onnx"]),
        help="What computes the scores. With auto, the package's own code for DeiT and ViT, ONNX Runtime for an "
        "exported checkpoint and for int8, and the library transformers for all other image classifiers.",
    ),
    DEVICE,
    option(
        "--dtype",
        type=click.Choice(["auto", "float32", "float16", "bfloat16", "int8"]),
        help="Data type that the model computes in. With auto, float16 on a GPU and float32 on a CPU. int8, for CPUs "
        "only, is faster and less exact, and needs the extra onnx.",
    ),
)

# evaluate has its own --top-k and --threshold, for they mean something else there.
PREDICTIONS = (
    option(
        "--top-k",
        type=TopK(),
        metavar="N|all",
        help="Number of labels in the predictions of each image, best first.",
    ),
    option(
        "--threshold",
        type=SHARE,
        metavar="X",
        help="Leave out labels whose score is below this. An image may have none left; --unsure-below keeps them.",
    ),
)

FORM = (
    option(
        "--layout",
        type=click.Choice(get_args(Layout)),
        default="record",
        show_default=True,
        help="What a row of CSV or Parquet is. With record, it is an image, with its labels in one column. With wide, "
        "it is an image, with columns label_1, score_1, label_2 and so on. With long, it is one label of an image.",
    ),
    option("--flat", is_flag=True, help="Add the best label and its score to each record, in JSONL and Parquet."),
    option(
        "--excel",
        is_flag=True,
        help="Write CSV for spreadsheets: with a byte order mark, and an apostrophe before text that would be a "
        "formula.",
    ),
    option(
        "--unsure-below",
        type=SHARE,
        metavar="X",
        help="Add a field or column, unsure, which is true for images whose best score is below this. They keep their "
        "labels.",
    ),
    option(
        "--review",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="CSV",
        help="Also write a list of the images that are below --unsure-below, with their best labels, for a "
        "spreadsheet.",
    ),
)


def form_from(chosen: dict[str, Any]) -> Form:
    """Takes the values of FORM, but --review, out of a command's."""
    return Form(**{each.name: chosen.pop(each.name) for each in fields(Form)})


FRESH = option("--fresh", is_flag=True, help="Start over, and replace the existing FILE when the run is complete.")
ERROR_THRESHOLD = option(
    "--error-threshold",
    type=Threshold(),
    help="Failed inputs that are accepted, as a number or a percentage: with no more than these, the exit status is "
    "0. A run stops as soon as there are more (by a percentage, a run of 1,000 inputs or more), and can be continued. "
    "[default: a run never stops early, and the exit status is 3 if any input failed]",
)

TIME_LIMIT = option(
    "--time-limit",
    type=Duration(),
    metavar="TIME",
    help="Stop after this time, such as 6h or 1h30m, when the batch in hand is finished. The exit status is then 143, "
    "and the same command continues the run.",
)

WORKERS = option(
    "--workers",
    type=WholeNumber(min=0),
    metavar="N",
    help="Processes that fetch and decode images. With 0, the main process does it (not possible for serve). [default: "
    "chosen by the number of cores]",
)
SPEED = (
    option(
        "--compile",
        is_flag=True,
        help="Compile the model for the GPU with torch.compile. Compiling takes about a minute, so this is for long "
        "runs.",
    ),
    option(
        "--batch-size",
        type=AT_LEAST_ONE,
        metavar="N",
        help="Images that are scored in one batch. [default: chosen by the cores, the model and the GPU]",
    ),
    WORKERS,
)

IMAGE_LIMITS = (
    option(
        "--image-bytes",
        type=AT_LEAST_ONE,
        metavar="N",
        help="Largest encoded size of one image, in bytes.",
    ),
    option(
        "--image-pixels",
        type=AT_LEAST_ONE,
        metavar="N",
        help="Largest size of one image in pixels, width times height. It is checked before the image is decoded.",
    ),
    option(
        "--fetch-seconds",
        type=SECONDS,
        metavar="S",
        help="Longest time of one attempt to fetch a URL or an object, in seconds.",
    ),
    option(
        "--decode-seconds",
        type=SECONDS,
        metavar="S",
        help="Longest time to decode one image, in seconds. Not enforced with --workers 0.",
    ),
    option(
        "--redirects",
        type=WholeNumber(min=0),
        metavar="N",
        help="Redirects followed for one URL.",
    ),
    option(
        "--retries",
        type=WholeNumber(min=0),
        metavar="N",
        help="Further attempts to fetch a URL or an object after a temporary failure.",
    ),
    option(
        "--connections",
        type=AT_LEAST_ONE,
        metavar="N",
        help="Open connections to one host or bucket, for each worker process.",
    ),
    option("--allow-private-hosts", is_flag=True, help="Also fetch URLs whose address is not on the public internet."),
    option(
        "--allow-truncated",
        is_flag=True,
        help="Accept image files that are cut off at the end. The missing part is filled with grey.",
    ),
)
ROOT = option(
    "--root",
    type=Root(),
    help="Read images only from this local folder (links are resolved) or, with an address such as s3://…, only from "
    "objects under it. URLs are not restricted.",
)
LIMITS = (*IMAGE_LIMITS, ROOT)


def limits_from(chosen: dict[str, Any]) -> Limits:
    """Takes the values of LIMITS, or of those that it has, out of a command's."""
    return Limits(**{limit.name: chosen.pop(limit.name) for limit in fields(Limits) if limit.name in chosen})


ROWS = option(
    "--rows",
    default=100_000,
    show_default=True,
    type=AT_LEAST_ONE,
    metavar="N",
    help="Largest number of images in the table of the page. If there are more, it shows a random sample.",
)
IMAGES = option(
    "--images",
    type=click.Path(exists=True, file_okay=False),
    metavar="DIR",
    help="Folder that relative image names start from, if the images have been moved. [default: images are read from "
    "where the run read them, or from beside the predictions]",
)
FETCH = option(
    "--fetch",
    is_flag=True,
    help="Fetch images that are not local (URLs, data sets on the Hub) to show them on the page.",
)
THUMBNAILS = option(
    "--thumbnails",
    default=12,
    show_default=True,
    type=WholeNumber(min=0),
    metavar="N",
    help="Largest number of images in each list of notable images (such as the least sure), which have pictures.",
)

CONFIG = option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    is_eager=True,
    expose_value=False,
    callback=read_config,
    metavar="TOML",
    help="TOML file with values for the options of this command. Environment variables (DEIT_BATCH_…) and the command "
    "line take precedence over it.",
)
QUIET = option(
    "--quiet",
    is_flag=True,
    help="Show only errors, and warnings of images that are missing or may be misread.",
)
VERBOSE = option("--verbose", is_flag=True, help="Show more messages, and tracebacks of errors.")
LOG_FORMAT = option(
    "--log-format",
    default="text",
    show_default=True,
    type=click.Choice(["text", "json", "github"]),
    help="Format of the messages on stderr. With github, warnings and errors are annotations of GitHub Actions.",
)
JUNIT = option(
    "--junit",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="XML",
    help="Write the results of the checks, such as --fail-under, as JUnit XML for CI systems (GitLab, Jenkins, …).",
)
