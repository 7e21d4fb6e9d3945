"""How Sphinx makes the site: of every Markdown page of the repository, as it is read on GitHub, too. See scripts/docs.

The source folder is the repository, not docs/, so that links between docs/ and the README, benchmarks/, … are checked.
"""

from __future__ import annotations

import re
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx

from deit_batch import __version__

REPOSITORY = Path(__file__).resolve().parent.parent
HOME = "docs/index"
COMMAND_LINE = "docs/cli"

# What the side of the site shows: a title, and under it pages, or folders of pages. A page of docs/ that stands nowhere
# here is shown last, under MORE.
NAVIGATION = {
    "Start": ["README", "docs/tutorial"],
    "How to": ["docs/how-to/index", "docs/how-to/*"],
    "Scheduled and in CI": ["docs/schedule", "docs/ci", "docs/docker", "docs/scale"],
    "Reference": [
        "docs/usage",
        "docs/cli",
        "docs/records",
        "docs/scores",
        "docs/evaluation",
        "docs/training",
        "docs/reports",
        "docs/troubleshooting",
    ],
    "Behind it": [
        "docs/architecture",
        "docs/decisions",
        "docs/faults",
        "benchmarks/*",
        "deit_batch/demo/README",
        "docs/licences",
        "SECURITY",
        "CONTRIBUTING",
        "CHANGELOG",
    ],
}
MORE = "More"

project = "deit-batch"
release = version = __version__
root_doc = HOME
include_patterns = ["*.md", "docs/**.md", "benchmarks/*.md", "deit_batch/demo/*.md"]
extensions = ["myst_parser"]
myst_heading_anchors = 6  # the anchors that GitHub gives
html_theme = "furo"
html_title = f"deit-batch {__version__}"
html_extra_path = ["site"]  # the site's own index.html, which leads to HOME
html_copy_source = False
html_show_copyright = False
linkcheck_anchors = False  # many sites make theirs by script
linkcheck_retries = 2


def navigation(app: Sphinx) -> str:
    """A table of contents for each title: kept out of index.md, for GitHub would show it as a block of code."""
    sections: dict[str, list[str]] = {}
    left = {name for name in app.env.found_docs if name.startswith("docs/")} - {HOME}
    for title, patterns in NAVIGATION.items():
        found = [page for pattern in patterns for page in sorted(pages_of(app, pattern))]
        sections[title] = found
        left -= set(found)
    if left:
        sections[MORE] = sorted(left)
    return "\n".join(
        "\n".join(["```{toctree}", ":hidden:", f":caption: {title}", "", *(f"/{page}" for page in found), "```"])
        for title, found in sections.items()
    )


def pages_of(app: Sphinx, pattern: str) -> list[str]:
    folder, star, _ = pattern.partition("*")
    if not star:
        return [pattern]
    return [page for page in app.env.found_docs if page.startswith(folder) and page != f"{folder}index"]


def add_navigation(app: Sphinx, page: str, source: list[str]) -> None:
    if page == HOME:
        source[0] += f"\n\n{navigation(app)}\n"


def add_options(app: Sphinx, page: nodes.document) -> None:
    """The search finds each option at its heading, before pages that mention it: `--no-recursive` and `--out`, too, of
    which the first is in no heading, and the second too short a part of one."""
    if app.env.current_document.docname != COMMAND_LINE:
        return
    app.env.metadata[COMMAND_LINE]["tocdepth"] = 3  # beside the page: commands and sections
    standard = app.env.domains.standard_domain
    standard.object_types["cmdoption"].attrs["searchprio"] = 0
    for section in page.findall(nodes.section):
        heading = re.fullmatch(r"([\w-]+) --[\w-]+", section[0].astext())
        if heading:
            names, _, _ = section[1].astext().strip().partition("  ")
            for name in re.findall(r"--[\w-]+", names):
                standard.note_object("cmdoption", f"{heading[1]} {name}", section["ids"][0], section)


def setup(app: Sphinx) -> None:
    app.connect("doctree-read", add_options)
    app.connect("source-read", add_navigation)
