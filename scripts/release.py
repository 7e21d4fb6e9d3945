"""Builds the sdist, and the wheel from it, so that the same sources give the same bits; reads the changelog.

setuptools dates the wheel by SOURCE_DATE_EPOCH (https://reproducible-builds.org/specs/source-date-epoch/), but not the
sdist, which it also gives the owner that happens to build it: so that is packed anew.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
HEADING = re.compile(r"^## (?P<version>\S+), (?P<date>\S+)$", re.MULTILINE)


def tracked() -> list[str]:
    """The sources, sorted: what git tracks, or would if it were added."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout.split("\0")
    return sorted({name for name in names if name and (REPOSITORY / name).exists()})


def commit_time() -> int:
    """Of the last commit, in seconds since 1970."""
    command = ["git", "log", "-1", "--format=%ct"]
    return int(subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout)


def build(out: Path) -> tuple[Path, Path]:
    """Leaves an sdist of the sources, and a wheel made from it, in `out`. Built by what is installed here."""
    seconds = commit_time()
    with tempfile.TemporaryDirectory() as folder:
        for name in tracked():
            copy = Path(folder, name)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(REPOSITORY / name, copy)
            copy.chmod(_mode((REPOSITORY / name).stat().st_mode))  # whatever the umask was when git wrote it
        command = [sys.executable, "-m", "build", "--no-isolation", *_platform(), "--outdir", str(out), folder]
        env = {**os.environ, "SOURCE_DATE_EPOCH": str(seconds), "PYTHONPATH": ""}
        done = subprocess.run(command, env=env, check=False, capture_output=True, text=True, umask=0o022)
    if done.returncode:
        sys.exit(f"release: {' '.join(command)}\n{done.stdout}{done.stderr}")
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    repack(sdist, seconds)
    return sdist, wheel


def _platform() -> list[str]:
    """The wheel's, as PyPI takes it: what is compiled asks no more of the C library (a test looks)."""
    if platform.libc_ver()[0] != "glibc":
        return []
    return [f"--config-setting=--build-option=--plat-name=manylinux_2_17_{platform.machine()}"]


def repack(sdist: Path, seconds: int) -> None:
    """Sorts the sdist, gives all of it to nobody, and dates it `seconds`."""
    with (
        tempfile.NamedTemporaryFile(dir=sdist.parent, delete=False) as target,
        tarfile.open(sdist) as old,
        gzip.GzipFile("", "wb", fileobj=target, mtime=seconds) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        for member in sorted(old.getmembers(), key=lambda member: member.name):
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            member.mtime = seconds
            member.mode = 0o755 if member.isdir() else _mode(member.mode)
            member.pax_headers = {}
            new.addfile(member, old.extractfile(member) if member.isfile() else None)
    os.chmod(target.name, 0o644)
    os.replace(target.name, sdist)


def _mode(mode: int) -> int:
    return 0o755 if mode & 0o100 else 0o644


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def newest() -> tuple[str, str, str]:
    """Version, date (or "unreleased") and text of the changelog's first section. Raises ValueError if there is none."""
    text = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    first, *later = HEADING.finditer(text)
    end = later[0].start() if later else len(text)
    return first["version"], first["date"], text[first.end() : end].strip()


def check_tag(tag: str, version: str) -> None:
    """Ends the program unless the tag, the version and the changelog agree that this is a release."""
    named, date, _ = newest()
    if tag != f"v{version}" or named != version:
        sys.exit(f"release: the tag is {tag}, the version is {version}, and CHANGELOG.md's newest is {named}")
    if not re.fullmatch(r"\d{4}-\d\d-\d\d", date):
        sys.exit(f"release: CHANGELOG.md says that {version} is {date}: give it its date")


def main() -> None:
    """Usage: release.py OUT NOTES [TAG]: builds into OUT, twice, and writes what is new, with the digests, to NOTES."""
    out, notes, *tag = sys.argv[1:]
    with tempfile.TemporaryDirectory() as again:
        built = build(Path(out))
        for path, second in zip(built, build(Path(again)), strict=True):
            if digest(path) != digest(second):
                sys.exit(f"release: built twice, {path.name} came out different: it can't be released")
    version = built[1].name.split("-")[1]
    if tag:
        check_tag(tag[0], version)
    digests = "\n".join(f"{digest(path)}  {path.name}" for path in built)
    Path(notes).write_text(f"{newest()[2]}\n\n```\n{digests}\n```\n", encoding="utf-8")
    print(digests)


if __name__ == "__main__":
    main()
