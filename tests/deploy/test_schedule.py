"""The files of deploy/ that start runs by themselves: read as cron, systemd and Kubernetes read them, and run."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from click.testing import CliRunner
from helpers import COMMAND, EXAMPLES, read_jsonl

from deit_batch.cli import main
from deit_batch.commands.score import score
from deit_batch.output.threshold import ErrorThreshold
from deit_batch.system.lock import Lock

DEPLOY = EXAMPLES.parent / "deploy"
SYSTEMD = DEPLOY / "systemd"


def crontab() -> tuple[dict[str, str], str]:
    """The variables of the crontab, and the command of its one line, as crontab(5) has it: an unescaped % would end
    it, \\% is a %."""
    lines = [line for line in (DEPLOY / "crontab").read_text().splitlines() if line and not line.startswith("#")]
    *settings, entry = lines
    *when, command = entry.split(maxsplit=5)
    assert when == ["30", "2", "*", "*", "*"]
    return dict(line.split("=", 1) for line in settings), re.split(r"(?<!\\)%", command)[0].replace(r"\%", "%")


def unit(name: str) -> dict[str, list[str]]:
    """The settings of a unit, each with all its values: comments dropped, lines joined, specifiers left as they are."""
    text = re.sub(r"^[#;].*\n", "", (SYSTEMD / name).read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    settings: dict[str, list[str]] = {}
    for key, value in re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE):
        settings.setdefault(key, []).append(value)
    return settings


def exec_start() -> list[str]:
    (line,) = unit("deit-batch.service")["ExecStart"]
    assert not re.search(r"(?<!%)%(?!%)", line)  # no specifier is meant
    return shlex.split(line.replace("%%", "%"))


def cronjob() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "kubernetes" / "cronjob.yaml").read_text())
    return found


def pod() -> dict[str, Any]:
    found: dict[str, Any] = cronjob()["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    return found


def here(text: str, tmp_path: Path) -> str:
    """With the places of this test for those of a server."""
    places = {
        "/opt/deit-batch/bin": str(Path(COMMAND).parent),
        "/opt/deit-batch/model": "demo",
        "/data/images": str(tmp_path / "images"),
        "/var/lib/deit-batch": str(tmp_path),
        "/var/lib/node_exporter": str(tmp_path),
        "/data/preds": str(tmp_path / "preds"),
    }
    return re.sub("|".join(places), lambda found: places[found[0]], text)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return Path(shutil.copytree(EXAMPLES / "trouser", tmp_path / "images"))


def by_cron(tmp_path: Path) -> subprocess.CompletedProcess[str]:
    settings, command = crontab()
    environment = {"HOME": str(tmp_path), "LOGNAME": "deit-batch", **settings, "PATH": here(settings["PATH"], tmp_path)}
    if "PYTHONPATH" in os.environ:  # of a source tree that is not installed
        environment["PYTHONPATH"] = os.environ["PYTHONPATH"]
    line = [settings["SHELL"], "-c", here(command, tmp_path)]
    return subprocess.run(line, cwd=tmp_path, env=environment, text=True, capture_output=True, check=False)


def test_the_crontab_line_mails_what_went_wrong_and_keeps_a_second_run_away(images: Path, tmp_path: Path) -> None:
    done = by_cron(tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len(read_jsonl(tmp_path / "preds.jsonl")) == 4
    (images / "broken.png").write_bytes(b"no image")
    failed = by_cron(tmp_path)
    assert (failed.returncode, failed.stdout) == (3, "")
    assert "1 failed (1 DecodeError)" in failed.stderr  # this is mailed
    (images / "broken.png").unlink()
    result = (tmp_path / "preds.jsonl").read_bytes()
    shutil.copy(EXAMPLES / "bag" / "00018.png", images)
    code = "import sys; from pathlib import Path; from deit_batch.system.lock import Lock\n"
    code += "held = Lock(Path(sys.argv[1]), 'it'); print(flush=True); sys.stdin.read()"
    holder = [sys.executable, "-c", code, str(tmp_path / "preds.jsonl.lock")]
    with subprocess.Popen(holder, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout
        assert other.stdout.readline()
        second = by_cron(tmp_path)
        other.kill()
    assert second.returncode == 1
    (mailed,) = second.stderr.splitlines()
    assert f"preds.jsonl is being written by process {other.pid} on " in mailed
    assert (tmp_path / "preds.jsonl").read_bytes() == result
    metrics = (tmp_path / "deit_batch.prom").read_text()
    assert re.search(r'^deit_batch_exit_status\{task="[\w-]+"\} 1$', metrics, re.MULTILINE)
    assert "\ndeit_batch_last_success_timestamp_seconds{" in metrics
    Lock(tmp_path / "preds.jsonl.lock", "it").release()  # that of a dead process holds nobody up


@pytest.mark.parametrize("way", ["systemd", "kubernetes"])
def test_what_systemd_and_kubernetes_run(way: str, images: Path, tmp_path: Path) -> None:
    words = exec_start()[1:] if way == "systemd" else [*pod()["containers"][0]["args"], "--model", "demo"]
    done = CliRunner().invoke(main, [here(word, tmp_path) for word in (*words, "--workers", "0")])
    assert done.exit_code == 0, done.output
    assert len(read_jsonl(tmp_path / "preds.jsonl")) == 4


def test_all_three_ask_for_the_same() -> None:
    ways = [shlex.split(crontab()[1]), exec_start(), ["", *pod()["containers"][0]["args"]]]
    asked = []
    for words in ways:
        with score.make_context(
            "score", [word.replace("/data/images", str(EXAMPLES)) for word in words[2:]]
        ) as context:
            asked.append([context.params[name] for name in ("input", "incremental", "error_threshold")])
    assert asked == [[(str(EXAMPLES),), True, ErrorThreshold(1, percent=True)]] * 3


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("needs systemd-analyze, of Debian's package systemd")
    units = sorted(SYSTEMD.iterdir())
    for path in units:
        (tmp_path / path.name).write_text(here(path.read_text(), tmp_path))
    names = [f"./{path.name}" for path in units]
    checked = subprocess.run(["systemd-analyze", "verify", *names], cwd=tmp_path, capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")
    limit = ["systemd-analyze", "security", "--offline=true", "--threshold=20", "./deit-batch.service"]
    guarded = subprocess.run(limit, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert guarded.returncode == 0, guarded.stdout[-300:]


def test_the_cron_job_is_one_to_kubernetes() -> None:
    kubernetes_validate.validate(cronjob(), kubernetes_validate.latest_version(), strict=True)


def test_neither_tries_again_what_would_only_come_again() -> None:
    assert unit("deit-batch.service")["RestartPreventExitStatus"] == ["2 3"]
    (rule,) = [
        rule for rule in cronjob()["spec"]["jobTemplate"]["spec"]["podFailurePolicy"]["rules"] if "onExitCodes" in rule
    ]
    assert rule["onExitCodes"] == {"containerName": pod()["containers"][0]["name"], "operator": "In", "values": [2, 3]}
