"""Labelled inputs to what training reads at random: images that are known to be good, and the labels of each.

Every image is fetched and decoded once, before the first step, by the loader that `score` uses. So bad images are known
(and reported) before the first step. What is kept of each, is its pixels, as the recipe gives them; or, where training
cuts random parts out of the originals, its encoded bytes; or nothing, and then it is fetched anew whenever it is shown.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from deit_batch.errors import OutputError, RowError, UsageError, nothing_left
from deit_batch.finetune.inputs import Listing, is_read_once
from deit_batch.finetune.pictures import Fetched, File, KeptBytes, KeptPixels, Memory, Originals, Pictures
from deit_batch.finetune.settings import Settings
from deit_batch.input.identity import identity_of
from deit_batch.input.labels import LABELLED_TWICE, LabelledSource, find_unclear
from deit_batch.input.passed_over import MOST_SHOWN, counts_of, warn_of_photos
from deit_batch.io import Failure, Location, Reference, counted, json_line, name_fields
from deit_batch.limits import Limits
from deit_batch.loading.deep_gray import warn_of_deep_gray
from deit_batch.loading.loader import Decoded, Loader, batched
from deit_batch.model.recipe import Recipe
from deit_batch.system import machine
from deit_batch.system.atomic import write_atomically
from deit_batch.system.signals import Stop

logger = logging.getLogger("deit_batch")

BATCH = 64
FIRST_SHOWN = 3
IMAGES, ENDS, NAMES, LABELS, DIGESTS = "images", "ends.npy", "names.jsonl", "labels.jsonl", "digests.npy"
PREPARED = "prepared.json"
"""Written last: where it is, the rest is whole."""
_DIGEST_BYTES = np.uint64().itemsize
ROOM_USED = 0.95
"""Of what is free, at most, for a cache: the checkpoints want some, too."""

Place: TypeAlias = Literal["disk", "memory", "off"]


@dataclass(frozen=True, slots=True)
class Skipped:
    image: str | None
    type: str
    message: str


@dataclass(frozen=True, slots=True)
class Keeping:
    """What is kept of each image, and where: its encoded bytes if `encoded`, else its pixels."""

    place: Place
    encoded: bool


@dataclass(frozen=True, slots=True)
class Prepared:
    """The images that can be trained on. `rows`: int64 [n], which of the `pictures` is which image's; `names`: of each
    image, None where it has none; `labels`: of each image, in the data set's names; `class_names`: all of them, in the
    order of the model's outputs; `fingerprint`: SHA-256 over the bytes and labels of all that were decoded; `digests`:
    uint64 [n], the beginning of the SHA-256 of each image's bytes, None if an earlier version has left none."""

    pictures: Pictures
    rows: NDArray[np.int64]
    names: list[str | None]
    labels: list[list[str]]
    class_names: list[str]
    multi_label: bool
    layout: str
    fingerprint: str
    skipped: list[Skipped]
    digests: NDArray[np.uint64] | None

    def targets(self, class_names: Sequence[str]) -> NDArray[np.float32]:
        """float32 [n, classes]: 1 for what an image shows, 0 for the rest. Raises UsageError for a class that is not
        among `class_names`."""
        numbers = {name: number for number, name in enumerate(class_names)}
        unknown = sorted({label for labels in self.labels for label in labels} - set(numbers))
        if unknown:
            raise UsageError(f"the validation set has classes that the training set has not: {', '.join(unknown):.200}")
        targets = np.zeros((len(self.labels), len(class_names)), np.float32)
        for row, labels in zip(targets, self.labels, strict=True):
            row[[numbers[label] for label in labels]] = 1
        return targets


def choose_keeping(settings: Settings, listing: Listing | None, recipe: Recipe, folder: Path) -> Keeping:
    """Where the images are kept, in `folder` or elsewhere: as it is asked for; or on the disk if there is room. Raises
    OutputError if there is none where they are to be kept, UsageError if an input that is read once is to be fetched
    anew."""
    encoded = settings.crop < 1
    wanted = settings.pixel_cache
    once = [spec for spec in (settings.input, settings.validation) if spec and is_read_once(spec)]
    if once and wanted == "off":
        raise UsageError(f"{once[0]} can be read only once; give another --pixel-cache than off")
    before = _kept_before(folder)
    if before and before.encoded == encoded and wanted in (None, before.place):
        return before
    if wanted == "off" or listing is None:
        return Keeping("off" if wanted == "off" else "memory" if wanted == "memory" else "disk", encoded)
    height, width = recipe.size
    needed = listing.bytes if encoded else listing.images * height * width * 3
    place: Place = "memory" if wanted == "memory" else "disk"
    free = shutil.disk_usage(folder).free if place == "disk" else machine.free_memory()
    if needed is None or free is None or needed <= ROOM_USED * free:
        return Keeping(place, encoded)
    what = f"the images take {needed / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free"
    if wanted is None:
        logger.warning("%s: they are not kept, but fetched anew in every epoch", what)
        return Keeping("off", encoded)
    raise OutputError(f"--pixel-cache {wanted}: {what}; make room, or give --pixel-cache off")


def _kept_before(folder: Path) -> Keeping | None:
    """By the run that is gone on from."""
    for path in folder.glob(f"*/{PREPARED}"):
        return Keeping(**json.loads(path.read_bytes()).get("keeping", {"place": "disk", "encoded": False}))
    return None


def needs_its_input(folder: Path, keeping: Keeping) -> bool:
    """Whether what is in `folder` is not enough to go on from."""
    return keeping.place != "disk" or not (folder / PREPARED).exists() or _kept_before(folder.parent) != keeping


def prepare(
    folder: Path,
    source: LabelledSource | None,
    keeping: Keeping,
    recipe: Recipe,
    limits: Limits,
    stop: Stop,
    *,
    workers: int,
    limit: int | None = None,
) -> Prepared:
    """Decodes what `source` gives, and keeps of it in `folder` what is to be kept there; None takes what an earlier run
    has left there whole. `limit`: how many images the source gives at most, for what is said of the rest. Raises
    DeitBatchError if not one image is left, OutputError if the disk is full."""
    try:
        if source is None:
            return _prepared(folder, _on_disk(folder, keeping, recipe, limits), limit)
        if keeping.place == "off" and (folder / PREPARED).exists():
            return _prepared(folder, Originals(_fetched_again(folder, source, limits), recipe, limits), limit)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return _prepared(folder, _decode_all(folder, source, keeping, recipe, limits, stop, workers), limit)
    except OSError as error:
        raise OutputError(
            f"{error.filename or folder}: {error.strerror}; is there room for the images? See --pixel-cache"
        ) from error


def _on_disk(folder: Path, keeping: Keeping, recipe: Recipe, limits: Limits) -> Pictures:
    store = File(folder / IMAGES)
    if not keeping.encoded:
        return KeptPixels(store, recipe.size)
    return Originals(KeptBytes(store, np.load(folder / ENDS)), recipe, limits)


def _fetched_again(folder: Path, source: LabelledSource, limits: Limits) -> Fetched:
    left_out = set(json.loads((folder / PREPARED).read_bytes())["left_out"])
    references = source.as_source().references
    kept = [(one.location, one.image) for place, one in enumerate(references) if place not in left_out]
    return Fetched(kept, limits)


class _Keeper:
    """Takes in what the loader gives, and keeps of it what is to be kept."""

    def __init__(self, folder: Path, keeping: Keeping, stack: ExitStack) -> None:
        self._folder, self._keeping = folder, keeping
        self._memory = bytearray()
        self._file: BinaryIO | None = None
        if keeping.place == "disk":
            self._file = stack.enter_context((folder / IMAGES).open("wb"))
        self._sizes: list[int] = []
        self._far: list[tuple[Location, str | None]] = []

    def take_all(self, decoded: Decoded) -> None:
        if self._keeping.place != "off" and not self._keeping.encoded:
            self._write(decoded.pixels.numpy().data)

    def take(self, reference: Reference, encoded: bytes | None) -> None:
        """One of those that `take_all` has been given."""
        if self._keeping.place == "off":
            self._far.append((reference.location, reference.image))
        elif encoded is not None:
            self._write(encoded)
            self._sizes.append(len(encoded))

    def _write(self, data: bytes | memoryview) -> None:
        if self._file:
            self._file.write(data)
        else:
            self._memory.extend(data)

    def pictures(self, recipe: Recipe, limits: Limits) -> Pictures:
        ends = np.cumsum(self._sizes, dtype=np.int64)
        if self._file:
            self._file.flush()
            np.save(self._folder / ENDS, ends)
            return _on_disk(self._folder, self._keeping, recipe, limits)
        if self._keeping.place == "off":
            return Originals(Fetched(self._far, limits), recipe, limits)
        store = Memory(self._memory)
        return (
            Originals(KeptBytes(store, ends), recipe, limits)
            if self._keeping.encoded
            else KeptPixels(store, recipe.size)
        )


def _decode_all(
    folder: Path, source: LabelledSource, keeping: Keeping, recipe: Recipe, limits: Limits, stop: Stop, workers: int
) -> Pictures:
    skipped: list[Skipped] = []
    left_out: list[int] = []
    digest = hashlib.sha256()
    digests = bytearray()
    deep_gray = seen = 0
    images: list[str | None] = []
    given: list[tuple[list[str | bytes | None], list[str]]] = []
    batches = batched(source.as_source().references, BATCH)
    loader = Loader(recipe, limits, workers=workers, pin_memory=False, digests=True, encoded=keeping.encoded)
    with ExitStack() as stack:
        stack.enter_context(closing(loader))
        lines = stack.enter_context(open(folder / LABELS, "wb"))
        keeper = _Keeper(folder, keeping, stack)
        for batch, decoded in loader.stream(batches):
            stop.check()
            deep_gray += decoded.deep_gray
            keeper.take_all(decoded)
            for place, reference in enumerate(batch):
                failure = decoded.settled.get(place)
                if isinstance(failure, Failure):
                    skipped.append(Skipped(reference.image, failure.type, failure.message))
                    left_out.append(seen + place)
                    continue
                keeper.take(reference, decoded.encoded.get(place))
                labels = _labels(reference)
                images.append(reference.image)
                beginning = bytes.fromhex(decoded.digests[place])[:_DIGEST_BYTES]
                given.append(([identity_of(name_fields(reference)), beginning], labels))
                line = json_line(labels)
                digest.update(decoded.digests[place].encode() + line)
                digests += beginning
                lines.write(line)
            seen += len(batch)
        pictures = keeper.pictures(recipe, limits)
    np.save(folder / DIGESTS, np.frombuffer(digests, np.uint64))
    (folder / NAMES).write_bytes(b"".join(map(json_line, images)))
    labels_of = [labels for _, labels in given]
    unclear = find_unclear(given)
    for row, other in sorted(unclear.items()):
        why = _labelled_twice(labels_of[row], labels_of[other], images[other])
        skipped.append(Skipped(images[row], RowError.__name__, why))
    about = {
        "class_names": source.class_names,
        "multi_label": source.multi_label,
        "layout": source.layout,
        "fingerprint": digest.hexdigest(),
        "unclear": sorted(unclear),
        "skipped": [asdict(one) for one in skipped],
        "left_out": left_out,
        "passed_over": source.passed_over,
        "deep_gray": deep_gray,
        "keeping": asdict(keeping),
    }
    write_atomically(folder / PREPARED, json_line(about))
    return pictures


def _labelled_twice(labels: Sequence[str], others: Sequence[str], image: str | None) -> str:
    here, there = (", ".join(each) or "none" for each in (labels, others))
    return f"{LABELLED_TWICE}: {here:.80}, and {there:.80} as {image or 'an image of the same bytes'}"


def _labels(reference: Reference) -> list[str]:
    label = reference.keep["label"]
    return [str(one) for one in label] if isinstance(label, list) else [str(label)]


def _prepared(folder: Path, pictures: Pictures, limit: int | None) -> Prepared:
    about = json.loads((folder / PREPARED).read_bytes())
    skipped = [Skipped(**one) for one in about.pop("skipped")]
    passed_over = about.pop("passed_over", {})  # an earlier version has not counted
    if passed_over:
        logger.info("passed over: %s", counts_of(passed_over, most=MOST_SHOWN))
    warn_of_photos(passed_over)
    warn_of_deep_gray(about.pop("deep_gray", 0), scaled=False, remedy="convert them to 8 bits first")
    _report(skipped)
    labels = [json.loads(line) for line in (folder / LABELS).read_bytes().splitlines()]
    unclear = set(about.pop("unclear", []))  # an earlier version has not looked
    rows = np.array([row for row in range(len(labels)) if row not in unclear], np.int64)
    if not len(rows):
        first = skipped[0].message if skipped else "there is none"
        types = [one.type for one in skipped]
        raise nothing_left(f"none of {counted(len(skipped), 'image')} can be trained on; the first: {first}", types)
    names = {label for row in rows for label in labels[row]}
    listed = about["class_names"] or sorted(names)
    about["class_names"] = [name for name in listed if name in names]
    lost = [name for name in listed if name not in names]
    if lost:
        among = f" among the first {limit:,} (--limit)" if limit else ""
        logger.warning(
            "classes without an image that can be read%s, which the model won't know: %s", among, ", ".join(lost)
        )
    for of_the_cache in ("left_out", "keeping"):
        about.pop(of_the_cache, None)  # an earlier version has none
    digests = np.load(folder / DIGESTS)[rows] if (folder / DIGESTS).exists() else None
    listed_names = (folder / NAMES).read_bytes().splitlines() if (folder / NAMES).exists() else None  # nor has it these
    image_names = [json.loads(listed_names[row]) if listed_names else None for row in rows]
    labels = [labels[row] for row in rows]
    return Prepared(pictures, rows, image_names, labels, skipped=skipped, digests=digests, **about)


def _report(skipped: Sequence[Skipped]) -> None:
    """The first of each kind, and how many there are."""
    kinds: dict[str, list[Skipped]] = {}
    for one in skipped:
        kinds.setdefault(LABELLED_TWICE if one.message.startswith(LABELLED_TWICE) else one.type, []).append(one)
    shown = [one for images in kinds.values() for one in images[:FIRST_SHOWN]]
    for one in shown:
        logger.warning("skipped: %s: %s", one.image or "an image in the table", one.message)
    if len(skipped) > len(shown):
        counts = ", ".join(f"{len(images):,} {kind}" for kind, images in kinds.items())
        logger.warning("skipped: %s in all (%s)", f"{len(skipped):,}", counts)
