"""HEIC in every kind of input, within the limits of the other formats; and what is said where its extra is missing.
That its scores are the pipeline's is shown with those of all other kinds (write_all_kinds)."""

from __future__ import annotations

import base64
import csv
import shutil
import struct
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from faulty_store import Bucket
from helpers import HEIC, LOOPBACK, jpeg, read_json, read_jsonl, scored
from misbehaving import Server

from deit_batch import score
from deit_batch.errors import DecodeError, UsageError
from deit_batch.input.open import open_source
from deit_batch.input.passed_over import remedy
from deit_batch.limits import Limits
from deit_batch.loading.decode import decode
from deit_batch.model.recipe import CARD_RECIPE

RGB = next(path for path in HEIC if path.name == "rgb.heic")


@pytest.fixture
def phone(tmp_path: Path) -> Path:
    """A folder of HEIC files, named as phones name them."""
    folder = tmp_path / "phone"
    folder.mkdir()
    for number, path in enumerate(HEIC):
        shutil.copy(path, folder / f"IMG_{number:04}{path.suffix.upper()}")
    return folder


def write_csv(path: Path, column: str, values: list[str]) -> str:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([[column], *([value] for value in values)])
    return str(path)


def as_list(phone: Path) -> str:
    (phone.parent / "l.txt").write_text("".join(f"phone/{path.name}\n" for path in sorted(phone.iterdir())))
    return str(phone.parent / "l.txt")


def as_base64(phone: Path) -> str:
    texts = [base64.b64encode(path.read_bytes()).decode() for path in sorted(phone.iterdir())]
    return write_csv(phone.parent / "b.csv", "image", texts)


def as_data_uris(phone: Path) -> str:
    texts = [base64.b64encode(path.read_bytes()).decode() for path in sorted(phone.iterdir())]
    return write_csv(phone.parent / "d.csv", "image", [f"data:image/heic;base64,{text}" for text in texts])


def as_parquet(phone: Path) -> str:
    pq.write_table(
        pa.table({"image": [path.read_bytes() for path in sorted(phone.iterdir())]}), phone.parent / "p.parquet"
    )
    return str(phone.parent / "p.parquet")


def as_tar(phone: Path) -> str:
    with tarfile.open(phone.parent / "t.tar", "w") as tar:
        for path in sorted(phone.iterdir()):
            tar.add(path, path.name)
    return str(phone.parent / "t.tar")


KINDS: dict[str, Callable[[Path], str]] = {
    "folder": str,
    "glob": lambda phone: f"{phone}/*",
    "list": as_list,
    "base64": as_base64,
    "data URIs": as_data_uris,
    "Parquet": as_parquet,
    "tar": as_tar,
}


def predictions(spec: Any, **options: Any) -> list[Any]:
    records = list(score(spec, model="demo", **{"workers": 0, **options}))
    assert [record.error for record in records] == [None] * len(HEIC)
    return [record.predictions for record in records]


@pytest.mark.parametrize("kind", KINDS)
def test_heic_is_read_in_every_kind_of_input(kind: str, phone: Path) -> None:
    assert predictions(KINDS[kind](phone)) == predictions([str(path) for path in sorted(phone.iterdir())], workers=1)


def test_heic_is_read_by_url_and_from_a_store(phone: Path, web: Server, photos: Path, bucket: Bucket) -> None:
    expected = predictions(phone)
    names = [path.name for path in sorted(phone.iterdir())]
    for name in names:
        shutil.copy(phone / name, photos)
        bucket.put(f"in/{name}", (phone / name).read_bytes())
    urls = write_csv(phone.parent / "u.csv", "url", [f"{web.address}/{name}" for name in names])
    assert predictions(urls, limits=LOOPBACK) == expected
    assert predictions(bucket.address("in/")) == expected


def test_what_the_run_read_heic_with_is_in_its_report(phone: Path, vit: Path, tmp_path: Path) -> None:
    out = scored(phone, vit, tmp_path)
    assert len(read_jsonl(out)) == len(HEIC)
    assert read_json(tmp_path / "p.jsonl.run.json")["versions"]["pi-heif"]


# --- limits ---------------------------------------------------------------------------------------------------------


def test_pixels_are_bounded_before_and_while_they_are_decoded() -> None:
    data = RGB.read_bytes()
    with pytest.raises(DecodeError, match="61x47 is more than 2,866 pixels"):
        decode(data, CARD_RECIPE, Limits(image_pixels=61 * 47 - 1))
    place = data.index(b"ispe") + 8
    for claimed in ((30_000, 30_000), (1, 1)):
        lying = data[:place] + struct.pack(">II", *claimed) + data[place + 8 :]
        with pytest.raises(DecodeError):
            decode(lying, CARD_RECIPE, Limits())


@pytest.mark.parametrize("eighth", range(8))
def test_a_file_that_is_cut_off_is_never_a_black_picture(eighth: int) -> None:
    data = RGB.read_bytes()
    for allow_truncated in (False, True):
        with pytest.raises(DecodeError):
            decode(data[: len(data) * eighth // 8], CARD_RECIPE, Limits(allow_truncated=allow_truncated))
    assert decode(jpeg()[:-100], CARD_RECIPE, Limits(allow_truncated=True)).any()  # as ever


# --- without the extra ----------------------------------------------------------------------------------------------


def without_extra(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    program = "import sys; sys.modules['pi_heif'] = None; from deit_batch.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", program, *args], cwd=cwd, text=True, capture_output=True, timeout=120, check=False
    )


def test_without_the_extra_it_is_named_to_whoever_has_such_photos(phone: Path) -> None:
    (phone / "a.jpg").write_bytes(jpeg())
    (phone / "b.nef").touch()
    run = ("score", "--model", "demo", "--quiet", "--out", "p.jsonl", "--input")
    done = without_extra(*run, "phone", cwd=phone.parent)
    assert (done.returncode, done.stderr) == (
        0,
        "deit-batch: photos were passed over: 4 .heic, 1 .heif, 1 .hif, 1 .nef; to have them read, "
        "pip install '.[heic]' in a clone of deit-batch and convert the others to JPEG or PNG\n",
    )
    assert len(read_jsonl(phone.parent / "p.jsonl")) == 1
    assert "pi-heif" not in read_json(phone.parent / "p.jsonl.run.json")["versions"]
    alone = without_extra(*run, "phone/*.HEIC", cwd=phone.parent)
    assert alone.returncode == 2
    assert alone.stderr.endswith("to have its photos read, pip install '.[heic]' in a clone of deit-batch\n")


def test_without_the_extra_a_photo_that_was_named_is_a_failed_record_that_names_it(phone: Path) -> None:
    for spec in (as_list(phone), as_base64(phone), f"phone/{sorted(phone.iterdir())[0].name}"):
        done = without_extra("score", "--model", "demo", "--out", "q.jsonl", "--fresh", spec, cwd=phone.parent)
        assert done.returncode == 3, done.stderr
        for record in read_jsonl(phone.parent / "q.jsonl"):
            assert record["error"] == {
                "type": "DecodeError",
                "message": "HEIC needs an extra: pip install '.[heic]' in a clone of deit-batch",
            }


def test_the_remedy_fits_the_photos() -> None:
    assert remedy([".heic"]) == "pip install '.[heic]' in a clone of deit-batch"
    assert remedy([".cr2"]) == "convert them to JPEG or PNG"


def test_with_the_extra_a_broken_photo_is_a_failed_record(tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(RGB.read_bytes()[:12] + b"\0" * 100)
    (record,) = score(str(tmp_path), model="demo", workers=0)
    assert record.error
    assert record.error.type == "DecodeError"
    (tmp_path / "a.heic").rename(tmp_path / "a.heics")
    with pytest.raises(UsageError, match="holds no image"):
        open_source(str(tmp_path))
