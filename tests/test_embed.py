"""Features: those of transformers, a row for each input in its place, and in all else a run as of score."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from helpers import COMMAND, EXAMPLES, MakeCheckpoint, interrupted_after, read_json, read_jsonl, scored, wait_for_growth
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModel
from transformers.image_utils import load_image

from deit_batch import embed, score
from deit_batch.cli import main
from deit_batch.errors import Interrupted, OutputError, TooManyFailures, UsageError
from deit_batch.io import NAME_FIELDS
from deit_batch.options import Options
from deit_batch.output.failures import describe_failures
from deit_batch.output.threshold import ErrorThreshold
from deit_batch.runner import run
from deit_batch.system.atomic import rename_durably

WIDTH = 32
CLS: Any = ("cls",)
CLS_AND_MEAN: Any = ("cls", "mean")


@pytest.fixture
def some_broken(photos: Path) -> Path:
    """A table of the photos in disorder, of which two can't be decoded and one is not there."""
    for number in (0, 17):
        (photos / f"{number:02}.jpg").write_bytes(b"broken")
    names = [f"{number:02}.jpg" for number in [*range(39, 3, -1), 0, 1, 2]] + ["none.jpg"]
    (photos / "t.csv").write_text("image,id\n" + "".join(f"{name},{place}\n" for place, name in enumerate(names)))
    return photos / "t.csv"


BROKEN = [22, 36, 39]
"""The places of those."""


def embedded(photos: Path, model: Path, folder: Path, out: str, **options: Any) -> Path:
    return scored(photos, model, folder, out, **{"features": CLS, **options})


def read_parquet(path: Path, name: str) -> np.ndarray[Any, Any]:
    return np.stack([np.full(WIDTH, np.nan) if row is None else row for row in pq.read_table(path)[name].to_pylist()])


# --- what comes out -----------------------------------------------------------------------------------------------


def test_all_three_classes_have_the_features_that_transformers_has(checkpoint: Path, all_kinds: Path) -> None:
    encoder = AutoModel.from_pretrained(checkpoint, add_pooling_layer=False, dtype=torch.float32)
    processor = AutoImageProcessor.from_pretrained(checkpoint)
    firsts = {"vit": 1, "deit": 2}[encoder.config.model_type]
    names: Any = ["mean", "cls", "distillation"][: firsts + 1]
    native, theirs = (
        list(embed(all_kinds, model=str(checkpoint), features=names, workers=0, runtime=runtime))
        for runtime in ("native", "transformers")
    )
    assert len(native) > 30
    for record, other in zip(native, theirs, strict=True):
        with torch.inference_mode():
            inputs = processor(load_image(str(record.image)), return_tensors="pt")
            hidden = encoder(**inputs).last_hidden_state[0].numpy()
        expected = {"cls": hidden[0], "distillation": hidden[firsts - 1], "mean": hidden[firsts:].mean(0)}
        assert record.features is not None
        assert list(record.features) == names
        assert other.features is not None
        assert list(other.features) == names
        for name in names:
            for vector in (record.features[name], other.features[name]):
                assert vector.dtype == np.float32
                np.testing.assert_allclose(vector, expected[name], rtol=1e-5, atol=1e-5, err_msg=f"{record} {name}")


def test_an_array_has_a_row_for_each_input_in_its_place(some_broken: Path, vit: Path, tmp_path: Path) -> None:
    out = embedded(some_broken, vit, tmp_path, "f.npy", keep=("id",))
    array = np.load(out, mmap_mode="r")
    assert (array.shape, array.dtype) == ((40, WIDTH), np.dtype("float32"))
    assert np.flatnonzero(np.isnan(array).any(1)).tolist() == BROKEN
    assert np.isnan(array[BROKEN]).all()
    rows = read_jsonl(tmp_path / "f.npy.rows.jsonl")
    assert [row["index"] for row in rows] == list(range(40))
    assert [row["id"] for row in rows] == [str(place) for place in range(40)]
    assert [row["error"]["type"] for row in rows if "error" in row] == ["DecodeError", "DecodeError", "FetchError"]
    assert {key for row in rows for key in row} == {"index", "image", "id", "error"}
    for row, vector in zip(rows, array, strict=True):
        (alone,) = embed(some_broken.parent / row["image"], model=str(vit), workers=0) if "error" not in row else [None]
        if alone and alone.features:
            assert np.array_equal(alone.features["cls"], vector), row


def test_parquet_has_a_column_for_each_feature(some_broken: Path, vit: Path, tmp_path: Path) -> None:
    out = embedded(some_broken, vit, tmp_path, "f.parquet", features=CLS_AND_MEAN, keep=("id",))
    table = pq.read_table(out)
    assert table.column_names == ["index", *NAME_FIELDS, "cls", "mean", "error", "id"]
    for name in CLS_AND_MEAN:
        assert table.schema.field(name).type == pa.list_(pa.float32())
        assert [place for place, row in enumerate(table[name]) if not row.is_valid] == BROKEN
    assert [row["index"] for row in table.to_pylist() if row["error"]] == BROKEN
    assert table["id"].to_pylist() == [str(place) for place in range(40)]
    both = np.load(embedded(some_broken, vit, tmp_path, "both.npy", features=CLS_AND_MEAN), mmap_mode="r")
    assert both.shape == (40, 2, WIDTH)
    for place, name in enumerate(CLS_AND_MEAN):
        np.testing.assert_array_equal(both[:, place], read_parquet(out, name))


def test_more_rows_than_are_written_at_once(photos: Path, vit: Path, tmp_path: Path) -> None:
    (photos / "t.txt").write_text("".join(f"{number % 40:02}.jpg\n" for number in range(1010)))
    array = np.load(embedded(photos / "t.txt", vit, tmp_path, "f.npy", batch_size=64), mmap_mode="r")
    assert len(array) == len(read_jsonl(tmp_path / "f.npy.rows.jsonl")) == 1010
    assert np.array_equal(array[:10], array[1000:])
    table = embedded(photos / "t.txt", vit, tmp_path, "f.parquet", batch_size=64)
    np.testing.assert_array_equal(read_parquet(table, "cls"), array)


def test_a_table_without_rows_gives_an_array_without_rows(vit: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image\n")
    assert np.load(embedded(tmp_path / "t.csv", vit, tmp_path, "f.npy")).shape == (0, WIDTH)
    assert pq.read_table(embedded(tmp_path / "t.csv", vit, tmp_path, "f.parquet")).num_rows == 0


def test_the_features_of_an_image_do_not_depend_on_the_batch_it_comes_in(
    photos: Path, vit: Path, tmp_path: Path
) -> None:
    sizes = (16, 23, 40)
    for size in sizes:
        embedded(photos, vit, tmp_path, f"{size}.npy", batch_size=size, features=CLS_AND_MEAN)
    assert len({(tmp_path / f"{size}.npy").read_bytes() for size in sizes}) == 1


def test_features_that_are_not_finite_are_failures(vit: Path, photos: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(vit, tmp_path / "model")
    weights = load_file(broken / "model.safetensors")
    weights["vit.layernorm.weight"] *= 3e38  # more than float32 can hold, once multiplied
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    records = list(embed(photos, model=str(broken), workers=0, limit=3))
    assert [(record.error and record.error.type, record.features) for record in records] == [("ScoreError", {})] * 3


# --- going on -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("out", ["f.npy", "f.parquet"])
def test_a_run_that_died_is_continued_to_the_same_bytes(
    some_broken: Path, vit: Path, tmp_path: Path, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was written of the partial file, even half a line."""
    (tmp_path / "whole").mkdir()
    embedded(some_broken, vit, tmp_path / "whole", out)
    with pytest.raises(Interrupted), interrupted_after(4, monkeypatch):
        embedded(some_broken, vit, tmp_path, out)
    partial = tmp_path / f"{out}.partial"
    kept, stamps = partial.read_bytes(), (tmp_path / f"{out}.partial.stamps").read_bytes()
    assert not (tmp_path / out).exists()
    report = (tmp_path / f"{out}.run.json").read_bytes()
    for cut in (kept, kept[:-1], kept[: len(kept) // 2], kept[:10]):
        for path in tmp_path.glob("f.*"):
            path.unlink()
        partial.write_bytes(cut)
        (tmp_path / f"{out}.partial.stamps").write_bytes(stamps)
        (tmp_path / f"{out}.run.json").write_bytes(report)
        embedded(some_broken, vit, tmp_path, out)
        assert_same_results(tmp_path, tmp_path / "whole", out)


def assert_same_results(folder: Path, whole: Path, out: str) -> None:
    names = [out] + ["f.npy.rows.jsonl"] * (out == "f.npy")
    assert sorted(path.name for path in folder.glob("f.*")) == sorted([*names, f"{out}.run.json", f"{out}.stamps"])
    for name in names:
        assert (folder / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize("renames", [0, 1])
def test_an_array_appears_after_its_rows_whenever_the_run_dies(
    some_broken: Path, vit: Path, tmp_path: Path, renames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "whole").mkdir()
    embedded(some_broken, vit, tmp_path / "whole", "f.npy")
    done = 0

    def dies(source: Path, target: Path) -> None:
        nonlocal done
        if done == renames:
            raise OSError(5, "Input/output error")
        done += 1
        rename_durably(source, target)

    monkeypatch.setattr("deit_batch.output.file.rename_durably", dies)
    with pytest.raises(OutputError, match="run the same command again"):
        embedded(some_broken, vit, tmp_path, "f.npy")
    monkeypatch.undo()
    assert not (tmp_path / "f.npy").exists()
    assert (tmp_path / "f.npy.rows.jsonl").exists() == bool(renames)
    embedded(some_broken, vit, tmp_path, "f.npy")
    assert_same_results(tmp_path, tmp_path / "whole", "f.npy")


def test_a_killed_command_is_continued_to_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(f"{EXAMPLES}/bag/00018.png\nnone.png\n{EXAMPLES}/coat/00006.png\n" * 200)
    command = ["embed", "--input", str(tmp_path / "t.txt"), "--model", "demo", "--out"]
    assert CliRunner().invoke(main, [*command, str(tmp_path / "whole.npy")]).exit_code == 3
    out = str(tmp_path / "f.npy")
    with subprocess.Popen([COMMAND, *command, out], stderr=subprocess.DEVNULL) as process:
        wait_for_growth(tmp_path / "f.npy.partial")
        process.kill()
    assert not (tmp_path / "f.npy").exists()
    done = CliRunner().invoke(main, [*command, out, "--error-threshold", "40%"])
    assert (done.exit_code, done.stdout, "going on after" in done.stderr) == (0, "", True)
    assert "400 of 600 images embedded, 200 failed (200 FetchError), " in done.stderr
    assert done.stderr.endswith(f"; all of them: grep '\"error\":' {out}.rows.jsonl\n")
    for name in ("f.npy", "f.npy.rows.jsonl"):
        assert (tmp_path / name).read_bytes() == (tmp_path / name.replace("f.", "whole.")).read_bytes()


def test_a_finished_run_is_not_done_again_and_what_is_not_its_result_is_not_touched(
    photos: Path, vit: Path, tmp_path: Path
) -> None:
    out = embedded(photos, vit, tmp_path, "f.npy")
    rows = tmp_path / "f.npy.rows.jsonl"
    before = out.stat()
    embedded(photos, vit, tmp_path, "f.npy")
    assert (out.stat().st_ino, out.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    with pytest.raises(UsageError, match=r'features was \["cls"\], is \["mean"\]'):
        embedded(photos, vit, tmp_path, "f.npy", features=("mean",))
    good = rows.read_bytes()
    for spoil in (rows.unlink, lambda: rows.write_bytes(good + b"{}\n")):
        spoil()
        with pytest.raises(UsageError, match=r"f\.npy\.rows\.jsonl is not what its run has left"):
            embedded(photos, vit, tmp_path, "f.npy")
    embedded(photos, vit, tmp_path, "f.npy", mode="fresh")
    assert rows.read_bytes() == good
    with pytest.raises(UsageError, match="features was null, is"):
        embedded(photos, vit, tmp_path, scored(photos, vit, tmp_path, "p.parquet").name)


def test_the_report_is_that_of_a_run(some_broken: Path, vit: Path, tmp_path: Path) -> None:
    embedded(some_broken, vit, tmp_path, "f.npy", features=CLS_AND_MEAN)
    report = read_json(tmp_path / "f.npy.run.json")
    assert report["status"] == "finished"
    assert report["counts"]["failures"] == {"DecodeError": 2, "FetchError": 1}
    assert report["settings"]["features"] == ["cls", "mean"]
    assert not {"top_k", "threshold"} & set(report["settings"])
    assert {report[name]["bytes"] for name in ("output", "rows")} == {
        (tmp_path / name).stat().st_size for name in ("f.npy", "f.npy.rows.jsonl")
    }
    options = Options(input=str(some_broken), model=str(vit), workers=0, batch_size=4, features=CLS)
    with pytest.raises(TooManyFailures):
        run(options, out=str(tmp_path / "g.npy"), error_threshold=ErrorThreshold(2))
    assert not (tmp_path / "g.npy").exists()


# --- wrong usage --------------------------------------------------------------------------------------------------


def test_a_model_without_a_distillation_token_has_no_features_of_it(
    vit: Path, make_checkpoint: MakeCheckpoint, photos: Path, messages: list[str]
) -> None:
    asked: Any = ("distillation",)
    with pytest.raises(UsageError, match="is a ViTForImageClassification, which has only cls and mean"):
        next(embed(photos, model=str(vit), features=asked))
    folder = make_checkpoint("DeiTForImageClassification")
    list(embed(photos, model=str(folder), features=asked, workers=0, limit=1))
    assert messages == [
        f"the head of {folder} does not look at the distillation token: its features are what an earlier training has "
        "left"
    ]
    folder = make_checkpoint("DeiTForImageClassificationWithTeacher")
    list(embed(photos, model=str(folder), features=asked, workers=0, limit=1))
    assert len(messages) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out": "f.jsonl"}, r"--out f\.jsonl: features go to a file that ends in \.parquet or \.npy"),
        ({"out": "-"}, "--out -: features go to a file"),
        ({"dtype": "int8"}, "--dtype int8 is for scores alone"),
        ({"features": ("cls", "cls")}, "each once"),
        ({"features": ()}, "give some of cls, distillation, mean"),
        ({"features": "cls"}, "give some of cls, distillation, mean"),
        ({"keep": ("mean",), "features": ("mean",)}, "--keep mean: the features have a column of that name"),
        ({"keep": ("features",)}, "--keep features"),
    ],
)
def test_wrong_usage_is_said_before_anything_is_done(
    photos: Path, vit: Path, tmp_path: Path, options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    with pytest.raises(UsageError, match=message):
        embedded(photos, vit, Path(), **{"out": "f.npy", **options})
    assert not list((tmp_path / "out").iterdir())


def test_an_exported_checkpoint_has_no_features(vit: Path, photos: Path, tmp_path: Path) -> None:
    exported = shutil.copytree(vit, tmp_path / "onnx")
    (exported / "model.safetensors").rename(exported / "model.onnx")
    with pytest.raises(UsageError, match="onnx is exported: it gives scores alone; name the checkpoint it was made"):
        next(embed(photos, model=str(exported)))


def test_predictions_have_no_features(photos: Path, vit: Path) -> None:
    (record,) = score(photos, model=str(vit), workers=0, limit=1)
    assert record.features is None
    assert "features" not in record.as_dict()


def test_a_result_that_somebody_has_changed_names_nothing(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"index": 0, "image": "a.png", "predictions": [], "error": {"why": "?"}}\n')
    assert describe_failures(str(tmp_path / "p.jsonl")) == ""


def test_the_last_line_names_what_failed_in_parquet_too(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(f"none.png\n{EXAMPLES}/bag/00018.png\n")
    command = ["embed", "--input", str(tmp_path / "t.txt"), "--model", "demo", "--workers", "0"]
    done = CliRunner().invoke(main, [*command, "--out", str(tmp_path / "f.parquet")])
    assert done.exit_code == 3
    assert "; first none.png (FetchError: No such file: " in done.stderr
    assert done.stderr.endswith("); all of them: the rows that have an error\n")
