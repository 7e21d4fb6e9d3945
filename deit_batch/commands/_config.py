"""Options from a file, --config, and from a recipe of training, --recipe."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from deit_batch.names import what_is_meant


def read_config(ctx: click.Context, param: click.Parameter, value: Path | None) -> None:
    """Values of a TOML file become the defaults of the options; variables and the command line outrank them. A table
    that has a command's name is for that command alone."""
    if value is None:
        return
    config = _read(value)
    command = str(ctx.command.name)
    own = config.pop(command, {})
    if not isinstance(own, dict):
        raise click.BadParameter(f"{value}: {command} must be a table, [{command}]")
    others = _commands(ctx)
    config = {name: setting for name, setting in config.items() if name not in others} | own
    ctx.default_map = {**(ctx.default_map or {}), **_values(value, config, _options(ctx), list(others))}


def log_format_of(path: str, command: str) -> object:
    """What the file of options says of it for this command, whatever else is wrong there; None if it says nothing."""
    try:
        config = _read(Path(path))
    except click.BadParameter:
        return None
    own = config.get(command)
    names = {**config, **(own if isinstance(own, dict) else {})}
    return names.get("log-format", names.get("log_format"))


def read_recipe(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """The values of a recipe of training, one of ours or a TOML file, become the defaults of the options; --config,
    variables and the command line outrank them. A file is known from then on by what it says: its name may stay when
    that changes."""
    from deit_batch.finetune.recipes import IN_A_RECIPE, RECIPES

    if value in RECIPES:
        values = dict(RECIPES[value])
    else:
        path = Path(value)
        if not path.exists():
            raise click.BadParameter(f"there is no file {value}, and the recipes are {', '.join(RECIPES)}")
        options = {name: option for name, option in _options(ctx).items() if name in IN_A_RECIPE}
        values = _values(path, _read(path), options)
    ctx.default_map = {**values, **(ctx.default_map or {})}
    return value


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise click.BadParameter(f"there is no file {path}") from error
    except OSError as error:
        raise click.BadParameter(f"{path}: can't be read: {error.strerror}") from error
    except ValueError as error:
        raise click.BadParameter(f"{path}: {error}") from error


def _commands(ctx: click.Context) -> Mapping[str, click.Command]:
    return ctx.parent.command.commands if ctx.parent and isinstance(ctx.parent.command, click.Group) else {}


def _options(ctx: click.Context) -> dict[str, click.Option]:
    return {
        str(option.name): option
        for option in ctx.command.params
        if option.expose_value and isinstance(option, click.Option)
    }


def _values(
    path: Path, config: dict[str, Any], options: Mapping[str, click.Option], commands: Sequence[str] = ()
) -> dict[str, Any]:
    """Of the file, as Click takes them for defaults. Raises click.BadParameter for what is none of `options`, nor a
    table of one of `commands`, or can't be the value of one."""
    values = {name.replace("-", "_"): setting for name, setting in config.items()}
    twice = sorted(name for name in config if "_" in name and name.replace("_", "-") in config)
    if twice:
        raise click.BadParameter(f"{path}: {', '.join(twice)} is there twice, with - and with _")
    known = [name.replace("_", "-") for name in options]
    unknown = [
        _unknown(name, commands if isinstance(setting, dict) else known)
        for name, setting in sorted(config.items())
        if name.replace("-", "_") not in options
    ]
    if unknown:
        raise click.BadParameter(f"{path}: there is no option {', '.join(unknown)}")
    for name, setting in values.items():
        if not _fits(options[name], setting):
            raise click.BadParameter(f"{path}: {name} can't be {setting!r}")
        if options[name].multiple and isinstance(setting, str):
            values[name] = [setting]  # Click would take its letters
        elif isinstance(setting, float) or isinstance(options[name].type, click.Path):
            values[name] = str(setting)  # so that Click refuses 2.5 where a whole number is due, and does not cut it
    return values


def _unknown(name: str, known: Sequence[str]) -> str:
    """As it is written, and what may have been meant."""
    return name + what_is_meant(name.replace("_", "-"), known)


def _fits(option: click.Parameter, setting: object) -> bool:
    """Click would take true for 1, and fail at a list where one value is due, or at a number where a flag is."""
    if isinstance(option, click.Option) and option.is_flag:
        return isinstance(setting, bool | str)
    values = setting if option.multiple and isinstance(setting, list) else [setting]
    return all(isinstance(value, str | int | float) and not isinstance(value, bool) for value in values)
