"""What a name is: every kind, and which comes first where a name could be two."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from deit_batch.input.kinds import IMAGES, PACKINGS, TABLES, TARS, InputKind, InputName, parse_input_name


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to be in: `folder`, `a.jpg`, and `t.csv` are there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.jpg").touch()
    (tmp_path / "t.csv").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        ("folder", InputName(InputKind.FOLDER, exists=True)),
        ("folder/", InputName(InputKind.FOLDER, exists=True)),
        ("a.jpg", InputName(InputKind.IMAGE, exists=True)),
        ("./a.jpg", InputName(InputKind.IMAGE, exists=True)),
        ("t.csv", InputName(InputKind.CSV, exists=True)),
        ("-", InputName(InputKind.STDIN)),
        ("*.jpg", InputName(InputKind.GLOB)),
        ("folder/**", InputName(InputKind.GLOB)),
        ("a[1].jpg", InputName(InputKind.GLOB)),
        ("?.csv", InputName(InputKind.GLOB)),
        ("hf://beans?split=test", InputName(InputKind.DATA_SET)),
        ("hf://datasets/someone/beans", InputName(InputKind.DATA_SET)),
        ("hf:///a/folder/x.csv", InputName(InputKind.DATA_SET)),
        ("hf://beans.tar", InputName(InputKind.DATA_SET)),
        ("x.tar", InputName(InputKind.TARS)),
        ("x-{00..12}.tar", InputName(InputKind.TARS)),
        ("x-*.tar", InputName(InputKind.TARS)),
        ("x.tgz", InputName(InputKind.TARS)),
        ("x.tar.gz", InputName(InputKind.TARS)),
        ("x.txt", InputName(InputKind.LIST)),
        ("x.tsv", InputName(InputKind.TSV)),
        ("x.jsonl", InputName(InputKind.JSON_LINES)),
        ("x.ndjson", InputName(InputKind.JSON_LINES)),
        ("x.json", InputName(InputKind.DOCUMENT)),
        ("x.parquet", InputName(InputKind.PARQUET)),
        ("x.csv.gz", InputName(InputKind.CSV)),
        ("X.TXT.GZ", InputName(InputKind.LIST)),
        ("x.csv.gz.gz", InputName(InputKind.UNKNOWN)),
        ("x.csv.zst", InputName(InputKind.CSV)),
        ("x.jsonl.xz", InputName(InputKind.JSON_LINES)),
        ("x.tar.bz2", InputName(InputKind.TARS)),
        ("x.tzst", InputName(InputKind.TARS)),
        ("x-{a,b}.tar::y.tar", InputName(InputKind.TARS)),
        ("x.zip", InputName(InputKind.ZIP)),
        ("x.csv.ZIP", InputName(InputKind.ZIP)),
        (".zip", InputName(InputKind.UNKNOWN)),
        ("x.jpg", InputName(InputKind.IMAGE)),
        ("X.JPEG", InputName(InputKind.IMAGE)),
        ("x.jpg.gz", InputName(InputKind.UNKNOWN)),
        ("x.doc", InputName(InputKind.UNKNOWN)),
        (".jpg", InputName(InputKind.UNKNOWN)),
        (".csv", InputName(InputKind.UNKNOWN)),
        ("x.csv/", InputName(InputKind.UNKNOWN)),
        ("", InputName(InputKind.UNKNOWN)),
        (" -", InputName(InputKind.UNKNOWN)),
        ("\0", InputName(InputKind.UNKNOWN)),
        ("http://host/x.doc?*", InputName(InputKind.UNKNOWN)),
        ("HF://beans", InputName(InputKind.UNKNOWN)),
    ],
)  # fmt: skip
def test_a_name_is_what_is_there_or_what_its_ending_says(spec: str, kind: InputName, here: Path) -> None:
    assert parse_input_name(spec) == kind


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        ("s3://bucket/x.JPG", InputName(InputKind.IMAGE, stored=True)),
        ("s3://bucket/x.tar", InputName(InputKind.TARS, stored=True)),
        ("gs://bucket/x.csv.gz", InputName(InputKind.CSV, stored=True)),
        ("s3://bucket", InputName(InputKind.FOLDER, stored=True)),
        ("s3://bucket/x.jpg/", InputName(InputKind.FOLDER, stored=True)),
        ("s3://bucket/x.doc", InputName(InputKind.FOLDER, stored=True)),
        ("s3://bucket/x.gz", InputName(InputKind.FOLDER, stored=True)),
        ("s3://bucket/*", InputName(InputKind.FOLDER, stored=True)),
        ("s3://bucket/*.jpg", InputName(InputKind.IMAGE, stored=True)),
        ("hf://datasets/someone/beans/data/", InputName(InputKind.FOLDER, stored=True)),
        ("hf://datasets/someone/beans/x.parquet", InputName(InputKind.PARQUET, stored=True)),
        ("hf://buckets/someone/mine/a.jpg", InputName(InputKind.IMAGE, stored=True)),
    ],
)  # fmt: skip
def test_on_a_store_the_ending_alone_says_it(spec: str, kind: InputName, here: Path) -> None:
    assert parse_input_name(spec) == kind


@pytest.mark.parametrize("name", ["x.jpg", "x.csv", "x.txt", "x.tar", "x.tar.gz", "*.jpg", "x-*.tar", "hf:/beans"])
def test_a_folder_is_one_whatever_it_is_called(name: str, here: Path) -> None:
    (here / name).mkdir(parents=True)
    assert parse_input_name(name).kind is InputKind.FOLDER
    assert parse_input_name(name.replace(":/", "://")).kind is InputKind.FOLDER


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("a[1].jpg", InputKind.IMAGE),
        ("*.jpg", InputKind.IMAGE),
        ("t[1].csv", InputKind.CSV),
        ("x-*.tar", InputKind.TARS),
        ("x[1].doc", InputKind.UNKNOWN),
        ("-", InputKind.STDIN),
    ],
)  # fmt: skip
def test_what_is_there_is_no_pattern(name: str, what: InputKind, here: Path) -> None:
    (here / name).touch()
    assert parse_input_name(name) == InputName(what, exists=True)


def test_a_link_that_leads_nowhere_is_there_and_one_to_a_folder_is_a_folder(here: Path) -> None:
    for name, target in {"x.jpg": "nowhere", "x[1].jpg": "nowhere", "y.jpg": "folder"}.items():
        (here / name).symlink_to(target)
    assert parse_input_name("x.jpg") == parse_input_name("x[1].jpg") == InputName(InputKind.IMAGE, exists=True)
    assert parse_input_name("y.jpg") == InputName(InputKind.FOLDER, exists=True)


def test_of_files_only_an_image_that_is_there_comes_before_a_data_set(here: Path) -> None:
    (here / "hf:").mkdir()
    assert parse_input_name("hf://x.jpg") == InputName(InputKind.DATA_SET)
    (here / "hf:" / "x.jpg").touch()
    (here / "hf:" / "x.csv").touch()
    assert parse_input_name("hf://x.jpg") == InputName(InputKind.IMAGE, exists=True)
    assert parse_input_name("hf://x.csv") == InputName(InputKind.DATA_SET, exists=True)


starts = st.sampled_from(["", "-", "*", "[", "hf://", "hf://datasets/a/b/", "s3://b/", "x://", "/", "~", "\0"])
endings = st.sampled_from(["", "/", ".zip", *PACKINGS, *IMAGES, *TARS, *TABLES])
case = st.sampled_from([str, str.upper])


@given(st.builds(lambda start, name, ending, case: case(start + name + ending), starts, st.text(), endings, case))
@example("x" * 10_000)
def test_any_name_is_of_one_kind_and_stays_so(spec: str) -> None:
    assert parse_input_name(spec) == parse_input_name(spec)
