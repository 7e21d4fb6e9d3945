"""What is asked for when something does not work, and what a machine without a network needs."""

from __future__ import annotations

import os
import shutil
import subprocess
from importlib.metadata import metadata
from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers import COMMAND, EXAMPLES, deit_batch

from deit_batch import score
from deit_batch.cli import main
from deit_batch.model.checkpoint import find_checkpoint
from deit_batch.model.save import save_checkpoint


def test_the_doctor_says_what_is_here_and_scores_an_image(tmp_path: Path) -> None:
    done = deit_batch("doctor", cwd=tmp_path)
    found = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert done.returncode == 0
    assert found["demo image"].startswith("trouser ")
    assert "torch 2." in found["libraries"]
    assert "cores" in found["machine"]
    assert {"GPU", "Hub", "cached models"} <= set(found)
    extras = set(metadata("deit-batch").get_all("Provides-Extra") or []) - {"bench", "dev", "docs", "release"}
    assert {name.removeprefix("extra ") for name in found if name.startswith("extra ")} == extras
    assert list(tmp_path.iterdir()) == []


def test_the_doctor_scores_with_the_checkpoint_that_is_asked_about(tmp_path: Path) -> None:
    deit_batch("pull", "demo", "--out", "mine", cwd=tmp_path)
    done = deit_batch("doctor", "--model", "mine", cwd=tmp_path)
    found = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert done.returncode == 0
    assert found["model"] == "mine: DeiTForImageClassification, 10 labels"
    assert found["demo image by this model"].split(",")[0] == found["demo image"].split(",")[0]
    (tmp_path / "mine" / "model.safetensors").unlink()
    broken = deit_batch("doctor", "--model", "mine", cwd=tmp_path)
    assert broken.returncode == 2
    assert "\ndemo image: trouser " in broken.stdout
    assert "safetensors" in broken.stderr
    assert len(broken.stderr.splitlines()) == 1


def test_the_doctor_goes_on_where_torch_can_not_be_imported(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('libcudart.so.12: not found')")
    done = deit_batch("doctor", cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    found = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert found["GPU"] == "can't be told: ImportError: libcudart.so.12: not found"
    assert "cached models" in found
    assert done.returncode == 1
    assert done.stderr == "deit-batch: the demo image can't be scored: libcudart.so.12: not found\n"


def test_a_pulled_checkpoint_scores_the_same_from_its_folder(tmp_path: Path) -> None:
    done = deit_batch("pull", "demo", "--out", "mine", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "mine\n")
    assert "DeiTForImageClassification, 10 labels" in done.stderr
    assert find_checkpoint(str(tmp_path / "mine")).digest == find_checkpoint("demo").digest
    picture = EXAMPLES / "bag" / "00018.png"
    (ours,) = score(picture, model=str(tmp_path / "mine"), workers=0)
    (theirs,) = score(picture, model="demo", workers=0)
    assert ours.predictions == theirs.predictions
    nowhere = CliRunner().invoke(main, ["pull", "demo", "--id2label", "imagenet"])
    assert (nowhere.exit_code, "of the copy that --out writes" in nowhere.stderr) == (2, True)
    again = deit_batch("pull", "demo", "--out", "mine", cwd=tmp_path)
    assert again.returncode == 2
    assert "mine is there already" in again.stderr


def test_a_copy_keeps_the_names_that_it_is_given(tmp_path: Path) -> None:
    names = [f"kind {number}" for number in range(10)]
    (tmp_path / "names.txt").write_text("\n".join(names))
    found = find_checkpoint("demo", id2label=str(tmp_path / "names.txt"))
    copied = save_checkpoint(found, tmp_path / "mine", has_new_names=True)
    assert list(find_checkpoint(str(copied)).labels) == names


@pytest.mark.parametrize("kind", ["config", "pickle"])
def test_a_checkpoint_that_cannot_be_scored_with_is_not_copied(kind: str, tmp_path: Path) -> None:
    if kind == "config":
        (tmp_path / "broken").mkdir()
        (tmp_path / "broken" / "config.json").write_text("{}")
    else:
        shutil.copytree(find_checkpoint("demo").folder, tmp_path / "broken")
        (tmp_path / "broken" / "model.safetensors").unlink()
        (tmp_path / "broken" / "pytorch_model.bin").write_bytes(b"garbage")
    done = deit_batch("pull", "broken", "--out", "mine", "--allow-pickle", cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize(("shell", "words"), [("bash", "deit-batch sc"), ("zsh", "deit-batch sc"), ("fish", "sc")])
def test_shells_complete_commands(shell: str, words: str) -> None:
    asked = {
        "_DEIT_BATCH_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": "1" if shell != "fish" else "sc",
    }
    done = subprocess.run([COMMAND], env={**os.environ, **asked}, capture_output=True, text=True, check=True)
    assert "score" in done.stdout
    assert "serve" not in done.stdout


@pytest.mark.parametrize("words", ["score --input", "evaluate --model", "embed --out", "plot", "report --labels"])
def test_shells_complete_paths_where_something_else_may_stand(words: str) -> None:
    asked = {
        "_DEIT_BATCH_COMPLETE": "bash_complete",
        "COMP_WORDS": f"deit-batch {words} im",
        "COMP_CWORD": str(len(words.split()) + 1),
    }
    done = subprocess.run([COMMAND], env={**os.environ, **asked}, capture_output=True, text=True, check=True)
    assert done.stdout == "file,im\n"
