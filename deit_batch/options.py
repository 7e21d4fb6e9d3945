"""How commands look and what their options take: help with an example, the kinds of values, the file of defaults."""

from __future__ import annotations

import textwrap
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

AT_LEAST_ONE = click.IntRange(min=1)
SECONDS = click.FloatRange(min=0, min_open=True)

REVISION = click.option("--revision", metavar="REV", help="Branch, tag or commit of a model on the Hub.")
ALLOW_PICKLE = click.option(
    "--allow-pickle", is_flag=True, help="Load weights that are not safetensors. Only if you trust them."
)
VERBOSE = click.option("--verbose", is_flag=True, help="Say more, and show tracebacks.")
"""Options that several commands have."""


class ExampleCommand(click.Command):
    """Prints an example first, and the options under headings if `sections` has them."""

    def __init__(
        self, *args: Any, example: str, sections: Mapping[str, Sequence[str]] | None = None, **more: Any
    ) -> None:
        super().__init__(*args, **more)
        self._example = example
        self._sections = sections

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write(f"Example:\n\n{textwrap.indent(self._example, '  ')}\n\n")
        super().format_usage(ctx, formatter)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self._sections is None:
            super().format_options(ctx, formatter)
            return
        helps = {str(param.name): param.get_help_record(ctx) for param in self.get_params(ctx)}
        for title, names in self._sections.items():
            with formatter.section(title):
                formatter.write_dl([record for name in names if (record := helps.get(name))])


class TopK(click.ParamType[int | None]):
    name = "N|all"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        if value is None or value == "all":
            return None
        try:
            number = int(str(value))
        except ValueError:
            number = 0
        if number < 1:
            self.fail(f"{value!r} is neither a number from 1 up nor 'all'", param, ctx)
        return number


class Threshold(click.ParamType[str]):
    """Checked here, made into an ErrorThreshold later: that needs imports which --help must not wait for."""

    name = "N|N%"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        try:
            if text.isdigit() or (text.endswith("%") and 0 <= float(text.removesuffix("%")) <= 100):
                return text
        except ValueError:
            pass
        return self.fail(f"{text!r} is neither a number of images nor a percentage", param, ctx)


def read_config(ctx: click.Context, param: click.Parameter, value: Path | None) -> None:
    """Values of a TOML file become the defaults of the options; variables and the command line outrank them."""
    if value is None:
        return
    try:
        config = tomllib.loads(value.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise click.BadParameter(f"{value}: {error}") from error
    section = config.pop("score", {})
    if not isinstance(section, dict):
        raise click.BadParameter(f"{value}: score must be a table, [score]")
    config.update(section)
    values = {name.replace("-", "_"): setting for name, setting in config.items()}
    options = {str(option.name): option for option in ctx.command.params}
    unknown = sorted(set(values) - set(options))
    if unknown:
        raise click.BadParameter(f"{value}: there is no option {', '.join(unknown)}")
    for name, setting in values.items():
        if options[name].multiple and isinstance(setting, str):
            values[name] = [setting]  # Click would take its letters
        elif isinstance(setting, float):
            values[name] = str(setting)  # so that Click refuses 2.5 where a whole number is due, and does not cut it
    ctx.default_map = {**(ctx.default_map or {}), **values}
