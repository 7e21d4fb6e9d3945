"""Pages that quote the program stay true of it."""

from __future__ import annotations

import ast
import json
import re
from functools import cache
from pathlib import Path

import pytest
from conftest import EXAMPLES, valid

from deit_batch import errors
from deit_batch.images import Recipe, recipe_from_config

REPOSITORY = EXAMPLES.parent
TROUBLE = REPOSITORY / "docs" / "troubleshooting.md"


def texts(path: Path) -> list[str]:
    """Every text in a module, with … for what is filled in."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            found.append("".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(re.sub(r"%(\(\w+\))?[.\d]*[sdrg]", "…", node.value))
    return found


@cache
def all_texts() -> list[str]:
    found = [text for path in (REPOSITORY / "deit_batch").rglob("*.py") for text in texts(path)]
    return [text for text in found if "\n" not in text]  # a docstring is no message


def quoted() -> list[str]:
    """What stands in code in the first column of the page's tables, but what the system says."""
    rows = [line.split(" | ")[0] for line in TROUBLE.read_text().splitlines() if line.startswith("| `")]
    fragments = [fragment for row in rows for fragment in re.findall(r"`([^`]+)`", row)]
    return [fragment for fragment in fragments if fragment not in ("No such file or directory", "Permission denied")]


def test_every_message_that_the_page_quotes_is_one() -> None:
    fragments = quoted()
    assert len(fragments) > 150
    gone = []
    for fragment in fragments:
        assert re.search(r"\w{4}", fragment), fragment
        pattern = re.compile(".*".join(map(re.escape, re.split("…+", fragment.strip("… :;,")))))
        if not any(pattern.search(text) for text in all_texts()):
            gone.append(fragment)
    assert gone == []


def test_every_error_type_is_on_the_page() -> None:
    headings = re.findall(r"^### (\w+): ", TROUBLE.read_text(), re.MULTILINE)
    assert headings == [error.__name__ for error in errors.ImageError.__subclasses__()]


def test_the_examples_of_records_are_as_their_schemas_say() -> None:
    sections = (REPOSITORY / "docs" / "records.md").read_text().split("\n## ")[1:]
    checked = set()
    for section in sections:
        for block in re.findall(r"```json\n(.*?)```", section, re.DOTALL):
            name = re.findall(r"schemas/([\w-]+)\.schema\.json", section)[0]
            checked.add(name)
            for line in block.splitlines():
                valid(json.loads(line), name)
    assert checked == {"record", "features-row", "manifest", "log-line"}


def test_every_schema_is_on_the_page() -> None:
    page = (REPOSITORY / "docs" / "records.md").read_text()
    for path in (REPOSITORY / "deit_batch" / "schemas").iterdir():
        assert f"](../deit_batch/schemas/{path.name})" in page


def test_timms_recipe_is_as_the_page_says() -> None:
    (block,) = re.findall(r"```json\n(.*?)```", (REPOSITORY / "docs" / "scores.md").read_text(), re.DOTALL)
    assert recipe_from_config(json.loads(block), "vit") == Recipe(
        248, 3, (224, 224), 1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    )


@pytest.mark.parametrize("page", ["records.md", "scores.md", "troubleshooting.md"])
def test_links_lead_somewhere(page: str) -> None:
    path = REPOSITORY / "docs" / page
    for target, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", path.read_text()):
        if "://" in target:
            continue
        other = (path.parent / target).resolve() if target else path
        assert other.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", other.read_text(), re.MULTILINE)
            known = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in known, f"{target}#{anchor}"
