"""Images that another machine or service named: --map, MLTable, folders of the Hub and of save_to_disk."""

from __future__ import annotations

import json
import os
import shutil
import struct
import tempfile
from contextlib import suppress
from pathlib import Path, PureWindowsPath
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from faulty_store import Bucket
from helpers import EXAMPLES, jpeg
from hypothesis import given, settings
from hypothesis import strategies as st

from deit_batch import score
from deit_batch.errors import DeitBatchError, InputError, UsageError
from deit_batch.input.elsewhere import find_here, parse_map
from deit_batch.input.labels import find_split, open_labelled
from deit_batch.input.mltable import MlTable, read_mltable
from deit_batch.input.open import open_source
from deit_batch.io import Failure, LocalFile
from deit_batch.options import Options

LONG = "azureml://subscriptions/0/resourcegroups/rg/workspaces/ws/datastores/blob/paths/"
SHORT = "azureml://datastores/blob/paths/"
MLTABLE = """\
paths:
  - file: ./annotations.jsonl
transformations:
  - read_json_lines:
        encoding: utf8
        invalid_lines: error
        include_path_column: false
  - convert_column_types:
      - columns: image_url
        column_type: stream_info"""

_ALIASES = "".join(f"  - &x{n} [{', '.join([f'*x{n - 1}'] * 9)}]\n" for n in range(1, 40))
BOMB = f"metadata:\n  - &x0 [a]\n{_ALIASES}transformations: [*x39]\n"
"""Lists of 9 to the power of 39 values."""


@pytest.mark.parametrize(
    ("known", "name", "here"),
    [
        ([f"{LONG}=/data"], f"{LONG}a/1.jpg", "/data/a/1.jpg"),
        ([f"{SHORT}=/data/"], f"{LONG}a/1.jpg", "/data/a/1.jpg"),
        ([f"{SHORT}=abfs://box/"], f"{SHORT}a/1.jpg", "abfs://box/a/1.jpg"),
        (["/mnt/old=/new"], "/mnt/old/1.jpg", "/new/1.jpg"),
        (["/mnt/=/a", "/mnt/b/=/c"], "/mnt/b/1.jpg", "/c/1.jpg"),
        (["/mnt/=s3://box/k=1"], "/mnt/1.jpg", "s3://box/k=1/1.jpg"),
        (["/mnt/=/a"], "/other/1.jpg", "/other/1.jpg"),
        (["D:\\photos\\=/data"], str(PureWindowsPath("D:/photos/bag/1.jpg")), "/data/bag/1.jpg"),
        (["D:\\=s3://box/"], str(PureWindowsPath("D:/bag/1.jpg")), "s3://box/bag/1.jpg"),
    ],
)
def test_the_longest_prefix_says_where_an_image_is(known: list[str], name: str, here: str) -> None:
    assert find_here(name, [parse_map(one) for one in known]) == here


def test_inputs_are_mapped_once(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "a"
    folder.mkdir(parents=True)
    (folder / "1.jpg").write_bytes(jpeg())
    (folder / "t.csv").write_text(f"image\n{tmp_path}/a/1.jpg\n")
    options = Options(input=f"{tmp_path}/a/t.csv", map=((f"{tmp_path}/a/", str(folder)),))
    assert [reference.location for reference in options.open_source().references] == [LocalFile(f"{folder}/1.jpg")]


@given(st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1))), st.text())
def test_a_name_without_a_known_prefix_is_left_as_it_is(known: list[tuple[str, str]], name: str) -> None:
    found = find_here(name, known)
    if not any(name.strip().startswith(prefix) for prefix, _ in known):
        assert found == name


@pytest.mark.parametrize("text", ["", "a", "=b", "a=", " = "])
def test_what_is_no_map_is_wrong_usage(text: str) -> None:
    with pytest.raises(UsageError, match="it must be PREFIX=FOLDER"):
        parse_map(text)


def annotated(folder: Path, text: str = MLTABLE, name: str = "annotations.jsonl") -> str:
    folder.mkdir(exist_ok=True)
    rows = [{"image_url": f"{LONG}can/1.jpg", "label": "can"}, {"image_url": f"{LONG}jar/2.jpg", "label": "jar"}]
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "MLTable").write_text(text)
    return str(folder)


def test_an_mltable_is_its_rows(tmp_path: Path) -> None:
    folder = annotated(tmp_path / "t")
    for spec in (folder, f"{folder}/MLTable"):
        references = list(open_source(spec, map=[(SHORT, str(tmp_path))]).references)
        assert [reference.image for reference in references] == [f"{LONG}can/1.jpg", f"{LONG}jar/2.jpg"]
        assert references[0].location == LocalFile(f"{tmp_path}/can/1.jpg")
        source = open_labelled(spec, map=[(SHORT, str(tmp_path))])
        assert ([example.labels for example in source.examples], source.multi_label) == ([("can",), ("jar",)], False)
    (reference,) = open_source(folder, limit=1).references  # nobody has said where they are
    assert isinstance(reference.location, Failure)
    assert "--map" in reference.location.message


def test_an_mltable_on_a_store_of_images_on_a_store(bucket: Bucket) -> None:
    picture = EXAMPLES / "bag" / "00018.png"
    bucket.put("data/can/1.jpg", picture.read_bytes())
    bucket.put("t/MLTable", MLTABLE.encode())
    rows = [{"image_url": f"{LONG}can/1.jpg"}, {"image_url": f"{LONG}can/2.jpg"}]
    bucket.put("t/annotations.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    table = bucket.address("t/MLTable")
    there, missing = score(table, model="demo", workers=0, map={SHORT: bucket.address("data/")})
    assert there.image == f"{LONG}can/1.jpg"
    assert there.predictions == next(score(picture, model="demo", workers=0)).predictions
    assert (missing.image, missing.error and missing.error.type) == (f"{LONG}can/2.jpg", "FetchError")


def test_an_mltable_of_several_files_and_of_images_beside_it(tmp_path: Path) -> None:
    text = MLTABLE.replace("file: ./annotations.jsonl", "pattern: ./*.json_lines")
    folder = annotated(tmp_path / "t", text, "a.json_lines")
    shutil.copy(f"{folder}/a.json_lines", f"{folder}/b.json_lines")
    Path(folder, "mine.jpg").write_bytes(jpeg())
    source = open_source(folder)
    assert len(list(source.references)) == 4
    assert source.passed_over == {"not in MLTable": 1}


def test_a_pattern_is_mapped_and_matches_a_file(tmp_path: Path) -> None:
    """Also in a folder whose name looks like a pattern."""
    text = MLTABLE.replace("file: ./annotations.jsonl", f"file: ./annotations.jsonl\n  - pattern: {LONG}*.jsonl")
    folder = annotated(tmp_path / "t", text)
    place = tmp_path / "[ab]"
    place.mkdir()
    with pytest.raises(UsageError, match=r"the pattern .*/\*\.jsonl matches no file"):
        read_mltable(folder, [(SHORT, str(place))])
    (place / "1.jsonl").touch()
    files = [f"{folder}/annotations.jsonl", f"{place}/1.jsonl"]
    assert read_mltable(folder, [(SHORT, str(place))]).files == files
    with pytest.raises(UsageError, match="a pattern is for files on a disk"):
        read_mltable(folder)


def test_a_long_mltable_on_a_store_is_read_whole_or_refused(bucket: Bucket) -> None:
    paths = "".join(f"  - file: ./{number:0100}.jsonl\n" for number in range(12_000))
    text = f"transformations:\n  - read_json_lines\npaths:\n{paths}"
    bucket.put("t/MLTable", text.encode())
    assert len(read_mltable(bucket.address("t")).files) == 12_000
    bucket.put("t/MLTable", text.encode() + b"\n" * 2**23)
    with pytest.raises(UsageError, match="it is larger than 8,388,608 bytes"):
        read_mltable(bucket.address("t"))


def test_an_mltable_of_other_tables(tmp_path: Path) -> None:
    for delimiter, name in ((",", "t.txt"), ("\\t", "t.data")):
        step = f'- read_delimited:\n        delimiter: "{delimiter}"\n        header: all_files_same_headers'
        text = f"paths:\n  - file: ./{name}\ntransformations:\n  {step}\n"
        folder = annotated(tmp_path / "t", text)
        (tmp_path / "t" / name).write_text(f"image{delimiter}label\nb.jpg{delimiter}x\n".replace("\\t", "\t"))
        (reference,) = open_source(folder).references
        assert reference.location == LocalFile(f"{folder}/b.jpg")
    pq.write_table(pa.table({"image": ["c.jpg"]}), tmp_path / "t" / "t.parquet")
    folder = annotated(tmp_path / "t", "paths:\n  - file: ./t.parquet\ntransformations:\n  - read_parquet\n")
    assert [reference.image for reference in open_source(folder).references] == ["c.jpg"]


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("convert_column_types", "filter", "filter is a step that is not followed here"),
        ("encoding: utf8", "encoding: utf16", "the encoding 'utf16' is not followed here"),
        ("file: ./", "folder: ./", "a path by 'folder' is not followed here"),
        (
            "include_path_column: false",
            "partition_size: 3",
            "read_json_lines has partition_size, which is not",
        ),
        ("read_json_lines", "take", "take is a step that is not followed here"),
        (MLTABLE, "paths: []\ntransformations: [read_parquet]", "it names no file"),
        (MLTABLE, "traits: 1", "it has traits, which we don't know"),
        (MLTABLE, "[", "not YAML"),
        (MLTABLE, "3", "it is no list of fields"),
        (MLTABLE, BOMB, "is no step"),
    ],
)
def test_what_an_mltable_asks_and_is_not_followed_is_refused(old: str, new: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=problem):
        open_source(annotated(tmp_path / "t", MLTABLE.replace(old, new)))


JSON = st.recursive(
    st.none() | st.integers() | st.sampled_from(["file", "./a.jsonl", "read_json_lines", "utf8", ""]),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["file", "read_json_lines", "encoding"]), inner),
)


@given(st.dictionaries(st.sampled_from(["paths", "transformations", "type", "x"]), JSON))
def test_whatever_stands_in_an_mltable_it_is_one_or_wrong_usage(document: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "MLTable").write_text(json.dumps(document))
        with suppress(UsageError):
            assert isinstance(read_mltable(folder), MlTable)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(number))
    return tmp_path


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "metadata.parquet"])
def test_a_folder_of_the_hub_has_labels_and_columns(name: str, pictures: Path) -> None:
    rows = [{"url": "x", "file_name": "1.jpg", "label": "can"}, {"url": "y", "file_name": "./0.jpg", "label": "jar"}]
    if name.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist(rows), pictures / name)
    elif name.endswith("jsonl"):
        (pictures / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        (pictures / name).write_text("url,file_name,label\nx,1.jpg,can\ny,./0.jpg,jar\n")
    source = open_labelled(str(pictures))
    found = [(example.reference.image, example.labels) for example in source.examples]
    assert found == [(f"{pictures}/1.jpg", ("can",)), (f"{pictures}/./0.jpg", ("jar",))]
    assert source.passed_over == {f"not in {name}": 1}
    assert [r.keep for r in open_source(str(pictures), keep=["url"]).references] == [{"url": "x"}, {"url": "y"}]
    assert len(list(open_source(str(pictures)).references)) == 3  # nothing is asked of the table: all images


def test_a_table_that_names_no_files_makes_no_folder_of_the_hub(pictures: Path) -> None:
    (pictures / "metadata.csv").write_text("camera,label\nx,1\n")
    with pytest.raises(UsageError, match="no class folders"):
        open_labelled(str(pictures))
    with pytest.raises(UsageError, match="has no columns; --keep is for tables"):
        open_source(str(pictures), keep=["camera"])


def test_of_two_tables_in_a_folder_none_is_taken(pictures: Path) -> None:
    (pictures / "metadata.csv").write_text("file_name,label\n1.jpg,can\n")
    (pictures / "metadata.jsonl").write_text('{"file_name": "1.jpg", "label": "jar"}\n')
    problem = r"holds metadata\.csv and metadata\.jsonl, and only one can be its table"
    with pytest.raises(UsageError, match=problem):
        open_labelled(str(pictures))
    with pytest.raises(UsageError, match=problem):
        open_source(str(pictures), keep=["label"])
    (pictures / "metadata.csv").write_text("camera,label\nx,can\n")
    (example,) = open_labelled(str(pictures)).examples
    assert example.labels == ("jar",)


def test_what_datasets_has_saved(pictures: Path, tmp_path: Path) -> None:
    features = datasets.Features({"label": datasets.ClassLabel(names=["can", "jar"]), "image": datasets.Image()})
    rows = {"image": [str(pictures / "0.jpg"), str(pictures / "1.jpg")], "label": [1, 0]}
    saved = datasets.Dataset.from_dict(rows, features)
    saved.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": saved, "test": saved.select([1])}).save_to_disk(str(tmp_path / "dict"))
    for spec in (
        tmp_path / "one",
        f"hf://{tmp_path}/one",
        tmp_path / "dict" / "train",
        f"hf://{tmp_path}/dict?split=train",
    ):
        source = open_labelled(str(spec))
        assert [example.labels for example in source.examples] == [("jar",), ("can",)]
        locations = [reference.location for reference in open_source(str(spec)).references]
        assert all(location == jpeg(n) or isinstance(location, LocalFile) for n, location in enumerate(locations))
    with pytest.raises(UsageError, match=r"holds several data sets; name one of .*dict/train, .*dict/test"):
        open_source(str(tmp_path / "dict"))
    split = find_split(str(tmp_path / "dict"))
    assert split
    assert [os.path.basename(part) for part in (split.training, split.validation)] == ["train", "test"]


def test_damage_in_what_datasets_has_saved_ends_no_process(tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(10)]
    datasets.Dataset.from_dict({"image": names}).save_to_disk(str(tmp_path / "saved"))
    (path,) = (tmp_path / "saved").glob("*.arrow")
    whole = path.read_bytes()
    offsets = struct.pack("<4i", 0, 5, 10, 15)
    assert offsets in whole
    path.write_bytes(whole.replace(offsets, struct.pack("<4i", 0, 2**31 - 20, 10, 15)))
    with pytest.raises(InputError, match=r"saved: can't be read past row 0: .* offset") as caught:
        list(open_source(str(tmp_path / "saved")).references)
    assert caught.value.exit_status == 2


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), min_size=1, max_size=6))
def test_whatever_is_damaged_in_it_is_a_sentence(changes: list[tuple[int, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder, suppress(DeitBatchError):
        rows = {"image": [f"{number}.png" for number in range(10)], "views": [["a", "b"]] * 10}
        datasets.Dataset.from_dict(rows).save_to_disk(folder)
        (path,) = Path(folder).glob("*.arrow")
        whole = bytearray(path.read_bytes())
        for place, value in changes:
            whole[place % len(whole)] = value
        path.write_bytes(whole)
        list(open_source(folder, keep=["views"]).references)


def test_no_image_of_a_data_set_is_decoded_as_it_is_read(tmp_path: Path) -> None:
    """Not in a list either, nor if rows were asked for in another form before the data set was saved."""
    features = datasets.Features({"image": datasets.Image(), "views": datasets.List(datasets.Image())})
    image = {"bytes": b"broken", "path": None}
    saved = datasets.Dataset.from_dict({"image": [image], "views": [[image]]}, features)
    saved.to_parquet(tmp_path / "streamed" / "0.parquet")
    saved.save_to_disk(str(tmp_path / "plain"))
    saved.with_format("numpy").save_to_disk(str(tmp_path / "numpy"))
    for spec in (f"hf://{tmp_path}/streamed", f"{tmp_path}/plain", f"{tmp_path}/numpy"):
        (reference,) = open_source(spec).references
        assert reference.location == b"broken"
