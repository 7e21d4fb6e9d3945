"""Pages that quote the program stay true of it."""

from __future__ import annotations

import ast
import json
import re
from functools import cache

from helpers import EXAMPLES, valid

from deit_batch import errors
from deit_batch.model.recipe import Recipe, recipe_from_config

REPOSITORY = EXAMPLES.parent
TROUBLE = REPOSITORY / "docs" / "troubleshooting.md"


ERRORS = {name for name, value in vars(errors).items() if isinstance(value, type)}


@cache
def nodes() -> list[ast.AST]:
    """All of the program."""
    trees = (ast.parse(path.read_text()) for path in (REPOSITORY / "deit_batch").rglob("*.py"))
    return [node for tree in trees for node in ast.walk(tree)]


def text(node: ast.AST) -> str:
    """A literal, with … for what is filled in; "" if it is none."""
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" not in node.value:
        return re.sub(r"%(\(\w+\))?[.\d]*[sdrg]", "…", node.value)
    return ""


def raised() -> set[str]:
    """The messages of all errors that are made out of a literal."""
    calls = [node for node in nodes() if isinstance(node, ast.Call) and node.args]
    named = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id in ERRORS]
    return {message for call in named if re.search(r"\w{4}", message := text(call.args[0]))}


def pattern(fragment: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, re.split("…+", fragment.strip("… :;,")))))


def quoted() -> list[str]:
    """What stands in code in the first column of the page's tables, but what the system says."""
    rows = [line.split(" | ")[0] for line in TROUBLE.read_text().splitlines() if line.startswith("| `")]
    fragments = [fragment for row in rows for fragment in re.findall(r"`([^`]+)`", row)]
    return [fragment for fragment in fragments if fragment not in ("No such file or directory", "Permission denied")]


def test_every_message_that_the_page_quotes_is_one() -> None:
    texts = list(filter(None, map(text, nodes())))
    assert [fragment for fragment in quoted() if not any(map(pattern(fragment).search, texts))] == []


def test_every_message_of_an_error_is_on_the_page() -> None:
    assert len(raised()) > 150
    patterns = list(map(pattern, quoted()))
    assert {message for message in raised() if not any(known.search(message) for known in patterns)} == set()


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


def test_the_pictures_of_the_pages_are_small_and_shown() -> None:
    """They are drawn by scripts/screenshots."""
    text = "".join(page.read_text() for page in (REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")))
    pictures = sorted((REPOSITORY / "docs" / "pictures").iterdir())
    assert pictures
    for picture in pictures:
        assert picture.stat().st_size < 200_000
        assert f"pictures/{picture.name}" in text, "shown nowhere"
