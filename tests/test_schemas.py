"""The published schemas: true of what we write (read_jsonl and read_json of conftest.py hold every test to them), and
strict enough to notice when it changes."""

from __future__ import annotations

import base64
import json
from dataclasses import fields
from importlib import resources
from typing import Any, get_args

import jsonschema
import pytest
from helpers import schema, valid
from hypothesis import given
from hypothesis import strategies as st

from deit_batch import errors
from deit_batch.io import RECORD_FIELDS, Failure, Prediction, Record, json_line
from deit_batch.limits import Limits
from deit_batch.model.architecture import FEATURES
from deit_batch.model.recipe import Recipe
from deit_batch.options import Options
from deit_batch.report.comparison import State

NAMES = sorted(path.name.removesuffix(".schema.json") for path in (resources.files("deit_batch") / "schemas").iterdir())

_text = st.text(st.characters())  # half surrogate pairs, too
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _text | st.dates(),
    lambda inner: st.lists(inner) | st.dictionaries(_text, inner),
    max_leaves=5,
)
_kept = st.dictionaries(_text.filter(lambda name: name not in (*RECORD_FIELDS, "features")), _json, max_size=3)
_scores = st.lists(st.tuples(_text, st.floats(0, 1)), max_size=3)
_failures = st.builds(Failure, st.sampled_from([error.__name__ for error in errors.ImageError.__subclasses__()]), _text)
_digests = st.none() | st.binary(min_size=32, max_size=32).map(bytes.hex)


@st.composite
def records(draw: st.DrawFn) -> Record:
    error = draw(st.none() | _failures)
    predictions: list[Prediction] = []
    if error is None:
        predictions = [{"label": label, "score": score} for label, score in draw(_scores)]
    index, image = draw(st.integers(0)), draw(st.none() | _text)
    return Record(index, image, predictions, error, draw(_kept), draw(_digests))


def written(record: Record) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(json_line(record.as_dict()))
    return values


@pytest.mark.parametrize("name", NAMES)
def test_a_schema_is_one_and_says_of_what(name: str) -> None:
    document = schema(name).schema
    jsonschema.Draft202012Validator.check_schema(document)
    assert document["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert document["$id"] == f"urn:deit-batch:schema:{name}"
    assert document["title"]
    assert document["description"]


@given(records())
def test_every_record_that_can_be_made_is_valid(record: Record) -> None:
    values = valid(written(record), "record")
    valid([values.pop("predictions")], "sample-output")
    valid(values, "features-row")


_wrong: list[Any] = [None, True, -1, 1.5, "x", [], [None], {}, {"label": "can"}]


@given(records(), st.sampled_from(["index", "image", "predictions", "error", "image_bytes", "image_sha256"]), st.data())
def test_a_record_that_lacks_a_field_or_has_another_type_in_it_is_not(
    record: Record, name: str, data: st.DataObject
) -> None:
    values = written(record)
    if name in values and name in ("index", "image", "predictions"):
        assert not schema("record").is_valid({other: value for other, value in values.items() if other != name})
    fits: dict[str, Any] = {"image": [None, "x"], "predictions": [[]]}
    wrong = data.draw(st.sampled_from([value for value in _wrong if value not in fits.get(name, [])]))
    assert not schema("record").is_valid({**values, name: wrong})


@pytest.mark.parametrize(
    "change",
    [
        {"predictions": [{"label": "can", "score": 1.1}]},
        {"predictions": [{"label": "can", "score": 0.5, "rank": 1}]},
        {"error": {"type": "OSError", "message": ""}},
        {"error": {"type": "RowError", "message": ""}},  # beside predictions
        {"image_sha256": "abc"},
    ],
)
def test_what_no_record_says_is_refused(change: dict[str, Any]) -> None:
    record = written(Record(0, "a.jpg", [{"label": "can", "score": 0.5}], keep={"id": 7}))
    valid(record, "record")
    assert not schema("record").is_valid({**record, **change})


@given(st.binary(min_size=1))
def test_names_that_are_not_utf8_keep_their_bytes(name: bytes) -> None:
    image = name.decode("utf-8", "surrogateescape")
    values = valid(written(Record(0, image, [])), "record")
    assert base64.b64decode(values.get("image_bytes", "")) in (b"", name)


def test_a_schema_names_all_that_the_code_has() -> None:
    """What no test would write: a list of names that has grown in the code alone is found here."""
    record, report = schema("record").schema, schema("run-report").schema
    kinds = {error.__name__ for error in errors.ImageError.__subclasses__()}
    assert set(record["properties"]) == set(RECORD_FIELDS)
    assert set(record["$defs"]["error"]["properties"]["type"]["enum"]) == kinds
    made_of = report["$defs"]
    for of, name in ((Options, "options"), (Limits, "limits"), (Recipe, "recipe")):
        assert set(made_of[name]["properties"]) == set(made_of[name]["required"]) == {f.name for f in fields(of)}
    assert made_of["settings"]["properties"]["features"]["items"]["enum"] == list(FEATURES)
    images = schema("comparison").schema["properties"]["images"]["properties"]
    assert list(images) == [state.replace(" ", "_") for state in get_args(State)]


@pytest.mark.parametrize("name", NAMES)
def test_what_we_write_ourselves_is_closed(name: str) -> None:
    """But for a record's kept columns, and what other parts define: no field without a description of what may be in
    it."""

    def look(part: Any, path: str) -> None:
        if isinstance(part, dict):
            if "properties" in part and part.get("type") == "object":
                is_open = part["additionalProperties"] is True
                assert is_open == (path == "" and name in ("record", "features-row")), path
            for key, value in part.items():
                look(value, f"{path}/{key}")
        elif isinstance(part, list):
            for number, value in enumerate(part):
                look(value, f"{path}/{number}")

    look(schema(name).schema, "")
