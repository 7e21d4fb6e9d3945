"""Images are kept where it is asked for, and are the same wherever that is; what has no room is found out first."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader

from deit_batch.errors import InputError, OutputError, UsageError
from deit_batch.finetune.cache import Keeping, choose_keeping
from deit_batch.finetune.data import Collate, Sets, load_sets
from deit_batch.finetune.inputs import list_inputs
from deit_batch.finetune.sampling import EpochSampler
from deit_batch.finetune.settings import Settings
from deit_batch.finetune.training import errors_of_workers_in_a_line
from deit_batch.loading.decode import decode
from deit_batch.model.recipe import CARD_RECIPE
from deit_batch.system import machine
from deit_batch.system.signals import stop_on_signals

RECIPE = replace(CARD_RECIPE, resize=(32, 32), crop=None)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Photographs of 64x48 pixels in two classes, and one that is broken."""
    dice = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "in" / name).mkdir(parents=True)
        for number in range(10):
            pixels = dice.integers(0, 255, (48, 64, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "in" / name / f"{number}.jpg")
    (tmp_path / "in" / "a" / "00.jpg").write_bytes(b"\xff\xd8\xff\xe0 broken")
    return tmp_path / "in"


def sets_of(images: Path, folder: Path, **more: Any) -> Sets:
    settings = Settings(input=str(images), **more)
    folder.mkdir(exist_ok=True)
    with stop_on_signals(60) as stop:
        return load_sets(settings, RECIPE, folder, stop, workers=0, listing=list_inputs(settings))


def epoch(sets: Sets, **more: Any) -> Iterator[dict[str, NDArray[Any]]]:
    """Its batches, made in a worker."""
    collate = Collate(Settings(input="", **more))
    loader = DataLoader(
        sets.training, 4, sampler=EpochSampler(len(sets.training), 0, 1), collate_fn=collate, num_workers=1
    )
    for batch in loader:
        yield {name: tensor.numpy() for name, tensor in batch.items()}


@pytest.mark.parametrize("crop", [1.0, 0.5])
def test_images_are_the_same_wherever_they_are_kept(images: Path, tmp_path: Path, crop: float) -> None:
    """In an epoch, to validate with, and when a run is gone on with; the broken one is reported once."""
    first: list[bytes] = []
    for place in ("disk", "memory", "off", "disk"):  # the last takes what the first has left
        sets = sets_of(images, tmp_path / place, crop=crop, pixel_cache=place)
        assert [Path(str(one.image)).name for one in sets.skipped] == ["00.jpg"]
        found = [batch["pixels"].tobytes() for batch in epoch(sets, crop=crop)]
        found += [sets.validation[number]["pixels"].tobytes() for number in range(len(sets.validation))]
        first = first or found
        assert found == first
    kept = tmp_path / "disk" / "inputs" / "images"
    originals = sum(path.stat().st_size for path in images.glob("*/*.jpg") if path.name != "00.jpg")
    assert kept.stat().st_size == (20 * 32 * 32 * 3 if crop == 1 else originals)
    assert not any((tmp_path / place / "inputs" / "images").exists() for place in ("memory", "off"))


def test_classes_that_are_not_validated_or_not_reached_are_said(
    images: Path, tmp_path: Path, messages: list[str]
) -> None:
    (images / "c").mkdir()
    shutil.copy(images / "b" / "0.jpg", images / "c")
    sets_of(images, tmp_path / "work", limit=12)
    assert messages[-4:] == [
        "classes without an image that can be read among the first 12 (--limit), which the model won't know: c",
        "classes to learn, with their images: a (10), b (1)",
        "9 images to train on, 2 to validate with, a share of the same input",
        "classes without an image to validate with, of which no metric tells: b",
    ]


def test_labels_that_a_map_puts_together_are_said(images: Path, tmp_path: Path, messages: list[str]) -> None:
    (images / "c").mkdir()
    (images / "c" / "0.jpg").write_bytes((images / "b" / "0.jpg").read_bytes() + b" ")  # another image, by its bytes
    (tmp_path / "map.csv").write_text("a,crane\nb,crane\nc,can\n")
    sets_of(images, tmp_path / "work", label_map=str(tmp_path / "map.csv"))
    assert "--label-map makes one class of several labels: crane (a, b)" in messages


def test_without_crops_pixels_are_those_that_are_scored(images: Path, tmp_path: Path) -> None:
    sets = sets_of(images, tmp_path / "work", crop=0.5)
    decoded = {
        decode(path.read_bytes(), RECIPE, Settings(input="").limits).tobytes()
        for path in images.glob("*/*.jpg")
        if path.name != "00.jpg"
    }
    assert {sets.validation[n]["pixels"].tobytes() for n in range(len(sets.validation))} <= decoded


def test_what_has_no_room_is_found_out_before_the_first_image(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, messages: list[str]
) -> None:
    settings = Settings(input=str(images), crop=1)
    listing = list_inputs(settings)
    assert listing is not None
    assert listing.images == 21
    needed = 21 * 32 * 32 * 3
    usage = shutil.disk_usage(tmp_path)._replace(free=needed)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    monkeypatch.setattr(machine, "free_memory", lambda: needed)
    for place in ("disk", "memory"):
        with pytest.raises(
            OutputError, match=rf"--pixel-cache {place}: the images take 0\.0 GB, .*give --pixel-cache off"
        ):
            choose_keeping(replace(settings, pixel_cache=place), listing, RECIPE, tmp_path)
    assert choose_keeping(settings, listing, RECIPE, tmp_path) == Keeping("off", encoded=False)
    assert any("they are not kept, but fetched anew in every epoch" in message for message in messages)
    usage = usage._replace(free=2 * needed)
    assert choose_keeping(settings, listing, RECIPE, tmp_path) == Keeping("disk", encoded=False)
    with pytest.raises(UsageError, match="- can be read only once; give another --pixel-cache than off"):
        choose_keeping(Settings(input="-", pixel_cache="off"), None, RECIPE, tmp_path)


def test_an_image_that_goes_away_ends_the_run_in_one_line(images: Path, tmp_path: Path) -> None:
    sets = sets_of(images, tmp_path / "work", pixel_cache="off")
    shutil.rmtree(images / "b")
    with pytest.raises(InputError) as caught, errors_of_workers_in_a_line():
        list(epoch(sets))
    assert "could be read before the first step, and can't any more: No such file" in str(caught.value)
    assert "\n" not in str(caught.value)
    about = json.loads((tmp_path / "work" / "inputs" / "prepared.json").read_bytes())
    assert about["keeping"] == {"place": "off", "encoded": True}
