"""Images, tables and tars on an object store: a real S3 server on loopback, on good days and bad ones."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from faulty_store import SECRET, Bucket, Kind
from helpers import jpeg
from hypothesis import given
from hypothesis import strategies as st
from tars import PICTURES, samples, write_tar

from deit_batch import score
from deit_batch.errors import InputError, RowError, UsageError
from deit_batch.input.labels import open_labelled
from deit_batch.input.locate import locate
from deit_batch.input.open import open_source
from deit_batch.io import Failure, LocalFile, Picture, StoredFile
from deit_batch.limits import Limits
from deit_batch.loading.fetch import Fetcher
from deit_batch.system import object_store

LIMITS = Limits(image_bytes=5000, retries=2)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting between two tries of ours."""
    monkeypatch.setattr("deit_batch.system.backoff.LONGEST_WAIT", 0.0)


def fetch(bucket: Bucket, *keys: str, limits: Limits = LIMITS) -> list[bytes | Picture | Failure]:
    return Fetcher(limits).fetch_all([StoredFile(bucket.address(key)) for key in keys])


def message(result: object) -> str:
    assert isinstance(result, Failure)
    return f"{result.type}: {result.message}"


# --- folders ---------------------------------------------------------------------------------------------------------


def test_a_folder_scores_as_the_same_files_do(bucket: Bucket) -> None:
    for picture in PICTURES:
        bucket.put(f"in/{picture.parent.name}/{picture.name}", picture.read_bytes())
    found = list(score(bucket.address("in/"), model="demo", workers=2))
    assert [record.image for record in found] == sorted(
        bucket.address(f"in/{picture.parent.name}/{picture.name}") for picture in PICTURES
    )
    local = {f"{p.parent.name}/{p.name}": next(score(p, model="demo", workers=0)).predictions for p in PICTURES}
    assert [record.predictions for record in found] == [
        local["/".join(str(record.image).split("/")[-2:])] for record in found
    ]


def test_a_folder_is_listed_page_by_page_as_it_is_read_in_the_order_of_bytes(bucket: Bucket) -> None:
    bucket.proxy.page_size = 3
    keys = ["a/z.jpg", "a-b.jpg", "a.jpg", "B.jpg", "é.png", "z.jpg", "z/deep/er.gif", "😀.jpg"]
    for key in [*keys, ".hidden.jpg", "a/.git/x.jpg", "notes.txt", "empty/"]:
        bucket.put(f"in/{key}", b"x")
    bucket.put("elsewhere.jpg", b"x")
    source = open_source(bucket.address("in"))
    first = next(source.references)
    assert bucket.seen("GET .*list-type=2") == 1
    references = [first, *source.references]
    assert bucket.seen("GET .*list-type=2") == 4
    assert [reference.image for reference in references] == [
        bucket.address(f"in/{key}") for key in sorted(keys, key=str.encode)
    ]
    assert [reference.index for reference in references] == list(range(8))
    assert source.passed_over == {"hidden": 2, ".txt": 1}
    assert bucket.seen("(HEAD|GET) in/") == 0  # nothing is asked about an object that the listing has told


def test_folders_in_it_are_left_out_if_told_to(bucket: Bucket) -> None:
    for key in ("in/a.jpg", "in/b/c.jpg", "in/d.jpg"):
        bucket.put(key, b"x")
    source = open_source(bucket.address("in/"), recursive=False)
    assert [reference.image for reference in source.references] == [
        bucket.address("in/a.jpg"),
        bucket.address("in/d.jpg"),
    ]
    assert source.passed_over == {"folders": 1}


def test_stores_that_can_only_be_listed_folder_by_folder_give_the_same(bucket: Bucket) -> None:
    keys = ["a-b.jpg", "a.jpg", "a/deep/x.jpg", "a/y.jpg", "a0.jpg"]
    for key in [*keys, "empty/"]:
        bucket.put(f"in/{key}", b"x")
    store, path = object_store.open_store(bucket.address("in/"))
    assert list(store._walk(path, recursive=True)) == list(store.list(path, recursive=True))
    assert [str(found) for found in store._walk(path, recursive=False) if isinstance(found, str)] == [
        f"{bucket.name}/in/a/",
        f"{bucket.name}/in/empty/",
    ]


def test_one_image_and_what_is_not_there(bucket: Bucket) -> None:
    address = bucket.put("one.jpg", jpeg())
    (reference,) = open_source(address).references
    assert Fetcher(LIMITS).fetch(reference.location) == jpeg()
    for key, said in {"none.jpg": "no such object", "none/": r"holds no image \(it is empty\)"}.items():
        with pytest.raises(UsageError, match=said):
            open_source(bucket.address(key))
    with pytest.raises(UsageError, match=r"s3://no-such-bucket/x/: can't be read: no such bucket"):
        open_source("s3://no-such-bucket/x/")


def test_a_listing_survives_a_bad_minute_and_says_where_it_ended(bucket: Bucket) -> None:
    bucket.proxy.page_size = 2
    for number in range(6):
        bucket.put(f"in/{number}.jpg", b"x")
    bucket.fault("SlowDown", "GET .*list-type", 1)
    bucket.fault("InternalError", "GET .*list-type", 1)
    bucket.fault("refused", "GET .*list-type", 1)
    assert len(list(open_source(bucket.address("in/")).references)) == 6
    references = open_source(bucket.address("in/")).references
    assert len(list(islice(references, 2))) == 2
    bucket.fault("AccessDenied", "GET .*list-type")
    with pytest.raises(InputError, match=r"can't be listed past s3://.*/in/1.jpg: not permitted"):
        next(references)


def test_class_folders_and_a_labels_file_on_a_store(bucket: Bucket) -> None:
    for key in ("val/can/1.jpg", "val/jar/2.jpg", "val/jar/3.jpg"):
        bucket.put(key, jpeg())
    labelled = open_labelled(bucket.address("val/"))
    assert labelled.class_names == ["can", "jar"]
    assert [example.labels for example in labelled.examples] == [("can",), ("jar",), ("jar",)]
    bucket.put("many/labels.csv", b"filename,labels\n1.jpg,can jar\n")
    bucket.put("many/images/1.jpg", jpeg())
    (example,) = open_labelled(bucket.address("many/")).examples
    assert example.labels == ("can", "jar")
    assert Fetcher(LIMITS).fetch(example.reference.location) == jpeg()


# --- objects ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["SlowDown", "InternalError", "cut", "refused"])
def test_passing_faults_pass(kind: Kind, bucket: Bucket, quick: None) -> None:
    for number in range(5):
        bucket.put(f"{number}.jpg", jpeg(number))
    bucket.fault(kind, "GET [13].jpg", 3)
    assert fetch(bucket, *(f"{n}.jpg" for n in range(5)), limits=Limits(retries=3)) == [jpeg(n) for n in range(5)]


@pytest.mark.parametrize(
    ("kind", "said", "tries"),
    [
        ("SlowDown", "SlowDown, it said", 10),  # whatever --retries is
        ("InternalError", "InternalError, it said", 3),
        ("cut", "", 3),
        ("AccessDenied", "not permitted: AccessDenied, it said", 1),
    ],
)
def test_lasting_faults_are_one_line_after_as_many_tries_as_allowed(
    kind: Kind, said: str, tries: int, bucket: Bucket, quick: None
) -> None:
    bucket.put("a.jpg", jpeg())
    bucket.put("b.jpg", jpeg())
    bucket.fault(kind, "GET a.jpg")
    failed, good = fetch(bucket, "a.jpg", "b.jpg")
    assert good == jpeg()
    assert message(failed).startswith(f"FetchError: {said}")
    assert "\n" not in message(failed)
    assert bucket.seen("GET a.jpg") == tries


def test_an_object_that_does_not_come_in_time(bucket: Bucket) -> None:
    bucket.put("a.jpg", jpeg())
    bucket.fault("silence", "GET a.jpg")
    (failed,) = fetch(bucket, "a.jpg", limits=Limits(fetch_seconds=0.5, retries=0))
    assert message(failed) == "FetchError: not complete in time"


def test_what_is_not_there_empty_or_too_large(bucket: Bucket) -> None:
    bucket.put("empty.jpg", b"")
    bucket.put("large.jpg", b"x" * 5001)
    bucket.put("folder/a.jpg", b"x")
    found = [message(result) for result in fetch(bucket, "none.jpg", "empty.jpg", "large.jpg", "folder")]
    assert found == [
        "FetchError: no such object",
        "FetchError: no bytes: the file or field is empty",
        "FetchError: larger than 5,000 bytes",
        "FetchError: no such object",
    ]


def test_an_object_is_one_request(bucket: Bucket) -> None:
    bucket.put("a.jpg", b"x")
    assert fetch(bucket, "a.jpg") == [b"x"]
    assert (bucket.seen("HEAD"), bucket.seen("GET")) == (0, 1)


def test_many_are_read_at_a_time_but_no_more_than_allowed(bucket: Bucket) -> None:
    keys = [bucket.put(f"{number}.jpg", b"x") and f"{number}.jpg" for number in range(12)]
    bucket.fault("slow", "GET")
    found = fetch(bucket, *keys, limits=Limits(connections=6))
    assert found == [b"x"] * 12
    assert 1 < bucket.proxy.busiest <= 6


def test_neither_records_nor_messages_show_the_key(bucket: Bucket, quick: None) -> None:
    kinds: list[Kind] = ["AccessDenied", "SlowDown", "cut", "refused"]
    for kind in kinds:
        bucket.put(f"{kind}.jpg", jpeg())
        bucket.fault(kind, f"GET {kind}.jpg")
    for failed in fetch(bucket, *(f"{kind}.jpg" for kind in kinds)):
        assert SECRET not in message(failed)
        assert "Signature" not in message(failed)


# --- what a row may name ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["file://host/etc/passwd", "memory://x/a.jpg", "ftp://h/a.jpg", "github://o:r@/a.jpg", "simplecache::s3://b/a.jpg",
     "abfs://c@evil.example.com/a.jpg", "s3:///a.jpg", "s3://arn:aws:s3:x/a.jpg", "s3://evil.com#/a.jpg",
     "zip://a.jpg::s3://b/a.zip", "http+s3://b/a.jpg"],
)  # fmt: skip
def test_schemes_that_are_not_opened(text: str) -> None:
    try:
        location = locate(text)
    except RowError:
        return
    assert isinstance(location, LocalFile)  # "simplecache::s3:" is a strange name, and no address
    assert isinstance(Fetcher(LIMITS).fetch(location), Failure)


def test_a_root_on_a_store_confines_what_a_row_may_name(bucket: Bucket, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg())
    bucket.put("mine/a.jpg", jpeg())
    bucket.put("theirs/a.jpg", jpeg())
    outside = Failure("FetchError", "outside of --root")
    places = [locate(bucket.address(key)) for key in ("mine/a.jpg", "theirs/a.jpg", "mine/../theirs/a.jpg")]
    places += [StoredFile(bucket.address("mine/../theirs/a.jpg")), LocalFile(f"{tmp_path}/a.jpg")]
    rooted = Fetcher(Limits(root=bucket.address("mine")))
    assert rooted.fetch_all(places) == [jpeg(), *[outside] * 4]
    assert Fetcher(Limits(root=str(tmp_path))).fetch_all(places) == [*[outside] * 4, jpeg()]


def test_a_missing_library_is_one_line_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UsageError, match=r"this needs gcsfs: pip install '\.\[gcs\]' in a clone of deit-batch"):
        open_source("gs://bucket/in/")


def test_nothing_of_it_is_imported_where_no_store_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg())
    (tmp_path / "list.txt").write_text("a.jpg\n")
    program = """
import sys
from deit_batch.input.open import open_source
from deit_batch.limits import Limits
from deit_batch.loading.fetch import Fetcher
from deit_batch.output import staging
for input in sys.argv[1:]:
    for reference in open_source(input).references:
        assert isinstance(Fetcher(Limits()).fetch(reference.location), bytes)
with staging.staged("preds.jsonl", fresh=False):
    print(*sorted({"fsspec", "s3fs", "aiohttp", "asyncio"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path, tmp_path / "list.txt"], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("\n", "")


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("hf://beans?split=test", False),
        ("hf://datasets/someone/beans", False),
        ("hf://datasets/someone/beans?split=a/b", False),
        ("hf://someone/beans", False),
        ("hf:///a/local/folder", False),
        ("hf://datasets/someone/beans/data/", True),
        ("hf://datasets/someone/beans@main/data/a.jpg", True),
        ("hf://buckets/someone/mine/a.jpg", True),
    ],
)
def test_data_sets_of_the_hub_and_files_in_them_are_told_apart(text: str, stored: bool) -> None:
    assert object_store.is_stored(text) is stored


@given(st.text(), st.sampled_from(["s3", "S3", " s3"]))
def test_any_text_is_an_address_or_an_error(key: str, scheme: str) -> None:
    _, path = object_store.parse(f"{scheme}://bucket/{key}")
    assert path.startswith("bucket/")
    assert not {".", ".."} & set(path.split("/"))


# --- tables, lists and tars ------------------------------------------------------------------------------------------


def tables_of(images: list[str]) -> dict[str, bytes]:
    rows = [{"image": image, "id": number} for number, image in enumerate(images)]
    parquet = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), parquet)
    text = "image,id\n" + "".join(f"{row['image']},{row['id']}\n" for row in rows)
    return {
        "t.csv": text.encode(),
        "t.csv.gz": gzip.compress(text.encode()),
        "t.jsonl": "\n".join(map(json.dumps, rows)).encode(),
        "t.json": json.dumps({"input_data": images}).encode(),
        "t.txt": "\n".join(images).encode(),
        "t.parquet": parquet.getvalue(),
    }


def test_tables_and_lists_on_a_store_name_objects_beside_them_and_elsewhere(bucket: Bucket) -> None:
    bucket.put("tables/imgs/a.jpg", jpeg(0))
    bucket.put("other/b.jpg", jpeg(1))
    images = ["imgs/a.jpg", bucket.address("other/b.jpg"), "../other/b.jpg"]
    fetcher = Fetcher(LIMITS)
    for name, data in tables_of(images).items():
        source = open_source(bucket.put(f"tables/{name}", data))
        references = list(source.references)
        assert [reference.image for reference in references] == images, name
        found = fetcher.fetch_all([reference.location for reference in references])
        assert found == [jpeg(0), jpeg(1), jpeg(1)], name


def test_a_table_on_the_hub_names_files_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = io.BufferedReader(io.BytesIO(b"image\n1.jpg\n../2.jpg\n"))
    monkeypatch.setattr(object_store, "open_stream", lambda address: opened)
    source = open_source("hf://datasets/someone/beans/data/t.csv")
    assert [reference.location for reference in source.references] == [
        StoredFile("hf://datasets/someone/beans/data/1.jpg"),
        StoredFile("hf://datasets/someone/beans/2.jpg"),
    ]


def test_a_table_is_streamed_through_cut_connections(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "_BLOCK", 2**16)
    lines = [f"{number:06}.jpg" for number in range(40_000)]
    address = bucket.put("list.txt", "\n".join(lines).encode())
    references = open_source(address).references
    assert next(references).image == lines[0]
    assert bucket.seen("GET list.txt") < 8  # of its 440 kB, a part
    bucket.fault("cut", "GET list.txt", 1)
    bucket.fault("SlowDown", "GET list.txt", 1)
    assert [reference.image for reference in references] == lines[1:]
    with pytest.raises(UsageError, match=r"list\.csv: no such object"):
        open_source(bucket.address("list.csv"))


def test_a_table_that_changes_while_it_is_read_ends_the_run(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "_BLOCK", 2**16)
    address = bucket.put("list.txt", (b"a" * 100 + b".jpg\n") * 30_000)
    references = open_source(address).references
    next(references)
    bucket.put("list.txt", (b"b" * 100 + b".jpg\n") * 30_000)
    with pytest.raises(InputError, match="can't be read past line"):
        list(references)


def test_numbered_tars_are_streamed(bucket: Bucket, tmp_path: Path) -> None:
    write_tar(tmp_path / "s-000.tar", samples(PICTURES[:4]))
    write_tar(tmp_path / "s-001.tar.gz", samples(PICTURES[4:], 4), "w:gz")
    bucket.put("s-000.tar", (tmp_path / "s-000.tar").read_bytes())
    bucket.put("t/s-001.tar", (tmp_path / "s-001.tar.gz").read_bytes())
    bucket.put("s-001.tar", (tmp_path / "s-001.tar.gz").read_bytes())
    bucket.fault("cut", "GET s-000.tar", 1)
    source = open_source(bucket.address("s-{000..001}.tar"), keep=["key"])
    references = list(source.references)
    assert [reference.location for reference in references] == [picture.read_bytes() for picture in PICTURES]
    assert references[5].image == bucket.address("s-001.tar/0005.png")
    assert source.total(6) == 6
    with pytest.raises(UsageError, match=r"s-002\.tar: no such object"):
        open_source(bucket.address("s-{000..002}.tar"))


def test_a_run_goes_on_where_only_the_listing_can_tell_what_changed(bucket: Bucket) -> None:
    from deit_batch.io import stamp

    bucket.put("in/a.jpg", jpeg())
    (before,) = open_source(bucket.address("in/")).references
    (same,) = open_source(bucket.address("in/")).references
    bucket.put("in/a.jpg", jpeg(1))
    (after,) = open_source(bucket.address("in/")).references
    assert stamp(before.location) == stamp(same.location) != stamp(after.location)
