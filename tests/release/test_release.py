"""What is released: the same bits from the same sources, complete, under licences that allow it."""

from __future__ import annotations

import os
import platform
import re
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import licences
import pytest
import release
from click.testing import CliRunner
from helpers import EXAMPLES

import deit_batch
from deit_batch.cli import main

REPOSITORY = EXAMPLES.parent
if not (REPOSITORY / ".git").exists():
    pytest.skip("this is no checkout of the repository", allow_module_level=True)
PACKAGED = [name for name in release.tracked() if name.startswith("deit_batch/")]


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Somebody else's settings."""
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    umask = os.umask(0o077)
    yield
    os.umask(umask)


def test_the_same_sources_give_the_same_bits(built: tuple[Path, Path], tmp_path: Path, elsewhere: None) -> None:
    again = release.build(tmp_path)
    assert [release.digest(path) for path in again] == [release.digest(path) for path in built]


def test_the_sdist_holds_all_that_git_tracks(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as sdist:
        members = [member for member in sdist.getmembers() if member.isfile()]
    names = {member.name.partition("/")[2] for member in members}
    made = {name for name in names if name == "PKG-INFO" or "egg-info" in name}
    assert names - made == {name for name in release.tracked() if not name.startswith(".")}
    assert {(member.uid, member.gid, member.uname, member.gname) for member in members} == {(0, 0, "", "")}
    assert {member.name.partition("/")[2] for member in members if member.mode == 0o755} == {
        name for name in names - made if os.access(REPOSITORY / name, os.X_OK)
    }


def test_the_wheel_holds_the_package_and_all_licences_and_is_small(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as wheel:
        info = f"deit_batch-{deit_batch.__version__}.dist-info"
        texts = {name: wheel.read(name) for name in wheel.namelist() if name.startswith(f"{info}/licenses/")}
        metadata = wheel.read(f"{info}/METADATA").decode()
        package = [name for name in wheel.namelist() if not name.startswith(info)]
    compiled = next(name for name in package if name.endswith(".abi3.so"))
    assert sorted(package) == sorted([compiled, *PACKAGED])
    assert texts == {
        f"{info}/licenses/{name}": (REPOSITORY / name).read_bytes()
        for name in ("LICENSE", "NOTICE", "examples/LICENSE")
    }
    assert "License-Expression: Apache-2.0 AND MIT\n" in metadata
    assert built[1].stat().st_size < 5_000_000


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no manylinux")
def test_the_wheel_runs_wherever_its_name_says(built: tuple[Path, Path]) -> None:
    assert built[1].name.endswith(f"-cp311-abi3-manylinux_2_17_{platform.machine()}.whl")
    with zipfile.ZipFile(built[1]) as wheel:
        (compiled,) = (wheel.read(name) for name in wheel.namelist() if name.endswith(".so"))
    asked = {tuple(map(int, number.split(b"."))) for number in re.findall(rb"GLIBC_([\d.]+)", compiled)}
    assert max(asked) <= (2, 17)
    assert b"python3.1" not in compiled  # any version of it will do
    assert str(REPOSITORY).encode() not in compiled


def test_each_packaging_fact_stands_in_one_file_only() -> None:
    pyproject = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    assert "version" in pyproject["project"]["dynamic"]
    assert "setuptools" not in pyproject["tool"]
    assert "name" not in (REPOSITORY / "setup.cfg").read_text().split()


def test_the_version_stands_in_one_place() -> None:
    """But for what was measured with it, and what is new in it; constraints.txt has other packages' versions."""
    stated = re.compile(rf"(?<![\w.]){re.escape(deit_batch.__version__)}(?![\w.])".encode())
    places = {name for name in release.tracked() if stated.search((REPOSITORY / name).read_bytes())}
    passed_over = {name for name in places if name.startswith("benchmarks/")} | {"CHANGELOG.md", "constraints.txt"}
    assert places - passed_over == {"deit_batch/__init__.py"}


def test_the_command_tells_its_version() -> None:
    assert CliRunner().invoke(main, ["--version"]).output.split()[-1] == deit_batch.__version__


def test_the_changelog_begins_with_this_version() -> None:
    named, date, text = release.newest()
    assert named == deit_batch.__version__
    assert re.fullmatch(r"unreleased|\d{4}-\d\d-\d\d", date)
    assert text.startswith("- ")


@pytest.mark.parametrize(
    ("tag", "heading", "complaint"),
    [
        ("v2.0.0", "2.0.0, 2027-01-31", None),
        ("2.0.0", "2.0.0, 2027-01-31", "the tag is 2.0.0, the version is 2.0.0"),
        ("v2.0.1", "2.0.1, 2027-01-31", "the version is 2.0.0"),
        ("v2.0.0", "2.0.1, 2027-01-31", "CHANGELOG.md's newest is 2.0.1"),
        ("v2.0.0", "2.0.0, unreleased", "2.0.0 is unreleased: give it its date"),
    ],
)
def test_a_tag_that_fits_nothing_is_not_released(
    tag: str, heading: str, complaint: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n## {heading}\n\n- new\n\n## 1.0.0, 2026-12-01\n\n- old\n")
    monkeypatch.setattr(release, "REPOSITORY", tmp_path)
    assert release.newest()[2] == "- new"
    if complaint is None:
        release.check_tag(tag, "2.0.0")
    else:
        with pytest.raises(SystemExit, match=complaint):
            release.check_tag(tag, "2.0.0")


def test_all_that_is_installed_may_be_passed_on() -> None:
    listed = [requirement for group in licences.requirements().values() for requirement in group]
    assert list(licences.refused(licences.installed_by(listed))) == []


@pytest.mark.parametrize(
    ("expression", "permitted"),
    [
        ("MIT", True),
        ("Apache-2.0 WITH LLVM-exception AND (BSD-2-Clause OR MPL-2.0)", True),
        ("GPL-3.0-only", False),
        ("MIT AND LGPL-2.1-or-later", False),
        ("see the file", False),
        ("", False),
    ],
)
def test_a_licence_is_permitted_if_all_that_it_names_is(expression: str, permitted: bool) -> None:
    assert licences.is_permitted(expression) is permitted


@pytest.mark.parametrize(
    ("file", "complaint"),
    [
        ("some.libs/libx265-4883ecb5.so.217", "some: bundles libx265: GPL-2.0-or-later"),
        ("some/lib/libx265.so.217", "some: bundles libx265: GPL-2.0-or-later"),
        ("some.libs/libnew-0123abcd.so", "some: bundles libnew: unknown"),
        ("some/.dylibs/libnew.1.dylib", "some: bundles libnew: unknown"),
        ("some.libs/libheif-7a3e919c.so.1.23.0", None),
        ("some/libown.so", None),
    ],
)
def test_a_library_in_a_wheel_must_have_a_licence_that_is_permitted(
    file: str, complaint: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "some-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.4\nName: some\nVersion: 1.0\nLicense-Expression: MIT\n")
    (info / "RECORD").write_text(f"{file},,\n")
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).touch()  # a newer reader of metadata, which other libraries install, leaves out what is not there
    monkeypatch.syspath_prepend(tmp_path)
    assert list(licences.refused(["some"])) == ([complaint] if complaint else [])


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the page is of Python 3.11")
def test_the_page_of_licences_is_current() -> None:
    assert (REPOSITORY / "docs" / "licences.md").read_text() == licences.page(), "run scripts/licences"


def test_the_notice_names_all_data_of_the_package() -> None:
    """What is no text that we wrote."""
    notice = (REPOSITORY / "NOTICE").read_text()
    ours = {".py", ".pyi", ".c", ".html", ".css", ".js", ".json", ".md", ".typed"}
    data = [name for name in PACKAGED if Path(name).suffix not in ours]
    assert [name for name in data if name not in notice and f"{Path(name).parent}/" not in notice] == []
