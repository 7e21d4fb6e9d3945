"""What a stranger gets: the wheel, outside the repository; and documents that stay true."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import click
import pytest
from helpers import EXAMPLES, read_jsonl

from deit_batch.cli import main
from deit_batch.limits import Limits

REPOSITORY = EXAMPLES.parent


def test_the_wheel_runs_outside_the_repository(built: tuple[Path, Path], tmp_path: Path) -> None:
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--target",
        str(tmp_path / "site"),
        str(built[1]),
    ]
    subprocess.run(install, check=True, capture_output=True)
    command = [sys.executable, str(tmp_path / "site" / "bin" / "deit-batch"), "score"]
    command += ["--input", str(EXAMPLES / "trouser"), "--model", "demo", "--out", "p.jsonl"]
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, cwd=tmp_path, env=env, check=True, capture_output=True)
    assert [record["predictions"][0]["label"] for record in read_jsonl(tmp_path / "p.jsonl")] == ["trouser"] * 4


def commands(text: str) -> list[str]:
    """The deit-batch commands of the shell blocks of a page."""
    blocks = "\n".join(re.findall(r"```(?:sh|console)\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
    return [line for line in blocks.splitlines() if "deit-batch " in line]


@pytest.mark.parametrize("page", ["README.md", "docs/index.md", "docs/usage.md"])
def test_every_option_in_the_docs_exists(page: str) -> None:
    found = commands((REPOSITORY / page).read_text())
    assert found
    for line in found:
        for name in re.findall(r"deit-batch (\w+)", line):
            known = {option for param in main.commands[name].params for option in param.opts + param.secondary_opts}
            assert set(re.findall(r"(?<=\s)--[a-z-]+", line)) <= known, line


def test_every_option_is_in_the_docs() -> None:
    usage = (REPOSITORY / "docs" / "usage.md").read_text()
    for name, command in main.commands.items():
        for param in command.params:
            if isinstance(param, click.Option) and param.name != "help":
                assert f"`{param.opts[0]}" in usage, f"{name} {param.opts[0]}"
    limits = re.search(r"they are the fields of `deit_batch.Limits`.*?:\n(.*?)\.\n", usage, re.DOTALL)
    assert limits
    assert {*re.findall(r"`(\w+)`", limits[1])} == {field.name for field in fields(Limits)}


def test_every_module_is_on_the_architecture_page() -> None:
    page = (REPOSITORY / "docs" / "architecture.md").read_text()
    paths = (REPOSITORY / "deit_batch").rglob("*.py")
    modules = {path.name for path in paths if not path.name.startswith("__")}
    named = set(re.findall(r"\b\w+\.py\b", page))
    commands = {path.name for path in (REPOSITORY / "deit_batch" / "commands").glob("[!_]*.py")}
    assert modules - commands <= named <= modules


def test_the_demo_models_card_states_its_accuracy() -> None:
    card = (REPOSITORY / "deit_batch" / "demo" / "README.md").read_text()
    (accuracy,) = re.findall(r"([\d.]+) % of the 10,000 test pictures", card)
    assert float(accuracy) >= 88
