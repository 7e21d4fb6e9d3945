"""What CI systems show of a gate."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_results import record, write

from deit_batch.cli import main
from deit_batch.errors import InputError, Interrupted
from deit_batch.system.junit import Case, Verdict, as_xml, write_junit

REQUIRED = {"testsuite": {"name", "tests", "failures", "errors"}, "testcase": {"name", "classname"}}
"""By the schema of Jenkins' xunit plugin, and what GitLab tells two tests apart by."""


def read(data: bytes) -> list[tuple[str, str, str]]:
    """Name, verdict and message of each test, of a document that holds what readers need."""
    root = ElementTree.fromstring(data)
    assert root.tag == "testsuites"
    (suite,) = root
    for element in suite.iter():
        assert REQUIRED.get(element.tag, set()) <= set(element.attrib)
    cases = [(case.attrib["name"], found.tag, found.text or "") for case in suite for found in case]
    assert int(suite.attrib["tests"]) == len(suite) == len(cases)
    for kind in ("failure", "error"):
        assert int(suite.attrib[f"{kind}s"]) == sum(tag == kind for _, tag, _ in cases)
        assert all(found.attrib["message"] == found.text for found in suite.iter(kind) if found.text)
    return cases


def gated(*args: object) -> Result:
    return CliRunner().invoke(main, list(map(str, args)))


def test_an_evaluation_s_gates_are_tests(tmp_path: Path) -> None:
    answers = [record(n, f"{n}.jpg", ("bag", 0.9), ("coat", 0.1)) for n in range(3)]
    write(tmp_path / "p.jsonl", [*answers, record(3, "3.jpg", error="broken")])
    (tmp_path / "labels.csv").write_text("image,label\n" + "".join(f"{n}.jpg,bag\n" for n in range(4)))
    command = [
        "evaluate",
        "--input",
        tmp_path / "labels.csv",
        "--predictions",
        tmp_path / "p.jsonl",
        "--out",
        tmp_path / "e",
    ]
    gates = ["--fail-under", "accuracy=0.9", "--fail-under", "AUC_macro=0.5", "--junit", tmp_path / "e.xml"]
    done = gated(*command, *gates)
    assert done.exit_code == 4, done.output
    auc, accuracy, images = read((tmp_path / "e.xml").read_bytes())
    assert accuracy == ("accuracy", "system-out", "accuracy is 1.0000, not under 0.9")
    assert auc[:2] == ("AUC_macro", "failure")
    assert "AUC_macro can't be had" in auc[2]
    assert images[:2] == ("images", "failure")
    assert "1 not judged" in images[2]


@pytest.mark.parametrize(
    ("bound", "status", "verdict", "message"),
    [
        ("0.5", 0, "system-out", "the agreement is 0.5000"),
        ("0.51", 4, "failure", "the agreement is 0.5000, under 0.51"),
    ],
)
def test_a_comparison_is_one_test(bound: str, status: int, verdict: str, message: str, tmp_path: Path) -> None:
    old = write(tmp_path / "old.jsonl", [record(0, "a.jpg", ("can", 0.9)), record(1, "b.jpg", ("can", 0.9))])
    new = write(tmp_path / "new.jsonl", [record(0, "a.jpg", ("can", 0.9)), record(1, "b.jpg", ("jar", 0.9))])
    assert gated("compare", old, new, "--fail-under", bound, "--junit", tmp_path / "c.xml").exit_code == status
    assert read((tmp_path / "c.xml").read_bytes()) == [("agreement", verdict, message)]


@pytest.mark.parametrize(
    "error", [InputError("the <disk> is gone"), Interrupted(15), ZeroDivisionError("of all things")]
)
def test_a_run_that_failed_is_an_error_and_no_older_success(error: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "j.xml"
    with write_junit(path, "deit-batch compare") as cases:
        cases.append(Case("agreement", "passed", "the agreement is 1.0000"))
    with pytest.raises(type(error)), write_junit(path, "deit-batch compare"):
        raise error
    assert read(path.read_bytes()) == [("run", "error", str(error))]
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_found_out_before_the_work(tmp_path: Path) -> None:
    old = write(tmp_path / "old.jsonl", [record(0, "a.jpg", ("can", 0.9))])
    done = gated("compare", old, old, "--junit", tmp_path / "no" / "c.xml")
    assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1)
    assert f"c.xml: there is no folder {tmp_path / 'no'}" in done.stderr


@settings(max_examples=50)
@given(st.lists(st.tuples(st.text(max_size=9), st.sampled_from(["passed", "failure", "error"]), st.text(max_size=9))))
def test_no_text_breaks_the_document(rows: list[tuple[str, Verdict, str]]) -> None:
    found = read(as_xml("deit-batch evaluate", [Case(*row) for row in rows]))
    for (name, tag, message), (was, verdict, said) in zip(found, rows, strict=True):
        assert tag == {"passed": "system-out"}.get(verdict, verdict)
        assert not was.isprintable() or name == was
        assert not said.isprintable() or message == said
