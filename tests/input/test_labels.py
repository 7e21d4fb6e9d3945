"""Inputs with labels, on real files: every layout that people have, every row accounted for, in order."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import EXAMPLES, jpeg
from hypothesis import given
from hypothesis import strategies as st

from deit_batch.errors import RowError, UsageError
from deit_batch.input.labels import (
    LIST_OPENINGS,
    MISSING,
    Example,
    LabelledSource,
    Split,
    find_split,
    joined_labels,
    open_labelled,
    parse_labels,
)
from deit_batch.input.open import open_source
from deit_batch.io import Failure, LocalFile
from deit_batch.model.matching import read_label_map
from deit_batch.names import alike


def labels_of(source: LabelledSource) -> list[tuple[str, ...] | str]:
    """Of each input its labels, or why it has none."""

    def told(example: Example) -> tuple[str, ...] | str:
        location = example.reference.location
        return location.message if isinstance(location, Failure) else example.labels

    return [told(example) for example in source.examples]


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


# --- folders --------------------------------------------------------------------------------------------------------


def test_class_folders_in_the_order_of_score(messages: list[str]) -> None:
    source = open_labelled(str(EXAMPLES))
    examples = list(source.examples)
    assert [example.reference for example in examples] == list(open_source(str(EXAMPLES)).references)
    assert {example.labels for example in examples} == {(name,) for name in source.class_names or ()}
    assert (len(examples), source.total(0), source.multi_label) == (40, 40, False)
    assert messages == ["labels: class folders, 10 classes (ankle-boot, bag, coat, …)"]


def test_a_class_is_the_first_folder_down_and_an_empty_one_counts(tmp_path: Path) -> None:
    touch(tmp_path, "cat/2024/may/1.jpg", "cat/2.jpg", "dog/1.jpg", "0.jpg", ".git/x")
    (tmp_path / "eel").mkdir()
    source = open_labelled(str(tmp_path))
    assert source.class_names == ["cat", "dog", "eel"]
    assert labels_of(source) == ["it lies in no class folder", ("cat",), ("cat",), ("dog",)]


def test_of_a_glob_it_is_the_folder_that_the_image_lies_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "train/cat/1.jpg", "val/dog/1.jpg", "0.jpg")
    monkeypatch.chdir(tmp_path)
    assert labels_of(open_labelled("*/*/*.jpg")) == [("cat",), ("dog",)]
    assert labels_of(open_labelled("train/cat/1.jpg")) == [("cat",)]
    assert labels_of(open_labelled("*.jpg")) == ["it lies in no class folder"]


@pytest.mark.parametrize("other", ["val", "Valid", "validation", "test"])
def test_a_split_is_no_folder_of_classes(other: str, tmp_path: Path) -> None:
    touch(tmp_path, "train/cat/1.jpg", "train/dog/1.jpg", f"{other}/cat/1.jpg", "README.md", ".git/x/y")
    assert find_split(str(tmp_path)) == Split(f"{tmp_path}/train", f"{tmp_path}/{other}", sorted([other, "train"]))
    with pytest.raises(UsageError, match=f"is split into .* which are no classes; give one of them, as .*{other}"):
        open_labelled(str(tmp_path))
    touch(tmp_path, "left.jpg")
    with pytest.raises(UsageError, match="images beside them, in no part"):
        open_labelled(str(tmp_path))


def test_of_three_parts_the_first_is_validated_with(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{part}/cat/1.jpg" for part in ("test", "train", "val")))
    split = find_split(str(tmp_path))
    assert split == Split(f"{tmp_path}/train", f"{tmp_path}/val", ["test", "train", "val"])


@pytest.mark.parametrize(
    "names",
    [("train/1/a.jpg", "car/1/a.jpg"), ("train/1/a.jpg", "val/1/a.jpg", "bus/1/a.jpg"), ("train/a.jpg", "test/a.jpg"),
     ("train/1/a.jpg",), ("val/1/a.jpg", "test/1/a.jpg")],
)  # fmt: skip
def test_a_class_may_be_called_train(names: tuple[str, ...], tmp_path: Path) -> None:
    touch(tmp_path, *names)
    assert find_split(str(tmp_path)) is None
    assert open_labelled(str(tmp_path)).class_names == sorted({name.split("/")[0] for name in names})


def test_a_folder_of_classes_may_be_called_like_a_list(tmp_path: Path) -> None:
    touch(tmp_path, "set.txt/can/1.jpg")
    assert labels_of(open_labelled(str(tmp_path / "set.txt"))) == [("can",)]


def test_a_folder_without_classes_is_wrong_usage(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg", "2.jpg", "list.txt")
    with pytest.raises(UsageError, match=r"no class folders and no labels\.csv"):
        open_labelled(str(tmp_path))
    with pytest.raises(UsageError, match="a list has no labels"):
        open_labelled(str(tmp_path / "list.txt"))
    with pytest.raises(UsageError, match="--label-column is for tables"):
        open_labelled(str(tmp_path), label_column="x")


@pytest.mark.parametrize("images", ["images/", ""])
@pytest.mark.parametrize("named", ["", "labels.csv"])
def test_images_beside_labels_csv(images: str, named: str, tmp_path: Path) -> None:
    """The layout of the card's multi-label data set."""
    touch(tmp_path, *(f"{images}{number}.jpg" for number in range(4)))
    rows = "0.jpg,can carton\n1.jpg,milk_bottle\n2.jpg,\n3.jpg,can can\n"
    (tmp_path / "labels.csv").write_text("filename,labels\n" + rows)
    source = open_labelled(str(tmp_path / named))
    examples = list(source.examples)
    assert [example.labels for example in examples] == [("can", "carton"), ("milk_bottle",), (), ("can",)]
    assert [example.reference.location for example in examples] == [
        LocalFile(f"{tmp_path}/{images}{number}.jpg") for number in range(4)
    ]
    assert source.multi_label


# --- tables ---------------------------------------------------------------------------------------------------------


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    match path.suffix:
        case ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        case ".csv":
            text = io.StringIO()
            writer = csv.DictWriter(text, list(rows[0]))
            writer.writeheader()
            writer.writerows({k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows)
            path.write_text(text.getvalue())
        case _:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_column_of_labels(suffix: str, tmp_path: Path, messages: list[str]) -> None:
    one = tmp_path / f"one{suffix}"
    write(one, [{"image_url": "a.jpg", "label": "ankle boot"}, {"image_url": "b.jpg", "label": " can "}])
    several = tmp_path / f"several{suffix}"
    write(several, [{"kind": ["can", "carton"], "image_url": "a.jpg"}, {"kind": [], "image_url": "b.jpg"}])
    assert labels_of(open_labelled(str(one))) == [("ankle boot",), ("can",)]
    assert labels_of(open_labelled(str(several), label_column="kind")) == [("can", "carton"), ()]
    assert messages == [
        f"labels: column 'label' of {one}, one an image",
        f"labels: column 'kind' of {several}, any number an image",
    ]
    with pytest.raises(UsageError, match=r"no column looks like the label.* kind, image_url"):
        open_labelled(str(several))
    with pytest.raises(UsageError, match=r"no column is called 'x'.* kind, image_url"):
        open_labelled(str(several), label_column="x")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_truth_values_are_the_same_names_in_every_format(suffix: str, tmp_path: Path) -> None:
    write(tmp_path / f"t{suffix}", [{"image": "a.jpg", "label": False}, {"image": "b.jpg", "label": True}])
    assert labels_of(open_labelled(str(tmp_path / f"t{suffix}"))) == [("False",), ("True",)]


def test_labels_csv_may_hold_lists(tmp_path: Path) -> None:
    rows = [["0.jpg", '["can", "carton"]'], ["1.jpg", "['can', 'milk bottle']"], ["2.jpg", "can carton"]]
    with open(tmp_path / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows([["filename", "labels"], *rows, ["3.jpg", "[0 1 0]"], ["4.jpg", "0 1 0"]])
    told = labels_of(open_labelled(str(tmp_path)))
    assert told[:3] == [("can", "carton"), ("can", "milk bottle"), ("can", "carton")]
    assert "is no list that can be read" in told[3]
    assert "a vector of zeros and ones" in told[4]


def test_a_row_whose_label_cannot_be_read_fails_alone(tmp_path: Path) -> None:
    rows = ["{", '{"image": "a.jpg"}', '{"image": "b.jpg", "label": ""}', '{"image": "c.jpg", "label": "can"}']
    rows += ['{"image": "d.jpg", "label": ["can", "carton"]}', '{"image": "e.jpg", "label": true}']
    (tmp_path / "t.jsonl").write_text("\n".join(['{"image": "0.jpg", "label": null}', *rows]))
    source = open_labelled(str(tmp_path / "t.jsonl"))
    told = labels_of(source)
    assert told[0] == told[3] == "the label is empty"
    assert "not JSON" in told[1]
    assert "line 3: no column looks like the label" in told[2]
    assert told[4] == ("can",)
    assert "2 labels, where the first row has text for one" in told[5]
    assert told[6] == ("True",)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_text_that_stands_for_a_missing_label_is_none(suffix: str, tmp_path: Path) -> None:
    """However it was written; but a class may be called so."""
    words = ["NaN", "nan", "None", "<NA>", " NA ", "null"]
    write(tmp_path / f"t{suffix}", [{"image": "a.jpg", "label": word} for word in ["none", *words]])
    told = labels_of(open_labelled(str(tmp_path / f"t{suffix}")))
    assert told[0] == ("none",)
    assert told[1:] == [
        f"the label is {word.strip()!r}, which stands for a missing one; a class needs another spelling"
        for word in words
    ]
    touch(tmp_path, "NaN/1.jpg", "None/1.jpg")
    assert labels_of(open_labelled(str(tmp_path / "*" / "*.jpg"))) == [("NaN",), ("None",)]
    assert parse_labels("None", ["None"]) == parse_labels(0, ["None"]) == "None"


@pytest.mark.parametrize("column", ["labels", "label"])
@pytest.mark.parametrize("separator", [" ", "|", ", ", ";"])
def test_text_that_looks_like_several_labels_is_said(
    separator: str, column: str, tmp_path: Path, messages: list[str]
) -> None:
    rows = [["circle", "big"], ["circle"], ["square", "big"], ["square"], ["big"]]
    table = tmp_path / "t.csv"
    write(table, [{"image": "a.jpg", column: separator.join(row)} for row in rows])
    source = open_labelled(str(table))
    assert labels_of(source)[0] == (separator.join(rows[0]),)
    assert not source.multi_label
    assert messages[1:] == [
        f"column {column!r} of {table} is taken for one label an image: 5 classes, of which 2 look like several in one "
        f"text ({separator.join(rows[0])!r}, {separator.join(rows[2])!r}); several labels of an image are a list, as "
        '["a", "b"], in one column'
    ]
    messages.clear()
    labels_of(open_labelled(str(table), again=True))
    assert messages == []


def test_names_of_more_than_one_word_are_no_several_labels() -> None:
    names = ["ankle boot", "boot", "T-shirt, top", "tench, Tinca tinca", "red car", "blue car", "red bus", "blue bus"]
    assert joined_labels(names, plural=False) == []
    assert joined_labels(names, plural=True) == ["blue bus", "blue car", "red bus", "red car"]
    imagenet = {*read_label_map("imagenet").values()}
    assert joined_labels(imagenet, plural=False) == joined_labels(imagenet, plural=True) == []


def test_one_of_the_columns_of_zeros_and_ones_is_said(tmp_path: Path, messages: list[str]) -> None:
    table = tmp_path / "t.csv"
    write(table, [{"image": "a.jpg", "circle": 0, "square": 1}, {"image": "b.jpg", "circle": 1, "square": 0}])
    with pytest.raises(UsageError, match="if each class has a column of 0 and 1, write the names"):
        open_labelled(str(table))
    assert labels_of(open_labelled(str(table), label_column="circle")) == [("0",), ("1",)]
    assert "'circle' of" in messages[-1]
    assert "if it says whether an image shows one, several labels of an image are a list" in messages[-1]


def test_records_keep_their_labels(tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text('{"image": "a.jpg", "label": "can"}\n{"image": "b.jpg", "label": ""}')
    kept = [reference.keep for reference in open_labelled(str(tmp_path / "one.jsonl")).as_source().references]
    assert kept == [{"label": "can"}, {"label": None}]
    (tmp_path / "several.jsonl").write_text('{"image": "a.jpg", "label": ["can"]}\n{"image": "b.jpg", "label": []}')
    kept = [reference.keep for reference in open_labelled(str(tmp_path / "several.jsonl")).as_source().references]
    assert kept == [{"label": ["can"]}, {"label": []}]


@pytest.mark.parametrize("how", ["hf", "parquet"])
def test_numbers_of_a_data_sets_classes_become_their_names(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in the Parquet files that the Hub gives out: `datasets` writes the names into them, and need not be there to
    read them."""
    image = {"bytes": jpeg(), "path": None}
    several = datasets.Sequence(datasets.ClassLabel(names=["red", "green"]))
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["can", "jar"]), "colours": several}
    )
    columns = {"image": [image] * 3, "label": [1, 0, -1], "colours": [[0, 1], [], [1]]}
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_dict(columns, features).to_parquet(tmp_path / "data" / "train.parquet")
    spec = f"hf://{tmp_path}/data" if how == "hf" else str(tmp_path / "data" / "train.parquet")
    if how == "parquet":
        monkeypatch.setitem(sys.modules, "datasets", None)
    source = open_labelled(spec)
    assert source.class_names == ["can", "jar"]
    assert labels_of(source) == [("jar",), ("can",), "the label is -1, but the classes are 0 to 1"]
    assert labels_of(open_labelled(spec, label_column="colours")) == [("red", "green"), (), ("green",)]


# --- one field ------------------------------------------------------------------------------------------------------

names = (
    st.text(min_size=1)
    .map(alike)
    .filter(lambda text: text and not text.startswith(LIST_OPENINGS) and text not in MISSING)
)


@given(names)
def test_text_is_one_label(name: str) -> None:
    assert parse_labels(f" {name} ") == name


@given(st.lists(names))
def test_a_list_is_several_also_as_text(given_names: list[str]) -> None:
    expected = tuple(dict.fromkeys(given_names))
    texts = [json.dumps(given_names), str(given_names), json.dumps(given_names, ensure_ascii=False)]
    if given_names:
        texts.append(str(tuple(given_names)))
    if not {*given_names} <= {"0", "1"}:
        assert {parse_labels(given_names), *map(parse_labels, texts)} == {expected}


@pytest.mark.parametrize(
    "text",
    [
        "['a' 'b']",
        "['a', 'b'",
        "[a, b]",
        "[0 1 0]",
        "('a' 'b')",
        "{'a', 'b'}",
        '{"a": 1}',
        "[" * 90_000,
        "[1," * 90_000,
    ],
)
def test_text_that_begins_like_a_list_is_never_one_label(text: str) -> None:
    with pytest.raises(RowError, match="is no list that can be read"):
        parse_labels(text)


@pytest.mark.parametrize(("one", "zero"), [(1, 0), (1.0, 0.0), (True, False), ("1", "0")])
def test_a_vector_of_zeros_and_ones_is_no_list_of_classes(one: object, zero: object) -> None:
    for vector in ([zero, one, zero], [one, zero], [one, one], [zero, zero, zero]):
        for written in (vector, str(vector)):
            with pytest.raises(RowError, match=r"a vector of zeros and ones, \["):
                parse_labels(written)
    assert parse_labels([0, 1]) == ("0", "1")  # numbers of classes, in order and once each
    assert parse_labels([1, 0, 1], ["can", "jar"]) == ("jar", "can")  # of a data set that names them: two of one class


@given(st.integers(), st.lists(names, unique=True))
def test_a_number_is_the_name_of_its_class_or_itself(number: int, class_names: list[str]) -> None:
    if not class_names:
        assert parse_labels(number) == str(number)
    elif 0 <= number < len(class_names):
        assert parse_labels(number, class_names) == parse_labels(float(number), class_names) == class_names[number]
    else:
        with pytest.raises(RowError):
            parse_labels(number, class_names)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text() | st.binary(), st.lists, max_leaves=5))
def test_whatever_stands_in_a_field_it_is_labels_or_a_row_error(value: object) -> None:
    try:
        found = parse_labels(value)
    except RowError:
        return
    assert all(label.strip() for label in ([found] if isinstance(found, str) else found))
