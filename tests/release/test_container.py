"""The Dockerfile, as far as that goes without an engine: linted, its steps run in a folder that stands for the image's
root, and the program in it run as its user, with nothing writable but the data and /tmp."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from helpers import EXAMPLES, read_jsonl

REPOSITORY = EXAMPLES.parent
Instruction = tuple[str, str]


def instructions() -> list[Instruction]:
    """As Docker reads them: comments left out, continued lines joined."""
    lines = [line for line in (REPOSITORY / "Dockerfile").read_text("utf-8").splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def of(kind: str) -> list[str]:
    return [rest for word, rest in instructions() if word == kind]


def test_the_dockerfile_is_clean() -> None:
    linter = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or pytest.skip("hadolint is not installed")
    done = subprocess.run([linter, REPOSITORY / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_it_installs_what_is_pinned_as_nobody_in_particular() -> None:
    assert all("--constraint constraints.txt" in step for step in of("RUN") if "pip install" in step)
    assert of("USER") == ["10001:10001"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of the image that VARIANT=cuda MODEL=demo make: but the packages that the program needs are those of
    this test's own environment."""
    root = tmp_path_factory.mktemp("image")
    source = root / "src"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    names = tracked.stdout.split("\0")[:-1] or pytest.skip("not in a git checkout")
    for name in names:
        if not name.startswith(("docs/", "tests/", "benchmarks/", ".")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, source / name)
    variables = {
        "VARIANT": "cuda",
        "EXTRAS": "",
        "MODEL": "demo",
        "HOME": str(root),
        "PIP_CACHE_DIR": str(root / "pip"),
    }
    path = f"{root}/opt/deit-batch/bin:/usr/bin:/bin:{Path(sys.base_prefix) / 'bin'}"
    for step in of("RUN"):
        here = step.replace("/opt/", f"{root}/opt/")
        done = subprocess.run(
            ["sh", "-ec", here],
            cwd=source,
            env={**variables, "PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{here}\n{done.stderr}"
        if "-m venv" in step:
            packages = next((root / "opt/deit-batch/lib").glob("python*/site-packages"))
            (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return root


def environment(root: Path, tmp: Path) -> dict[str, str]:
    """The last ENV, which is that of the image; `tmp` stands for /tmp."""
    pairs = re.findall(r"(\w+)=(\S+)", of("ENV")[-1])
    found = {name: re.sub("^/tmp", str(tmp), value).replace("/opt/", f"{root}/opt/") for name, value in pairs}
    return {**found, "TMPDIR": str(tmp), "PATH": found["PATH"].replace("$PATH", "/usr/bin:/bin")}


def test_the_model_is_in_it_and_the_program_is_installed(root: Path) -> None:
    assert (root / "opt/model/config.json").is_file()
    assert list((root / "opt/deit-batch").glob("lib/python*/site-packages/deit_batch/schemas/record.schema.json"))


def test_it_scores_as_its_user_on_a_file_system_that_is_read_only(root: Path, tmp_path: Path) -> None:
    """What the container of docs/docker.md is: another user, without a home; only /data and /tmp can be written."""
    data, tmp = tmp_path / "data", tmp_path / "tmp"
    for folder in (data, tmp):
        folder.mkdir()
        folder.chmod(0o777)
    shutil.copytree(EXAMPLES, data / "imgs")
    user = "--reuid 10001 --regid 10001" if is_for_all(root) else "--bounding-set=-all --inh-caps=-all"
    inside = f"""
        for at in {data} {tmp}; do mount --bind $at $at; done &&
        mount -o remount,bind,ro / && cd {data} &&
        exec setpriv {user} --clear-groups --no-new-privs \\
            sh -c '! touch {root}/opt/x 2>/dev/null && exec deit-batch score --input imgs --out preds.jsonl'
    """
    probe = ["unshare", "--mount", "sh", "-c", "mount --make-rprivate /"]
    if os.getuid() or subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("mounting wants root")
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", inside],
        env=environment(root, tmp),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(read_jsonl(data / "preds.jsonl")) == 40


def is_for_all(root: Path) -> bool:
    """Whether another user reaches the image's root and the Python in it; otherwise root stays, without any rights."""
    python = (root / "opt/deit-batch/bin/python").resolve()
    return all(folder.stat().st_mode & 0o001 for folder in (*python.parents, *root.parents, root))
