"""Scripts whose workers are not forked: macOS, Windows, and Python 3.14 start them by reading the script again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import EXAMPLES

_SCRIPT = """
import multiprocessing
from deit_batch import score

if multiprocessing.get_start_method(allow_none=True) is None:
    multiprocessing.set_start_method({method!r})
{guard}
    for record in score({folder!r}, model="demo", workers=1, limit=2):
        print(record.image, record.predictions[0]["label"])
"""


def _run(script: Path, method: str, guard: str) -> subprocess.CompletedProcess[str]:
    script.write_text(_SCRIPT.format(method=method, guard=guard, folder=str(EXAMPLES / "bag")))
    return subprocess.run([sys.executable, script], text=True, capture_output=True, timeout=100, check=False)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_script_that_its_workers_would_run_is_one_error_at_once(tmp_path: Path, method: str) -> None:
    done = _run(tmp_path / "script.py", method, "if True:")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("Traceback") == 1  # the script's own, and none of a worker's
    assert 'must score within `if __name__ == "__main__":`' in done.stderr.splitlines()[-1]


def test_a_script_that_says_what_is_to_be_run_scores(tmp_path: Path) -> None:
    done = _run(tmp_path / "script.py", "spawn", 'if __name__ == "__main__":')
    assert (done.returncode, len(done.stdout.splitlines()), done.stderr) == (0, 2, "")
