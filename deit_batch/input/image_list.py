"""JSON documents that list images, with what is known of each: COCO's, MegaDetector's, SpeciesNet's.

Formats: cocodataset.org/#format-data; "batch processing output format" of github.com/agentmorris/MegaDetector;
github.com/google/cameratrapai (`instances`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from deit_batch.errors import RowError
from deit_batch.io import counted

logger = logging.getLogger("deit_batch")

LISTS = ("images", "instances")
"""The fields that hold the list, the likeliest first."""

LABEL = "label"


def images_listed(document: object, name: str) -> list[Any] | None:
    """The images of a document called `name`, each with its fields and, of COCO's, its category as `label`: a list of
    them, if any image has several. None if it is no such document. Raises RowError if it has not the form of one."""
    if not isinstance(document, dict):
        return None
    field = next((field for field in LISTS if isinstance(document.get(field), list)), None)
    if field is None or "input_data" in document:
        return None
    images: list[Any] = document[field]
    left = [other for other in document if other != field]
    if isinstance(document.get("annotations"), list) and isinstance(document.get("categories"), list):
        images = _with_labels(images, document["annotations"], document["categories"], name)
        left = [other for other in left if other not in ("annotations", "categories")]
    if any(isinstance(image, Mapping) and "detections" in image for image in images[:1]):
        logger.info("%s: whole images are scored, whatever was detected; --keep detections copies that", name)
    if left:
        logger.info("%s: not looked at: %s", name, ", ".join(left)[:200])
    return images


def _with_labels(images: list[Any], annotations: list[Any], categories: list[Any], name: str) -> list[Any]:
    names = {_id(category, "id"): str(category.get("name", category["id"])) for category in categories}
    found: dict[object, dict[str, None]] = {}
    for annotation in annotations:
        category = _id(annotation, "category_id")
        if category not in names:
            raise RowError(f"an annotation is of category {category!r}, which is not among the categories")
        found.setdefault(_id(annotation, "image_id"), {})[names[category]] = None
    several = any(len(labels) > 1 for labels in found.values())
    listed = []
    for image in images:
        labels = list(found.pop(image["id"], ())) if isinstance(image, Mapping) and _has_id(image) else []
        label = labels if several else labels[0] if labels else None
        listed.append({LABEL: label, **image} if isinstance(image, Mapping) else image)
    if found:
        logger.warning(
            "%s: %s not among its images", name, counted(len(found), "annotated image is", "annotated images are")
        )
    return listed


def _has_id(image: Mapping[str, Any]) -> bool:
    return isinstance(image.get("id"), int | str)


def _id(item: Any, field: str) -> int | str:
    value = item.get(field) if isinstance(item, Mapping) else None
    if not isinstance(value, int | str):
        raise RowError(f"a {json.dumps(field)} is missing in {json.dumps(item, default=str):.60}")
    return value
