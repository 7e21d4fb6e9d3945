"""Tars of samples, as WebDataset has them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

from helpers import EXAMPLES

PICTURES = sorted(EXAMPLES.glob("*/*.png"))[:6]


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return path


def samples(pictures: list[Path], start: int = 0) -> dict[str, bytes]:
    members = {}
    for number, picture in enumerate(pictures, start):
        members[f"{number:04}.png"] = picture.read_bytes()
        members[f"{number:04}.cls"] = str(number % 2).encode()
        members[f"{number:04}.json"] = json.dumps({"from": picture.name}).encode()
    return members
