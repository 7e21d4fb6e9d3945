"""The command line as a whole; each command is a file in commands/."""

from __future__ import annotations

from typing import Any

import click

from deit_batch import __version__
from deit_batch.commands._exit import show_wrong_usage
from deit_batch.commands.compare import compare
from deit_batch.commands.convert import convert
from deit_batch.commands.doctor import doctor
from deit_batch.commands.embed import embed
from deit_batch.commands.evaluate import evaluate
from deit_batch.commands.export import export
from deit_batch.commands.finetune import finetune
from deit_batch.commands.merge import merge
from deit_batch.commands.plot import plot
from deit_batch.commands.pull import pull
from deit_batch.commands.report import report
from deit_batch.commands.score import score
from deit_batch.commands.serve import serve
from deit_batch.commands.sort import sort

COMMANDS: dict[str, tuple[click.Command, ...]] = {
    "Score and embed": (score, embed, merge),
    "Look at results": (report, compare, plot, evaluate, convert, sort),
    "Models": (finetune, export, pull),
    "Serve": (serve,),
    "Help": (doctor,),
}
"""By the headings under which the help lists them."""


class Program(click.Group):
    """Remembers its arguments, by which it is known how wrong usage is to be told. Lists its commands by headings."""

    def main(self, *arguments: Any, **more: Any) -> Any:
        from deit_batch.system.logs import lose_what_stderr_cannot_take, open_closed_streams

        open_closed_streams()
        lose_what_stderr_cannot_take()
        # On Windows, where no shell does it, Click would make names of a pattern, which is for --input to do.
        return super().main(*arguments, windows_expand_args=False, **more)

    def make_context(self, info_name: str | None, args: list[str], *more: Any, **extra: Any) -> click.Context:
        arguments = list(args)  # Click takes them off the list as it reads them
        with show_wrong_usage(arguments):
            context = super().make_context(info_name, args, *more, **extra)
        context.obj = arguments
        return context

    def invoke(self, ctx: click.Context) -> Any:
        with show_wrong_usage(ctx.obj):
            return super().invoke(ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, self.commands))  # of the names: all headings have their summaries in one column
        for title, commands in COMMANDS.items():
            with formatter.section(title):
                room = formatter.width - formatter.current_indent - width - 2
                formatter.write_dl(
                    [(str(command.name).ljust(width), command.get_short_help_str(room)) for command in commands]
                )


@click.group(cls=Program, context_settings={"auto_envvar_prefix": "DEIT_BATCH", "help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="deit-batch")
def main() -> None:
    """Batch scoring of images with DeiT classifiers.

    \b
    deit-batch score --input imgs/ --out preds.jsonl
    """


for commands in COMMANDS.values():
    for command in commands:
        main.add_command(command)
