"""Records as JSON that any reader takes."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deit_batch.io import Failure, Record, counted, json_line, json_value

_anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def no_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


@given(
    st.none() | st.text(st.characters()),
    st.lists(st.tuples(st.text(st.characters()), st.floats(0, 1))),
    st.none() | st.text(st.characters()),
    st.dictionaries(st.text(st.characters(), min_size=1), _anything),
    st.none() | st.just("0f" * 32),
)
def test_any_record_is_one_line_of_strict_json(
    image: str | None,
    predictions: list[tuple[str, float]],
    error: str | None,
    keep: dict[str, object],
    digest: str | None,
) -> None:
    failure = None if error is None else Failure("X", error)
    record = Record(3, image, [{"label": label, "score": score} for label, score in predictions], failure, keep, digest)
    line = record.line()
    assert line == json_line(record.as_dict())
    assert line.count(b"\n") == 1
    values = json.loads(line.decode("utf-8"), parse_constant=no_constant)
    assert [p["score"] for p in values["predictions"]] == [score for _, score in predictions]


@given(st.binary())
def test_kept_bytes_are_base64_wherever_they_stand(data: bytes) -> None:
    """As of an image column of Parquet."""
    text = base64.b64encode(data).decode()
    assert json_value([data, {"bytes": bytearray(data), "path": None}]) == [text, {"bytes": text, "path": None}]


@pytest.mark.parametrize(
    ("number", "words"), [(0, "0 images"), (1, "1 image"), (2, "2 images"), (1_000, "1,000 images")]
)
def test_one_is_no_plural(number: int, words: str) -> None:
    assert counted(number, "image") == words
    assert counted(number, "class", "classes") == words.replace("image", "class").replace("classs", "classes")
