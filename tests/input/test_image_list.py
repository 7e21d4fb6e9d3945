"""JSON documents that list images: COCO's, MegaDetector's, SpeciesNet's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deit_batch.errors import DeitBatchError, UsageError
from deit_batch.input.image_list import images_listed
from deit_batch.input.labels import open_labelled
from deit_batch.input.open import open_source
from deit_batch.io import Failure, LocalFile

COCO = {
    "info": {"year": 2026},
    "images": [
        {"id": 1, "file_name": "x/a.png", "width": 28},
        {"id": "2", "file_name": "b.png"},
        {"id": 3, "file_name": "c.png"},
    ],
    "annotations": [
        {"image_id": 1, "category_id": 7, "bbox": [0, 0, 1, 1]},
        {"image_id": 1, "category_id": 7},
        {"image_id": "2", "category_id": 8},
    ],
    "categories": [{"id": 7, "name": "bag"}, {"id": 8, "name": "coat"}],
}  # fmt: skip


def written(folder: Path, document: object) -> str:
    path = folder / "list.json"
    path.write_text(json.dumps(document))
    return str(path)


def test_cocos_images_have_the_category_of_their_annotations(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = written(tmp_path, COCO)
    with caplog.at_level("INFO", "deit_batch"):
        source = open_source(path, keep=["width", "id"])
    assert caplog.messages == [f"{path}: not looked at: info"]
    references = list(source.references)
    assert [reference.image for reference in references] == ["x/a.png", "b.png", "c.png"]
    assert references[0].location == LocalFile(f"{tmp_path}/x/a.png", str(tmp_path))
    assert [reference.keep for reference in references[:2]] == [{"width": 28, "id": 1}, {"width": None, "id": "2"}]
    labelled = open_labelled(path)
    assert not labelled.multi_label
    *examples, without = labelled.examples
    assert [example.labels for example in examples] == [("bag",), ("coat",)]
    assert isinstance(without.reference.location, Failure)
    assert without.reference.location.message == "the label is empty"


def test_of_several_categories_an_image_has_a_list(tmp_path: Path) -> None:
    annotations = [*COCO["annotations"], {"image_id": 1, "category_id": 8}, {"image_id": 9, "category_id": 8}]
    labelled = open_labelled(written(tmp_path, {**COCO, "annotations": annotations}))
    assert labelled.multi_label
    assert [example.labels for example in labelled.examples] == [("bag", "coat"), ("coat",), ()]


def test_annotations_of_no_image_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING", "deit_batch")
    path = written(tmp_path, {**COCO, "annotations": [{"image_id": 9, "category_id": 8}]})
    open_source(path)
    assert caplog.messages == [f"{path}: 1 annotated image is not among its images"]


def test_megadetectors_images_are_scored_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    detections = [{"category": "1", "conf": 0.9, "bbox": [0, 0, 1, 1]}]
    images = [{"file": "a.png", "detections": detections}, {"file": "b.png", "failure": "damaged", "detections": None}]
    path = written(tmp_path, {"images": images, "detection_categories": {"1": "animal"}, "info": {}})
    with caplog.at_level("INFO", "deit_batch"):
        references = list(open_source(path, keep=["detections"], base=str(tmp_path)).references)
    assert [reference.image for reference in references] == ["a.png", "b.png"]
    assert references[0].keep == {"detections": detections}
    assert caplog.messages == [
        f"{path}: whole images are scored, whatever was detected; --keep detections copies that",
        f"{path}: not looked at: detection_categories, info",
    ]


def test_speciesnets_instances_and_bare_names(tmp_path: Path) -> None:
    path = written(tmp_path, {"instances": [{"filepath": "a.png", "country": "KEN"}, "b.png", 7]})
    first, second, third = open_source(path).references
    assert (first.image, second.image) == ("a.png", "b.png")
    assert isinstance(third.location, Failure)
    assert third.location.message == "a JSON number where an image should be"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotations": [{"image_id": 1, "category_id": 9}]}, "of category 9, which is not among the categories"),
        ({"annotations": [{"category_id": 7}]}, 'a "image_id" is missing in {"category_id": 7}'),
        ({"annotations": [3]}, 'a "category_id" is missing in 3'),
        ({"categories": ["bag"]}, 'a "id" is missing in "bag"'),
        ({"images": {}}, 'there is no "input_data" in it'),
    ],
)
def test_a_document_that_is_not_whole_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        open_source(written(tmp_path, {**COCO, **change}))


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["a.png", "7"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from("images instances annotations categories id image_id category_id name file_name".split()),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from(["images", "instances", "annotations", "categories", "x"]), _json))
def test_any_document_is_rows_or_one_of_our_errors(tmp_path_factory: pytest.TempPathFactory, document: Any) -> None:
    path = written(tmp_path_factory.getbasetemp(), document)
    try:
        references = list(open_source(path).references)
    except DeitBatchError as error:
        assert "unexpected" not in str(error)  # noqa: PT017
        return
    assert len(references) == len(images_listed(document, path) or ())
