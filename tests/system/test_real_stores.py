"""Runs from and to a store of each kind, on servers that others have made, which refuse a fifth of all requests."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pytest
import real_stores
from faulty_store import Fault, FaultyStore, misbehaving
from helpers import COMMAND, deit_batch, jpeg, read_jsonl, scored, valid
from real_stores import AzureBucket, RealBucket

from deit_batch import block_runner
from deit_batch.block_runner import LocalEngine
from deit_batch.errors import TimeIsUp, UsageError
from deit_batch.input.open import open_source
from deit_batch.io import Failure, StoredFile
from deit_batch.limits import Limits
from deit_batch.loading.fetch import Fetcher
from deit_batch.options import Options
from deit_batch.output.merge import merge
from deit_batch.system import object_store, store_library

IMAGES = 300


@dataclass
class Store:
    kind: str
    proxy: FaultyStore
    bucket: RealBucket


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number in range(IMAGES):
        (folder / f"{number:03}.jpg").write_bytes(jpeg(number))
    return folder


@pytest.fixture(scope="module")
def expected(images: Path, vit: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What a local run makes of each image."""
    records = read_jsonl(scored(images, vit, tmp_path_factory.mktemp("local")))
    return {Path(record["image"]).name: record["predictions"] for record in records}


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, int]]:
    with ExitStack() as stack:
        yield _Servers(stack)


class _Servers(dict[str, int]):
    """The port of each kind, started when it is asked for."""

    def __init__(self, stack: ExitStack) -> None:
        super().__init__()
        self._stack = stack

    def __missing__(self, kind: str) -> int:
        try:
            self[kind] = self._stack.enter_context(real_stores.server(kind))
        except real_stores.Missing as error:
            (pytest.fail if real_stores.required(kind) else pytest.skip)(f"there is no {error}")
        return self[kind]


@pytest.fixture(params=real_stores.KINDS)
def store(
    request: pytest.FixtureRequest, servers: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Store]:
    """A bucket on a store of each kind in turn, where the environment says that it is."""
    kind = request.param
    with misbehaving(servers[kind], kind) as proxy:
        for name, value in real_stores.environment(kind, proxy).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        fsspec.get_filesystem_class(kind).clear_instance_cache()  # the environment has changed under it
        yield Store(kind, proxy, real_stores.make_bucket(kind, proxy))


def test_a_run_is_killed_and_goes_on_though_a_fifth_of_all_requests_is_refused(
    store: Store, images: Path, expected: dict[str, object], vit: Path, tmp_path: Path
) -> None:
    for image in images.iterdir():
        store.bucket.put(f"in/{image.name}", image.read_bytes())
    store.proxy.refused = 0.2
    command = [COMMAND, "score", "--input", store.bucket.address("in/"), "--out", store.bucket.address("out/p.jsonl")]
    command += ["--model", str(vit), "--batch-size", "8", "--workers", "1", "--retries", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, cwd=tmp_path)
    while not any(path.stat().st_size for path in (tmp_path / "cache").rglob("*.partial")):
        assert process.poll() is None, process.communicate()[1].decode()
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert not any(name.startswith("out/") for name in store.bucket.names())

    done = deit_batch(*command[1:], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(line.startswith("deit-batch: ") for line in done.stderr.splitlines()), done.stderr
    assert "going on after" in done.stderr
    records = [json.loads(line) for line in store.bucket.get("out/p.jsonl").splitlines()]
    assert [record["image"] for record in records] == [store.bucket.address(f"in/{name}") for name in sorted(expected)]
    assert {Path(record["image"]).name: record["predictions"] for record in records} == expected
    report = valid(json.loads(store.bucket.get("out/p.jsonl.run.json")), "run-report")
    assert report["counts"]["failed"] == 0
    assert store.proxy.refusals > IMAGES / 10


def test_what_is_not_there_or_not_permitted_is_one_line_and_nothing_else_is_said(
    store: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    nowhere = f"{store.kind}://no-such-bucket"
    with pytest.raises(UsageError, match=r"in/: can't be read: no such bucket, or no such folder in it$"):
        open_source(f"{nowhere}/in/")
    opened, path = object_store.open_store(f"{nowhere}/p.jsonl")
    with pytest.raises(object_store.StoreError, match=r"^there is no bucket no-such-bucket$"):
        opened.require_writable(path)
    with pytest.raises(object_store.StoreError, match=r"^there is no bucket no-such-bucket$"):
        opened.write(path, b"x")
    image = store.bucket.put("in/a.jpg", b"x")
    store.proxy.faults.append(Fault("AccessDenied", ".*"))
    with pytest.raises(UsageError, match=r"in/: can't be read: not permitted: .*$"):
        open_source(store.bucket.address("in/"))
    failed = Fetcher(Limits()).fetch(StoredFile(image))
    assert isinstance(failed, Failure)
    assert failed.message.startswith("not permitted: ")
    opened, path = object_store.open_store(store.bucket.address("p.jsonl"))
    with pytest.raises(object_store.StoreError, match=r"^not permitted: "):
        opened.require_writable(path)
    assert capfd.readouterr() == ("", "")


def test_a_large_result_for_google_goes_on_where_a_part_of_it_was_refused(
    servers: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_library, "GOOGLES_CHUNK", 2**18)
    monkeypatch.setattr("deit_batch.system.backoff.LONGEST_WAIT", 0.0)
    (tmp_path / "large").write_bytes(bytes(range(256)) * 2**12 + b"the end")
    with misbehaving(servers["gs"], "gs") as proxy:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.address)
        fsspec.get_filesystem_class("gs").clear_instance_cache()
        bucket = real_stores.make_bucket("gs", proxy)
        store, path = object_store.open_store(bucket.address("large"))
        proxy.faults.append(Fault("rateLimitExceeded", "POST .*upload_id", 3))
        store.put(tmp_path / "large", path)
        sent = sum("upload_id" in request for request in proxy.requests)
    assert bucket.get("large") == (tmp_path / "large").read_bytes()
    assert sent == 5 + 3


def test_an_account_that_the_environment_does_not_name_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_ACCOUNT_NAME"):
        monkeypatch.delenv(name, raising=False)
    fsspec.get_filesystem_class("abfs").clear_instance_cache()
    with pytest.raises(UsageError, match=r"^abfs://c/in/: can't be opened: .*account_name"):
        open_source("abfs://c/in/")
    assert isinstance(Fetcher(Limits()).fetch(StoredFile("abfs://c/a.jpg")), Failure)


def test_every_object_of_a_folder_is_listed_once(store: Store) -> None:
    """Also below an empty name, and beside an object that has the folder's name, or is Azure's mark of a folder."""
    keys = ["in/a.png", "in/s//t.png", "in/sp /z.png", "in/sub.png", "in/sub.png/q.png", "in/h/deep/v.png", "in//x.png"]
    for key in [*keys, "in", "in.png"]:
        store.bucket.put(key, jpeg())
    store.bucket.put("in/", b"")
    for mark in ("in/h", "in/h/deep"):
        if isinstance(store.bucket, AzureBucket):
            store.bucket.mark_folder(mark)
    listed, path = object_store.open_store(store.bucket.address("in/"))
    found = [each.address for each in listed.list(path, recursive=True) if isinstance(each, StoredFile)]
    assert sorted(found) == sorted(map(store.bucket.address, keys))
    flat = [each if isinstance(each, str) else each.address for each in listed.list(path, recursive=False)]
    inside = [f"{store.bucket.name}/in/{name}" for name in ("/", "h/", "s/", "sp /", "sub.png/")]
    assert sorted(flat) == sorted([*map(store.bucket.address, ("in/a.png", "in/sub.png")), *inside])
    assert [Fetcher(Limits()).fetch(StoredFile(address)) for address in found] == [jpeg()] * len(keys)


def test_no_version_of_a_blob_is_named() -> None:
    """For its library would take another blob, or write over it."""
    for out in ("abfs://c/x?versionid=3/", "az://c/a?versionid=1.jsonl"):
        with pytest.raises(UsageError, match=r"no version of a blob can be named"):
            object_store.open_store(out)


def test_no_secret_becomes_the_name_of_an_object() -> None:
    for scheme in real_stores.KINDS:
        with pytest.raises(UsageError, match=r"^.*/p\.jsonl\?sv=1&sig=\*\*\*: what gives access is the environment's"):
            object_store.open_store(f"{scheme}://c/p.jsonl?sv=1&sig=SECRET")


def test_a_result_in_parts_grows_there_though_requests_are_refused(
    store: Store, images: Path, vit: Path, tmp_path: Path
) -> None:
    """Stopped, gone on with, compared with a folder of this machine, found finished, and merged."""
    options = Options(input=str(images), model=str(vit), batch_size=4, workers=0, limit=8)
    store.proxy.refused = 0.05
    out = store.bucket.address("out")

    def run(out: str, **more: Any) -> int:
        return block_runner.run(options, LocalEngine, out=out, part_size=4, quiet=True, **more).tally.scored

    with pytest.raises(TimeIsUp):
        run(out, time_limit=1e-9)
    left = store.bucket.names()
    assert left[0].startswith("out.partial/part-000000.")
    assert run(out) == run(out) == run(str(tmp_path / "here")) == 8
    names = sorted(f"out/{path.name}" for path in (tmp_path / "here").iterdir())
    assert sorted(store.bucket.names()) == names
    for name in names:
        if not name.endswith("run.json"):  # which says how long it took
            assert store.bucket.get(name) == (tmp_path / "here" / Path(name).name).read_bytes()
    merge([out], store.bucket.address("merged.jsonl"))
    assert store.bucket.get("merged.jsonl").count(b"\n") == 8
