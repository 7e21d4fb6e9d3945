"""Writes docs/cli.md: what each command says of itself with --help, with a heading for each option to link to."""

from __future__ import annotations

import re
from pathlib import Path

from click.testing import CliRunner

from deit_batch.cli import main

PAGE = Path(__file__).resolve().parent.parent / "docs" / "cli.md"
RENEWED_BY = "scripts/docs --cli"
PROGRAM = "deit-batch"
WIDTH = 78  # what Click takes in a terminal of 80 columns or more, whatever the one that this runs in
HEAD = f"""# The command line

What `--help` says, command by command; [usage](usage.md) explains it. Each option has a heading that can be linked to,
such as [`cli.md#score---error-threshold`](#score---error-threshold). `{RENEWED_BY}` writes this page, and a test fails
when it is stale.
"""

PIECE = re.compile(r"^(?=  -|[A-Z][\w ]*:\n)", re.MULTILINE)  # begins with an option, or the title of a section
TITLE = re.compile(r"([A-Z][\w ]*):\n")
OPTION = re.compile(r"  (?:-\w, )?(--[\w-]+)")


def reference() -> str:
    """The whole page."""
    return "\n".join([HEAD, section(), *map(section, main.commands)])


def section(*command: str) -> str:
    first, *pieces = filter(None, PIECE.split(help_of(*command)))
    name = " ".join(command) or PROGRAM
    parts = [f"## {' '.join([PROGRAM, *command])}\n", block(first)]
    for piece in pieces:
        title, option = TITLE.match(piece), OPTION.match(piece)
        if title:
            parts.append(f"### {title[1]} ({name})\n")
            piece = piece[title.end() :]
        elif option:
            parts.append(f"#### `{name} {option[1]}`\n")
        parts.append(block(piece))
    return "\n".join(filter(None, parts))


def help_of(*command: str) -> str:
    return (
        CliRunner()
        .invoke(main, [*command, "--help"], prog_name=PROGRAM, terminal_width=WIDTH, catch_exceptions=False)
        .stdout
    )


def block(text: str) -> str:
    text = text.strip("\n")
    return text and f"```text\n{text}\n```\n"


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
    print(f"cli_reference: {PAGE.name}")
