"""The file of options, --config."""

from __future__ import annotations

import tomllib
from pathlib import Path

import click


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
    twice = sorted(name for name in config if "_" in name and name.replace("_", "-") in config)
    if twice:
        raise click.BadParameter(f"{value}: {', '.join(twice)} is there twice, with - and with _")
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
        elif isinstance(setting, float) or isinstance(options[name].type, click.Path):
            values[name] = str(setting)  # so that Click refuses 2.5 where a whole number is due, and does not cut it
    ctx.default_map = {**(ctx.default_map or {}), **values}


def _fits(option: click.Parameter, setting: object) -> bool:
    """Click would take true for 1, and fail at a list where one value is due, or at a number where a flag is."""
    if isinstance(option, click.Option) and option.is_flag:
        return isinstance(setting, bool | str)
    values = setting if option.multiple and isinstance(setting, list) else [setting]
    return all(isinstance(value, str | int | float) and not isinstance(value, bool) for value in values)
