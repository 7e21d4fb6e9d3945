"""stderr as other programs read it: jq, a scheduler, systemd's journal."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from helpers import COMMAND, EXAMPLES, deit_batch, valid

from deit_batch import runner
from deit_batch.cli import main
from deit_batch.output import merge
from deit_batch.system.logs import set_up_logging

SCORE = ["score", "--workers", "0"]
DEMO = [*SCORE, "--model", "demo", "--out", "p.jsonl"]


def told(stderr: str) -> list[dict[str, Any]]:
    """The log, every line of which must be what the schema says."""
    return [valid(json.loads(line), "log-line") for line in stderr.splitlines()]


def invoke(*args: str, **more: Any) -> tuple[int, list[dict[str, Any]]]:
    done = CliRunner().invoke(main, args, **more)
    return done.exit_code, told(done.stderr)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["score", "--log-format", "json", "--colour", "red"], "No such option '--colour'"),
        (["score", "--log-format=json"], "Missing option '--input'"),
        (["score", "--top-k", "0", "--input", "a", "--log-format", "json"], "'0' is neither a number from 1 up"),
        (["score", "--log-format", "text", "--log-format", "json", "--shard"], "requires an argument"),
        (["merge", "--log-format", "json", "--out", "p.jsonl"], "Missing argument 'SHARDS...'"),
        (["scroe", "--log-format", "json"], "No such command 'scroe'"),
        (["--log-format", "json", "score"], "No such option '--log-format'"),
    ],
)
def test_wrong_usage_that_click_finds_is_json_where_that_is_asked_for(wrong: list[str], says: str) -> None:
    status, (line,) = invoke(*wrong)
    assert (status, line["level"]) == (2, "error")
    assert says in line["message"]


def test_a_variable_or_file_of_options_may_ask_for_it_and_the_command_line_outranks_them(tmp_path: Path) -> None:
    variable = {"DEIT_BATCH_SCORE_LOG_FORMAT": "json"}
    assert invoke("score", env=variable)[0] == 2
    (tmp_path / "options.toml").write_text('log-format = "json"\n')
    file = ("score", "--config", str(tmp_path / "options.toml"))
    assert invoke(*file)[0] == 2
    assert invoke(*file, "--outt", "x")[0] == 2  # found before the file is read
    assert invoke("score", "--outt", "x", env={"DEIT_BATCH_SCORE_CONFIG": file[-1]})[0] == 2
    (tmp_path / "wrong.toml").write_text('quite = true\n[score]\nlog_format = "json"\n')
    assert "no option quite (do you mean quiet?)" in invoke(*file[:2], str(tmp_path / "wrong.toml"))[1][0]["message"]
    plain = CliRunner().invoke(main, [*file, "--log-format", "text"], env=variable)
    assert plain.exit_code == 2
    assert "Usage: " in plain.stderr
    assert "Usage: " in CliRunner().invoke(main, ["score"]).stderr


def test_every_line_of_a_run_is_json_however_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.txt").write_text(f"{EXAMPLES}/bag/00018.png\nnone.jpg\n")
    command = [*DEMO, "--input", "t.txt", "--log-format", "json", "--verbose"]
    status, lines = invoke(*command)
    assert (status, lines[-1]["level"]) == (3, "error")
    assert "1 of 2 images scored, 1 failed (1 FetchError)" in lines[-1]["message"]
    status, lines = invoke(*command, "--fresh", "--error-threshold", "0")
    assert (status, lines[-1]["level"]) == (1, "error")
    assert lines[-1]["message"].startswith("given up: 1 of 2 inputs failed")
    how = ["--input", "t.txt", "--log-format", "json", "--verbose"]
    status, lines = invoke(*SCORE, *how, "--out", "p.jsonl", "--fresh", "--model", str(tmp_path))
    assert status == 2
    assert "Traceback" in lines[-1]["traceback"]
    assert invoke(*SCORE, *how, "--model", "demo", "--out", "none/none/p.jsonl")[0] == 2

    def broken(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError("of\nall things")

    monkeypatch.setattr(runner, "run", broken)
    status, lines = invoke(*command)
    assert (status, [line["level"] for line in lines]) == (1, ["error", "error"])


def test_ctrl_c_is_a_line_and_status_130_wherever_it_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in a command, or at a time, at which there is nothing to be finished first."""

    def interrupted(*args: object, **kwargs: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)

    monkeypatch.setattr(merge, "merge", interrupted)
    status, lines = invoke("merge", "a.jsonl", "--out", str(tmp_path / "p.jsonl"), "--log-format", "json")
    # What other tests of this process have left may be cleared away meanwhile, and say so.
    stopped = [line["level"] for line in lines if line["message"].startswith("stopped by SIGINT")]
    assert (status, stopped) == (130, ["error"]), lines


def test_nothing_else_comes_to_stderr_of_a_real_process(tmp_path: Path) -> None:
    """Neither bars nor colours, whatever the environment promises, nor what libtiff says of a broken file."""
    (tmp_path / "imgs").mkdir()
    (tmp_path / "imgs" / "good.png").write_bytes((EXAMPLES / "bag" / "00018.png").read_bytes())
    (tmp_path / "imgs" / "broken.tiff").write_bytes(b"II*\0\x08\0\0\0\xff\xff" + b"\1" * 400)
    env = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": "80", "TERM": "xterm-256color"}
    command = [
        "score",
        "--model",
        "demo",
        "--out",
        "p.jsonl",
        "--input",
        "imgs",
        "--workers",
        "1",
        "--log-format",
        "json",
    ]
    done = deit_batch(*command, cwd=tmp_path, env=env)
    assert done.returncode == 3
    assert told(done.stderr)
    assert not {"\x1b", "\r"} & set(done.stderr)


def test_the_journal_gets_the_priority_of_wrong_usage_that_click_finds(tmp_path: Path) -> None:
    with open(tmp_path / "stderr", "w") as file:
        status = os.fstat(file.fileno())
        env = {**os.environ, "JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        done = subprocess.run([COMMAND, "score", "--top-k", "0"], stderr=file, env=env, check=False)
    assert done.returncode == 2
    assert (tmp_path / "stderr").read_text().startswith("<3>deit-batch: Invalid value for '--top-k'")


@pytest.mark.parametrize(
    ("connected", "as_json", "expected"),
    [
        (True, False, "<3>deit-batch: no\\nroom\n<4>deit-batch: late\n<6>deit-batch: done\n"),
        (False, False, "deit-batch: no\\nroom\ndeit-batch: late\ndeit-batch: done\n"),
        (True, True, None),
    ],
)
def test_the_journal_gets_priorities(
    connected: bool, as_json: bool, expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(tmp_path / "stderr", "w") as file:
        status = os.fstat(file.fileno())
        inode = status.st_ino if connected else status.st_ino + 1
        monkeypatch.setattr(sys, "stderr", file)
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{inode}")
        set_up_logging(quiet=False, verbose=False, log_format="json" if as_json else "text")
        logger = logging.getLogger("deit_batch")
        logger.error("no\nroom")
        logger.warning("late")
        logger.info("done")
    text = (tmp_path / "stderr").read_text()
    assert text == expected or (expected is None and len(told(text)) == 3)
