"""Writes docs/cli.md: what each command says of itself with --help."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from deit_batch.cli import main

PAGE = Path(__file__).resolve().parent.parent / "docs" / "cli.md"
RENEWED_BY = "scripts/docs --cli"
WIDTH = 78  # what Click takes in a terminal of 80 columns or more, whatever the one that this runs in
HEAD = f"""# The command line

What `--help` says, command by command; [usage](usage.md) explains it. `{RENEWED_BY}` writes this page, and a test
fails when it is stale.
"""


def reference() -> str:
    """The whole page."""
    return "\n".join([HEAD, section(), *map(section, main.commands)])


def section(*command: str) -> str:
    told = CliRunner().invoke(
        main, [*command, "--help"], prog_name="deit-batch", terminal_width=WIDTH, catch_exceptions=False
    )
    return f"## {' '.join(['deit-batch', *command])}\n\n```text\n{told.stdout}```\n"


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
    print(f"cli_reference: {PAGE.name}")
