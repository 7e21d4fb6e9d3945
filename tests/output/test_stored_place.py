"""A result in parts on a store: whole or not at all, whatever was killed when, and continued from any machine."""

from __future__ import annotations

import pickle
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from faulty_store import Bucket
from helpers import COMMAND, scored

from deit_batch import block_runner
from deit_batch.errors import DeitBatchError, InputError, OutputError, UsageError
from deit_batch.io import Failure, LocalFile, Prediction, Record, Reference
from deit_batch.options import Options
from deit_batch.output.formats import Columns
from deit_batch.output.manifest import read_manifest, read_parts, require_all
from deit_batch.output.merge import merge
from deit_batch.output.part import Block, Part, convert_part, split_into_blocks, write_part
from deit_batch.output.parts import Folder
from deit_batch.output.place import Place, place_at
from deit_batch.system import lease
from deit_batch.system.object_store import StoreError

SETTINGS = {"input": "imgs/", "part_size": 2, "format": "jsonl", "keep": []}
COUNTS = {"inputs": 5, "scored": 4, "failed": 1, "failures": {"DecodeError": 1}, "passed_over": {}}
REPORT = {"counts": COUNTS, "seconds": {}, "architecture": "", "machine": "", "versions": {}}
ALL = ["manifest.json", "part-000000.jsonl", "part-000001.jsonl", "part-000002.jsonl", "run.json", "stamps"]


@pytest.fixture
def after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever gave a sign of life before is taken for dead."""
    monkeypatch.setattr(lease, "DEAD", -1.0)


def blocks(kind: str = "new") -> Iterator[Block]:
    return split_into_blocks((Reference(index, f"{kind}{index}.jpg", LocalFile("x")) for index in range(5)), 2)


def write(partial: Place, block: Block) -> Part:
    """Every fifth has failed."""
    prediction: list[Prediction] = [{"label": "can", "score": 0.5}]
    return write_part(
        partial,
        block,
        [
            Record.of(each, Failure("DecodeError", "no image") if each.index % 5 == 4 else prediction)
            for each in block.references
        ],
    )


def run(out: str | Path, *, kind: str = "new", fresh: bool = False, format: str = "jsonl", most: int = 9) -> int:
    """How many parts it made, of `most` before it stops."""
    made = 0
    with closing(Folder(out, {**SETTINGS, "input": kind, "format": format}, fresh=fresh)) as folder:
        if folder.complete:
            assert len(folder.finished(blocks(kind), format)) == 3
            return made
        folder.begin()
        parts: list[Part] = []
        for block, part in folder.standing(blocks(kind)):
            if not part and made == most:
                return made
            parts.append(part or write(pickle.loads(pickle.dumps(folder.partial)), block))
            made += not part
        require_all(parts, block.after)
        columns = Columns(())
        folder.finish([convert_part(folder.partial, part, format, columns) for part in parts], REPORT, format)
    return made


def found(bucket: Bucket) -> dict[str, bytes]:
    return {name: bucket.get(name) for name in bucket.names()}


def local(folder: Path, kind: str = "new", format: str = "jsonl") -> dict[str, bytes]:
    """What a run leaves in a folder of this machine."""
    run(folder / kind, kind=kind, format=format)
    return {f"out/{path.name}": path.read_bytes() for path in (folder / kind).iterdir()}


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_a_stopped_run_goes_on_elsewhere_to_what_a_folder_would_hold(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    out = bucket.address("out/")
    assert run(out, format=format, most=2) == 2
    assert not any(name.startswith("out/") for name in bucket.names())
    with pytest.raises(UsageError, match=rf"{out[:-1]} is no finished result in parts: there is no manifest\.json in"):
        merge([out], str(tmp_path / "merged.jsonl"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    assert run(out, format=format) == 1
    assert found(bucket) == local(tmp_path, format=format)
    bucket.proxy.requests.clear()
    assert run(out, format=format) == 0
    assert bucket.seen("(PUT|POST|DELETE) out/") == 0
    assert not (tmp_path / "cache").exists()
    assert not (tmp_path / "another").exists()


def test_a_command_that_was_killed_is_gone_on_with_where_nothing_is_known_of_it(
    bucket: Bucket, photos: Path, vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = bucket.address("out/")
    bucket.fault("slow", r"PUT out\.partial/part")
    command = [COMMAND, "score", "--input", str(photos), "--model", str(vit), "--batch-size", "4", "--workers", "0"]
    with subprocess.Popen([*command, "--part-size", "4", "--out", out], stderr=subprocess.PIPE, text=True) as process:
        while bucket.seen(r"PUT out\.partial/part") < 7:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.02)
        process.kill()
    assert not any(name.startswith("out/") for name in bucket.names())

    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "another"))
    monkeypatch.chdir(tmp_path)
    options = Options(input=str(photos), model=str(vit), batch_size=4, workers=0)
    for to in (out, "local/"):
        block_runner.run(options, block_runner.LocalEngine, out=to, part_size=4, quiet=True)
    there = {name.removeprefix("out/"): data for name, data in found(bucket).items()}
    here = {path.name: path.read_bytes() for path in Path("local").iterdir()}
    del there["run.json"], here["run.json"]  # which say how long it took
    assert there == here
    assert len(there) == 12
    assert bucket.seen(r"PUT out\.partial/part-000000\.jsonl") == 1
    assert not Path("another").exists()


def parts_in(files: dict[str, bytes]) -> list[bytes]:
    return [files[name] for name in sorted(files) if name.startswith("out/part-")]


@pytest.mark.usefixtures("after_a_while")
def test_whatever_a_kill_leaves_no_half_result_is_read_and_the_next_run_mends_it(
    bucket: Bucket, tmp_path: Path
) -> None:
    """A run replaces an old result; from one moment on, nothing that it wants of the store is done."""
    old, new = local(tmp_path, "old"), local(tmp_path, "new")
    out = bucket.address("out")
    for moment in range(1, 100, 4):
        for name in bucket.names():
            bucket.delete(name)
        for name, data in old.items():
            bucket.put(name, data)
        bucket.fault("AccessDenied", "(PUT|POST|DELETE) ", after=moment)
        with suppress(DeitBatchError):
            run(out, fresh=True)
        is_over = bucket.proxy.faults.pop().after > 0
        there = found(bucket)
        if "out/manifest.json" in there:
            whole = list(read_parts(place_at(out), read_manifest(place_at(out))))
            assert whole in (parts_in(old), parts_in(new))
        else:
            with pytest.raises(UsageError, match="is no finished result in parts"):
                read_manifest(place_at(out))
        if is_over:
            break
        is_new = b'"input": "new"' in there.get("out.partial/run.json", there.get("out/run.json", b""))
        run(out, fresh=not is_new)
        assert found(bucket) == new
    assert moment > 20
    assert found(bucket) == new


@pytest.mark.usefixtures("after_a_while")
def test_what_has_been_copied_is_not_copied_again(bucket: Bucket) -> None:
    out = bucket.address("out")
    for stops_at in ("run", "manifest"):
        bucket.fault("AccessDenied", f"PUT out/{stops_at}")
        with pytest.raises(OutputError, match="can't be written: not permitted"):
            run(out)
        bucket.proxy.faults.clear()
        time.sleep(1.1)  # the store's times are whole seconds: parts of the same one are copied again
    bucket.proxy.requests.clear()
    assert run(out) == 0
    assert bucket.seen("PUT out/part") == 0
    assert bucket.seen("PUT out/manifest") == 1


def test_a_run_that_was_taken_for_dead_changes_nothing_any_more(bucket: Bucket) -> None:
    out = bucket.address("out")
    with closing(Folder(out, {**SETTINGS, "input": "new"}, fresh=False)) as folder:
        folder.begin()
        parts = [write(folder.partial, block) for block in blocks()]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lease, "DEAD", -1.0)
            run(out)  # as another would, after a while
            there = found(bucket)
            folder.interrupt({}, gave_up=True)
            with pytest.raises(OutputError, match="is another run's: it has gone on with this"):
                folder.finish(parts, REPORT, "jsonl")
    assert found(bucket) == there


def taken_over(bucket: Bucket) -> None:
    (sign,) = (name for name in bucket.names() if ".lock/" in name)
    bucket.delete(sign)


@pytest.mark.usefixtures("after_a_while")
def test_who_wakes_up_changes_nothing_of_what_another_run_goes_on_with(bucket: Bucket, photos: Path, vit: Path) -> None:
    out = bucket.address("out")
    run(out, most=1)
    bucket.put("out.partial/part-000000.jsonl", b"")  # to be made anew
    there = found(bucket)
    for wakes in (Folder.begin, lambda folder: list(folder.standing(blocks()))):
        with closing(Folder(out, {**SETTINGS, "input": "new"}, fresh=False)) as folder:
            taken_over(bucket)
            with pytest.raises(OutputError, match="is another run's"):
                wakes(folder)
        assert found(bucket) == there
    options = Options(input=str(photos), model=str(vit), workers=0)
    with pytest.raises(OutputError, match="is another run's"):
        block_runner.run(
            options, block_runner.LocalEngine, out=f"{out}2", quiet=True, begun=lambda _: taken_over(bucket)
        )
    assert [name for name in bucket.names() if name.startswith("out2")] == ["out2.partial/run.json"]


def test_who_sleeps_after_its_last_look_takes_nothing_of_the_other_runs_result(bucket: Bucket) -> None:
    out = bucket.address("out")
    sizes = dict.fromkeys(("run.json", "part-000000.jsonl", "manifest.json"), 3)
    for name in sizes:
        bucket.put(f"out.partial/{name}", b"abc")

    class Sleeper:
        def require(self) -> None: ...

        def ask(self) -> None:
            """All is well, it says, and sleeps, and another run ends."""
            for name in sizes:
                bucket.put(f"out/{name}", b"abc")
                bucket.delete(f"out.partial/{name}")

        def release(self) -> None: ...

    with pytest.raises(StoreError, match="no such object"):
        place_at(out).publish(None, sizes, Sleeper())
    assert sorted(bucket.names()) == sorted(f"out/{name}" for name in sizes)


def test_a_part_that_comes_after_the_end_is_taken_away(bucket: Bucket) -> None:
    out = bucket.address("out")
    run(out)
    write(place_at(f"{out}.partial"), next(blocks()))
    assert run(out) == 0
    assert bucket.names() == [f"out/{name}" for name in ALL]


def test_a_folder_that_no_run_has_made_is_left_alone(bucket: Bucket) -> None:
    bucket.put("photos/a.jpg", b"precious")
    for fresh in (False, True):
        with pytest.raises(UsageError, match=r"photos is there and no run\.json in it says what it is"):
            run(bucket.address("photos"), fresh=fresh)
    assert bucket.names() == ["photos/a.jpg"]
    for out in (bucket.address(""), "hf://buckets/someone/name/out"):
        with pytest.raises(UsageError, match="a result in parts goes into a folder of a bucket"):
            run(out)


def test_no_right_to_write_is_found_out_before_anything_is_scored(bucket: Bucket) -> None:
    bucket.fault("AccessDenied", "PUT ")
    with pytest.raises(
        OutputError, match=r"/out: can't be written: not permitted: .*; this run has scored no"
    ) as denied:
        run(bucket.address("out"))
    with pytest.raises(
        OutputError, match="/out: can't be written: there is no bucket no-such-bucket; this run has"
    ) as gone:
        run("s3://no-such-bucket/out")
    assert (denied.value.exit_status, gone.value.exit_status) == (2, 2)


def test_what_was_changed_since_is_refused(bucket: Bucket, tmp_path: Path) -> None:
    out = bucket.address("out")
    run(out)
    part = bucket.get("out/part-000001.jsonl")
    bucket.put("out/part-000001.jsonl", part.replace(b"0.5", b"0.6"))
    message = r"/out/part-000001\.jsonl is not what its run has left there; score it again, with --fresh"
    with pytest.raises(UsageError, match=message):
        merge([out], str(tmp_path / "merged.jsonl"))
    bucket.put("out/part-000001.jsonl", part[:-5])
    with pytest.raises(UsageError, match=message):
        run(out)


def test_parts_and_shards_are_merged_from_a_store_to_a_store(
    bucket: Bucket, photos: Path, vit: Path, tmp_path: Path
) -> None:
    out = bucket.address("out")
    run(out)
    merge([out], bucket.address("merged.jsonl"))
    assert bucket.get("merged.jsonl") == b"".join(parts_in(found(bucket)))
    before = found(bucket)
    with pytest.raises(UsageError, match=rf"--out {out}/part-000000\.jsonl lies in the folder that is merged"):
        merge([out], f"{out}/part-000000.jsonl", mode="fresh")
    assert found(bucket) == before
    with pytest.raises(UsageError, match=r"part-000000\.jsonl is a part of s3://.*/out; give that folder"):
        merge([f"{out}/part-000000.jsonl"], str(tmp_path / "merged.jsonl"))

    shards = [scored(photos, vit, tmp_path, f"shard-{number}.jsonl", shard=(number, 2)) for number in range(2)]
    for path in tmp_path.glob("shard-*"):
        bucket.put(path.name, path.read_bytes())
    first, second = (bucket.address(path.name) for path in shards)
    merge([second, shards[0]], bucket.address("all.jsonl"))
    assert bucket.get("all.jsonl") == scored(photos, vit, tmp_path, "whole.jsonl").read_bytes()
    with pytest.raises(UsageError, match=r"--out s3://.*shard-0\.jsonl would take the place of the input"):
        merge([first, second], first, mode="fresh")
    bucket.put("shard-1.jsonl", shards[1].read_bytes()[:-20])
    with pytest.raises(UsageError, match=r"shard-1\.jsonl is not what its run has left there; score this shard again"):
        merge([first, second], str(tmp_path / "all.jsonl"))
    bucket.delete("shard-1.jsonl.run.json")
    with pytest.raises(UsageError, match=r"there is no shard-1\.jsonl\.run\.json beside it"):
        merge([first, second], str(tmp_path / "all.jsonl"))
    bucket.fault("AccessDenied", r"GET shard-0\.jsonl$")
    with pytest.raises(InputError, match=r"shard-0\.jsonl: can't be read: not permitted"):
        merge([first], str(tmp_path / "all.jsonl"))
    assert not (tmp_path / "all.jsonl").exists()
