"""What CI pipelines run: gates as test results and annotations, the GitHub action and the GitLab job, step by step."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from click.testing import CliRunner, Result
from conftest import COMMAND, EXAMPLES, deit_batch, read_jsonl
from hypothesis import given
from hypothesis import strategies as st

from deit_batch.cli import main
from deit_batch.junit import write_junit

REPOSITORY = EXAMPLES.parent
ACTION: dict[str, Any] = yaml.safe_load((REPOSITORY / "action.yml").read_text("utf-8"))
JOB: dict[str, Any] = yaml.safe_load((REPOSITORY / "deploy/gitlab/deit-batch.gitlab-ci.yml").read_text("utf-8"))


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """The demo model on its samples, with a gate that is passed and one that is not."""
    folder = tmp_path_factory.mktemp("evaluation")
    gates = ["--fail-under", "accuracy=0.5", "--fail-under", "f1_macro=0.999"]
    out = ["--out", str(folder / "out"), "--junit", str(folder / "junit.xml"), "--log-format", "github"]
    done = CliRunner().invoke(main, ["evaluate", "--input", str(EXAMPLES), "--model", "demo", *gates, *out])
    return folder, done


def results(path: Path) -> dict[str, str | None]:
    """Of each test its failure."""
    found: dict[str, str | None] = {}
    for suite in ElementTree.parse(path).getroot():
        cases = suite.findall("testcase")
        failures = [case.find("failure") for case in cases]
        assert suite.get("tests") == str(len(cases))
        assert suite.get("failures") == str(sum(failure is not None for failure in failures))
        for case, failure in zip(cases, failures, strict=True):
            assert case.get("classname") == suite.get("name")
            found[str(case.get("name"))] = None if failure is None else failure.get("message")
    return found


def test_gates_are_test_results_and_annotations(evaluation: tuple[Path, Result]) -> None:
    folder, done = evaluation
    assert done.exit_code == 4
    found = results(folder / "junit.xml")
    assert list(found) == ["accuracy ≥ 0.5", "f1_macro ≥ 0.999"]
    assert found["accuracy ≥ 0.5"] is None
    why = found["f1_macro ≥ 0.999"]
    assert why
    assert f"::error title=deit-batch::--fail-under: {why}\n" in done.stderr


def test_agreement_is_a_gate(evaluation: tuple[Path, Result], tmp_path: Path) -> None:
    predictions = str(evaluation[0] / "out" / "predictions.jsonl")
    changed = [record | {"predictions": record["predictions"][1:]} for record in read_jsonl(Path(predictions))]
    (tmp_path / "other.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in changed))
    other, junit = str(tmp_path / "other.jsonl"), str(tmp_path / "junit.xml")
    same = CliRunner().invoke(main, ["compare", predictions, predictions, "--fail-under", "1", "--junit", junit])
    assert (same.exit_code, results(Path(junit))) == (0, {"agreement ≥ 1": None})
    done = CliRunner().invoke(main, ["compare", predictions, other, "--fail-under", "0.99", "--junit", junit])
    assert (done.exit_code, results(Path(junit))) == (4, {"agreement ≥ 0.99": "the agreement is 0.0000, under 0.99"})


def test_an_annotation_stays_one_line() -> None:
    done = CliRunner().invoke(main, ["score", "--input", "no\nfolder%", "--out", "x.jsonl", "--log-format", "github"])
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("::error title=deit-batch::no folder%25: no such file or folder")


@given(st.dictionaries(st.text(), st.none() | st.text()))
def test_any_text_makes_xml(tmp_path_factory: pytest.TempPathFactory, gates: dict[str, str | None]) -> None:
    path = tmp_path_factory.getbasetemp() / "any.xml"
    write_junit(path, "evaluate", gates)
    root = ElementTree.parse(path).getroot()
    assert [case.find("failure") is None for case in root.iter("testcase")] == [why is None for why in gates.values()]


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
    status, errors, outputs = run_gate(tmp_path, **inputs, **{"fail-under": "accuracy=0.5\nf1_macro=0.5\n"})
    assert (status, "::error" in errors) == (0, False), errors
    predictions = tmp_path / outputs["predictions"]
    assert len(read_jsonl(predictions)) == 40
    assert "accuracy" in (tmp_path / "summary.md").read_text()
    assert [path.name for path in tmp_path.glob(outputs["junit"])] == ["junit-evaluate.xml"]

    shutil.copy(predictions, tmp_path / "previous.jsonl")
    more = {"fail-under": "accuracy=0.99", "previous": "previous.jsonl", "out": "again"}
    status, errors, outputs = run_gate(tmp_path, **inputs, **more)
    assert status == 4
    assert "::error title=deit-batch::--fail-under: accuracy is" in errors
    found = sorted(path.name for path in (tmp_path / "again").glob("junit-*.xml"))
    assert found == ["junit-compare.xml", "junit-evaluate.xml"]  # the first gate's failure has not kept the other away


def test_what_an_input_says_is_no_command(tmp_path: Path) -> None:
    status, errors, _ = run_gate(tmp_path, input='"; touch owned; $(touch owned) `touch owned`', model="demo")
    assert status == 2
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
    assert set(results(tmp_path / "junit-evaluate.xml").values()) == {None}
