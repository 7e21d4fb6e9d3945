"""One image and what the model sees in it, as the model card shows it: the picture beside its labels and scores."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Sequence
from contextlib import closing
from itertools import chain

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from deit_batch.errors import ImageError, UsageError, nothing_left
from deit_batch.input.locate import locate
from deit_batch.io import Failure, LocalFile, Location, Prediction, Record, Reference
from deit_batch.limits import Limits
from deit_batch.loading.decode import decode
from deit_batch.loading.fetch import Fetcher
from deit_batch.model.attention import Look, Watcher, require_attention
from deit_batch.model.recipe import Recipe
from deit_batch.options import Options
from deit_batch.plan import Plan, checkpoint_of
from deit_batch.redaction import redact
from deit_batch.report.attention import NAMES, tint
from deit_batch.scorer import Scorer

MOST_BARS = 20
LONGEST_SIDE = 1000  # pixels of the picture

_BEST, _REST = "#2a6f97", "#b8c4cc"
_AS_IT_IS = Recipe(resize=None, resample=2, crop=None, rescale_factor=1.0, mean=(0.0,) * 3, std=(1.0,) * 3)


def plot(options: Options, *, attention: bool = False) -> tuple[Record, bytes]:
    """Scores one image (`options.input`: a path, URL or base64) and draws it; a PNG. With `attention`, also what the
    model looked at. Raises InputError if it can't be scored, UsageError if it is not to be told what it is, or what
    that model looks at."""
    if attention:
        require_attention(checkpoint_of(options))
    (image,) = options.inputs
    name = redact(image)
    try:
        place = locate(image)
        _require_file(place, name)
        data = Fetcher(options.limits).fetch(place)
    except ImageError as error:
        raise UsageError(f"{name}: {error}") from error
    if isinstance(data, Failure):
        raise nothing_left(f"{name}: {data.message}", [data.type])
    plan = Plan.of(options)
    batches = plan.batches([Reference(0, name, data)])
    with closing(Scorer(plan, options)) as scorer:
        (record,) = chain.from_iterable(scorer.scored(batches))
    if record.error:
        raise nothing_left(f"{name}: {record.error.message}", [record.error.type])
    look = None
    if attention:
        watcher = Watcher(plan.checkpoint, plan.recipe, plan.device, plan.dtype)
        look = watcher.look(decode(data, plan.recipe, options.limits))
    return record, draw(_picture(data, options.limits), record.predictions, look)


def _require_file(place: Location, name: str) -> None:
    """Raises UsageError for what is no file here, as a wrong input is to `score`."""
    if isinstance(place, LocalFile):
        if os.path.isdir(place.path):
            raise UsageError(f"{name} is a folder; give one image")
        if not os.path.lexists(place.path):
            raise UsageError(f"{name}: no such file; check the path and the working folder")


def _picture(data: bytes, limits: Limits) -> NDArray[np.uint8]:
    """The whole image, [height, width, 3]. A worker has just decoded it without harm."""
    image = Image.fromarray(decode(data, _AS_IT_IS, limits))
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return np.asarray(image)


def draw(picture: NDArray[np.uint8], predictions: Sequence[Prediction], look: Look | None = None) -> bytes:
    """The picture with the best label above it, and beside it a bar for each label; between them what was looked at, if
    that is known."""
    shown = predictions[:MOST_BARS]
    tokens = look.tokens if look else ()
    panels = 2 + len(tokens)
    figure = Figure(figsize=(5 * panels, max(4.0, 0.35 * len(shown) + 1.2)), layout="constrained")
    left, *between, right = figure.subplots(1, panels)
    left.imshow(picture)
    left.set_axis_off()
    best = f"{predictions[0]['label']} ({predictions[0]['score']:.2f})" if predictions else "no label"
    left.set_title(best, fontsize=14, loc="left", parse_math=False)
    if look:
        for axes, token, shares in zip(between, tokens, look.shares, strict=True):
            _draw_look(axes, look.picture, shares)
            axes.set_title(f"yellow: what its {NAMES[token]} looked at", fontsize=11, loc="left")
    places = range(len(shown))
    right.barh(places, [each["score"] for each in shown], color=[_BEST, *[_REST] * len(shown)][: len(shown)])
    right.set_yticks(places, [each["label"] for each in shown], parse_math=False)
    for place, each in enumerate(shown):
        right.text(each["score"] + 0.01, place, f"{each['score']:.4f}", va="center", fontsize=9)
    right.set(xlim=(0, 1.12), xlabel="score", ylim=(max(len(shown), 1) - 0.4, -0.6))
    right.set_xticks([0, 0.25, 0.5, 0.75, 1])
    right.spines[["top", "right"]].set_visible(False)
    return _png(figure)


def _draw_look(axes: Axes, picture: NDArray[np.uint8], shares: NDArray[np.float32]) -> None:
    height, width, _ = picture.shape
    axes.imshow(picture)
    axes.imshow(tint(shares), extent=(-0.5, width - 0.5, height - 0.5, -0.5), interpolation="bilinear")
    axes.set_axis_off()


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # of a label that the font can't write
        figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()
