"""Images of the same bytes, whatever they are called: to learn from twice, or to learn from and to validate with."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deit_batch.finetune.cache import Prepared
from deit_batch.io import counted

logger = logging.getLogger("deit_batch")

FIRST_SHOWN = 3
MOST_LISTED = 1000
"""In training.json."""


@dataclass(frozen=True, slots=True)
class Copies:
    """`count`: how many images are copies; `first`: of the first of them its name, that of what it is a copy of, and
    whether both have the same labels."""

    count: int
    first: list[dict[str, Any]]


NONE = Copies(0, [])


def firsts_of(digests: NDArray[np.uint64]) -> list[int]:
    """Of each image the place of the first one of the same bytes. `digests`: [n]."""
    _, first, group = np.unique(digests, return_index=True, return_inverse=True)
    return [int(place) for place in first[group]]


def find_copies(prepared: Prepared) -> Copies:
    """Of images to learn from. Their labels are the same, or they would have been skipped."""
    if prepared.digests is None:
        return NONE
    firsts = firsts_of(prepared.digests)
    pairs = [(place, first) for place, first in enumerate(firsts) if place != first]
    copies = _listed(prepared, prepared, pairs)
    if copies.count:
        logger.warning(
            "%s of %s to learn from are copies of others, by their bytes (%s): an image counts as often as it is "
            "there; a share of the input to validate with has none of those that are trained on",
            f"{copies.count:,}",
            counted(len(firsts), "image"),
            _named(copies),
        )
    return copies


def find_images_in_both(first: Prepared, training: Sequence[int], last: Prepared, validation: Sequence[int]) -> Copies:
    """Of images that are trained on and validated with."""
    if first.digests is None or last.digests is None:
        return NONE
    trained = {int(first.digests[place]): place for place in reversed(training)}
    digests = [(place, int(last.digests[place])) for place in validation]
    pairs = [(place, trained[digest]) for place, digest in digests if digest in trained]
    copies = _listed(last, first, pairs)
    if copies.count:
        otherwise = sum(set(last.labels[place]) != set(first.labels[other]) for place, other in pairs)
        logger.warning(
            "%s of %s to validate with are trained on, too, by their bytes (%s)%s: the metrics do not tell how the "
            "model does on new images; leave them out of one of the two",
            f"{copies.count:,}",
            counted(len(validation), "image"),
            _named(copies),
            f", {otherwise:,} of them with other labels" if otherwise else "",
        )
    return copies


def _listed(images: Prepared, others: Prepared, pairs: Sequence[tuple[int, int]]) -> Copies:
    first = [
        {
            "image": images.names[place],
            "copy_of": others.names[other],
            "same_labels": set(images.labels[place]) == set(others.labels[other]),
        }
        for place, other in pairs[:MOST_LISTED]
    ]
    return Copies(len(pairs), first)


def _named(copies: Copies) -> str:
    return ", ".join(_pairs(copies)) + (", …" if copies.count > FIRST_SHOWN else "")


def _pairs(copies: Copies) -> Iterator[str]:
    for one in islice(copies.first, FIRST_SHOWN):
        yield f"{one['image'] or 'an image without a name'} is {one['copy_of'] or 'one without a name'}"
