"""The notebook: its cells are run, in an event loop, and show what is stored below them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from helpers import EXAMPLES

ROOT = EXAMPLES.parent
NOTEBOOK = ROOT / "docs" / "how-to" / "from-python.ipynb"


def shown(notebook: dict[str, Any]) -> list[Any]:
    return [cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_shows_what_its_cells_do(tmp_path: Path) -> None:
    shutil.copytree(EXAMPLES, tmp_path / "imgs")
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "notebook.py", NOTEBOOK, "run.ipynb"],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        text=True,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert shown(json.loads((tmp_path / "run.ipynb").read_text())) == shown(json.loads(NOTEBOOK.read_text()))
    assert "8/8" in done.stderr  # the bar
