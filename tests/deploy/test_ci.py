"""What CI pipelines run: gates as test results and annotations, the GitHub action and the GitLab job, step by step."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from click.testing import CliRunner, Result
from helpers import COMMAND, EXAMPLES, deit_batch, read_jsonl

from deit_batch.cli import main

REPOSITORY = EXAMPLES.parent
ACTION: dict[str, Any] = yaml.safe_load((REPOSITORY / "action.yml").read_text("utf-8"))
GITLAB = REPOSITORY / "deploy/gitlab/deit-batch.gitlab-ci.yml"
JOB: dict[str, Any] = yaml.safe_load(GITLAB.read_text("utf-8"))


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """The demo model on its samples, with a gate that is passed and one that is not."""
    folder = tmp_path_factory.mktemp("evaluation")
    gates = ["--fail-under", "accuracy=0.5", "--fail-under", "f1_macro=0.999"]
    out = ["--out", str(folder / "out"), "--junit", str(folder / "junit.xml"), "--log-format", "github"]
    done = CliRunner().invoke(main, ["evaluate", "--input", str(EXAMPLES), "--model", "demo", *gates, *out])
    return folder, done


def results(path: Path) -> dict[str, str]:
    """Of each test its verdict."""
    return {case.attrib["name"]: case[0].tag for case in ElementTree.parse(path).iter("testcase")}


def test_a_gate_that_is_not_passed_is_an_annotation(evaluation: tuple[Path, Result]) -> None:
    folder, done = evaluation
    assert done.exit_code == 4
    assert results(folder / "junit.xml") == {"accuracy": "system-out", "f1_macro": "failure", "images": "system-out"}
    assert "::error title=deit-batch::--fail-under: f1_macro is 0.9" in done.stderr


def test_failures_that_are_allowed_are_a_warning(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(f"{EXAMPLES}/bag/00018.png\nmissing.png\n")
    command = ["score", "--input", str(tmp_path / "t.txt"), "--model", "demo", "--out", str(tmp_path / "p.jsonl")]
    done = CliRunner().invoke(main, [*command, "--workers", "0", "--error-threshold", "1", "--log-format", "github"])
    assert done.exit_code == 0
    assert "::warning title=deit-batch::1 of 2 images scored, 1 failed (1 FetchError)" in done.stderr
    assert "--error-threshold allows" not in done.stderr


def test_an_annotation_stays_one_line() -> None:
    done = CliRunner().invoke(main, ["score", "--input", "no\nfolder%", "--out", "x.jsonl", "--log-format", "github"])
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("::error title=deit-batch::no folder%25: no such file or folder")


# --- the action -------------------------------------------------------------------------------------------------------


def run_gate(folder: Path, **inputs: str) -> tuple[int, str, dict[str, str]]:
    """The action's last step, as a runner would run it: its status, stderr, and the outputs it has set."""
    given = {name: value.get("default", "") for name, value in ACTION["inputs"].items()} | inputs
    step = ACTION["runs"]["steps"][-1]
    variables = {
        name: re.sub(r"\$\{\{ inputs\.([a-z-]+) \}\}", lambda found: given[found[1]], value)
        for name, value in step["env"].items()
    }
    runner = {
        "PATH": f"{Path(COMMAND).parent}:{os.environ['PATH']}",
        "HOME": str(folder),
        "HF_HUB_OFFLINE": "1",
        "GITHUB_ACTION_PATH": str(REPOSITORY),
        "GITHUB_OUTPUT": str(folder / "output"),
        "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
    }
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", step["run"]],
        cwd=folder,
        env={**os.environ, **runner, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    outputs = dict(line.split("=", 1) for line in (folder / "output").read_text().splitlines())
    return done.returncode, done.stderr, outputs


def test_the_action_scores_gates_and_compares(tmp_path: Path) -> None:
    (tmp_path / "my photos").symlink_to(EXAMPLES)
    inputs = {"input": "my photos", "model": "demo"}
    gates = {"fail-under": "accuracy=0.5\nf1_macro=0.5\n", "baseline": "none-yet.json"}
    status, errors, outputs = run_gate(tmp_path, **inputs, **gates)
    assert (status, "::error" in errors) == (0, False), errors
    predictions = tmp_path / outputs["predictions"]
    assert len(read_jsonl(predictions)) == 40
    assert "accuracy" in (tmp_path / "summary.md").read_text()
    assert [path.name for path in tmp_path.glob(outputs["junit"])] == ["junit-evaluate.xml"]

    shutil.copy(predictions, tmp_path / "previous.jsonl")
    shutil.copy(predictions.with_name("metrics.json"), tmp_path / "baseline.json")
    more = {"fail-under": "accuracy=0.99", "previous": "previous.jsonl", "out": "again", "error-threshold": "1%"}
    more |= {"baseline": "baseline.json", "max-drop": "accuracy=0.01\nf1_macro=0.01\n"}
    status, errors, outputs = run_gate(tmp_path, **inputs, **more)
    assert status == 4
    tests = results(tmp_path / "again" / "junit-evaluate.xml")
    assert (tests["accuracy"], tests["drop of accuracy"], tests["drop of f1_macro"]) == ("failure", *["system-out"] * 2)
    assert "::error title=deit-batch::--fail-under: accuracy is" in errors
    found = sorted(path.name for path in (tmp_path / "again").glob("junit-*.xml"))
    assert found == ["junit-compare.xml", "junit-evaluate.xml"]  # the first gate's failure has not kept the other away


def test_what_an_input_says_is_no_command(tmp_path: Path) -> None:
    gates = {"max-drop": "accuracy=0.01", "baseline": "none-yet.json"}
    status, errors, outputs = run_gate(
        tmp_path, input='"; touch owned; $(touch owned) `touch owned`', model="demo", **gates
    )
    assert status == 2
    assert outputs["predictions"] == "deit-batch/evaluation/predictions.jsonl"  # max-drop alone is a gate, too
    assert "no such file or folder" in errors
    assert not (tmp_path / "owned").exists()
    steps = ACTION["runs"]["steps"]
    assert not any("${{" in step["run"] for step in steps)
    for step in steps:
        script = REPOSITORY / step["run"].strip('"').removeprefix("$GITHUB_ACTION_PATH/")
        assert os.access(script, os.X_OK)
        assert "${{" not in script.read_text()


# --- the job ----------------------------------------------------------------------------------------------------------


def test_the_gitlab_job_leaves_what_its_artifacts_name(tmp_path: Path) -> None:
    job = JOB["score-and-gate"]
    (tmp_path / "val").symlink_to(EXAMPLES)
    deit_batch("score", "--input", "val/", "--model", "demo", "--out", "previous.jsonl", cwd=tmp_path)
    variables = {**job["variables"], "DEIT_BATCH_EVALUATE_MODEL": "demo"}
    path = f"{Path(COMMAND).parent}:{os.environ['PATH']}"
    script = "set -e\n" + "\n".join(job["script"])
    done = subprocess.run(
        ["sh", "-c", script],
        cwd=tmp_path,
        env={**os.environ, **variables, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for pattern in (*job["artifacts"]["paths"], job["artifacts"]["reports"]["junit"]):
        assert list(tmp_path.glob(pattern)), pattern
    assert set(results(tmp_path / "junit-evaluate.xml").values()) == {"system-out"}


@pytest.mark.parametrize("schema", ["github-actions", "gitlab-ci", "github-workflows"])
def test_the_services_schemas(schema: str, tmp_path: Path) -> None:
    """Of the action, of the job, of the workflow that docs/ci.md shows, and of this repository's own."""
    page = (REPOSITORY / "docs/ci.md").read_text("utf-8")
    (workflow,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "workflow.yml").write_text(workflow)
    files = {
        "github-actions": [REPOSITORY / "action.yml"],
        "gitlab-ci": [GITLAB],
        "github-workflows": [tmp_path / "workflow.yml", *(REPOSITORY / ".github/workflows").iterdir()],
    }
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}"]
    checked = subprocess.run([*command, *files[schema]], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
    (step,) = [step for step in yaml.safe_load(workflow)["jobs"]["gate"]["steps"] if step.get("id") == "gate"]
    assert set(step["with"]) <= set(ACTION["inputs"])
