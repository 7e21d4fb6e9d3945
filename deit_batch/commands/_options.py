"""What commands have in common: how their help looks, the file of defaults, and the options that several of them take,
each declared once."""

from __future__ import annotations

import os
import textwrap
import tomllib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import click

from deit_batch.commands._exit import exit_on_error
from deit_batch.commands._types import AT_LEAST_ONE, PLACE, SECONDS, SHARE, Root, Threshold, TopK
from deit_batch.limits import Limits

Command = TypeVar("Command", bound=Callable[..., Any])
Decorator: TypeAlias = Callable[[Command], Command]


class Option(click.Option):
    """One that knows under which heading of the help it stands."""

    section = "Options"

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.has_own_default = "default" in settings


def option(*names: str, **settings: Any) -> Decorator[Any]:
    return click.option(*names, cls=Option, **settings)


def section(title: str, *options: Decorator[Any]) -> Decorator[Any]:
    """These options, under a heading of their own in the help."""

    def decorate(command: Any) -> Any:
        for one in reversed(options):
            command = one(command)
        for param in command.__click_params__[-len(options) :]:
            param.section = title
        return command

    return decorate


class ExampleCommand(click.Command):
    """Prints an example first, and the options under the headings of their sections. A variable that is meant for an
    option, and for none that there is, is wrong usage. Messages go where --quiet, --verbose and --log-format say, and
    an error ends the program with its line and exit status: a command's function knows of neither."""

    def __init__(self, *args: Any, example: str, defaults: Sequence[type] = (), **more: Any) -> None:
        """`defaults`: dataclasses; an option that is called like a field of one has its default."""
        # Here, too, and not of the group alone: whoever makes a command's context first would settle it for all.
        more["context_settings"] = {"help_option_names": ["-h", "--help"]}
        super().__init__(*args, **more)
        self._example = example
        values = {field.name: field.default for kind in defaults for field in fields(kind)}
        for param in self.params:
            value = values.get(str(param.name))
            nothing_to_show = value is None or value is False or value is MISSING or value == ()
            if isinstance(param, Option) and not param.has_own_default and not nothing_to_show:
                param.default, param.show_default = value, True

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write(f"Example:\n\n{textwrap.indent(self._example, '  ')}\n\n")
        super().format_usage(ctx, formatter)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        title = Option.section
        for param in self.get_params(ctx):
            if isinstance(param, click.Argument):
                continue  # the help's first lines tell of it
            title = getattr(param, "section", title)  # --help, which is Click's own, has none
            record = param.get_help_record(ctx)
            if record:
                sections.setdefault(title, []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not ctx.resilient_parsing:
            self._require_once(ctx, list(args))  # Click takes them off the list as it reads them
        rest = super().parse_args(ctx, args)  # before the variables, for --help ends there
        start = f"{ctx.auto_envvar_prefix}_"
        known = {start + str(param.name).upper() for param in self.params if isinstance(param, click.Option)}
        unknown = sorted(name for name in os.environ if name.startswith(start) and name not in known)
        if ctx.auto_envvar_prefix and unknown and not ctx.resilient_parsing:
            raise click.UsageError(f"there is no option for the variable {', '.join(unknown)}", ctx)
        return rest

    def invoke(self, ctx: click.Context) -> Any:
        from deit_batch.system.logs import set_up_logging

        how = {name: ctx.params.pop(name) for name in ("quiet", "verbose", "log_format") if name in ctx.params}
        set_up_logging(**{"quiet": False, "verbose": False, **how})
        with exit_on_error():
            return super().invoke(ctx)

    def _require_once(self, ctx: click.Context, args: list[str]) -> None:
        """Click would take the last of two values, and say nothing. A flag given twice says the same twice."""
        _, _, order = self.make_parser(ctx).parse_args(args)
        for param, times in Counter(order).items():
            if not isinstance(param, click.Option) or param.multiple or (param.is_flag and not param.secondary_opts):
                continue
            if times > 1:
                name = "/".join([*param.opts, *param.secondary_opts])
                raise click.UsageError(f"{name} is given {times} times; it takes one value", ctx)


def read_config(ctx: click.Context, param: click.Parameter, value: Path | None) -> None:
    """Values of a TOML file become the defaults of the options; variables and the command line outrank them. A table
    that has a command's name is for that command alone."""
    if value is None:
        return
    try:
        config = tomllib.loads(value.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise click.BadParameter(f"{value}: {error}") from error
    command = str(ctx.command.name)
    own = config.pop(command, {})
    if not isinstance(own, dict):
        raise click.BadParameter(f"{value}: {command} must be a table, [{command}]")
    others = ctx.parent.command.commands if ctx.parent and isinstance(ctx.parent.command, click.Group) else {}
    config = {name: setting for name, setting in config.items() if name not in others} | own
    values = {name.replace("-", "_"): setting for name, setting in config.items()}
    options = {
        str(option.name): option
        for option in ctx.command.params
        if option.expose_value and isinstance(option, click.Option)
    }
    unknown = sorted(set(values) - set(options))
    if unknown:
        raise click.BadParameter(f"{value}: there is no option {', '.join(unknown)}")
    for name, setting in values.items():
        if not _fits(options[name], setting):
            raise click.BadParameter(f"{value}: {name} can't be {setting!r}")
        if options[name].multiple and isinstance(setting, str):
            values[name] = [setting]  # Click would take its letters
        elif isinstance(setting, float):
            values[name] = str(setting)  # so that Click refuses 2.5 where a whole number is due, and does not cut it
    ctx.default_map = {**(ctx.default_map or {}), **values}


def _fits(option: click.Parameter, setting: object) -> bool:
    """Click would take true for 1, and fail at a list where one value is due, or at a number where a flag is."""
    if isinstance(option, click.Option) and option.is_flag:
        return isinstance(setting, bool | str)
    values = setting if option.multiple and isinstance(setting, list) else [setting]
    return all(isinstance(value, str | int | float) and not isinstance(value, bool) for value in values)


_KINDS_OF_INPUT = (
    "A folder, image, 'glob*', .txt, .csv, .tsv, .jsonl, .parquet (text also .gz), request .json, .tar; also on a "
    "store (s3://…, gs://…, abfs://…); hf://DATASET?split=…, or - for stdin."
)
ONE_INPUT = option("--input", required=True, type=PLACE, metavar="WHAT", help=_KINDS_OF_INPUT)
SEVERAL_INPUTS = option(
    "--input",
    multiple=True,
    type=PLACE,
    metavar="WHAT",
    help=f"{_KINDS_OF_INPUT} Repeatable: all are taken, in order. Plain arguments are the same.",
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
        help="The column that holds the image (path, URL, data: URI or base64). [default: by its usual names: image, "
        "url, path, …]",
    ),
    option("--recursive/--no-recursive", help="Look into folders in the folder."),
    option("--limit", type=click.IntRange(min=1), metavar="N", help="Take only the first N inputs."),
)
ID = option(
    "--id",
    metavar="NAME",
    help="The column that says which image a row is of, whatever its address: by it a run is continued, and results "
    "are compared and joined. [default: the image's name or address]",
)
KEEP = option("--keep", multiple=True, metavar="NAME", help="Carry this column into the records. Repeatable.")

LABEL_COLUMN = option(
    "--label-column", metavar="NAME", help="The column that holds the label. [default: by its usual names: label, …]"
)
LABEL_MAP = option(
    "--label-map",
    type=PLACE,
    metavar="FILE|imagenet",
    help="The data set's names to the model's: .json, or .csv of two columns; imagenet: n01440764, … to the names of "
    "DeiT.",
)
MODEL_NAME = option(
    "--model",
    type=PLACE,
    metavar="CHECKPOINT",
    help="A DeiT checkpoint: a name on the Hub, a folder, or 'demo' (built in; knows ten kinds of clothing).",
)
REVISION = option("--revision", metavar="REV", help="Branch, tag or commit of a model on the Hub.")
ALLOW_PICKLE = option(
    "--allow-pickle", is_flag=True, help="Load weights that are not safetensors. Only if you trust them."
)

IMAGE_PROCESSOR = option(
    "--image-processor",
    type=PLACE,
    metavar="WHICH",
    help="Preprocessing other than the checkpoint's own: a folder, Hub name, JSON file, or 'card' for the recipe in"
    " the model card's text.",
)
DEVICE = option(
    "--device",
    metavar="auto|cpu|cuda|cuda:N|mps",
    help="Where the model runs; auto is the GPU if there is one.",
)
MODEL = (
    MODEL_NAME,
    REVISION,
    IMAGE_PROCESSOR,
    option(
        "--decode",
        type=click.Choice(["exact", "fast"]),
        help="fast: short cuts with large images; scores change a little.",
    ),
    ALLOW_PICKLE,
    DEVICE,
    option(
        "--dtype",
        type=click.Choice(["auto", "float32", "float16", "bfloat16", "int8"]),
        help="auto: float16 on a GPU, float32 on a CPU. int8: on a CPU, faster and less exact; needs the extra onnx.",
    ),
)

# evaluate has its own --top-k and --threshold, for they mean something else there.
PREDICTIONS = (
    option("--top-k", type=TopK(), help="How many labels an image."),
    option(
        "--threshold",
        type=SHARE,
        help="Leave out labels with a lower score.",
    ),
)

FRESH = option("--fresh", is_flag=True, help="Start over, and replace what is at FILE when done.")
ERROR_THRESHOLD = option(
    "--error-threshold",
    type=Threshold(),
    help="Exit with 0 if no more inputs than this failed; give up, resumable, as soon as more have. "
    "[default: never give up; exit with 3 if any failed]",
)

WORKERS = option(
    "--workers",
    type=click.IntRange(min=0),
    metavar="N",
    help="Processes that fetch and decode; 0: none beside the main one. [default: from the cores]",
)
SPEED = (
    option(
        "--compile",
        is_flag=True,
        help="On a GPU: fuse the model's kernels first, by torch.compile. Takes a minute, so for long runs.",
    ),
    option(
        "--batch-size",
        type=click.IntRange(min=1),
        metavar="N",
        help="Images that are scored and written together. [default: from the cores, the model and the GPU]",
    ),
    WORKERS,
)

IMAGE_LIMITS = (
    option("--image-bytes", type=AT_LEAST_ONE, help="Encoded size."),
    option(
        "--image-pixels",
        type=AT_LEAST_ONE,
        help="Width times height; checked before decoding.",
    ),
    option(
        "--fetch-seconds",
        type=SECONDS,
        help="For one try to fetch a URL or object.",
    ),
    option(
        "--decode-seconds",
        type=SECONDS,
        help="For decoding. Not with --workers 0.",
    ),
    option(
        "--redirects",
        type=click.IntRange(min=0),
        help="Of one URL.",
    ),
    option(
        "--retries",
        type=click.IntRange(min=0),
        help="Further tries of a URL or object after a passing fault.",
    ),
    option(
        "--connections",
        type=AT_LEAST_ONE,
        help="To one host or bucket, a worker.",
    ),
    option(
        "--allow-private-hosts", is_flag=True, help="Fetch from addresses that are not of the public internet, too."
    ),
    option("--allow-truncated", is_flag=True, help="Score files that end early; what is missing is grey."),
)
ROOT = option(
    "--root",
    type=Root(),
    help="Local files must be in this folder, links resolved; objects on a store under it, if it is on one.",
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
    help="Images that the page's table holds at most; of more, a random sample.",
)
IMAGES = option(
    "--images",
    type=click.Path(exists=True, file_okay=False),
    metavar="DIR",
    help="Where the images' relative names start from. [default: they are found as the run found them]",
)
FETCH = option("--fetch", is_flag=True, help="Fetch images that are URLs for their pictures.")
THUMBNAILS = option(
    "--thumbnails",
    default=12,
    show_default=True,
    type=click.IntRange(min=0),
    metavar="N",
    help="Pictures of each kind of images that stand out.",
)

CONFIG = option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    is_eager=True,
    expose_value=False,
    callback=read_config,
    metavar="TOML",
    help="A file of these options; DEIT_BATCH_… variables and the command line outrank it.",
)
QUIET = option("--quiet", is_flag=True, help="No progress; only errors.")
VERBOSE = option("--verbose", is_flag=True, help="Say more, and show tracebacks.")
LOG_FORMAT = option(
    "--log-format",
    default="text",
    show_default=True,
    type=click.Choice(["text", "json", "github"]),
    help="How messages on stderr are written; github: warnings and errors as its annotations.",
)
JUNIT = option(
    "--junit",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="XML",
    help="Write the gates and what they found as JUnit XML, which GitLab, Jenkins and others show.",
)
