"""Each kind of input, on real files: every row accounted for, in order."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import NOT_ASKED, deit_batch, jpeg, photo, write_all_kinds
from hypothesis import given
from hypothesis import strategies as st

from deit_batch.errors import InputError, RowError, UsageError
from deit_batch.input import tables
from deit_batch.input.locate import locate
from deit_batch.input.open import open_source
from deit_batch.io import Base64, Failure, LocalFile, Reference, StoredFile, Url, Wanted
from deit_batch.limits import Limits
from deit_batch.loading.fetch import Fetcher


def read(spec: str | Path, **options: Any) -> list[Reference]:
    references = list(open_source(str(spec), **options).references)
    assert [reference.index for reference in references] == list(range(len(references)))
    return references


def images(spec: str | Path, **options: Any) -> list[str | None]:
    return [reference.image for reference in read(spec, **options)]


def failure(reference: Reference) -> str:
    assert isinstance(reference.location, Failure), reference
    assert reference.location.type == "RowError"
    return reference.location.message


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


# --- folders and files --------------------------------------------------------------------------------------------


def test_a_folder_is_read_sorted_and_recursively_and_the_rest_is_counted(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "b/2.PNG",
        "b/1.jpg",
        "a.jpg",
        "c.webp",
        "Z.jpg",
        "notes.txt",
        ".hidden.jpg",
        ".git/x.jpg",
        "x.jpg/in.gif",
    )
    source = open_source(str(tmp_path))
    names = [os.path.relpath(str(r.image), tmp_path) for r in source.references]
    assert names == ["Z.jpg", "a.jpg", "b/1.jpg", "b/2.PNG", "c.webp", "x.jpg/in.gif"]
    assert source.passed_over == {"hidden": 2, ".txt": 1}
    assert source.total(0) == 6


def test_a_folder_can_be_read_without_the_folders_in_it(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b/1.jpg")
    assert images(tmp_path, recursive=False) == [f"{tmp_path}/a.jpg"]


def test_names_are_joined_to_the_folder_as_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "imgs/a.jpg")
    monkeypatch.chdir(tmp_path)
    assert images("imgs/") == images("imgs") == ["imgs/a.jpg"]
    assert images("./imgs") == ["./imgs/a.jpg"]


def test_links_to_folders_are_followed_once_and_loops_do_not_hang(tmp_path: Path) -> None:
    touch(tmp_path, "sub/a.jpg", "z/b.jpg")
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    (tmp_path / "other").symlink_to(tmp_path / "sub")
    (tmp_path / "itself").symlink_to("itself")
    for one in range(9):  # folders that all link to one another
        for other in range(9):
            (tmp_path / "z" / f"{one}").mkdir(exist_ok=True)
            (tmp_path / "z" / f"{one}" / f"{other}").symlink_to(tmp_path / "z" / f"{other}")
    source = open_source(str(tmp_path))
    names = [os.path.relpath(str(r.image), tmp_path) for r in source.references]
    assert names == ["other/a.jpg", "z/b.jpg"]
    assert source.passed_over["folders seen under another name"] > 2


def test_links_that_loop_do_not_hang_a_glob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.png", "sub/b.png", ".hidden/c.png")
    (tmp_path / "l1").symlink_to(".")
    (tmp_path / "l2").symlink_to(".")
    monkeypatch.chdir(tmp_path)
    assert images("**/*.png") == ["a.png", "sub/b.png"]
    assert images(".hidden/*.png") == [".hidden/c.png"]
    assert images(f"{tmp_path}/s*/*.png") == [f"{tmp_path}/sub/b.png"]


def test_a_single_image_and_a_glob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "b.jpg", "a.jpg", "c.txt", "d/e.jpg", "odd[1].jpg")
    monkeypatch.chdir(tmp_path)
    assert images("b.jpg") == ["b.jpg"]
    assert images("odd[1].jpg") == ["odd[1].jpg"]
    assert images("[ab].*") == ["a.jpg", "b.jpg"]
    assert images("**/*") == ["a.jpg", "b.jpg", "d/e.jpg", "odd[1].jpg"]


@pytest.mark.parametrize("spec", ["", "none/", "*.jpg", "x.jpg", "table.csv", "notes.pdf", "what"])
def test_no_such_input_is_wrong_usage(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "notes.pdf", "empty/readme.txt")
    with pytest.raises(UsageError):
        open_source(spec)


def test_a_folder_without_images_says_what_it_holds(tmp_path: Path) -> None:
    touch(tmp_path, "a.txt", ".b.jpg")
    with pytest.raises(UsageError, match=r"1 hidden, 1 \.txt"):
        open_source(str(tmp_path))


def test_a_folder_that_cannot_be_listed_ends_the_run(tmp_path: Path) -> None:
    touch(tmp_path, "imgs/a.jpg")
    references = open_source(str(tmp_path / "imgs")).references
    shutil.rmtree(tmp_path / "imgs")
    with pytest.raises(InputError, match="imgs: can't be listed: No such file"):
        next(references)


def test_options_for_tables_are_refused_where_there_are_no_columns(tmp_path: Path) -> None:
    touch(tmp_path, "imgs/a.jpg", "t.txt")
    for spec in ("imgs", "imgs/a.jpg", "t.txt"):
        for options in ({"column": "x"}, {"keep": ("x",)}):
            with pytest.raises(UsageError, match="has no columns"):
                open_source(str(tmp_path / spec), **options)


@pytest.mark.parametrize("name", ["t.jsonl", "t.json"])
def test_a_column_to_keep_that_no_object_has_is_warned_of(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"image": "a.jpg", "id": 1}, {"image": "b.jpg", "label": "x"}]
    text = json.dumps({"images": rows}) if name.endswith("n") else "\n".join(map(json.dumps, rows))
    (tmp_path / name).write_text(text)
    with caplog.at_level("INFO", "deit_batch"):
        references = read(tmp_path / name, keep=("label", "labl"))
    assert [reference.keep["label"] for reference in references] == [None, "x"]
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "--keep label: not in the first row, which has image, id"),
        ("INFO", "--keep labl: not in the first row, which has image, id"),
        ("WARNING", "--keep labl: no row has such a column"),
    ]


# --- tables -------------------------------------------------------------------------------------------------------


def test_csv_finds_its_column_and_keeps_others(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('id,Image_URL,label\n7,a.jpg,can\n8,"b, c.jpg","a ""jar"""\n')
    first, second = read(tmp_path / "t.csv", keep=("label", "id"))
    assert (first.image, first.location) == ("a.jpg", LocalFile(f"{tmp_path}/a.jpg"))
    assert first.keep == {"label": "can", "id": "7"}
    assert (second.image, second.keep["label"]) == ("b, c.jpg", 'a "jar"')


def test_relative_paths_are_taken_from_the_tables_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "t.csv").write_text("path\na.jpg\n/abs/b.jpg\n../c.jpg\n")
    monkeypatch.chdir(tmp_path)
    places = [reference.location for reference in read("sub/t.csv")]
    assert places == [LocalFile("sub/a.jpg"), LocalFile("/abs/b.jpg"), LocalFile("sub/../c.jpg")]


def test_tsv_and_a_named_column(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text("image\tthumb\na.jpg\tb, b.jpg\n")
    assert images(tmp_path / "t.tsv", column="thumb") == ["b, b.jpg"]


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.parquet"])
def test_a_table_without_a_usable_column_names_those_it_saw(name: str, tmp_path: Path) -> None:
    rows = [{"id": "1", "what": "a.jpg"}]
    write_table(tmp_path / name, rows)
    with pytest.raises(UsageError, match="id, what"):
        open_source(str(tmp_path / name))
    with pytest.raises(UsageError, match=r"'nope'.* id, what"):
        open_source(str(tmp_path / name), column="nope")
    if name != "t.jsonl":  # where a row need not have what another has
        with pytest.raises(UsageError, match=r"'nope'.* id, what"):
            open_source(str(tmp_path / name), column="what", keep=("nope",))
    with pytest.raises(UsageError, match="the record has a field of that name"):
        open_source(str(tmp_path / name), column="what", keep=("error",))


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def test_a_malformed_csv_row_is_a_failure_and_the_others_are_not(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        "image,label\na.jpg,1\nonly\nb.jpg,2,3\n\nc.jpg,4\n"
        '"unclosed.jpg,5\nd.jpg,6\n"bad" quote,7\ne.jpg,8\n,9\n"f\n.jpg",10\ng.jpg,"open'
    )
    references = read(tmp_path / "t.csv", keep=("label",))
    assert [r.image for r in references if r.image] == ["a.jpg", "c.jpg", "d.jpg", "e.jpg", "f\n.jpg"]
    failures = [failure(r) for r in references if isinstance(r.location, Failure)]
    assert [message.split(":")[0] for message in failures] == [
        "line 3",
        "line 4",
        "line 7",
        "line 9",
        "line 11",
        "line 14",
    ]
    assert failures[0] == "line 3: 1 field where the header has 2"
    assert all("label" in reference.keep for reference in references)  # null, where a row has none
    assert failures[4] == "line 11: the image is empty"


def test_csv_encodings_and_line_ends(tmp_path: Path) -> None:
    text = "image,label\r\nä.jpg,x\r\n"
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        (tmp_path / "t.csv").write_bytes(text.encode(encoding))
        assert images(tmp_path / "t.csv") == ["ä.jpg"], encoding
    (tmp_path / "t.csv").write_bytes(text.encode("latin-1"))
    (reference,) = read(tmp_path / "t.csv")
    assert isinstance(reference.location, LocalFile)
    assert os.fsencode(reference.location.path).endswith(b"/\xe4.jpg")  # the very bytes: such a file can be there


def test_duplicate_headers_matter_only_where_they_are_needed(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image,x,x\na.jpg,1,2\n")
    assert images(tmp_path / "t.csv") == ["a.jpg"]
    with pytest.raises(UsageError, match="more than one column is called 'x'"):
        open_source(str(tmp_path / "t.csv"), keep=("x",))


def test_jsonl_takes_objects_strings_and_request_documents(tmp_path: Path) -> None:
    lines = [
        '{"image_url": "http://h/a.jpg", "label": ["can", "carton"]}',
        '"b.jpg"',
        "",
        '{"input_data": ["c.jpg", "d.jpg"]}',
        '{"input_data": {"columns": ["image", "label"], "index": [0], "data": [["e.jpg", "jar"]]}}',
        '{"label": "x", "path": "f.jpg", "n": NaN}',
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    references = read(tmp_path / "t.jsonl", keep=("label",))
    assert [r.image for r in references] == ["http://h/a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg", "f.jpg"]
    assert references[0].location == Url("http://h/a.jpg")
    assert [r.keep.get("label") for r in references] == [["can", "carton"], None, None, None, "jar", "x"]


def test_a_malformed_json_line_is_a_failure_and_the_others_are_not(tmp_path: Path) -> None:
    bad = ["{", "[1]", "3", "null", '{"image": 5}', '{"image": null}', '{"other": "x"}', "[" * 100_000]
    bad += ['{"input_data": {"columns": 5, "data": [["a"]]}}', '{"input_data": 5}', '{"input_data": [5]}', "9" * 5000]
    (tmp_path / "t.jsonl").write_text("\n".join(['{"image": "a.jpg"}', *bad, '{"image": "z.jpg"}']))
    references = read(tmp_path / "t.jsonl", keep=("other",))
    assert [references[0].image, references[-1].image] == ["a.jpg", "z.jpg"]
    assert all("other" in reference.keep for reference in references)
    for line, reference in enumerate(references[1:-1], 2):
        assert failure(reference).startswith(f"line {line}:") or "input_data[0]" in failure(reference)


def test_a_header_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('a,"b\n')
    with pytest.raises(UsageError, match=r"t\.csv: its header can't be read: a quote is not closed"):
        open_source(str(tmp_path / "t.csv"))


def test_of_a_row_without_an_image_it_is_said_which_input_it_is_of(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("image,x\na.png\n")
    references = list(open_source([str(tmp_path / "a.csv"), str(tmp_path / "b.csv")]).references)
    assert [failure(reference) for reference in references] == [
        f"{tmp_path}/{name}: line 2: 1 field where the header has 2" for name in ("a.csv", "b.csv")
    ]


def test_a_row_that_is_too_long_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_ROW_CHARS", 1000)
    for name, head in (("t.csv", "image\n"), ("t.jsonl", ""), ("t.txt", "")):
        (tmp_path / name).write_text(
            f"{head}{'x' * 5000}\na.jpg\n" if name != "t.jsonl" else f'"{"x" * 5000}"\n"a.jpg"\n'
        )
        long, good = read(tmp_path / name)
        assert "longer than 1,000 characters" in failure(long), name
        assert good.image == "a.jpg"


def test_a_list_and_stdin(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a.jpg\n\n sp ace.jpg\nhttps://h/c.jpg\r\n")
    first, second, third = read(tmp_path / "t.txt")
    assert (first.location, second.image) == (LocalFile(f"{tmp_path}/a.jpg"), " sp ace.jpg")
    assert third.location == Url("https://h/c.jpg")
    stdin = io.BufferedReader(
        io.BytesIO(b'a.jpg\n{"image": "b.jpg", "label": "x"}\n"c.jpg"\n{"input_data": ["d.jpg"]}\n')
    )
    references = read("-", stdin=stdin)
    assert images("-", stdin=opened(b"[1].png\n")) == ["[1].png"]
    assert [r.location for r in references] == [LocalFile(f"{name}.jpg") for name in "abcd"]


def test_the_cards_request_document(tmp_path: Path) -> None:
    inline = base64.b64encode(jpeg()).decode()
    (tmp_path / "r.json").write_text(json.dumps({"input_data": [inline, "https://h/b.jpg", "c.jpg", 4]}))
    first, second, third, fourth = read(tmp_path / "r.json")
    assert (first.image, first.location) == (None, Base64(inline))
    assert (second.location, third.location) == (Url("https://h/b.jpg"), LocalFile(f"{tmp_path}/c.jpg"))
    assert "a JSON number where a string should be" in failure(fourth)
    assert open_source(str(tmp_path / "r.json")).total(0) == 4


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it is empty"),
        ("{", "a name in double quotes is missing (character 2)"),
        ('{"a": 1}\n{"a": 2}', "something follows on its end (line 2, character 1)"),
        ('["a" "b"]', "a comma is missing (character 6)"),
        ('{"a" 1}', "a colon is missing (character 6)"),
        ('["a', "a quote is not closed (character 2)"),
        ('["a\nb"]', "a line break or other control character in a text (line 1, character 4)"),
        (r'["a\x"]', "a backslash that no escape follows (character 4)"),
        ("[1,]", "(character"),
        ("{}", 'there is no "input_data"'),
        ('{"input_data": "x"}', "holds no list"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_what_is_no_request_document_is_wrong_usage(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(UsageError, match=r"r\.json: not a request document") as caught:
        open_source(str(tmp_path / "r.json"))
    assert reason in str(caught.value)
    assert not re.search("Error|Expecting|Extra|column", str(caught.value))


@pytest.mark.parametrize("name", ["r.json", "r.jsonl"])
def test_what_a_request_asks_of_its_predictions(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text('{"input_data": ["a.jpg", "b.jpg"], "params": {"top_k": 3, "threshold": 0.25}}')
    assert [reference.wanted for reference in read(tmp_path / name)] == [Wanted(3, 0.25)] * 2
    (tmp_path / name).write_text(
        '{"input_data": {"columns": ["photo"], "index": [0, 1], "data": [["a.jpg"], "b.jpg"]}}'
    )
    assert images(tmp_path / name) == ["a.jpg", "b.jpg"]  # one column is the image, whatever it is called


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ('["a.jpg"]', "1 cell where there are 2 columns"),
        ('["a.jpg", "x", "y"]', "3 cells where there are 2 columns"),
        ('"a.jpg"', "1 cell where there are 2 columns"),
        ('{"image": "a.jpg"}', "1 cell where there are 2 columns"),
    ],
)
def test_a_row_of_a_request_has_a_cell_for_each_column(row: str, problem: str, tmp_path: Path) -> None:
    text = f'{{"input_data": {{"columns": ["id", "image"], "data": [["7", "b.jpg"], {row}]}}}}'
    (tmp_path / "r.json").write_text(text)
    good, bad = read(tmp_path / "r.json")
    assert good.image == "b.jpg"
    assert failure(bad) == f"input_data[1]: {problem}"


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ('"columns": ["image", "image"]', '"columns" has the name "image" 2 times'),
        ('"columns": ["image", 5]', '"columns" holds a name that is no text'),
        ('"columns": ["image"], "index": [0, 1]', '"index" is 2 values, where "data" has 1 row'),
        ('"columns": ["image"], "index": 0', '"index" is a JSON number, where "data" has 1 row'),
    ],
)
def test_the_table_of_a_request_must_be_whole(table: str, problem: str) -> None:
    with pytest.raises(RowError, match=problem):
        tables.read_request(f'{{"input_data": {{{table}, "data": [["a.jpg"]]}}}}')


@pytest.mark.parametrize(("more", "problem"), NOT_ASKED)
def test_what_a_request_may_not_ask(more: str, problem: str, tmp_path: Path) -> None:
    text = f'{{"input_data": ["a.jpg"], {more}}}'
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(UsageError, match=problem):
        open_source(str(tmp_path / "r.json"))
    (tmp_path / "r.jsonl").write_text(text)
    (reference,) = read(tmp_path / "r.jsonl")
    assert re.search(problem, failure(reference))
    with pytest.raises(RowError, match=problem):
        tables.read_request(text)


@given(st.dictionaries(st.sampled_from(["input_data", "params", "x"]), st.recursive(st.none() | st.text(), st.lists)))
def test_whatever_stands_in_a_request_it_is_one_or_a_row_error(document: dict[str, object]) -> None:
    with suppress(RowError):
        assert isinstance(tables.read_request(json.dumps(document)), tables.Request)


def test_of_another_document_it_is_said_what_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"rows": [], "columns": []}')
    with pytest.raises(UsageError, match=r'there is no "input_data" in it, but "rows", "columns";'):
        open_source(str(tmp_path / "other.json"))


def test_parquet_with_paths_bytes_and_image_structs(tmp_path: Path) -> None:
    data = jpeg()
    rows: list[dict[str, Any]] = [
        {"file_name": "a.jpg", "raw": data, "picture": {"bytes": data, "path": "x.jpg"}, "n": 1},
        {"file_name": None, "raw": None, "picture": {"bytes": None, "path": "y.jpg"}, "n": 2},
    ]
    path = tmp_path / "t.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    first, second = read(path, keep=("n",))
    assert (first.location, first.keep) == (LocalFile(f"{tmp_path}/a.jpg"), {"n": 1})
    assert failure(second) == "line 2: the image is empty"
    assert read(path, column="raw")[0].location == data
    first, second = read(path, column="picture")
    assert (first.image, first.location) == ("x.jpg", data)
    assert second.location == LocalFile(f"{tmp_path}/y.jpg")
    assert open_source(str(path)).total(0) == 2


def test_a_broken_parquet_file_is_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1nonsense")
    with pytest.raises(UsageError, match="not a Parquet file"):
        open_source(str(tmp_path / "t.parquet"))


def test_a_local_data_set_is_streamed_with_its_images_undecoded(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for label in ("can", "jar"):
            (tmp_path / "set" / split / label).mkdir(parents=True)
            for number in range(2):
                photo(seed=number).save(tmp_path / "set" / split / label / f"{number}.jpg")
    references = read(f"hf://{tmp_path}/set?split=test", keep=("label",))
    assert [r.keep["label"] for r in references] == [0, 0, 1, 1]
    assert all(isinstance(r.location, LocalFile) and os.path.isfile(r.location.path) for r in references)
    with pytest.raises(UsageError, match=r"name one of its splits .*train"):
        open_source(f"hf://{tmp_path}/set")
    with pytest.raises(UsageError, match="unknown splitt"):
        open_source(f"hf://{tmp_path}/set?splitt=test")


def test_a_parquet_data_set_with_embedded_images(tmp_path: Path) -> None:
    rows = {"picture": [photo(seed=n) for n in range(3)], "id": [5, 6, 7]}
    features = datasets.Features({"picture": datasets.Image(), "id": datasets.Value("int64")})
    data = datasets.Dataset.from_dict(rows, features=features)
    (tmp_path / "set").mkdir()
    data.to_parquet(tmp_path / "set" / "train.parquet")
    references = read(f"hf://{tmp_path}/set", column="picture", keep=("id",))
    assert [r.keep["id"] for r in references] == [5, 6, 7]
    assert all(isinstance(r.location, bytes) and r.location for r in references)


def test_a_data_set_that_cannot_be_loaded_ends_the_run_in_one_line(tmp_path: Path) -> None:
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = deit_batch("score", "--input", "hf://nobody/nothing", "--dry-run", cwd=tmp_path, env=offline)
    assert done.returncode == 1
    assert "hf://nobody/nothing: the data set can't be loaded" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_limit_takes_the_first(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a.jpg\nb.jpg\nc.jpg\n")
    assert images(tmp_path / "t.txt", limit=2) == ["a.jpg", "b.jpg"]
    (tmp_path / "r.json").write_text('["a.jpg", "b.jpg", "c.jpg"]')
    assert open_source(str(tmp_path / "r.json"), limit=2).total(0) == 2


def test_the_total_of_a_text_is_judged_from_the_bytes_read(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("".join(f"image-{number:06}.jpg\n" for number in range(100_000)))
    source = open_source(str(path))
    assert source.total(0) is None
    for count, _ in enumerate(source.references, 1):
        if count == 50_000:
            judged = source.total(count)
            assert judged is not None
            assert 90_000 < judged < 110_000
    assert source.total(100_000) == 100_000


def test_large_base64_fields_stream(tmp_path: Path) -> None:
    """40 rows of 10 MB: read one by one, so that memory never holds many."""
    field = base64.b64encode(os.urandom(7_500_000)).decode()
    with open(tmp_path / "t.csv", "w") as file:
        file.write("image_base64,id\n")
        for number in range(40):
            file.write(f"{field},{number}\n")
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    count = sum(isinstance(r.location, Base64) for r in open_source(str(tmp_path / "t.csv")).references)
    assert count == 40
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB; the file has 400 MB


# --- telling references apart -------------------------------------------------------------------------------------


def test_base64_of_every_format_is_told_from_a_path(tmp_path: Path) -> None:
    for image in write_all_kinds(tmp_path):
        data = image.read_bytes()
        for encode in (base64.b64encode, base64.urlsafe_b64encode, base64.encodebytes):
            text = encode(data).decode()
            for variant in (text, text.rstrip("=\n")):
                assert isinstance(locate(variant), Base64), (image.name, variant[:40])


@pytest.mark.parametrize(
    "path",
    [
        "/9j/holiday/2019/a-photo-of-the-beach.jpg",
        "/9j/short",
        "iVBORw0KGgo.png",
        "QkmMountainAndLakeInAutumnWithFogAtDawn",
        "a b c.jpg",
        "C:\\images\\a.jpg",
        "data.jpg",
        "http.jpg",
    ],
)
def test_a_path_is_told_from_base64(path: str) -> None:
    assert locate(path, "folder") == LocalFile(os.path.join("folder", path))


def test_urls_data_uris_and_foreign_schemes(tmp_path: Path) -> None:
    assert locate(" HTTPS://h/a.jpg ") == Url("HTTPS://h/a.jpg")
    assert locate("data:image/png;base64,iVBO\nRw0=") == Base64("iVBO\nRw0=")
    assert locate("aGVsbG8=", always_base64=True) == Base64("aGVsbG8=")
    assert locate("data:image/png;base64,iVBO%2BRw0%3D") == Base64("iVBO+Rw0=")
    assert locate("data:image/png,%89PNG+a") == b"\x89PNG+a"
    for url in ("file:///a%20b/c.png", "file://localhost/a%20b/c.png", "FILE:/a%20b/c.png"):
        assert locate(url) == LocalFile("/a b/c.png")
    assert locate("file:///a.png", always_base64=True) == Base64("file:///a.png")  # a server reads no files
    rows = ["ftp://h/a.jpg", "file://host/a.jpg", "file:a.jpg", "memory://b/key.jpg", "data:nothing"]
    (tmp_path / "t.txt").write_text("\n".join(rows))
    references = read(tmp_path / "t.txt")
    assert [r.image for r in references] == rows
    assert all(failure(r) for r in references)


def test_file_urls_are_read_under_roots_rule(tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    folder.mkdir()
    (folder / "ü.jpg").write_bytes(jpeg())
    (tmp_path / "t.txt").write_text((folder / "ü.jpg").as_uri())
    (location,) = [reference.location for reference in read(tmp_path / "t.txt")]
    assert isinstance(Fetcher(Limits(root=str(folder))).fetch(location), bytes)
    (tmp_path / "elsewhere").mkdir()
    refused = Fetcher(Limits(root=str(tmp_path / "elsewhere"))).fetch(location)
    assert isinstance(refused, Failure)
    assert "outside of --root" in refused.message


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_a_csv_says_its_delimiter_by_its_header(
    delimiter: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "deit_batch")
    text = delimiter.join(['"name, first; last"', "image", "n"]) + "\n" + delimiter.join(["x", "a,b;c.png", "1"]) + "\n"
    (tmp_path / "t.csv").write_text(text.replace("a,b;c.png", "a.png") if delimiter in ",;" else text)
    (reference,) = read(tmp_path / "t.csv", keep=["n"])
    assert (reference.image, dict(reference.kept)) == ("a.png" if delimiter in ",;" else "a,b;c.png", {"n": "1"})
    assert ("separated by" in caplog.text) == (delimiter != ",")


def test_parquet_in_several_parts(tmp_path: Path) -> None:
    parts = tmp_path / "out"
    parts.mkdir()
    for number in (1, 0):
        pq.write_table(pa.table({"image": [f"{number}.png"]}), parts / f"part-{number}.parquet")
    (parts / "_SUCCESS").touch()
    (parts / ".part-0.parquet.crc").touch()
    for spec in (parts, parts / "*.parquet", parts / "part-?.parquet"):
        assert [(r.index, Path(str(r.image)).name) for r in read(spec)] == [(0, "0.png"), (1, "1.png")]
    (parts / "a.png").write_bytes(jpeg())
    assert [Path(str(reference.image)).name for reference in read(parts)] == ["a.png"]  # a folder of images


@given(st.text(min_size=1))
def test_any_text_is_located_or_refused(text: str) -> None:
    from deit_batch.errors import RowError

    try:
        location = locate(text, "folder")
    except RowError:
        return
    assert isinstance(location, LocalFile | Url | Base64 | bytes)


# --- properties of the parsers ------------------------------------------------------------------------------------

OpenTable = Callable[[bytes], tables.Table]


def opened(data: bytes) -> Any:
    return io.BufferedReader(io.BytesIO(data))


@given(
    st.lists(
        st.tuples(
            st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1),
            st.text(st.characters(codec="utf-8")),
        )
    )
)
def test_a_well_formed_csv_comes_back_as_it_was_written(rows: list[tuple[str, str]]) -> None:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow(["image", "other"])
    writer.writerows(rows)
    table = tables.open_csv(opened(buffer.getvalue().encode()), "t", delimiter=",")
    assert [row.value for row in table.rows] == [{"image": image, "other": other} for image, other in rows]


@given(st.binary())
def test_any_bytes_as_csv_give_rows_in_the_order_of_their_lines(data: bytes) -> None:
    table = tables.open_csv(opened(b"image,other\n" + data), "t", delimiter=",")
    lines = [row.line for row in table.rows]
    assert lines == sorted(set(lines))


@given(st.lists(st.sampled_from(["a,b", '"a\nb",c', 'x"y,z', "lonely", "1,2,3", '""', ""]), max_size=20))
def test_no_line_of_a_csv_is_lost(lines: list[str]) -> None:
    """Every line without an open quote is a row of its own, good or failed, whatever stands around it."""
    data = "".join(f"{line}\n" for line in lines).encode()
    table = tables.open_csv(opened(b"image,other\n" + data), "t", delimiter=",")
    assert len(list(table.rows)) == sum(1 for line in lines if line)


@given(st.lists(st.one_of(st.text(min_size=1), st.dictionaries(st.text(), st.integers()))))
def test_well_formed_jsonl_comes_back_as_it_was_written(values: list[str | dict[str, int]]) -> None:
    values = [value for value in values if not (isinstance(value, dict) and "input_data" in value)]
    data = "".join(json.dumps(value) + "\n" for value in values).encode()
    assert [row.value for row in tables.open_jsonl(opened(data), "t").rows] == values


@given(st.binary())
def test_any_bytes_as_jsonl_or_list_give_one_row_a_line(data: bytes) -> None:
    text = tables.open_text(opened(data), "t", newline="\n").read()
    filled = sum(1 for line in text.split("\n") if line.strip())
    assert len(list(tables.open_list(opened(data), "t").rows)) == filled
    if b"input_data" not in data:
        assert len(list(tables.open_jsonl(opened(data), "t").rows)) == filled


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.jsonl", '{"image": "a.png", "image": "b.png"}\n{"image": "c.png"}\n'),
        ("t.json", '{"input_data": ["a.png"], "input_data": ["c.png"]}'),
    ],
)
def test_a_name_that_is_there_twice_is_not_guessed(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    try:
        locations = [reference.location for reference in open_source(str(tmp_path / name)).references]
    except UsageError as error:
        assert "is there twice" in str(error)  # noqa: PT017 - a document fails as a whole
    else:
        assert isinstance(locations[0], Failure)
        assert '"image" is there twice in one object' in locations[0].message
        assert isinstance(locations[1], LocalFile)


def test_rows_of_one_id_are_counted_and_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "t.csv").write_text("image,n\n" + "".join(f"{row}.png,{row % 4}\n" for row in range(7)))
    with caplog.at_level("WARNING", "deit_batch"):
        assert len(read(tmp_path / "t.csv", id="n")) == 7
        read(tmp_path / "t.csv", id="image")
    (message,) = caplog.messages
    assert message == f"--id: 3 rows have the id of a row before in {tmp_path}/t.csv, that of 4.png first"


def test_a_file_that_is_called_as_a_pattern_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As a copy to `*.png` leaves it where nothing matched."""
    touch(tmp_path, "*.png", "a.png", "b.png", "[x].png")
    with caplog.at_level("WARNING", "deit_batch"):
        assert images(tmp_path / "*.png") == [f"{tmp_path}/*.png"]
        assert images(tmp_path / "[x].png") == [f"{tmp_path}/[x].png"]
    assert caplog.messages == [f"{tmp_path}/*.png is the name of a file, read alone; as a pattern it has 3 images more"]


def test_base_and_suffix_say_where_the_images_of_ids_are(tmp_path: Path) -> None:
    touch(tmp_path, "imgs/1.jpg", "imgs/2.jpg")
    rows = {"image_id": ["1", "2.jpg", "http://host/3", "data:;base64,AA==", "/4", "file:///5", "s3://b/6"]}
    (tmp_path / "t.csv").write_text("image_id\n" + "\n".join(f'"{row}"' for row in rows["image_id"]))
    options: dict[str, Any] = {"base": f"{tmp_path}/imgs", "suffix": ".jpg"}
    references = read(tmp_path / "t.csv", column="image_id", **options)
    base = options["base"]
    assert [reference.location for reference in references] == [
        LocalFile(f"{base}/1.jpg", base),
        LocalFile(f"{base}/2.jpg", base),
        Url("http://host/3.jpg"),
        Base64("AA=="),
        LocalFile("/4.jpg"),
        LocalFile("/5.jpg"),
        StoredFile("s3://b/6.jpg"),
    ]
    assert [reference.image for reference in references[:2]] == ["1", "2.jpg"]
    pq.write_table(pa.table({"id": [1, None, 2.0], "n": [1, 2, 3]}), tmp_path / "t.parquet")
    first, second, third = read(tmp_path / "t.parquet", column="id", **options)
    assert (first.image, first.location, third.image) == ("1", LocalFile(f"{base}/1.jpg", base), "2")
    assert failure(second) == "line 2: the image is empty"
    (tmp_path / "t.txt").write_text("1\n")
    assert read(tmp_path / "t.txt", **options)[0].location == LocalFile(f"{base}/1.jpg", base)
    assert read("-", stdin=opened(b"1\n"), **options)[0].location == LocalFile(f"{base}/1.jpg", base)
    assert read(tmp_path / "t.txt", base="s3://b/x", suffix=".jpg")[0].location == StoredFile("s3://b/x/1.jpg")


def test_names_that_lack_their_ending_are_told_once(tmp_path: Path, messages: list[str]) -> None:
    touch(tmp_path, "imgs/1.JPG", "imgs/2.JPG")
    (tmp_path / "t.csv").write_text("image\n1\n2\n")
    read(tmp_path / "t.csv", base=f"{tmp_path}/imgs")
    (warning,) = messages
    assert warning == (
        f"{tmp_path}/imgs/1 is not there, but {tmp_path}/imgs/1.JPG is: if names lack their ending, give --suffix .JPG"
    )
    messages.clear()
    read(tmp_path / "t.csv", base=f"{tmp_path}/imgs", suffix=".JPG")
    read(tmp_path / "t.csv")
    assert not messages


def test_a_header_in_a_list_is_told(tmp_path: Path, messages: list[str]) -> None:
    (tmp_path / "t.txt").write_text("image,label\na.jpg,cat\n")
    read(tmp_path / "t.txt")
    assert messages == [
        f"{tmp_path}/t.txt: its first line, image,label, looks like a header; of a table, end the name in .csv"
    ]


def test_a_base_or_suffix_that_can_be_none_says_what_to_do(tmp_path: Path) -> None:
    touch(tmp_path, "t.csv", "imgs.zip", "imgs.tar.gz")
    for base in (f"{tmp_path}/imgs.zip", f"{tmp_path}/imgs.tar.gz", "s3://b/imgs.zip"):
        with pytest.raises(UsageError, match="is an archive; unpack it, and give the folder"):
            open_source(f"{tmp_path}/t.csv", base=base)
    with pytest.raises(UsageError, match=r"--suffix JPG: an ending begins with a dot; give --suffix \.JPG"):
        open_source(f"{tmp_path}/t.csv", suffix="JPG")


def test_base_suffix_and_delimiter_are_for_what_they_change(tmp_path: Path) -> None:
    touch(tmp_path, "imgs/1.jpg", "t.jsonl")
    for options in ({"base": str(tmp_path)}, {"suffix": ".jpg"}):
        with pytest.raises(
            UsageError, match=r"imgs has no rows that name images; --(base|suffix) is for tables and lists"
        ):
            open_source(f"{tmp_path}/imgs", **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"t\.jsonl is no text with columns; --delimiter is for \.csv"):
        open_source(f"{tmp_path}/t.jsonl", delimiter=";")
    with pytest.raises(UsageError, match="--base nowhere: no such folder; give a folder, or an address"):
        open_source(f"{tmp_path}/t.jsonl", base="nowhere")
    (tmp_path / "t.csv").write_text("image~n\na~1\n")
    assert images(tmp_path / "t.csv", delimiter="~") == ["a"]
    (tmp_path / "t.csv").write_text("image,x\tn\na,b\t1\n")
    assert images(tmp_path / "t.csv", column="image,x", delimiter="tab") == ["a,b"]
    for delimiter in ("ab", '"', "\n"):
        with pytest.raises(UsageError, match=r"--delimiter .*: it must be one character, or tab"):
            open_source(f"{tmp_path}/t.csv", delimiter=delimiter)


def test_a_glob_of_tables_is_all_of_them(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / f"{name}.csv").write_text(f"image\n{name}.png\n")
    assert images(tmp_path / "*.csv") == [f"{tmp_path}/a.png", f"{tmp_path}/b.png"]
