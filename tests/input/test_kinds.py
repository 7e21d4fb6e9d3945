"""What a name is: every kind, and which comes first where a name could be two."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from deit_batch.input.kinds import IMAGES, TABLES, TARS, Kind, What, kind_of


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
        ("folder", Kind(What.FOLDER, exists=True)),
        ("folder/", Kind(What.FOLDER, exists=True)),
        ("a.jpg", Kind(What.IMAGE, exists=True)),
        ("./a.jpg", Kind(What.IMAGE, exists=True)),
        ("t.csv", Kind(What.CSV, exists=True)),
        ("-", Kind(What.STDIN)),
        ("*.jpg", Kind(What.GLOB)),
        ("folder/**", Kind(What.GLOB)),
        ("a[1].jpg", Kind(What.GLOB)),
        ("?.csv", Kind(What.GLOB)),
        ("hf://beans?split=test", Kind(What.DATA_SET)),
        ("hf://datasets/someone/beans", Kind(What.DATA_SET)),
        ("hf:///a/folder/x.csv", Kind(What.DATA_SET)),
        ("hf://beans.tar", Kind(What.DATA_SET)),
        ("x.tar", Kind(What.TARS)),
        ("x-{00..12}.tar", Kind(What.TARS)),
        ("x-*.tar", Kind(What.TARS)),
        ("x.tgz", Kind(What.TARS)),
        ("x.tar.gz", Kind(What.TARS, gzipped=True)),
        ("x.txt", Kind(What.LIST)),
        ("x.tsv", Kind(What.TSV)),
        ("x.jsonl", Kind(What.JSON_LINES)),
        ("x.ndjson", Kind(What.JSON_LINES)),
        ("x.json", Kind(What.DOCUMENT)),
        ("x.parquet", Kind(What.PARQUET)),
        ("x.csv.gz", Kind(What.CSV, gzipped=True)),
        ("X.TXT.GZ", Kind(What.LIST, gzipped=True)),
        ("x.csv.gz.gz", Kind(What.UNKNOWN, gzipped=True)),
        ("x.jpg", Kind(What.IMAGE)),
        ("X.JPEG", Kind(What.IMAGE)),
        ("x.jpg.gz", Kind(What.UNKNOWN, gzipped=True)),
        ("x.doc", Kind(What.UNKNOWN)),
        (".jpg", Kind(What.UNKNOWN)),
        (".csv", Kind(What.UNKNOWN)),
        ("x.csv/", Kind(What.UNKNOWN)),
        ("", Kind(What.UNKNOWN)),
        (" -", Kind(What.UNKNOWN)),
        ("\0", Kind(What.UNKNOWN)),
        ("http://host/x.doc?*", Kind(What.UNKNOWN)),
        ("HF://beans", Kind(What.UNKNOWN)),
    ],
)  # fmt: skip
def test_a_name_is_what_is_there_or_what_its_ending_says(spec: str, kind: Kind, here: Path) -> None:
    assert kind_of(spec) == kind


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        ("s3://bucket/x.JPG", Kind(What.IMAGE, stored=True)),
        ("s3://bucket/x.tar", Kind(What.TARS, stored=True)),
        ("gs://bucket/x.csv.gz", Kind(What.CSV, stored=True, gzipped=True)),
        ("s3://bucket", Kind(What.FOLDER, stored=True)),
        ("s3://bucket/x.jpg/", Kind(What.FOLDER, stored=True)),
        ("s3://bucket/x.doc", Kind(What.FOLDER, stored=True)),
        ("s3://bucket/x.gz", Kind(What.FOLDER, stored=True, gzipped=True)),
        ("s3://bucket/*", Kind(What.FOLDER, stored=True)),
        ("s3://bucket/*.jpg", Kind(What.IMAGE, stored=True)),
        ("hf://datasets/someone/beans/data/", Kind(What.FOLDER, stored=True)),
        ("hf://datasets/someone/beans/x.parquet", Kind(What.PARQUET, stored=True)),
        ("hf://buckets/someone/mine/a.jpg", Kind(What.IMAGE, stored=True)),
    ],
)  # fmt: skip
def test_on_a_store_the_ending_alone_says_it(spec: str, kind: Kind, here: Path) -> None:
    assert kind_of(spec) == kind


@pytest.mark.parametrize("name", ["x.jpg", "x.csv", "x.txt", "x.tar", "x.tar.gz", "*.jpg", "x-*.tar", "hf:/beans"])
def test_a_folder_is_one_whatever_it_is_called(name: str, here: Path) -> None:
    (here / name).mkdir(parents=True)
    assert kind_of(name).what is What.FOLDER
    assert kind_of(name.replace(":/", "://")).what is What.FOLDER


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("a[1].jpg", What.IMAGE),
        ("*.jpg", What.IMAGE),
        ("t[1].csv", What.CSV),
        ("x-*.tar", What.TARS),
        ("x[1].doc", What.UNKNOWN),
        ("-", What.STDIN),
    ],
)  # fmt: skip
def test_what_is_there_is_no_pattern(name: str, what: What, here: Path) -> None:
    (here / name).touch()
    assert kind_of(name) == Kind(what, exists=True)


def test_a_link_that_leads_nowhere_is_there_and_one_to_a_folder_is_a_folder(here: Path) -> None:
    for name, target in {"x.jpg": "nowhere", "x[1].jpg": "nowhere", "y.jpg": "folder"}.items():
        (here / name).symlink_to(target)
    assert kind_of("x.jpg") == kind_of("x[1].jpg") == Kind(What.IMAGE, exists=True)
    assert kind_of("y.jpg") == Kind(What.FOLDER, exists=True)


def test_of_files_only_an_image_that_is_there_comes_before_a_data_set(here: Path) -> None:
    (here / "hf:").mkdir()
    assert kind_of("hf://x.jpg") == Kind(What.DATA_SET)
    (here / "hf:" / "x.jpg").touch()
    (here / "hf:" / "x.csv").touch()
    assert kind_of("hf://x.jpg") == Kind(What.IMAGE, exists=True)
    assert kind_of("hf://x.csv") == Kind(What.DATA_SET, exists=True)


starts = st.sampled_from(["", "-", "*", "[", "hf://", "hf://datasets/a/b/", "s3://b/", "x://", "/", "~", "\0"])
endings = st.sampled_from(["", "/", ".gz", *IMAGES, *TARS, *TABLES])
case = st.sampled_from([str, str.upper])


@given(st.builds(lambda start, name, ending, case: case(start + name + ending), starts, st.text(), endings, case))
@example("x" * 10_000)
def test_any_name_is_of_one_kind_and_stays_so(spec: str) -> None:
    assert kind_of(spec) == kind_of(spec)
