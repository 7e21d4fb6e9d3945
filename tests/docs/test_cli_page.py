"""The page of the command line is what --help says; in the site, links lead somewhere, and each option can be linked to
and searched for."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cli_reference
import click
import pytest
from helpers import EXAMPLES

from deit_batch.cli import main

if TYPE_CHECKING:
    from playwright.sync_api import Browser

REPOSITORY = EXAMPLES.parent
COMMANDS: dict[str, click.Command] = {cli_reference.PROGRAM: main, **main.commands}


NOWHERE = ["none.md", "none.yml", "usage.md#none", "../README.md#none", "#none"]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Of a copy of the repository, with a page of links that lead nowhere: its folder, and how it ended."""
    copy = tmp_path_factory.mktemp("site") / "repository"
    shutil.copytree(
        REPOSITORY, copy, ignore=shutil.ignore_patterns(".[!g]*", ".git", "build", "dist", "__pycache__", "*.egg-info")
    )
    with (copy / "docs" / "stray.md").open("w") as page:
        page.write("# Stray\n\n" + "\n\n".join(f"[to nowhere]({link})" for link in NOWHERE))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = [copy / "scripts" / "docs"]
    ended = subprocess.run(command, env={**os.environ, "PATH": path}, text=True, capture_output=True, check=False)
    return copy / "build" / "site", ended


@pytest.fixture(scope="module")
def site(build: tuple[Path, subprocess.CompletedProcess[str]]) -> Path:
    return build[0]


def test_the_site_is_whole_and_a_link_that_leads_nowhere_is_an_error(
    build: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    """Only those are complained of."""
    site, ended = build
    assert ended.returncode != 0
    complaints = [line for line in ended.stderr.splitlines() if "WARNING" in line]
    lines = [re.findall(r"docs/stray\.md:(\d+)", complaint) for complaint in complaints]
    assert lines == [["3"], ["5"], ["7"], ["9"], ["11"]], ended.stderr
    navigation = (site / "docs" / "index.html").read_text()
    assert 'href="stray.html"' in navigation


def options(command: str) -> list[click.Option]:
    with click.Context(COMMANDS[command], **COMMANDS[command].context_settings) as context:
        context.help_option_names = ["-h", "--help"]
        return [param for param in COMMANDS[command].get_params(context) if isinstance(param, click.Option)]


def long_names(option: click.Option) -> list[str]:
    return [name for name in [*option.opts, *option.secondary_opts] if name.startswith("--")]


def headings() -> list[str]:
    return re.findall(r"^#### `(.+)`$", cli_reference.PAGE.read_text(), re.MULTILINE)


def test_the_page_is_what_help_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    fresh = cli_reference.reference() == cli_reference.PAGE.read_text()
    assert fresh, f"docs/cli.md is stale; renew it with: {cli_reference.RENEWED_BY}"


def test_no_line_of_help_is_lost_between_headings() -> None:
    page = cli_reference.PAGE.read_text()
    blocks = "".join(re.findall(r"```text\n(.*?)```", page, re.DOTALL))
    titles = re.findall(r"^### (.+) \(.+\)$", page, re.MULTILINE)
    helps = [cli_reference.help_of(), *map(cli_reference.help_of, main.commands)]
    said = [line for text in helps for line in text.splitlines() if line]
    assert [line for line in blocks.splitlines() if line] + [f"{title}:" for title in titles] == [
        *(line for line in said if line.removesuffix(":") not in titles),
        *(line for line in said if line.removesuffix(":") in titles),
    ]


@pytest.mark.parametrize("command", COMMANDS)
def test_each_option_has_a_heading(command: str) -> None:
    expected = [f"{command} {long_names(option)[0]}" for option in options(command)]
    assert [heading for heading in headings() if heading.split()[0] == command] == expected


def test_each_option_is_known_to_the_search_and_leads_to_its_anchor(site: Path) -> None:
    page = (site / "docs" / "cli.html").read_text()
    index: dict[str, Any] = json.loads((site / "searchindex.js").read_text()[len("Search.setIndex(") : -1])
    found = {
        name: anchor
        for document, _, _, anchor, name in index["objects"][""]
        if index["docnames"][document] == "docs/cli"
    }
    expected = {
        f"{command} {name}" for command in COMMANDS for option in options(command) for name in long_names(option)
    }
    assert set(found) == expected
    for command in COMMANDS:
        for option in options(command):
            first, *others = long_names(option)
            anchor = found[f"{command} {first}"]
            section = page[page.index(f'<section id="{anchor}">') :].split("<section", 2)[1]
            assert f'id="{command}-{first}"' in section  # GitHub's anchor, too
            assert first in re.sub("<[^>]+>", "", section)
            assert all(found[f"{command} {other}"] == anchor for other in others)


@pytest.mark.parametrize("asked", ["--error-threshold", "error-threshold", "--out", "--no-recursive", "score --id"])
def test_who_searches_for_an_option_lands_on_it(asked: str, site: Path, browser: Browser) -> None:
    name = asked.split()[-1].removeprefix("--")
    page = browser.new_page()
    page.goto((site / "docs" / "index.html").as_uri())
    page.get_by_role("textbox", name="Search").fill(asked)
    page.keyboard.press("Enter")
    page.locator("#search-results ul.search a").first.click()
    page.wait_for_url(f"**/docs/cli.html*#*{name.removeprefix('no-')}")
    heading = page.locator(":target").get_by_role("heading").first
    assert heading.is_visible()
    assert f"--{name}" in page.locator(":target").inner_text()
    page.close()


@pytest.mark.parametrize(
    ("asked", "page"), [("Excel", "spreadsheets"), ("HEIC", "heic-and-16-bit"), ("Windows", "windows")]
)
def test_who_searches_for_a_thing_to_do_sees_its_page_among_the_first(
    asked: str, page: str, site: Path, browser: Browser
) -> None:
    """Beside the option that is called so, if there is one."""
    shown = browser.new_page()
    shown.goto((site / "docs" / "index.html").as_uri())
    shown.get_by_role("textbox", name="Search").fill(asked)
    shown.keyboard.press("Enter")
    results = shown.locator("#search-results ul.search li > a")
    results.nth(2).wait_for()
    first = [results.nth(place).get_attribute("href") for place in range(3)]
    assert any(f"/how-to/{page}.html" in str(link) for link in first), first
    shown.close()
