"""Grey images of more than 8 bits: as the pipeline has them, with a warning, or scaled; TIFFs in planes of 16 bits."""

from __future__ import annotations

import asyncio
import io
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import deit_batch, photo, read_json, read_jsonl, scored
from numpy.typing import NDArray
from PIL import Image

from deit_batch.errors import DecodeError
from deit_batch.limits import Limits
from deit_batch.loading.decode import decode
from deit_batch.model.recipe import CARD_RECIPE
from deit_batch.serving.decoders import Decoders

SCALED = replace(CARD_RECIPE, scale_deep_gray=True)
GREY = np.asarray(photo().convert("L"))


def encoded(values: NDArray[Any], format: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format)
    return buffer.getvalue()


def tiff(strips: list[bytes], width: int, height: int, *, bits: list[int], photometric: int, order: str = "<") -> bytes:
    """Uncompressed, unsigned, one strip for each plane."""
    pixels = b"".join(strips)
    entries: list[tuple[int, str, list[int]]] = [
        (256, "I", [width]),
        (257, "I", [height]),
        (258, "H", bits),
        (259, "H", [1]),
        (262, "H", [photometric]),
        (273, "I", [8 + sum(map(len, strips[:place])) for place in range(len(strips))]),
        (277, "H", [len(bits)]),
        (278, "I", [height]),
        (279, "I", list(map(len, strips))),
        (284, "H", [1 if len(strips) == 1 else 2]),
        *([(338, "H", [2])] if len(bits) == 4 else []),
    ]
    start = 8 + len(pixels)
    rest, table = b"", struct.pack(f"{order}H", len(entries))
    for tag, kind, values in entries:
        data = struct.pack(f"{order}{len(values)}{kind}", *values)
        if len(data) > 4:
            place = start + 2 + 12 * len(entries) + 4 + len(rest)
            rest, data = rest + data, struct.pack(f"{order}I", place)
        table += struct.pack(f"{order}HHI", tag, {"H": 3, "I": 4}[kind], len(values)) + data.ljust(4, b"\0")
    first = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, start)
    return first + pixels + table + bytes(4) + rest


def pixels(data: bytes, recipe: Any = SCALED) -> NDArray[np.uint8]:
    return decode(data, recipe, Limits())


EXPECTED = pixels(encoded(GREY, "PNG"), CARD_RECIPE)


# --- scaled ---------------------------------------------------------------------------------------------------------


def test_sixteen_bits_become_eight() -> None:
    deep = GREY.astype(np.uint16) * 257
    height, width = deep.shape
    files = [encoded(deep, "PNG"), encoded(deep, "TIFF")]
    files += [
        tiff([deep.astype(f"{order}u2").tobytes()], width, height, bits=[16], photometric=1, order=order)
        for order in "<>"
    ]
    files.append(tiff([(65535 - deep).tobytes()], width, height, bits=[16], photometric=0))  # white is zero
    for data in files:
        assert np.array_equal(pixels(data), EXPECTED)
        assert pixels(data, CARD_RECIPE).mean() > EXPECTED.mean()  # as the pipeline has it


def test_twelve_bits_of_a_tiff_become_eight() -> None:
    values = GREY[:, :60].astype(np.uint32) * 4095 // 255
    pairs = values[:, ::2] << 12 | values[:, 1::2]
    packed = b"".join(struct.pack(">I", pair)[1:] for pair in pairs.ravel().tolist())
    data = tiff([packed], 60, len(GREY), bits=[12], photometric=1)
    expected = pixels(encoded(np.ascontiguousarray(GREY[:, :60]), "PNG"), CARD_RECIPE)
    assert np.abs(pixels(data).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("kind", [np.float32, np.int32])
@pytest.mark.parametrize(("factor", "offset"), [(1000, -7), (3, 0), (1, 100_000)])
def test_floats_and_wide_integers_take_their_own_range(kind: type, factor: int, offset: int) -> None:
    whole = GREY.copy()
    whole[0, :2] = 0, 255
    expected = pixels(encoded(whole, "PNG"), CARD_RECIPE)
    data = encoded((whole.astype(np.float64) * factor + offset).astype(kind), "TIFF")
    assert np.array_equal(pixels(data), expected)


def test_what_is_not_finite_is_black_and_nothing_finite_is_a_failure() -> None:
    values = GREY.astype(np.float32) / 255
    black = values.copy()
    black[20:23], values[20], values[21], values[22] = values.min(), np.nan, np.inf, -np.inf
    assert np.array_equal(pixels(encoded(values, "TIFF")), pixels(encoded(black, "TIFF")))
    assert pixels(encoded(np.full_like(values, 3), "TIFF")).max() == 0
    with pytest.raises(DecodeError, match="not one of its values is finite"):
        pixels(encoded(np.full_like(values, np.nan), "TIFF"))


def test_other_images_are_as_they_were(all_kinds: Path) -> None:
    deep = {"grey16.png", "grey16.tiff", "integers.tiff", "floats.tiff"}
    for path in all_kinds.iterdir():
        if path.name not in deep:
            assert np.array_equal(pixels(path.read_bytes()), pixels(path.read_bytes(), CARD_RECIPE)), path.name


# --- in planes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("channels", [3, 4])
def test_planes_of_sixteen_bits_are_what_they_are_side_by_side(channels: int, order: str) -> None:
    rgb = np.asarray(photo())
    height, width = rgb.shape[:2]
    deep = np.dstack([rgb, rgb[..., :1]])[..., :channels].astype(f"{order}u2") * 257 + 200
    more: dict[str, Any] = {"bits": [16] * channels, "photometric": 2, "order": order}
    planes = [np.ascontiguousarray(deep[..., channel]).tobytes() for channel in range(channels)]
    in_planes = tiff(planes, width, height, **more)
    assert np.array_equal(pixels(in_planes), pixels(tiff([deep.tobytes()], width, height, **more)))
    with Image.open(io.BytesIO(in_planes)) as opened:
        assert not np.array_equal(np.asarray(opened)[..., :3], rgb)  # Pillow alone: if it no longer errs, ours can go


# --- said -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def scans(photos: Path) -> Path:
    for number in range(3):
        Image.fromarray(GREY.astype(np.uint16) * 257).save(photos / f"scan{number}.png")
    return photos


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_meets_them_says_so_once_with_their_number(
    workers: int, scans: Path, vit: Path, tmp_path: Path, messages: list[str]
) -> None:
    clipped = scored(scans, vit, tmp_path, workers=workers)
    warnings = [text for text in messages if "grey of more than 8 bits" in text]
    assert len(warnings) == 1
    assert warnings[0].startswith("3 images are grey of more than 8 bits: ")
    assert read_json(tmp_path / "p.jsonl.run.json")["counts"]["deep_gray"] == 3
    messages.clear()
    whole = scored(scans, vit, tmp_path, "s.jsonl", workers=workers, deep_gray="scale")
    report = read_json(tmp_path / "s.jsonl.run.json")
    assert report["counts"]["deep_gray"] == 3
    assert report["settings"]["recipe"]["scale_deep_gray"] is True
    assert not [text for text in messages if "grey of more" in text]
    differing = [a["image"] for a, b in zip(read_jsonl(clipped), read_jsonl(whole), strict=True) if a != b]
    assert differing == [str(scans / f"scan{number}.png") for number in range(3)]


def test_quiet_lets_it_through_and_the_page_tells_what_was_done(scans: Path) -> None:
    def run(*more: str) -> str:
        done = deit_batch(
            "score", "--input", "photos", "--model", "demo", "--out", "p.jsonl", "--fresh", "--quiet", *more,
            cwd=scans.parent,
        )  # fmt: skip
        assert done.returncode == 0
        return done.stderr

    assert "3 images are grey of more than 8 bits" in run()
    assert run("--deep-gray", "scale") == ""
    assert deit_batch("report", "p.jsonl", "--out", "r.html", cwd=scans.parent).returncode == 0
    assert "deep grey scaled to 8 bits" in (scans.parent / "r.html").read_text()


def test_training_says_so_too(scans: Path) -> None:
    for label in ("a", "b"):
        (scans / label).mkdir()
        for number in range(3):
            Image.fromarray(GREY.astype(np.uint16) * (200 + number)).save(scans / label / f"{label}{number}.png")
    for path in scans.glob("*.*"):
        path.unlink()
    done = deit_batch(
        "finetune", "--input", "photos", "--model", "demo", "--out", "tuned", "--max-steps", "1", "--freeze-backbone",
        "--quiet", cwd=scans.parent,
    )  # fmt: skip
    assert "6 images are grey of more than 8 bits" in done.stderr


@pytest.mark.parametrize(("recipe", "warnings"), [(CARD_RECIPE, 1), (SCALED, 0)])
def test_a_server_says_so_once(recipe: Any, warnings: int, messages: list[str]) -> None:
    decoders = Decoders(recipe, Limits(), workers=1)
    data = encoded(GREY.astype(np.uint16) * 257, "PNG")

    async def several() -> list[Any]:
        return [await decoders(data) for _ in range(3)]

    try:
        for found in asyncio.run(several()):
            assert np.array_equal(found, pixels(data, recipe))
    finally:
        decoders.close()
    assert len([text for text in messages if "1 image is grey of more than 8 bits" in text]) == warnings
