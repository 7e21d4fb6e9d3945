"""Names of classes: none, the checkpoint's own, and those of --id2label."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import other_classes
import pytest
from helpers import EXAMPLES, LABELS, MakeCheckpoint, deit_batch, read_json, read_jsonl, scored
from hypothesis import given
from hypothesis import strategies as st

from deit_batch.errors import CheckpointError, UsageError
from deit_batch.model.checkpoint import find_checkpoint
from deit_batch.model.labels import imagenet_names, read_id2label, warn_of_shared_names

NAMES = ["tin", "carton", "milk", "water", "jar, with a lid"]


@pytest.fixture(scope="module")
def unnamed(make_checkpoint: MakeCheckpoint) -> Path:
    """As the Trainer uploads a model whose classes nobody has named."""
    placeholders = {number: f"LABEL_{number}" for number in range(5)}
    return make_checkpoint(id2label=placeholders, label2id={name: number for number, name in placeholders.items()})


@pytest.fixture
def names(tmp_path: Path) -> Path:
    path = tmp_path / "names.txt"
    path.write_text("\ufeff" + "\r\n".join(NAMES) + "\n\n", encoding="utf-8", newline="")
    return path


def test_maps_of_names_that_contradict_each_other_are_said(
    make_checkpoint: MakeCheckpoint, vit: Path, tmp_path: Path, messages: list[str]
) -> None:
    folder = shutil.copytree(vit, tmp_path / "edited")
    config = json.loads((folder / "config.json").read_text())
    twins = dict(enumerate(["crane", "crane", *LABELS[2:]]))  # as ImageNet has them
    for id2label, label2id in (
        (twins, {name: number for number, name in twins.items()}),
        (dict(enumerate(LABELS[::-1])), {name: number for number, name in enumerate(LABELS)}),
    ):
        (folder / "config.json").write_text(json.dumps(config | {"id2label": id2label, "label2id": label2id}))
        find_checkpoint(str(folder))
    (message,) = [message for message in messages if "contradict each other" in message]
    assert "id2label counts" in message


def test_classes_without_names_are_scored_with_one_warning(
    unnamed: Path, vit: Path, photos: Path, tmp_path: Path
) -> None:
    command: list[str | Path] = ["score", "--input", photos, "--limit", "3", "--top-k", "all", "--workers", "0"]
    done = deit_batch(*command, "--model", unnamed, "--out", "a.jsonl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("LABEL_0") == done.stderr.count("--id2label") == 1
    deit_batch(*command, "--model", vit, "--out", "b.jsonl", cwd=tmp_path)
    for record, named in zip(read_jsonl(tmp_path / "a.jsonl"), read_jsonl(tmp_path / "b.jsonl"), strict=True):
        numbers = [LABELS.index(prediction["label"]) for prediction in named["predictions"]]
        assert [prediction["label"] for prediction in record["predictions"]] == [f"LABEL_{n}" for n in numbers]
        assert [p["score"] for p in record["predictions"]] == [p["score"] for p in named["predictions"]]


@pytest.mark.parametrize("place", ["config", "names"])
def test_a_name_of_several_classes_is_said_once(
    place: str, unnamed: Path, vit: Path, photos: Path, names: Path, tmp_path: Path, messages: list[str]
) -> None:
    twins = ["tin", "tin", "milk", "milk", "jar"]
    names.write_text("\n".join(twins))
    folder = unnamed
    if place == "config":
        folder = shutil.copytree(vit, tmp_path / "twins")
        config = json.loads((folder / "config.json").read_bytes())
        config = {**config, "id2label": dict(enumerate(twins)), "label2id": {"tin": 1, "milk": 3, "jar": 4}}
        (folder / "config.json").write_text(json.dumps(config))
    given = {"id2label": str(names)} if place == "names" else {}
    out = scored(photos, folder, tmp_path, limit=1, top_k=None, **given)
    (message,) = [message for message in messages if "several classes each" in message]
    assert ": tin (2 classes), milk (2 classes); every class has a score of its own" in message
    (record,) = read_jsonl(out)
    assert sorted(prediction["label"] for prediction in record["predictions"]) == sorted(twins)


def test_that_imagenet_has_two_cranes_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    labels = list(imagenet_names().values())
    with caplog.at_level("INFO", "deit_batch"):
        warn_of_shared_names(labels, "m")
        warn_of_shared_names([*labels[:-1], "crane"], "m")
    assert [(one.levelname, "crane (" in one.getMessage()) for one in caplog.records] == [
        ("INFO", True),
        ("WARNING", True),
    ]


def test_given_names_are_those_of_the_predictions(unnamed: Path, photos: Path, names: Path, tmp_path: Path) -> None:
    out = scored(photos, unnamed, tmp_path, limit=2, id2label=str(names), top_k=None)
    for record in read_jsonl(out):
        assert sorted(prediction["label"] for prediction in record["predictions"]) == sorted(NAMES)
    assert read_json(tmp_path / "p.jsonl.run.json")["options"]["id2label"] == str(names)


def test_a_run_is_not_continued_with_other_names(unnamed: Path, photos: Path, names: Path, tmp_path: Path) -> None:
    scored(photos, unnamed, tmp_path, limit=2, id2label=str(names))
    names.write_text("\n".join(reversed(NAMES)))
    with pytest.raises(UsageError, match="id2label_sha256"):
        scored(photos, unnamed, tmp_path, limit=2, id2label=str(names))


def test_every_command_takes_the_names(unnamed: Path, names: Path, tmp_path: Path) -> None:
    """Beside score: evaluate, export and what it makes, embed, the int8 cache."""
    for number in range(2):
        (tmp_path / "val" / NAMES[number]).mkdir(parents=True)
        shutil.copy(EXAMPLES / "bag" / "00018.png", tmp_path / "val" / NAMES[number])
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}

    def run(command: str, *args: str | Path) -> str:
        done = deit_batch(command, *args, "--id2label", names, cwd=tmp_path, env=env)
        assert done.returncode == 0, done.stderr
        assert "LABEL_" not in done.stdout + done.stderr
        return done.stdout

    run("evaluate", "--input", "val", "--model", unnamed, "--out", "e", "--workers", "0")
    assert read_json(tmp_path / "e" / "metrics.json")["judged"] == 2
    run("embed", "--input", "val", "--model", unnamed, "--out", "f.npy", "--workers", "0")
    run("export", unnamed, "--out", "exported")
    assert find_checkpoint(str(tmp_path / "exported")).labels == NAMES
    stdout = run(
        "score", "--input", EXAMPLES / "bag" / "00018.png", "--model", unnamed, "--dtype", "int8", "--out", "-"
    )
    assert {prediction["label"] for prediction in json.loads(stdout)["predictions"]} == set(NAMES)


def test_two_classes_without_a_name_are_not_in_the_config(make_checkpoint: MakeCheckpoint) -> None:
    """`transformers` leaves out what is its default."""
    two = {0: "LABEL_0", 1: "LABEL_1"}
    folder = make_checkpoint(id2label=two, label2id={name: number for number, name in two.items()})
    assert "id2label" not in json.loads((folder / "config.json").read_bytes())
    assert find_checkpoint(str(folder)).labels == ["LABEL_0", "LABEL_1"]


def test_a_config_without_names_has_as_many_classes_as_its_weights(vit: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(vit, tmp_path / "bare")
    config = json.loads((folder / "config.json").read_bytes())
    del config["id2label"]
    (folder / "config.json").write_text(json.dumps(config))
    assert find_checkpoint(str(folder)).labels == [f"LABEL_{number}" for number in range(5)]


@pytest.mark.parametrize("kind", ["swin", "convnext"])
@pytest.mark.parametrize("about", [{}, {"num_labels": 5}, {"num_labels": 3}, {"id2label": None}])
def test_other_classes_than_ours_have_as_many_classes_as_their_weights(
    kind: str, about: dict[str, Any], photos: Path, names: Path, tmp_path: Path, messages: list[str]
) -> None:
    folder = tmp_path / kind
    folder.mkdir()
    other_classes.make(kind, folder)
    whole = read_jsonl(scored(photos, folder, tmp_path, "whole.jsonl", limit=2, top_k=None))
    config = json.loads((folder / "config.json").read_bytes())
    del config["id2label"], config["label2id"]
    (folder / "config.json").write_text(json.dumps(config | about))
    bare = read_jsonl(scored(photos, folder, tmp_path, "bare.jsonl", limit=2, top_k=None))
    for one, other in zip(whole, bare, strict=True):
        numbers = [LABELS.index(prediction["label"]) for prediction in one["predictions"]]
        assert [prediction["label"] for prediction in other["predictions"]] == [f"LABEL_{n}" for n in numbers]
        assert [p["score"] for p in one["predictions"]] == [p["score"] for p in other["predictions"]]
    assert sum("has no names for its classes" in message for message in messages) == 1
    assert find_checkpoint(str(folder), id2label=str(names)).labels == NAMES


def test_the_names_must_be_of_its_classes(vit: Path, names: Path) -> None:
    names.write_text("one\ntwo\n")
    with pytest.raises(UsageError, match=r"names 2 classes, but .* has 5"):
        find_checkpoint(str(vit), id2label=str(names))
    with pytest.raises(UsageError, match="names 1,000 classes"):
        find_checkpoint(str(vit), id2label="imagenet")


@pytest.mark.parametrize(
    ("text", "suffix"),
    [
        ("\n".join(NAMES), ".txt"),
        ("  \n".join(NAMES), ""),
        ("\n".join(NAMES), ".csv"),
        (json.dumps(NAMES), ".json"),
        (json.dumps({str(number): name for number, name in enumerate(NAMES)}), ".json"),
        (json.dumps({"id2label": {str(number): name for number, name in enumerate(NAMES)}, "x": 1}), ".JSON"),
    ],
)
def test_the_forms_of_the_names(text: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"names{suffix}"
    path.write_text(text, encoding="utf-8")
    assert read_id2label(str(path)) == NAMES


@pytest.mark.parametrize("names", [["0", "1", "2"], ["0 - zero", "1 - one"], ["7,5 l", "can, small", "9"]])
def test_names_may_be_numbers_or_hold_some(names: list[str], tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("\n".join(names))
    assert read_id2label(str(tmp_path / "names.txt")) == names


def test_imagenets_names_come_with_us() -> None:
    names = read_id2label("imagenet")
    assert (len(names), names[0], names[999]) == (1000, "tench, Tinca tinca", imagenet_names()["n15075141"])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"a\n\nb\n", "class 1 has no name"),
        (b"", "neither a list"),
        (b"\xff\xfe", "not UTF-8"),
        (b"0,a\n1,b\n", "its lines are names with numbers, as '1,b'; give the names alone"),
        (b"id;name\r\n0;a\r\n1;b\r\n", "names with numbers"),
        (b'"0","a"\n"1","b"\n', "names with numbers"),
        (b"0: a\n1: b", "names with numbers"),
        (b"1\ta", "names with numbers"),
        (b"name,id\na,0\nb,1\n", "names with numbers"),
    ],
)
def test_what_is_no_list_of_names(text: bytes, problem: str, tmp_path: Path) -> None:
    (tmp_path / "names").write_bytes(text)
    with pytest.raises(UsageError, match=problem):
        read_id2label(str(tmp_path / "names"))


_json = st.recursive(st.none() | st.integers() | st.text(), lambda of: st.lists(of) | st.dictionaries(st.text(), of))


@given(_json)
def test_any_json_is_names_or_is_refused(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(value), encoding="utf-8")
    with contextlib.suppress(UsageError):
        assert "" not in read_id2label(str(path))


@pytest.mark.parametrize("wrong", ["{}", '{"0": "a", "2": "b"}', '["a", 5]', "[" * 100_000, "5"])
def test_json_that_names_nothing(wrong: str, tmp_path: Path) -> None:
    path = tmp_path / "names.json"
    path.write_text(wrong)
    with pytest.raises(UsageError, match="--id2label"):
        read_id2label(str(path))
    with pytest.raises(UsageError, match="No such file"):
        read_id2label(str(tmp_path / "none.json"))


def test_a_config_whose_names_are_none(vit: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(vit, tmp_path / "wrong")
    config = json.loads((folder / "config.json").read_bytes())
    wrong: object
    for wrong in ({}, [], {"0": "a", "2": "b"}, {"0": 5}):
        (folder / "config.json").write_text(json.dumps({**config, "id2label": wrong}))
        with pytest.raises(CheckpointError, match=r"names no labels|skips class|no text"):
            find_checkpoint(str(folder))
