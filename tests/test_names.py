"""Names with accents and blanks: two spellings of one name are one class, one file and one image, everywhere."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faulty_store import Bucket
from helpers import deit_batch, jpeg, read_json, read_jsonl, scored
from hypothesis import given
from hypothesis import strategies as st

from deit_batch.errors import UsageError
from deit_batch.evaluation.joining import Labels, given_in
from deit_batch.input.identity import given_identity, identity_of
from deit_batch.input.labels import open_labelled
from deit_batch.input.open import open_source
from deit_batch.io import LocalFile, stamp
from deit_batch.limits import Limits
from deit_batch.loading.fetch import Fetcher
from deit_batch.model.matching import Matching, read_label_map
from deit_batch.names import alike, path_on_disk
from deit_batch.report.comparison import compare
from deit_batch.system.missing_file import explain_missing


def composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def decomposed(text: str) -> str:
    return unicodedata.normalize("NFD", text)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_all_forms_of_a_name_are_alike(text: str) -> None:
    assert alike(composed(text)) == alike(decomposed(text)) == alike(f" {text}\n") == alike(alike(text))


@pytest.mark.parametrize("on_disk", [composed, decomposed])
def test_a_file_is_found_in_whatever_form_it_is_written(tmp_path: Path, on_disk: Callable[[str], str]) -> None:
    stored = tmp_path / on_disk("Städte") / decomposed("Zürich") / on_disk("é.jpg")
    stored.parent.mkdir(parents=True)
    stored.write_bytes(jpeg())
    for given_name in (composed("Städte/Zürich/é.jpg"), decomposed("Städte/Zürich/é.jpg"), "Städte /Zürich/ é.jpg\t"):
        path = f"{tmp_path}/{given_name}"
        assert path_on_disk(path) == str(stored)
        assert Fetcher(Limits(root=str(tmp_path))).fetch(LocalFile(path)) == jpeg()
        assert stamp(LocalFile(path)) == stamp(LocalFile(str(stored)))
    assert path_on_disk(f"{tmp_path}/Städte/none.jpg") == f"{tmp_path}/Städte/none.jpg"


def test_a_file_of_exactly_the_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (composed("é"), decomposed("é"), "a ", "a"):
        Path(name).write_text(name)
        assert path_on_disk(name) == name
    assert path_on_disk(" a") == "a"


def test_an_object_is_found_in_whatever_form_its_key_is(bucket: Bucket, vit: Path, tmp_path: Path) -> None:
    address = bucket.address(decomposed("Zürich/é.jpg"))
    bucket.put(decomposed("Zürich/é.jpg"), jpeg())
    (tmp_path / "t.csv").write_text(f"image\n{composed(address)}\n{address}\n{address}.none\n")
    first, second, none = read_jsonl(scored(tmp_path / "t.csv", vit, tmp_path))
    assert first["predictions"] == second["predictions"] != []
    assert "no such object" in none["error"]["message"]


def test_an_image_is_the_same_in_whatever_form_its_name_is() -> None:
    for image in ("Jürgen/é.jpg", "https://h/é.jpg"):
        first, second = ({"image": form(image)} for form in (composed, decomposed))
        assert identity_of(first) == identity_of(second) == identity_of({"image": f"{image} "})
    assert given_identity(composed("é-1")) == given_identity(decomposed("é-1"))


def test_classes_are_the_same_in_whatever_form(tmp_path: Path, messages: list[str]) -> None:
    for number, form in enumerate((composed, decomposed)):
        folder = tmp_path / "both" / form("café")
        folder.mkdir(parents=True)
        (folder / f"{number}.jpg").touch()
    folders = open_labelled(str(tmp_path / "both"))
    assert folders.class_names == ["café"]
    assert {example.labels for example in folders.examples} == {("café",)}
    assert any("2 folders whose names look the same are one class" in message for message in messages)
    for name, labels in (("t.csv", "café"), ("l.jsonl", '["café", "thé"]')):
        for form in (composed, decomposed):
            csv, json = f"image,label\na.jpg,{form(labels)}\n", f'{{"image": "a", "label": {form(labels)}}}'
            (tmp_path / name).write_text(csv if name == "t.csv" else json)
            (example,) = open_labelled(str(tmp_path / name)).examples
            assert example.labels[0] == composed("café")


def test_labels_find_classes_in_whatever_form(tmp_path: Path) -> None:
    (tmp_path / "map.csv").write_text(decomposed("label,class\nKaffee é,thé\n"))
    label_map = read_label_map(str(tmp_path / "map.csv"))
    for classes in ([composed("café"), decomposed("thé")], [decomposed("café"), composed("thé")]):
        matching = Matching(classes, label_map)
        assert [matching(form("café")) for form in (composed, decomposed)] == [0, 0]
        assert [matching(form("Kaffee é")) for form in (composed, decomposed)] == [1, 1]
        assert (matching.inexact, dict(matching.unknown)) == ({}, {})
        assert matching(decomposed("Café")) == 0
        assert matching.inexact


def test_labels_join_records_of_another_machine(tmp_path: Path) -> None:
    """Also where no file's name is there once."""
    rows = [f"{folder}/{number}.jpg" for folder in ("café", "thé") for number in range(2)]
    (tmp_path / "t.csv").write_text(composed("image,label\n" + "".join(f"{row},{row[:3]}\n" for row in rows)))
    records: list[dict[str, Any]] = [
        {"index": index, "image": decomposed(row), "predictions": []} for index, row in enumerate(rows)
    ]
    labels = Labels(given_in(open_labelled(str(tmp_path / "t.csv"))), records)
    assert [pair.labels for pair in labels.join(records)] == [("caf",), ("caf",), ("thé",), ("thé",)]
    assert not labels.failures


def test_results_of_two_machines_are_compared(tmp_path: Path) -> None:
    for name, form in (("old.jsonl", composed), ("new.jsonl", decomposed)):
        record = {"index": 0, "image": form("é.jpg"), "predictions": [{"label": form("café"), "score": 0.5}]}
        (tmp_path / name).write_text(json.dumps(record) + "\n")
    found = compare(tmp_path / "old.jsonl", tmp_path / "new.jsonl", most_rows=9, most_shown=9)
    assert found.states == {"same label": 1}
    assert found.agreement == 1


def test_a_model_of_one_form_is_evaluated_on_the_other(tmp_path: Path) -> None:
    """As fine-tuned on a Mac and evaluated on Linux, from the command line."""
    for form in (composed, decomposed):
        for label in ("bag", "crème"):
            folder = tmp_path / form("é") / form(label)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "0.jpg").write_bytes(jpeg(len(label)))
    (tmp_path / "map.csv").write_text(f"label,class\n{composed('crème')},coat\n")
    for form in (composed, decomposed):
        done = deit_batch(
            "evaluate",
            "--model",
            "demo",
            "--input",
            form("é"),
            "--label-map",
            "map.csv",
            "--out",
            "ev",
            "--fresh",
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        assert read_json(tmp_path / "ev" / "metrics.json")["judged"] == 2


# --- files that are not there -----------------------------------------------------------------------------------------


def test_a_missing_file_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which path was tried, from where, and what is there that may have been meant."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "imgs").mkdir(parents=True)
    for name in ("a b.png", "C.PNG"):
        (tmp_path / "data" / "imgs" / name).write_bytes(jpeg())
    (tmp_path / "data" / "link.png").symlink_to("nowhere.png")
    expected = {
        "imgs\\a b.png": "data/imgs/a b.png is there: write / for \\",
        "C:\\data\\a b.png": "C: is a drive of Windows",
        "data/imgs/C.PNG": "data/imgs/C.PNG is there, seen from the working folder",
        "imgs/a%20b.png": "data/imgs/a b.png is there: the name is percent-encoded",
        '"imgs/a b.png"': "data/imgs/a b.png is there: write the name without quotes",
        "imgs/C.png": "data/imgs/C.PNG is there: small and capital letters count",
        "photos/a.png": "there is no folder data/photos",
        "imgs/C": "data/imgs/C.PNG is there: name it with its ending, or give --suffix .PNG for all of a table",
        "link.png": "data/link.png is a link to nowhere.png, which is not there",
    }
    (tmp_path / "data" / "items.jsonl").write_text("".join(json.dumps({"image": name}) + "\n" for name in expected))
    fetcher = Fetcher(Limits())
    for name, reference in zip(expected, open_source("data/items.jsonl").references, strict=True):
        failure = fetcher.fetch(reference.location)
        assert not isinstance(failure, bytes)
        assert expected[name] in failure.message, name
        if name != "link.png":
            assert failure.message.startswith(f"No such file: {tmp_path}/data/"), name
            assert "(relative names start from data)" in failure.message, name
    absolute = fetcher.fetch(LocalFile(f"{tmp_path}/data/none.png"))
    assert not isinstance(absolute, bytes)
    assert absolute.message == f"No such file: {tmp_path}/data/none.png"
    with pytest.raises(UsageError, match=r"data/item.jsonl: No such file: /.*/data/item.jsonl"):
        open_source("data/item.jsonl")
    with pytest.raises(UsageError, match=r"data/imgs/c.png: no such file or folder: /.*/data/imgs/c.png"):
        open_source("data/imgs/c.png")


def test_what_is_outside_of_the_root_is_not_spoken_of(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "secret.PNG").write_bytes(b"")
    found = Fetcher(Limits(root=f"{tmp_path}/root")).fetch(LocalFile(f"{tmp_path}/root/..\\secret.PNG", "root"))
    assert not isinstance(found, bytes)
    assert "is there" not in found.message


@given(st.text(max_size=40), st.sampled_from(["", "folder", "/folder"]))
def test_whatever_is_missing_can_be_explained(name: str, folder: str) -> None:
    path = f"{folder}/{name}" if folder else name
    assert explain_missing(path.replace("\0", ""), folder).startswith("No such file: ")
