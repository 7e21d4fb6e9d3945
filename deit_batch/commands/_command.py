"""What a command is here: its options' sections in the help, its example, its messages and its exit status."""

from __future__ import annotations

import os
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import click

from deit_batch.commands._exit import exit_on_error
from deit_batch.errors import UsageError
from deit_batch.system import object_store
from deit_batch.system.atomic import require_not_read

Command = TypeVar("Command", bound=Callable[..., Any])
Decorator: TypeAlias = Callable[[Command], Command]


_LINK = re.compile(r"(_SERVICE_HOST|_SERVICE_PORT(_\w+)?|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?|_ENV_\w+)$")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
"""No drive of Windows, which is one letter."""
_ADDRESS = re.compile(r"(tcp|udp|sctp)://")


def _is_link(name: str, value: str) -> bool:
    """Whether Kubernetes has set the variable, or Docker for a linked container: a service that is called deit-batch is
    told to every container by variables that begin with DEIT_BATCH_, as one called deit-batch-serve is by a
    DEIT_BATCH_SERVE_PORT."""
    return bool(_LINK.search(name) or (name.endswith("_PORT") and _ADDRESS.match(value)))


class Option(click.Option):
    """One that knows under which heading of the help it stands."""

    section = "Options"

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.has_own_default = "default" in settings

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        value = super().resolve_envvar_value(ctx)
        name = f"{ctx.auto_envvar_prefix}_{str(self.name).upper()}"
        return None if value is not None and _is_link(name, value) else value


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


OUTPUTS = ("out", "review", "junit", "metrics_file")
"""What names a file or folder to write, in every command."""
Written: TypeAlias = Callable[[str, Mapping[str, Any]], Sequence[str]]
"""All that a command writes, from its --out and its parameters."""


def _written_for(out: str, params: Mapping[str, Any]) -> Sequence[str]:
    from deit_batch.output.file_names import written_for

    return written_for(out)


def _require_other_files(params: Mapping[str, Any], written_for: Written) -> None:
    """Raises UsageError if a command would write over what it reads, under whatever name, or two results over each
    other."""
    taken: dict[str, str] = {}
    inputs = [path for name, value in params.items() if name not in OUTPUTS for path in _paths_in(value)]
    for name in OUTPUTS:
        for out in _paths_in(params.get(name)):
            option = f"--{name.replace('_', '-')}"
            _require_no_url(option, out)
            written = written_for(out, params) if name == "out" else [out]
            for real in {os.path.realpath(path) for path in written}:
                if real in taken and not _is_device(real):
                    raise UsageError(f"{option} {out} is what {taken[real]} writes, too")
                taken[real] = option
            require_not_read(option, out, written, inputs)


def _require_no_url(option: str, out: str) -> None:
    """Raises UsageError for a URL that is no store's, which would be taken for a path. One of two slashes is lost on
    the way, if the option is a path."""
    if _URL.match(out) and not object_store.is_stored(out) and not os.path.isdir(out.partition("/")[0]):
        raise UsageError(f"{option} {out}: what can be written to is a path, or the URL of a store (s3://…)")


def _paths_in(value: Any) -> list[str]:
    values = value if isinstance(value, list | tuple) else [value]
    return [os.fspath(one) for one in values if isinstance(one, str | Path) and str(one) not in ("", "-")]


def _is_device(path: str) -> bool:
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


class ExampleCommand(click.Command):
    """Prints an example first, and the options under the headings of their sections. A variable that is meant for an
    option, and for none that there is, is wrong usage. Messages go where --quiet, --verbose and --log-format say, and
    an error ends the program with its line and exit status: a command's function knows of neither."""

    def __init__(
        self,
        *args: Any,
        example: str,
        defaults: Sequence[type] = (),
        written_for: Written = _written_for,
        **more: Any,
    ) -> None:
        """`defaults`: dataclasses; an option that is called like a field of one has its default."""
        # Here, too, and not of the group alone: whoever makes a command's context first would settle it for all.
        more["context_settings"] = {"help_option_names": ["-h", "--help"]}
        super().__init__(*args, **more)
        self._example = example
        self._written_for = written_for
        values = {field.name: field.default for kind in defaults for field in fields(kind)}
        for param in self.params:
            value = values.get(str(param.name))
            nothing_to_show = value is None or value is False or value is MISSING or value == ()
            if isinstance(param, Option) and not param.has_own_default and not nothing_to_show:
                param.default, param.show_default = value, True

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write(f"Example:\n\n{textwrap.indent(self._example, '  ')}\n\n")
        super().format_help(ctx, formatter)

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
        unknown = self._unknown_variables(ctx)
        if unknown and not ctx.resilient_parsing:
            raise click.UsageError(f"there is no option for the variable {', '.join(unknown)}", ctx)
        return rest

    def _unknown_variables(self, ctx: click.Context) -> list[str]:
        """Those that are meant for this command or for none that there is, and not for another."""
        if not ctx.auto_envvar_prefix:
            return []
        own = f"{ctx.auto_envvar_prefix}_"
        known = {own + str(param.name).upper() for param in self.params if isinstance(param, click.Option)}
        start, others = own, tuple[str, ...]()
        if ctx.parent and isinstance(ctx.parent.command, click.Group):
            start = f"{ctx.parent.auto_envvar_prefix}_"
            others = tuple(f"{start}{name.upper()}_" for name in ctx.parent.command.commands if name != ctx.info_name)
        found = {name: value for name, value in os.environ.items() if name.startswith(start) and name not in known}
        return sorted(name for name, value in found.items() if not (name.startswith(others) or _is_link(name, value)))

    def invoke(self, ctx: click.Context) -> Any:
        from deit_batch.system.logs import set_up_logging

        how = {name: ctx.params.pop(name) for name in ("quiet", "verbose", "log_format") if name in ctx.params}
        set_up_logging(**{"quiet": False, "verbose": False, **how})
        with exit_on_error():
            _require_other_files(ctx.params, self._written_for)
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
