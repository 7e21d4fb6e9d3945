"""Makes a folder of bad and hostile inputs: corpus.py FOLDER [SEED]. About six thousand files, the same for one seed.

Valid pictures of every format and mode, and what becomes of them: truncated at every eighth, bits flipped, pieces
swapped, under a wrong name; and what is no picture: empty files, web pages, pointers, bombs, pipes, sockets, links to
nowhere, folders with a picture's name, names that are no text.
"""

from __future__ import annotations

import io
import os
import random
import socket
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

BOMB_SIDE = 30_000

SUFFIXES = (".jpg", ".png", ".webp", ".gif", ".tiff", ".bmp", ".avif", ".heic")

HEIC = Path(__file__).parent.parent / "tests" / "heic" / "rgb.heic"
"""Made before: what reads it has no encoder."""

Named = tuple[str, bytes]


def photo(width: int = 64, height: int = 48) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(0).integers(0, 60, (height, width, 3))
    return Image.fromarray((np.stack([x * 3, y * 4, x + y], -1) + noise).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def valid() -> Iterator[Named]:
    """A picture of every format and mode, by the ending of its name."""
    rgb = photo()
    alpha = rgb.convert("RGBA")
    alpha.putalpha(rgb.convert("L"))
    grey16 = Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 200)
    frames = [rgb, rgb.transpose(Image.Transpose.FLIP_LEFT_RIGHT), rgb.rotate(90)]
    exif = Image.Exif()
    exif[0x0112] = 6
    cmyk = encoded(rgb.convert("CMYK"), "JPEG")
    yield "rgb.jpg", encoded(rgb, "JPEG")
    yield "progressive.jpg", encoded(rgb, "JPEG", progressive=True)
    yield "grey.jpg", encoded(rgb.convert("L"), "JPEG")
    yield "turned.jpg", encoded(rgb, "JPEG", exif=exif.tobytes())
    yield "icc.jpg", encoded(rgb, "JPEG", icc_profile=b"\0" * 300)
    yield "cmyk.jpg", cmyk
    yield "cmyk-no-adobe.jpg", cmyk.replace(b"Adobe", b"Abode", 1)
    yield "many.jpg", encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])
    yield "rgb.png", encoded(rgb, "PNG")
    yield "alpha.png", encoded(alpha, "PNG")
    yield "palette.png", encoded(rgb.convert("P"), "PNG", transparency=3)
    yield "bilevel.png", encoded(rgb.convert("1"), "PNG")
    yield "grey16.png", encoded(grey16, "PNG")
    yield "animated.png", encoded(frames[0], "PNG", save_all=True, append_images=frames[1:])
    yield "lossy.webp", encoded(rgb, "WEBP")
    yield "lossless.webp", encoded(alpha, "WEBP", lossless=True)
    yield "animated.webp", encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:])
    yield "palette.gif", encoded(rgb, "GIF")
    yield "animated.gif", encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    for compression in ("raw", "tiff_lzw", "tiff_deflate", "jpeg", "packbits", "group4"):
        image = rgb.convert("1") if compression == "group4" else rgb
        yield f"{compression}.tiff", encoded(image, "TIFF", compression=compression)
    yield "cmyk.tiff", encoded(rgb.convert("CMYK"), "TIFF")
    yield "lab.tiff", encoded(rgb.convert("LAB"), "TIFF")
    yield "grey16.tiff", encoded(grey16, "TIFF")
    yield "floats.tiff", encoded(rgb.convert("F"), "TIFF")
    # Fresh pictures: one that was saved as JPEG keeps settings that the TIFF encoder chokes on.
    yield "pages.tiff", encoded(photo(), "TIFF", save_all=True, append_images=[photo(), photo()])
    yield "rgb.bmp", encoded(rgb, "BMP")
    yield "palette.bmp", encoded(rgb.convert("P"), "BMP")
    yield "rgb.avif", encoded(rgb, "AVIF")
    yield "rgb.heic", HEIC.read_bytes()


def mutated(name: str, data: bytes, dice: random.Random, *, flips: int, swaps: int) -> Iterator[Named]:
    stem, suffix = os.path.splitext(name)
    for eighth in range(8):
        yield f"{stem}-cut{eighth}{suffix}", data[: len(data) * eighth // 8]
    for number in range(flips):
        flipped = bytearray(data)
        for _ in range(dice.choice([1, 1, 2, 5, 20])):
            # The first hundred bytes are the header: half of the harm is done there.
            place = dice.randrange(min(100, len(data))) if dice.random() < 0.5 else dice.randrange(len(data))
            flipped[place] ^= 1 << dice.randrange(8)
        yield f"{stem}-flip{number}{suffix}", bytes(flipped)
    for number in range(swaps):
        size = dice.randrange(1, max(2, len(data) // 4))
        a, b = sorted(dice.randrange(len(data) - size + 1) for _ in range(2))
        swapped = data[:a] + data[b : b + size] + data[a + size : b] + data[a : a + size] + data[b + size :]
        yield f"{stem}-swap{number}{suffix}", swapped
    for wrong in SUFFIXES:
        if wrong != suffix:
            yield f"{stem}-named{wrong}", data


def no_pictures() -> Iterator[Named]:
    yield "empty.jpg", b""
    yield "page.jpg", b"<!doctype html><title>404</title>"
    yield "pointer.jpg", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n"
    yield "vector.png", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
    yield "postscript.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) print\n"
    yield "zeros.png", b"\0" * 100_000
    yield "zip.jpg", b"PK\x03\x04" + b"\0" * 100
    yield "1x1.png", encoded(photo(1, 1), "PNG")
    yield "30000x1.png", encoded(photo(30_000, 1), "PNG")
    yield "1x30000.jpg", encoded(photo(1, 30_000), "JPEG")


def bombs() -> Iterator[Named]:
    """A few hundred bytes that ask for a gigabyte or more, in every format."""
    side = BOMB_SIDE
    rows = zlib.compress(b"\0" * 1_000_000, 9)
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    yield "bomb.png", b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    yield "bomb.bmp", b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)
    yield (
        "bomb.gif",
        b"GIF89a" + struct.pack("<HHBBB", side, side, 0, 0, 0) + b"," + struct.pack("<HHHHB", 0, 0, side, side, 0),
    )
    jpeg = bytearray(encoded(photo(), "JPEG"))
    place = jpeg.index(b"\xff\xc0")
    jpeg[place + 5 : place + 9] = struct.pack(">HH", side, side)
    yield "bomb.jpg", bytes(jpeg)
    yield "bomb.tiff", encoded(Image.new("1", (side, side)), "TIFF", compression="group4")
    webp = bytearray(encoded(photo(), "WEBP", lossless=True))
    webp[21:25] = struct.pack("<I", (16_383) | (16_383 << 14))
    yield "bomb.webp", bytes(webp)
    heic = bytearray(HEIC.read_bytes())
    place = heic.index(b"ispe")  # its version and flags, then width and height
    heic[place + 8 : place + 16] = struct.pack(">II", side, side)
    yield "bomb-cropped.heic", bytes(heic)
    place = heic.index(b"clap")  # the part that is shown: width, height and the centre, as fractions
    heic[place + 4 : place + 36] = struct.pack(">8i", side, 1, side, 1, 0, 1, 0, 1)
    yield "bomb.heic", bytes(heic)


def odd_files(folder: Path) -> None:
    picture = encoded(photo(), "JPEG")
    os.mkfifo(folder / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(folder / "socket.jpg"))
    (folder / "dangling.jpg").symlink_to("nowhere")
    (folder / "itself.jpg").symlink_to("itself.jpg")
    (folder / "folder.jpg").mkdir()
    (folder / "folder.jpg" / "in.jpg").write_bytes(picture)
    (folder / "loop").symlink_to(folder)
    (folder / "forbidden.jpg").write_bytes(picture)
    (folder / "forbidden.jpg").chmod(0)
    for name in ("line\nfeed.jpg", "smile 😀.jpg", 'quote".jpg', "tab\t.jpg", "-dash.jpg", " .jpg", "ü" * 120 + ".jpg"):
        (folder / name).write_bytes(picture)
    with open(os.path.join(os.fsencode(folder), b"caf\xe9\xff.jpg"), "wb") as file:
        file.write(picture)


def make(folder: Path, seed: int = 0, *, flips: int = 110, swaps: int = 40) -> None:
    dice = random.Random(seed)
    folder.mkdir(parents=True)
    for name, data in valid():
        (folder / name).write_bytes(data)
        for mutant, changed in mutated(name, data, dice, flips=flips, swaps=swaps):
            (folder / mutant).write_bytes(changed)
    for name, data in (*no_pictures(), *bombs()):
        (folder / name).write_bytes(data)
    odd_files(folder)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    make(target, *map(int, sys.argv[2:]))
    print(f"{target}: {sum(len(files) for _, _, files in os.walk(target)):,} files")
