"""What a scheduled job leaves for the one who watches it."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path

import pytest
from helpers import EXAMPLES, deit_batch
from prometheus_client.parser import text_string_to_metric_families

from deit_batch.system.prometheus import write_metrics_file


def metrics(path: Path) -> dict[str, float]:
    text = path.read_text()
    names = re.findall(r"^# TYPE (\S+) gauge$", text, re.MULTILINE)
    found = dict(re.findall(r"^(\w+\{[^}]*\}) (\S+)$", text, re.MULTILINE))
    found = {re.sub(rf'\{{task="{path.stem}",?|\}}', "", name).replace("type", "{type"): found[name] for name in found}
    found = {name + "}" * ("{" in name): value for name, value in found.items()}
    assert {name.partition("{")[0] for name in found} == set(names)
    return {name: float(value) for name, value in found.items()}


def test_a_success_then_failures_of_each_kind(tmp_path: Path) -> None:
    picture = EXAMPLES / "bag" / "00018.png"
    (tmp_path / "t.txt").write_text(f"{picture}\nmissing.png\n")
    command = ["score", "--input", "t.txt", "--metrics-file", "deit.prom"]
    before = time.time()
    done = deit_batch(*command, "--model", "demo", "--out", "a.jsonl", "--error-threshold", "1", cwd=tmp_path)
    assert done.returncode == 0
    first = metrics(tmp_path / "deit.prom")
    assert before < first["deit_batch_last_success_timestamp_seconds"] < time.time()
    assert first["deit_batch_images_scored"] == 1
    assert first['deit_batch_images_failed{type="FetchError"}'] == 1
    assert 0 < first["deit_batch_run_seconds"] < time.time() - before
    for out, model, status, scored in [("b.jsonl", "demo", 3, 1), ("c.jsonl", "/nowhere", 2, 0)]:
        assert deit_batch(*command, "--model", model, "--out", out, cwd=tmp_path).returncode == status
        later = metrics(tmp_path / "deit.prom")
        assert later["deit_batch_exit_status"] == status
        assert later["deit_batch_images_scored"] == scored
        assert later["deit_batch_last_run_timestamp_seconds"] > first["deit_batch_last_run_timestamp_seconds"]
        name = "deit_batch_last_success_timestamp_seconds"
        assert later[name] == first[name]


def test_two_jobs_have_series_of_their_own(tmp_path: Path) -> None:
    """Of two files with the same series, the collector drops one."""
    names = ["day.prom", 'of "the\\night.prom']
    for name in names:
        with write_metrics_file(tmp_path / name, good=0):
            pass
    series = [set(re.findall(r"^(\w+\{.*\}) ", (tmp_path / name).read_text(), re.MULTILINE)) for name in names]
    assert len(series[0]) == len(series[1]) == 6
    assert not series[0] & series[1]
    families = [text_string_to_metric_families((tmp_path / name).read_text()) for name in names]
    tasks = [{sample.labels["task"] for family in found for sample in family.samples} for found in families]
    assert tasks == [{"day"}, {'of "the\\night'}]


def test_a_run_that_gave_up_says_how_far_it_got(tmp_path: Path) -> None:
    picture = EXAMPLES / "bag" / "00018.png"
    (tmp_path / "t.txt").write_text(f"{picture}\nmissing.png\n" * 40)
    command = ["score", "--input", "t.txt", "--model", "demo", "--metrics-file", "deit.prom", "--out", "a.jsonl"]
    assert deit_batch(*command, "--error-threshold", "2", cwd=tmp_path).returncode == 1
    found = metrics(tmp_path / "deit.prom")
    counts = json.loads((tmp_path / "a.jsonl.run.json").read_bytes())["counts"]
    assert found['deit_batch_images_failed{type="FetchError"}'] == counts["failed"] > 2
    assert found["deit_batch_images_scored"] == counts["scored"] > 0


def test_a_folder_that_is_not_there_is_found_out_before_the_run(tmp_path: Path) -> None:
    command = ["score", "--model", "demo", "--input", str(EXAMPLES), "--out", "a.jsonl", "--metrics-file"]
    done = deit_batch(*command, "no/deit.prom", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, "deit-batch: --metrics-file no/deit.prom: there is no folder no\n")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_run_keeps_its_status_if_its_metrics_can_not_be_written(tmp_path: Path, messages: list[str]) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    with pytest.raises(SystemExit, match="2"), write_metrics_file(folder / "deit.prom", good=0):
        vanish(folder)
    assert "can't be written: No such file or directory" in messages[-1]


def vanish(folder: Path) -> None:
    folder.rmdir()
    raise SystemExit(2)


def test_a_file_that_the_collector_would_not_read_is_wrong_usage(tmp_path: Path) -> None:
    command = ["score", "--model", "demo", "--out", "a.jsonl", "--metrics-file", "deit.txt"]
    done = deit_batch(*command, "--input", EXAMPLES, cwd=tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "the node exporter reads files that end in .prom" in done.stderr


def test_the_exporter_can_read_it_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with write_metrics_file(tmp_path / "deit.prom", good=0):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "deit.prom").stat().st_mode & 0o777 == 0o644


def test_a_first_failure_has_no_last_success(tmp_path: Path) -> None:
    path = tmp_path / "deit.prom"
    with pytest.raises(SystemExit), write_metrics_file(path, good=0):
        raise SystemExit(1)
    assert "deit_batch_last_success_timestamp_seconds" not in metrics(path)
    assert [name.name for name in tmp_path.iterdir()] == ["deit.prom"]
